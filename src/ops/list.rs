//! `ls` and `tags`: one row for each cached tag, and for each manifest that was pulled by digest.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::cache::freshness::Freshness;
use crate::cache::{Cache, CacheView};
use crate::clock::Timestamp;
use crate::oci::{Digest, Repository, Tag};
use crate::store::{StoreError, TagFact};

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
    /// `os/arch[/variant]`, as far as it is stated.
    pub platform: Option<String>,
    /// Its manifest.
    pub digest: Digest,
    /// True if the manifest is cached.
    pub manifest: bool,
    /// True if all content is cached.
    pub complete: bool,
    /// Bytes of manifest and blobs, as far as they are known.
    pub size: u64,
}

impl From<&PlatformImage> for PlatformRow {
    fn from(image: &PlatformImage) -> Self {
        let parts = std::iter::once(&image.manifest).chain(&image.blobs);
        Self {
            platform: image.platform.clone(),
            digest: image.manifest.digest,
            manifest: image.manifest.held,
            complete: image.is_complete(),
            size: parts.filter_map(|part| part.size).sum(),
        }
    }
}

/// Cached image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Image)]
pub struct ListRow {
    /// The repository, with its upstream in front.
    pub repository: String,
    /// The tag; none for what is held by digest alone.
    pub tag: Option<String>,
    /// What the tag stands for.
    pub digest: Digest,
    /// Its media type; none if the document is gone.
    pub media_type: Option<String>,
    /// What there is for which platform.
    pub platforms: Vec<PlatformRow>,
    /// Bytes that are held of it.
    pub size: u64,
    /// Time at which the tag moved to this digest.
    pub moved_at: Option<Timestamp>,
    /// Time at which the upstream last confirmed the tag.
    pub checked_at: Option<Timestamp>,
    /// Time of the last pull, or at which the image was stored.
    pub last_pull: Option<Timestamp>,
    /// Whether it has to be asked for again.
    pub freshness: TagFreshness,
    /// How much of it is held.
    pub complete: Completeness,
}

/// Report of `ls` and `tags`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Images)]
pub struct ListReport {
    /// Time of the report.
    pub now: Timestamp,
    /// In the order of their names; digests after tags.
    pub images: Vec<ListRow>,
}

/// Lists what is held, of one repository or of all. With `untagged` also what no tag leads to.
pub async fn list(cache: &Cache, repository: Option<&str>, untagged: bool) -> Result<ListReport, OpsError> {
    let only = repository.map(|name| reference::repository(cache, name)).transpose()?;
    let report = cache
        .view({
            let only = only.clone();
            move |held| {
                let images = rows(&held, only.as_ref(), untagged)?;
                Ok(ListReport { now: held.now(), images })
            }
        })
        .await?;
    match only {
        Some(repository) if report.images.is_empty() => {
            Err(OpsError::NotHeld(format!("nothing is held of {repository}")))
        }
        _ => Ok(report),
    }
}

fn rows(held: &CacheView<'_>, only: Option<&Repository>, untagged: bool) -> Result<Vec<ListRow>, StoreError> {
    let (mut rows, mut led_to) = (Vec::new(), HashSet::new());
    for (repository, tag, fact) in held.tagged(only)? {
        let tree = ImageTree::below(held, &repository, &fact.digest)?;
        if let Some(tree) = &tree {
            let below = tree.images.iter().map(|image| image.manifest.digest);
            let indexes = tree.indexes.iter().map(|index| index.digest);
            led_to.extend(below.chain(indexes).map(|digest| (repository.clone(), digest)));
        }
        led_to.insert((repository.clone(), fact.digest));
        rows.push(row(held, &repository, Some((&tag, &fact)), fact.digest, tree.as_ref()));
    }
    if !untagged {
        return Ok(rows);
    }
    let mut loose = Vec::new();
    for (repository, digest) in held.linked_manifests(only)? {
        if !led_to.contains(&(repository.clone(), digest)) {
            let Some(tree) = ImageTree::below(held, &repository, &digest)? else { continue };
            loose.push((repository, digest, tree));
        }
    }
    // What an index that was pulled by digest leads to has no row of its own either.
    for (repository, _, tree) in &loose {
        if tree.is_index {
            let below = tree.images.iter().map(|image| image.manifest.digest);
            let indexes = tree.indexes.iter().map(|index| index.digest);
            led_to.extend(below.chain(indexes).map(|digest| (repository.clone(), digest)));
        }
    }
    for (repository, digest, tree) in loose {
        if !led_to.contains(&(repository.clone(), digest)) {
            rows.push(row(held, &repository, None, digest, Some(&tree)));
        }
    }
    rows.sort_by(|a, b| {
        (&a.repository, a.tag.is_none(), &a.tag).cmp(&(&b.repository, b.tag.is_none(), &b.tag))
    });
    Ok(rows)
}

fn row(
    held: &CacheView<'_>,
    repository: &Repository,
    tagged: Option<(&Tag, &TagFact)>,
    digest: Digest,
    tree: Option<&ImageTree>,
) -> ListRow {
    let freshness = match tagged {
        Some((tag, fact)) => held
            .tag_status(repository, tag, fact)
            .map_or(TagFreshness::Expired, |standing| standing.freshness.into()),
        None => TagFreshness::Immutable,
    };
    ListRow {
        repository: repository.to_string(),
        tag: tagged.map(|(tag, _)| tag.to_string()),
        digest,
        media_type: tree.map(|tree| tree.document.media_type.to_string()),
        platforms: tree.map(|tree| tree.images.iter().map(PlatformRow::from).collect()).unwrap_or_default(),
        size: tree.map(ImageTree::held_bytes).unwrap_or_default(),
        moved_at: tagged.map(|(_, fact)| fact.moved_at),
        checked_at: tagged.map(|(_, fact)| fact.checked_at),
        last_pull: held.last_access(&digest),
        freshness,
        complete: tree.map_or(Completeness::None, completeness),
    }
}

fn completeness(tree: &ImageTree) -> Completeness {
    let mut images = tree.images.iter().filter(|image| image.is_image()).peekable();
    if images.peek().is_none() {
        // Attestations alone, or nothing at all: then there is nothing else that could be lacking.
        return if tree.images.iter().all(PlatformImage::is_complete) {
            Completeness::All
        } else {
            Completeness::None
        };
    }
    let (complete, all) =
        images.fold((0, 0), |(complete, all), image| (complete + usize::from(image.is_complete()), all + 1));
    match complete {
        0 => Completeness::None,
        complete if complete == all => Completeness::All,
        _ => Completeness::Some,
    }
}
