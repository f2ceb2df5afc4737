//! `larder ls` and `larder tags`.

use clap::Args;

use super::backend::{Answer, ServerOptions};
use super::table::{Table, ago, bad, fair, good, iec};
use crate::clock::Timestamp;
use crate::ops::list::{Completeness, ListReport, ListRow, TagFreshness};
use crate::ops::protocol::Query;

/// Arguments of `larder ls`.
#[derive(Args, Debug)]
pub(super) struct List {
    /// List this repository only, such as `busybox` or `ghcr.io/org/app`
    repository: Option<String>,
    #[command(flatten)]
    server: ServerOptions,
}

/// Arguments of `larder tags`.
#[derive(Args, Debug)]
pub(super) struct Tags {
    /// Repository, such as `busybox` or `ghcr.io/org/app`
    repository: String,
    #[command(flatten)]
    server: ServerOptions,
}

/// Lists the cached images.
pub(super) fn list(List { repository, server }: List) -> anyhow::Result<()> {
    show(&server, Query::List { repository })
}

/// Lists the cached tags of a repository.
pub(super) fn tags(Tags { repository, server }: Tags) -> anyhow::Result<()> {
    show(&server, Query::Tags { repository })
}

fn show(server: &ServerOptions, query: Query) -> anyhow::Result<()> {
    let all = matches!(query, Query::List { .. });
    let Answer { value, report } = server.with(async |backend| backend.ask::<ListReport>(query).await)?;
    server.print(&value, || render(&report, all))
}

/// Title and content of each column.
const COLUMNS: [(&str, Cell); 10] = [
    ("REPOSITORY", |row, _| row.repository.clone()),
    ("TAG", |row, _| row.tag.clone().unwrap_or_else(|| "-".to_owned())),
    ("DIGEST", |row, _| short(&row.digest.to_string())),
    ("TYPE", |row, _| kind(row.media_type.as_deref())),
    ("PLATFORMS", |row, _| platforms(row)),
    ("SIZE", |row, _| iec(row.size)),
    ("AGE", |row, now| ago(now, row.moved_at)),
    ("LAST PULL", |row, now| ago(now, row.last_pull)),
    ("FRESH", |row, _| fresh(row.freshness)),
    ("COMPLETE", |row, _| complete(row)),
];

/// Function from a row and the current time to the text of a cell.
type Cell = fn(&ListRow, Timestamp) -> String;

fn render(report: &ListReport, repositories: bool) -> String {
    let ListReport { now, images } = report;
    if images.is_empty() {
        return "nothing is cached yet\n".to_owned();
    }
    // `larder tags` omits the first column.
    let columns = if repositories { &COLUMNS[..] } else { &COLUMNS[1..] };
    let titles: Vec<&str> = columns.iter().map(|(title, _)| *title).collect();
    let mut table = Table::new(&titles);
    for row in images {
        table.row(columns.iter().map(|(_, cell)| cell(row, *now)).collect());
    }
    table.lines()
}

/// Returns the beginning of a digest, long enough to be unique in practice.
pub(super) fn short(digest: &str) -> String {
    digest.chars().take("sha256:".len() + 12).collect()
}

/// Returns a short name for the media types of manifests, and any other type unchanged.
fn kind(media_type: Option<&str>) -> String {
    let known = match media_type {
        None => "gone",
        Some("application/vnd.oci.image.index.v1+json") => "oci index",
        Some("application/vnd.oci.image.manifest.v1+json") => "oci manifest",
        Some("application/vnd.docker.distribution.manifest.list.v2+json") => "docker list",
        Some("application/vnd.docker.distribution.manifest.v2+json") => "docker manifest",
        Some(other) => other,
    };
    known.to_owned()
}

/// Returns the complete platforms and the number of the others.
fn platforms(row: &ListRow) -> String {
    let images: Vec<_> =
        row.platforms.iter().filter(|it| it.platform.as_deref() != Some("unknown/unknown")).collect();
    let complete: Vec<&str> =
        images.iter().filter(|it| it.complete).map(|it| it.platform.as_deref().unwrap_or("-")).collect();
    let others = images.len() - complete.len();
    match (complete.len(), others) {
        (0, 0) => "-".to_owned(),
        (_, 0) => complete.join(","),
        (0, others) => format!("(+{others})"),
        (_, others) => format!("{} (+{others})", complete.join(",")),
    }
}

pub(super) fn fresh(freshness: TagFreshness) -> String {
    match freshness {
        TagFreshness::Fresh => good("fresh"),
        TagFreshness::Immutable => good("immutable"),
        TagFreshness::Revalidate => fair("revalidate"),
        TagFreshness::Expired => fair("expired"),
    }
}

fn complete(row: &ListRow) -> String {
    match row.complete {
        Completeness::Some | Completeness::None if row.limit.is_some() => bad("index too large"),
        Completeness::All => good("yes"),
        Completeness::Some => fair("some"),
        Completeness::None => bad("no"),
    }
}
