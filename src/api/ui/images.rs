//! Pages of the cached images: repositories, tags of a repository, and search results.

use std::collections::BTreeMap;

use askama::Template;

use crate::clock::Timestamp;
use crate::ops::list::{self, Completeness, ListRow, PlatformRow, TagFreshness};
use crate::ops::platform::NO_IMAGE;
use crate::ops::{Operations, OpsError};

use super::format::{self, ByteCount, RelativeTime, plural, short_digest};
use super::page::{PageFrame, render};
use super::status_view::Badge;

/// Maximum number of rows on a page.
const SHOWN: usize = 1000;

#[derive(Template)]
#[template(path = "images.html", config = "src/api/ui/askama.toml")]
struct Repositories {
    page: PageFrame,
    rows: Vec<RepositoryRow>,
    /// True if the cache is empty.
    is_empty: bool,
    /// Results of a search.
    found: Option<Vec<TagRow>>,
    /// Number of rows that are not shown.
    more: usize,
}

#[derive(Template)]
#[template(path = "repository.html", config = "src/api/ui/askama.toml")]
struct RepositoryPage {
    page: PageFrame,
    repository: String,
    rows: Vec<TagRow>,
    more: usize,
}

struct RepositoryRow {
    name: String,
    tags: String,
    /// Number of images without a tag, in words.
    untagged: Option<String>,
    complete: Badge,
    last_pull: Option<RelativeTime>,
}

struct TagRow {
    repository: String,
    tag: Option<String>,
    link: String,
    digest: String,
    short: String,
    platforms: Vec<PlatformChip>,
    size: ByteCount,
    moved: Option<RelativeTime>,
    checked: Option<RelativeTime>,
    last_pull: Option<RelativeTime>,
    fresh: Badge,
    complete: Badge,
}

/// Platform of an image; `complete` is true if all of its content is cached.
pub(super) struct PlatformChip {
    pub(super) name: String,
    pub(super) complete: bool,
}

/// Renders the list of repositories, or the results of a search.
pub(super) async fn all(operations: &Operations, query: &str) -> Result<String, OpsError> {
    let report = list::list(operations.cache(), None, true).await?;
    let is_empty = report.images.is_empty();
    let mut page = PageFrame::new("Images", "images");
    query.clone_into(&mut page.query);
    if query.is_empty() {
        let mut rows = repositories(&report.images, report.now);
        let more = rows.len().saturating_sub(SHOWN);
        rows.truncate(SHOWN);
        return render(&Repositories { page, rows, is_empty, found: None, more });
    }
    page.title = format!("Images with “{query}”");
    let words: Vec<String> = query.to_lowercase().split_whitespace().map(str::to_owned).collect();
    let hits: Vec<&ListRow> = report.images.iter().filter(|row| matches_search(row, &words)).collect();
    let more = hits.len().saturating_sub(SHOWN);
    let found = hits.into_iter().take(SHOWN).map(|row| tag_row(row, report.now)).collect();
    render(&Repositories { page, rows: Vec::new(), is_empty, found: Some(found), more })
}

/// Renders the list of images of a repository.
pub(super) async fn repository(operations: &Operations, name: &str) -> Result<String, OpsError> {
    let report = list::list(operations.cache(), Some(name), true).await?;
    let Some(first) = report.images.first() else {
        return Err(OpsError::NotCached(format!("nothing of {name} is cached")));
    };
    let repository = first.repository.clone();
    let more = report.images.len().saturating_sub(SHOWN);
    let rows = report.images.iter().take(SHOWN).map(|row| tag_row(row, report.now)).collect();
    render(&RepositoryPage { page: PageFrame::new(repository.clone(), "images"), repository, rows, more })
}

/// Returns true if the name, tag or digest of a row contain all words.
fn matches_search(row: &ListRow, words: &[String]) -> bool {
    let tag = row.tag.as_deref().unwrap_or_default();
    let whole = format!("{}:{tag} {}", row.repository, row.digest).to_lowercase();
    words.iter().all(|word| whole.contains(word))
}

