//! Tree below a manifest or an index: images by platform, their blobs, and which parts are cached.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cache::CacheView;
use crate::oci::index_walk::{BYTES_MAX, IndexWalk, WalkItem, WalkLimit};
use crate::oci::media::ManifestKind;
use crate::oci::{Descriptor, Digest, Manifest, Repository};
use crate::store::{StoreError, StoredManifest};

use super::platform::NO_IMAGE;
use super::size_check::{WrongSize, wrong_size};

/// Largest image config in bytes.
pub(super) const CONFIG_MAX: u64 = 4 << 20;

/// Content that a manifest or index names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Part)]
pub struct ContentPart {
    /// Digest of the content.
    pub digest: Digest,
    /// Length in bytes, if known.
    pub size: Option<u64>,
    /// Length in the descriptor, if it contradicts the content.
    #[serde(default)]
    pub stated_size: Option<u64>,
    /// Media type in the descriptor.
    pub media_type: Option<String>,
    /// True if the content is cached.
    #[serde(rename = "held")]
    pub cached: bool,
    /// True if the content is outside the registry (`urls`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub foreign: bool,
}

impl ContentPart {
    /// Returns the contradiction between the descriptor and the content, if there is one.
    pub fn wrong_size(&self) -> Option<WrongSize> {
        wrong_size(&self.digest, self.stated_size, self.size)
    }
}

/// Image for one platform, or other content of an index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformImage {
    /// `os/arch[/variant]`, if the index or the cached config states it.
    pub platform: Option<String>,
    /// Version of the operating system, if the index states it.
    pub os_version: Option<String>,
    /// Manifest of the image.
    pub manifest: ContentPart,
    /// Blobs of the manifest. Empty if the manifest is not cached.
    pub blobs: Vec<ContentPart>,
    /// Digests of blobs that cannot be verified, and so are never served.
    pub unsupported: Vec<String>,
    /// Manifest that this manifest attests, according to the index.
    pub attests: Option<Digest>,
    /// True if a request for the list of referrers of the manifest needs no upstream.
    pub has_list: bool,
}

impl PlatformImage {
    /// Returns true if the manifest and its blobs are cached.
    pub fn is_complete(&self) -> bool {
        self.manifest.cached && self.blobs.iter().all(|blob| blob.cached) && self.unsupported.is_empty()
    }

    /// Returns true if the manifest, its blobs and its list of referrers need no upstream.
    pub fn is_pullable(&self) -> bool {
        self.is_complete() && self.has_list
    }

    /// Returns the config of the image.
    pub fn config(&self) -> Option<&ContentPart> {
        let is_config = |it: &str| it.contains("config") || it.ends_with("image.v1+json");
        self.blobs.first().filter(|blob| blob.media_type.as_deref().is_some_and(is_config))
    }

    /// Returns true for an image, false for an attestation or other content of an index.
    pub fn is_image(&self) -> bool {
        self.platform.as_deref() != Some(NO_IMAGE)
    }

    /// Returns the parts that are not cached.
    pub fn missing(&self) -> impl Iterator<Item = &ContentPart> {
        std::iter::once(&self.manifest).chain(&self.blobs).filter(|part| !part.cached)
    }
}

/// Manifest or index with everything below it.
#[derive(Clone, Debug)]
pub struct ImageTree {
    /// Manifest or index at the root.
    pub document: StoredManifest,
    /// True if the root is an index.
    pub is_index: bool,
    /// Digest of the root.
    pub digest: Digest,
    /// True if no pull needs the upstream for the list of referrers of the root: it is cached, or the root is a build cache.
    pub has_list: bool,
    /// Images in the order of the index, or one image if the root is not an index.
    pub images: Vec<PlatformImage>,
    /// Indexes below the root.
    pub indexes: Vec<ContentPart>,
    /// Content of the indexes that is not a manifest, such as the layers of a build cache.
    pub blobs: Vec<ContentPart>,
    /// Digests of children that cannot be verified, and so are never served.
    pub unsupported: Vec<String>,
    /// Limit of the walk that was reached: the tree is not complete.
    pub limit: Option<WalkLimit>,
}

impl ImageTree {
    /// Returns the tree below a manifest or index that a repository contains, or `None` if it is not cached.
    pub fn below(
        view: &CacheView<'_>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<Self>, StoreError> {
        let Some(document) = view.manifest(repository, digest)? else { return Ok(None) };
        let is_index = document.media_type.kind() == Some(ManifestKind::Index);
        let mut tree = Self {
            document,
            is_index,
            digest: *digest,
            has_list: view.serves_referrers_offline(repository, digest)?,
            images: Vec::new(),
            indexes: Vec::new(),
            blobs: Vec::new(),
            unsupported: Vec::new(),
            limit: None,
        };
        let mut configs = ConfigReader { view, repository, bytes_left: BYTES_MAX };
        if !is_index {
            let size = Some(tree.document.body.len() as u64);
            let media_type = Some(tree.document.media_type.to_string());
            let stated_size = None;
            let manifest =
                ContentPart { digest: *digest, size, stated_size, media_type, cached: true, foreign: false };
            let (blobs, unsupported) = blobs_of(view, repository, &tree.document)?;
            let (platform, os_version, attests) = (None, None, None);
            let has_list = tree.has_list;
            let mut image =
                PlatformImage { platform, os_version, manifest, blobs, unsupported, attests, has_list };
            image.platform = configs.platform_of(&image)?;
            tree.images.push(image);
        } else if let Some(index) = read(&tree.document) {
            let mut walk = IndexWalk::below(*digest, &index);
            tree.has_list |= index.is_build_cache();
            tree.unsupported.clone_from(&index.unsupported);
            while let Some(item) = walk.next() {
                tree.add(&mut configs, &mut walk, item)?;
            }
            tree.limit = walk.limit();
        }
        Ok(Some(tree))
    }

