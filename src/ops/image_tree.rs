//! What lies below a manifest or an index: its images by platform, their blobs, and which of it is held.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cache::CacheView;
use crate::oci::media::ManifestKind;
use crate::oci::{Descriptor, Digest, Manifest, Repository};
use crate::store::{StoreError, StoredManifest};

use super::platform::NO_IMAGE;

/// Nested deeper than any walk below an index goes.
const DEPTH_MAX: u32 = 8;
/// More manifests than any walk brings in.
const COUNT_MAX: usize = 4096;
/// A larger config is no image's.
pub(super) const CONFIG_MAX: u64 = 4 << 20;

/// Something that a manifest or index points at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Part)]
pub struct ContentPart {
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes, as far as it is known.
    pub size: Option<u64>,
    /// Its media type, as it is stated.
    pub media_type: Option<String>,
    /// Whether it is held.
    pub held: bool,
    /// Whether it lies elsewhere (`urls`), so that no registry need have it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub foreign: bool,
}

/// An image for one platform, or whatever else an index points at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformImage {
    /// `os/arch[/variant]`, as far as it is stated.
    pub platform: Option<String>,
    /// The manifest.
    pub manifest: ContentPart,
    /// What the manifest points at; empty while it is not held.
    pub blobs: Vec<ContentPart>,
}

impl PlatformImage {
    /// Whether all that a pull needs is held.
    pub fn is_complete(&self) -> bool {
        self.manifest.held && self.blobs.iter().all(|blob| blob.held)
    }

    /// Whether it is one that a machine could run, and no attestation.
    pub fn is_image(&self) -> bool {
        self.platform.as_deref() != Some(NO_IMAGE)
    }

    /// What is not held of it.
    pub fn missing(&self) -> impl Iterator<Item = &ContentPart> {
        std::iter::once(&self.manifest).chain(&self.blobs).filter(|part| !part.held)
    }
}

/// A document with all that lies below it.
#[derive(Clone, Debug)]
pub struct ImageTree {
    /// The document itself.
    pub document: StoredManifest,
    /// Whether it is an index.
    pub is_index: bool,
    /// Images, in the order of the index; one for a document that is none.
    pub images: Vec<PlatformImage>,
    /// Indexes below it.
    pub indexes: Vec<ContentPart>,
}

impl ImageTree {
    /// The tree below a manifest or index that a repository may serve; `None` if it is not held.
    pub fn below(
        held: &CacheView<'_>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<Self>, StoreError> {
        let Some(document) = held.manifest(repository, digest)? else { return Ok(None) };
        let is_index = document.media_type.kind() == Some(ManifestKind::Index);
        let mut tree = Self { document, is_index, images: Vec::new(), indexes: Vec::new() };
        if is_index {
            let root = tree.document.clone();
            tree.descend(held, repository, &root, &mut HashSet::from([*digest]), 1)?;
        } else {
            let size = Some(tree.document.body.len() as u64);
            let media_type = Some(tree.document.media_type.to_string());
            let manifest = ContentPart { digest: *digest, size, media_type, held: true, foreign: false };
            let blobs = blobs_of(held, repository, &tree.document)?;
            let platform = platform_of(held, repository, &blobs)?;
            tree.images.push(PlatformImage { platform, manifest, blobs });
        }
        Ok(Some(tree))
    }

