//! `ls` and `tags`: one row for each cached tag, and for each manifest that was pulled by digest.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::cache::freshness::Freshness;
use crate::cache::{Cache, CacheView};
use crate::clock::Timestamp;
use crate::oci::{Digest, Repository, Tag};
use crate::store::{StoreError, TagFact};

use super::completeness::{Needs, complete_images};
use super::image_tree::{ImageTree, PlatformImage};
use super::protocol::OpsError;
use super::reference;

/// Completeness of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Completeness {
    /// All platforms are complete.
    All,
    /// Some platforms are complete.
    Some,
    /// No platform can be pulled without the upstream.
    None,
}

/// Freshness of a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TagFreshness {
    /// Served without a request to the upstream.
    Fresh,
    /// Served, and revalidated in the background.
    Revalidate,
    /// Revalidated before it is served.
    Expired,
    /// Reference by digest, which never changes.
    Immutable,
}

impl From<Freshness> for TagFreshness {
    fn from(freshness: Freshness) -> Self {
        match freshness {
            Freshness::Fresh => Self::Fresh,
            Freshness::ServeAndRevalidate => Self::Revalidate,
            Freshness::Expired => Self::Expired,
        }
    }
}

/// Platform of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Platform)]
pub struct PlatformRow {
    /// `os/arch[/variant]`, if stated.
    pub platform: Option<String>,
    /// Digest of the manifest.
    pub digest: Digest,
    /// True if the manifest is cached.
    pub manifest: bool,
    /// True if all content is cached, attestations included.
    pub complete: bool,
    /// Bytes of manifest and blobs, as far as known.
    pub size: u64,
}

impl PlatformRow {
    /// Returns a row for each image of a tree, in the same order.
    pub(super) fn of_tree(tree: &ImageTree) -> Vec<Self> {
        let images = tree.images.iter().zip(complete_images(tree));
        images.map(|(image, complete)| Self::new(image, complete)).collect()
    }

    fn new(image: &PlatformImage, complete: bool) -> Self {
        let parts = std::iter::once(&image.manifest).chain(&image.blobs);
        Self {
            platform: image.platform.clone(),
            digest: image.manifest.digest,
            manifest: image.manifest.cached,
            complete,
            size: parts.filter_map(|part| part.size).sum(),
        }
    }
}

/// Cached image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Image)]
pub struct ListRow {
    /// Repository, with the upstream in front.
    pub repository: String,
    /// Tag. `None` for an image that was pulled by digest.
    pub tag: Option<String>,
    /// Digest of the image.
    pub digest: Digest,
    /// Media type. `None` if the manifest is not cached.
    pub media_type: Option<String>,
    /// Platforms of the image.
    pub platforms: Vec<PlatformRow>,
    /// Cached bytes.
    pub size: u64,
    /// Time at which the tag moved to this digest.
    pub moved_at: Option<Timestamp>,
    /// Time at which the upstream last confirmed the tag.
    pub checked_at: Option<Timestamp>,
    /// Time of the last pull, or at which the image was stored.
    pub last_pull: Option<Timestamp>,
    /// Freshness of the tag.
    pub freshness: TagFreshness,
    /// Completeness of the image.
    pub complete: Completeness,
    /// Limit that ended the walk over the index. The index has more content than the row shows.
    #[serde(default)]
    #[schema(required = true)]
    pub limit: Option<String>,
}

/// Report of `ls` and `tags`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Images)]
pub struct ListReport {
    /// Time of the report.
    pub now: Timestamp,
    /// Images in the order of their names; digests after tags.
    pub images: Vec<ListRow>,
}