    /// Adds a child of an index.
    fn add(
        &mut self,
        configs: &mut ConfigReader<'_>,
        walk: &mut IndexWalk,
        item: WalkItem,
    ) -> Result<(), StoreError> {
        let WalkItem { descriptor: child, repeated } = item;
        let (view, repository) = (configs.view, configs.repository);
        if !child.is_manifest() {
            if !repeated {
                self.blobs.push(blob_part(view, repository, child)?);
            }
            return Ok(());
        }
        let document = view.manifest(repository, &child.digest)?;
        let kind = match &document {
            Some(document) => document.media_type.kind(),
            None => child.media_type.as_ref().and_then(crate::oci::MediaType::kind),
        };
        let size = document.as_ref().map(|document| document.body.len() as u64);
        let manifest = ContentPart {
            size: size.or(child.size),
            stated_size: wrong_size(&child.digest, child.size, size).map(|wrong| wrong.stated),
            media_type: document
                .as_ref()
                .map(|document| document.media_type.to_string())
                .or_else(|| child.media_type.as_ref().map(ToString::to_string)),
            cached: document.is_some(),
            digest: child.digest,
            foreign: child.foreign,
        };
        if kind == Some(ManifestKind::Index) {
            if !repeated {
                self.indexes.push(manifest);
                if let Some((document, read)) = document.and_then(|it| read(&it).map(|read| (it, read))) {
                    self.unsupported.extend_from_slice(&read.unsupported);
                    walk.visit(&read, document.body.len() as u64);
                }
            }
            return Ok(());
        }
        let (blobs, unsupported) = match &document {
            Some(document) => blobs_of(view, repository, document)?,
            None => (Vec::new(), Vec::new()),
        };
        let (platform, os_version) = (child.platform, child.os_version);
        let attests = child.attests.map(|subject| *subject);
        let has_list = view.serves_referrers_offline(repository, &manifest.digest)?;
        let mut image =
            PlatformImage { platform, os_version, manifest, blobs, unsupported, attests, has_list };
        if image.platform.is_none() && image.attests.is_some() {
            image.platform = Some(NO_IMAGE.to_owned());
        } else if image.platform.is_none() {
            image.platform = configs.platform_of(&image)?;
        }
        // An index may list one manifest for several platforms.
        self.images.push(image);
        Ok(())
    }

    /// Returns the platforms of the images, without attestations.
    pub fn platforms(&self) -> Vec<String> {
        self.images
            .iter()
            .filter(|image| image.is_image())
            .filter_map(|image| image.platform.clone())
            .collect()
    }

    /// Returns the bytes of all cached parts.
    pub fn cached_bytes(&self) -> u64 {
        let mut sizes: HashMap<Digest, u64> = HashMap::new();
        let parts = self.images.iter().flat_map(|image| std::iter::once(&image.manifest).chain(&image.blobs));
        for part in parts.chain(&self.indexes).chain(&self.blobs).filter(|part| part.cached) {
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
    view: &CacheView<'_>,
    repository: &Repository,
    document: &StoredManifest,
) -> Result<(Vec<ContentPart>, Vec<String>), StoreError> {
    let Some(read) = read(document) else { return Ok((Vec::new(), Vec::new())) };
    let blobs = read.blobs.into_iter().map(|blob| blob_part(view, repository, blob));
    Ok((blobs.collect::<Result<_, _>>()?, read.unsupported))
}

fn blob_part(
    view: &CacheView<'_>,
    repository: &Repository,
    blob: Descriptor,
) -> Result<ContentPart, StoreError> {
    let Descriptor { digest, size, media_type, foreign, .. } = blob;
    let found = view.blob(repository, &digest)?;
    let media_type = media_type.map(|it| it.to_string());
    let stated_size = wrong_size(&digest, size, found).map(|wrong| wrong.stated);
    let (size, cached) = (found.or(size), found.is_some());
    Ok(ContentPart { digest, size, stated_size, media_type, cached, foreign })
}

/// Reader of cached configs, which state the platform of an image. Bounds the bytes that one tree costs.
struct ConfigReader<'a> {
    view: &'a CacheView<'a>,
    repository: &'a Repository,
    bytes_left: u64,
}

impl ConfigReader<'_> {
    /// Reads the platform from the cached config of an image.
    fn platform_of(&mut self, image: &PlatformImage) -> Result<Option<String>, StoreError> {
        let Some(config) = image.config().filter(|config| config.cached) else { return Ok(None) };
        let size_max = CONFIG_MAX.min(self.bytes_left);
        let body = self.view.read_blob(self.repository, &config.digest, size_max)?;
        let Some(body) = body else { return Ok(None) };
        self.bytes_left = self.bytes_left.saturating_sub(body.len() as u64);
        Ok(platform_in(&body))
    }
}

/// Reads the platform from a config.
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
    fn platform_is_read_from_a_config() {
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