    fn descend(
        &mut self,
        held: &CacheView<'_>,
        repository: &Repository,
        index: &StoredManifest,
        seen: &mut HashSet<Digest>,
        depth: u32,
    ) -> Result<(), StoreError> {
        for child in read(index).map(|read| read.children).unwrap_or_default() {
            // The same manifest may stand for several platforms; an index is entered once.
            let known = !seen.insert(child.digest);
            if self.images.len() + self.indexes.len() >= COUNT_MAX {
                return Ok(());
            }
            let document = held.manifest(repository, &child.digest)?;
            let kind = match &document {
                Some(document) => document.media_type.kind(),
                None => child.media_type.as_ref().and_then(crate::oci::MediaType::kind),
            };
            let manifest = ContentPart {
                size: document.as_ref().map(|document| document.body.len() as u64).or(child.size),
                media_type: document
                    .as_ref()
                    .map(|document| document.media_type.to_string())
                    .or_else(|| child.media_type.as_ref().map(ToString::to_string)),
                held: document.is_some(),
                digest: child.digest,
                foreign: child.foreign,
            };
            if kind == Some(ManifestKind::Index) {
                if !known {
                    self.indexes.push(manifest);
                    if let Some(document) = document.filter(|_| depth < DEPTH_MAX) {
                        self.descend(held, repository, &document, seen, depth + 1)?;
                    }
                }
                continue;
            }
            let blobs = match &document {
                Some(document) => blobs_of(held, repository, document)?,
                None => Vec::new(),
            };
            self.images.push(PlatformImage { platform: child.platform, manifest, blobs });
        }
        Ok(())
    }

    /// The platforms there are, without what is no image.
    pub fn platforms(&self) -> Vec<String> {
        self.images
            .iter()
            .filter(|image| image.is_image())
            .filter_map(|image| image.platform.clone())
            .collect()
    }

    /// Bytes of all that is held of it.
    pub fn held_bytes(&self) -> u64 {
        let mut sizes: HashMap<Digest, u64> = HashMap::new();
        let parts = self.images.iter().flat_map(|image| std::iter::once(&image.manifest).chain(&image.blobs));
        for part in parts.chain(&self.indexes).filter(|part| part.held) {
            sizes.insert(part.digest, part.size.unwrap_or_default());
        }
        let own = if self.is_index { self.document.body.len() as u64 } else { 0 };
        sizes.values().sum::<u64>() + own
    }
}

fn read(document: &StoredManifest) -> Option<Manifest> {
    Manifest::read(&document.body, Some(document.media_type.as_str())).ok()
}

fn blobs_of(
    held: &CacheView<'_>,
    repository: &Repository,
    document: &StoredManifest,
) -> Result<Vec<ContentPart>, StoreError> {
    let blobs = read(document).map(|read| read.blobs).unwrap_or_default();
    blobs
        .into_iter()
        .map(|Descriptor { digest, size, media_type, foreign, .. }| {
            let found = held.blob(repository, &digest)?;
            let media_type = media_type.map(|it| it.to_string());
            Ok(ContentPart { digest, size: found.or(size), media_type, held: found.is_some(), foreign })
        })
        .collect()
}

/// What the config of an image says that it is for.
fn platform_of(
    held: &CacheView<'_>,
    repository: &Repository,
    blobs: &[ContentPart],
) -> Result<Option<String>, StoreError> {
    let Some(config) = blobs.first() else { return Ok(None) };
    let is_config =
        config.media_type.as_deref().is_some_and(|it| it.contains("config") || it.ends_with("image.v1+json"));
    if !is_config {
        return Ok(None);
    }
    let Some(body) = held.read_blob(repository, &config.digest, CONFIG_MAX)? else { return Ok(None) };
    Ok(platform_in(&body))
}

/// What a config says that its image is for.
pub(super) fn platform_in(config: &[u8]) -> Option<String> {
    let config: Value = serde_json::from_slice(config).ok()?;
    let text = |key: &str| config.get(key)?.as_str().filter(|text| !text.is_empty());
    let platform = format!("{}/{}", text("os")?, text("architecture")?);
    Some(match text("variant") {
        Some(variant) => format!("{platform}/{variant}"),
        None => platform,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_tells_its_platform() {
        let of = |text: &str| platform_in(text.as_bytes());
        assert_eq!(of(r#"{"os":"linux","architecture":"amd64"}"#).as_deref(), Some("linux/amd64"));
        let arm = of(r#"{"os":"linux","architecture":"arm","variant":"v7"}"#);
        assert_eq!(arm.as_deref(), Some("linux/arm/v7"));
        assert_eq!(of(r#"{"os":"","architecture":"amd64"}"#), None);
        assert_eq!(of("{}"), None);
        assert_eq!(of("[1]"), None);
        assert_eq!(of("no JSON"), None);
    }
}