/// Lists the cached images of one repository, or of all. `untagged` adds images that no tag reaches.
pub async fn list(cache: &Cache, repository: Option<&str>, untagged: bool) -> Result<ListReport, OpsError> {
    let only = repository.map(|name| reference::repository(cache, name)).transpose()?;
    let report = cache
        .view({
            let only = only.clone();
            move |view| {
                let images = rows(&view, only.as_ref(), untagged)?;
                Ok(ListReport { now: view.now(), images })
            }
        })
        .await?;
    match only {
        Some(repository) if report.images.is_empty() => {
            Err(OpsError::NotCached(format!("nothing of {repository} is cached")))
        }
        _ => Ok(report),
    }
}

fn rows(view: &CacheView<'_>, only: Option<&Repository>, untagged: bool) -> Result<Vec<ListRow>, StoreError> {
    let (mut rows, mut reachable) = (Vec::new(), HashSet::new());
    for (repository, tag, fact) in view.tagged(only)? {
        let tree = ImageTree::below(view, &repository, &fact.digest)?;
        if let Some(tree) = &tree {
            let below = tree.images.iter().map(|image| image.manifest.digest);
            let indexes = tree.indexes.iter().map(|index| index.digest);
            reachable.extend(below.chain(indexes).map(|digest| (repository.clone(), digest)));
        }
        reachable.insert((repository.clone(), fact.digest));
        rows.push(row(view, &repository, Some((&tag, &fact)), fact.digest, tree.as_ref()));
    }
    if !untagged {
        return Ok(rows);
    }
    let mut unreached = Vec::new();
    for (repository, digest) in view.linked_manifests(only)? {
        if !reachable.contains(&(repository.clone(), digest)) {
            let Some(tree) = ImageTree::below(view, &repository, &digest)? else { continue };
            unreached.push((repository, digest, tree));
        }
    }
    // Children of an index that was pulled by digest have no row of their own either.
    for (repository, _, tree) in &unreached {
        if tree.is_index {
            let below = tree.images.iter().map(|image| image.manifest.digest);
            let indexes = tree.indexes.iter().map(|index| index.digest);
            reachable.extend(below.chain(indexes).map(|digest| (repository.clone(), digest)));
        }
    }
    for (repository, digest, tree) in unreached {
        if !reachable.contains(&(repository.clone(), digest)) {
            rows.push(row(view, &repository, None, digest, Some(&tree)));
        }
    }
    rows.sort_by(|a, b| {
        (&a.repository, a.tag.is_none(), &a.tag).cmp(&(&b.repository, b.tag.is_none(), &b.tag))
    });
    Ok(rows)
}

fn row(
    view: &CacheView<'_>,
    repository: &Repository,
    tagged: Option<(&Tag, &TagFact)>,
    digest: Digest,
    tree: Option<&ImageTree>,
) -> ListRow {
    let freshness = match tagged {
        Some((tag, fact)) => view
            .tag_status(repository, tag, fact)
            .map_or(TagFreshness::Expired, |status| status.freshness.into()),
        None => TagFreshness::Immutable,
    };
    ListRow {
        repository: repository.to_string(),
        tag: tagged.map(|(tag, _)| tag.to_string()),
        digest,
        media_type: tree.map(|tree| tree.document.media_type.to_string()),
        platforms: tree.map(PlatformRow::of_tree).unwrap_or_default(),
        size: tree.map(ImageTree::cached_bytes).unwrap_or_default(),
        moved_at: tagged.map(|(_, fact)| fact.moved_at),
        checked_at: tagged.map(|(_, fact)| fact.checked_at),
        last_pull: view.last_access(&digest),
        freshness,
        complete: tree.map_or(Completeness::None, completeness),
        limit: tree.and_then(|tree| tree.limit).map(|limit| limit.to_string()),
    }
}

/// Returns the completeness of an image, by the definition of `check`.
fn completeness(tree: &ImageTree) -> Completeness {
    let needs = Needs::of(tree, &[]);
    if needs.is_complete() {
        Completeness::All
    } else if tree
        .images
        .iter()
        .zip(complete_images(tree))
        .any(|(image, complete)| complete && image.is_image())
    {
        Completeness::Some
    } else {
        Completeness::None
    }
}
