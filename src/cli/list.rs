//! `larder ls` and `larder tags`.

use clap::Args;

use super::backend::{Answer, Reach};
use super::table::{Table, ago, bad, fair, good, iec};
use crate::ops::list::{Completeness, ListReport, ListRow, TagFreshness};
use crate::ops::query::Query;

/// What `larder ls` is told.
#[derive(Args, Debug)]
pub(super) struct List {
    /// The only repository, such as `busybox` or `ghcr.io/org/app`
    repository: Option<String>,
    #[command(flatten)]
    reach: Reach,
}

/// What `larder tags` is told.
#[derive(Args, Debug)]
pub(super) struct Tags {
    /// The repository, such as `busybox` or `ghcr.io/org/app`
    repository: String,
    #[command(flatten)]
    reach: Reach,
}

/// Lists what is held.
pub(super) fn list(List { repository, reach }: List) -> anyhow::Result<()> {
    show(&reach, Query::List { repository })
}

/// Lists the tags held of a repository.
pub(super) fn tags(Tags { repository, reach }: Tags) -> anyhow::Result<()> {
    show(&reach, Query::Tags { repository })
}

fn show(reach: &Reach, question: Query) -> anyhow::Result<()> {
    let whole = matches!(question, Query::List { .. });
    let Answer { value, report } = reach.with(async |backend| backend.ask::<ListReport>(question).await)?;
    reach.print(&value, || told(&report, whole))
}

fn told(report: &ListReport, repositories: bool) -> String {
    let ListReport { now, images } = report;
    if images.is_empty() {
        return "nothing is held yet\n".to_owned();
    }
    let mut table = Table::new(&[
        if repositories { "REPOSITORY" } else { "TAG" },
        if repositories { "TAG" } else { "DIGEST" },
        if repositories { "DIGEST" } else { "TYPE" },
        if repositories { "TYPE" } else { "PLATFORMS" },
        if repositories { "PLATFORMS" } else { "SIZE" },
        if repositories { "SIZE" } else { "AGE" },
        if repositories { "AGE" } else { "LAST PULL" },
        if repositories { "LAST PULL" } else { "FRESH" },
        if repositories { "FRESH" } else { "COMPLETE" },
        if repositories { "COMPLETE" } else { "" },
    ]);
    for row in images {
        let mut cells = Vec::new();
        if repositories {
            cells.push(row.repository.clone());
        }
        cells.extend([
            row.tag.clone().unwrap_or_else(|| "-".to_owned()),
            short(&row.digest.to_string()),
            kind(row.media_type.as_deref()),
            platforms(row),
            iec(row.size),
            ago(*now, row.moved_at),
            ago(*now, row.last_pull),
            fresh(row.freshness),
            complete(row),
        ]);
        table.row(cells);
    }
    table.lines()
}

/// As much of a digest as tells it from others.
pub(super) fn short(digest: &str) -> String {
    digest.chars().take("sha256:".len() + 12).collect()
}

/// A media type without what all of them have in common; one that nobody knows as it is.
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

/// The platforms that are held whole, and how many more there are.
fn platforms(row: &ListRow) -> String {
    let images: Vec<_> =
        row.platforms.iter().filter(|it| it.platform.as_deref() != Some("unknown/unknown")).collect();
    let whole: Vec<&str> =
        images.iter().filter(|it| it.complete).map(|it| it.platform.as_deref().unwrap_or("-")).collect();
    let others = images.len() - whole.len();
    match (whole.len(), others) {
        (0, 0) => "-".to_owned(),
        (_, 0) => whole.join(","),
        (0, others) => format!("(+{others})"),
        (_, others) => format!("{} (+{others})", whole.join(",")),
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
        Completeness::All => good("yes"),
        Completeness::Some => fair("some"),
        Completeness::None => bad("no"),
    }
}