fn repositories(images: &[ListRow], now: Timestamp) -> Vec<RepositoryRow> {
    let mut by_name: BTreeMap<&str, Vec<&ListRow>> = BTreeMap::new();
    for row in images {
        by_name.entry(&row.repository).or_default().push(row);
    }
    let row = |(name, rows): (&str, Vec<&ListRow>)| {
        let tags = rows.iter().filter(|row| row.tag.is_some()).count();
        let untagged = rows.len() - tags;
        let whole = rows.iter().filter(|row| row.complete == Completeness::All).count();
        let some = rows.iter().any(|row| row.complete != Completeness::None);
        RepositoryRow {
            name: name.to_owned(),
            tags: plural(tags as u64, "tag"),
            untagged: (untagged > 0).then(|| format!("{untagged} by digest")),
            complete: match (whole == rows.len(), some) {
                (true, _) => Badge::new("good", "all complete"),
                (false, true) => Badge::new("fair", format!("{whole} of {} complete", rows.len())),
                (false, false) => Badge::new("bad", "none complete"),
            },
            last_pull: rows.iter().filter_map(|row| row.last_pull).max().map(|at| RelativeTime { at, now }),
        }
    };
    by_name.into_iter().map(row).collect()
}

fn tag_row(row: &ListRow, now: Timestamp) -> TagRow {
    let digest = row.digest.to_string();
    let reference = match &row.tag {
        Some(tag) => format!("{}:{tag}", row.repository),
        None => format!("{}@{digest}", row.repository),
    };
    let when = |at: Option<Timestamp>| at.map(|at| RelativeTime { at, now });
    TagRow {
        repository: row.repository.clone(),
        tag: row.tag.clone(),
        link: format::image_url("/image", &reference, &[]),
        short: short_digest(&digest),
        digest,
        platforms: chips(&row.platforms),
        size: ByteCount(row.size),
        moved: when(row.moved_at),
        checked: when(row.checked_at),
        last_pull: when(row.last_pull),
        fresh: fresh(row.freshness),
        complete: match row.complete {
            Completeness::All => Badge::new("good", "complete"),
            Completeness::Some => Badge::new("fair", "some platforms"),
            Completeness::None => Badge::new("bad", "incomplete"),
        },
    }
}

/// Returns the platforms of the images, without attestations.
pub(super) fn chips(rows: &[PlatformRow]) -> Vec<PlatformChip> {
    let images = rows.iter().filter(|row| row.platform.as_deref() != Some(NO_IMAGE));
    let named =
        images.filter_map(|row| Some(PlatformChip { name: row.platform.clone()?, complete: row.complete }));
    named.collect()
}

/// Returns the freshness of a tag.
pub(super) fn fresh(freshness: TagFreshness) -> Badge {
    match freshness {
        TagFreshness::Fresh => Badge::new("good", "fresh"),
        TagFreshness::Immutable => Badge::new("good", "by digest"),
        TagFreshness::Revalidate => Badge::new("fair", "revalidate"),
        TagFreshness::Expired => Badge::new("fair", "expired"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Algorithm, Digest};

    fn row(repository: &str, tag: Option<&str>, complete: Completeness) -> ListRow {
        ListRow {
            repository: repository.to_owned(),
            tag: tag.map(str::to_owned),
            digest: Digest::of(Algorithm::Sha256, b"x"),
            media_type: None,
            platforms: Vec::new(),
            size: 0,
            moved_at: None,
            checked_at: None,
            last_pull: Some(Timestamp::from_millis(5)),
            freshness: TagFreshness::Fresh,
            complete,
            limit: None,
        }
    }

    #[test]
    fn search_matches_all_words_in_any_field() {
        let row = row("docker.io/library/BusyBox", Some("1.36"), Completeness::All);
        let meant =
            |text: &str| matches_search(&row, &text.split(' ').map(str::to_lowercase).collect::<Vec<_>>());
        assert!(meant("busy") && meant("box 1.3") && meant("busybox:1") && meant("sha256:2d71"));
        assert!(!meant("busy alpine"));
    }

    #[test]
    fn repositories_show_totals() {
        let rows = [
            row("a", Some("1"), Completeness::All),
            row("a", None, Completeness::None),
            row("b", Some("1"), Completeness::None),
        ];
        let rows = repositories(&rows, Timestamp::from_millis(10));
        assert_eq!((rows[0].tags.as_str(), rows[0].untagged.as_deref()), ("1 tag", Some("1 by digest")));
        assert_eq!(rows[0].complete.text, "1 of 2 complete");
        assert_eq!(rows[1].complete.class, "bad");
    }
}
