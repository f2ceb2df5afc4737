//! `warm`: fetches images before a client pulls them. Cached content is not fetched again, and an interrupted fetch is
//! resumed.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::cache::{Cache, CacheError, CachedManifest, ManifestAnswer};
use crate::oci::index_walk::{IndexWalk, WalkItem};
use crate::oci::media::ManifestKind;
use crate::oci::{Accept, Descriptor, Digest, Manifest, Reference, Repository};

use super::platform::{NO_IMAGE, Platform, choose_children};
use super::protocol::{OpsError, ProgressReporter, RunningItem, WarmSpec};
use super::reference::{self, ImageReference};
use super::size_check::{WrongSize, wrong_size};

/// Images that are fetched concurrently.
const IMAGES_MAX: usize = 4;
/// Blobs that are fetched concurrently, for all images together.
const BLOBS_MAX: usize = 8;

/// Result for one reference.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmedImage {
    /// Complete reference.
    pub reference: String,
    /// Digest of the image.
    pub digest: Option<Digest>,
    /// Platforms that were fetched.
    pub platforms: Vec<String>,
    /// Manifests that are cached now, indexes included.
    pub manifests: u64,
    /// Blobs that are cached now.
    pub blobs: u64,
    /// Bytes of these blobs.
    pub bytes: u64,
    /// Number of these blobs that were downloaded.
    pub fetched: u64,
    /// Reason why the upstream did not confirm the tag. The last known image of the tag was fetched.
    pub stale: Option<String>,
    /// Sizes in descriptors that contradict the content. Some clients refuse such an image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wrong_sizes: Vec<WrongSize>,
    /// Reason why the image is incomplete. None if it is complete.
    pub error: Option<String>,
}

/// Result of `warm`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmReport {
    /// True if all images are complete.
    pub complete: bool,
    /// One result for each reference, in the same order.
    pub images: Vec<WarmedImage>,
}

/// Fetches images, several concurrently.
pub async fn warm(
    cache: &Cache,
    spec: WarmSpec,
    reporter: &ProgressReporter,
) -> Result<WarmReport, OpsError> {
    let mut references: Vec<ImageReference> = Vec::new();
    for text in &spec.references {
        let next = reference::parse(cache, text)?;
        if !references.contains(&next) {
            references.push(next);
        }
    }
    if references.is_empty() {
        return Err(OpsError::Invalid("no reference is given".to_owned()));
    }
    let platforms: Vec<(String, Platform)> = spec
        .platforms
        .iter()
        .map(|text| Ok((text.clone(), Platform::parse(text)?)))
        .collect::<Result<_, OpsError>>()?;
    let platforms = Arc::new(platforms);
    reporter.expect(references.len());
    let (images, blobs) = (Arc::new(Semaphore::new(IMAGES_MAX)), Arc::new(Semaphore::new(BLOBS_MAX)));
    let mut work = JoinSet::new();
    for (position, reference) in references.into_iter().enumerate() {
        let image = ImageFetch {
            cache: cache.clone(),
            reference,
            platforms: Arc::clone(&platforms),
            blobs: Arc::clone(&blobs),
        };
        let (images, reporter) = (Arc::clone(&images), reporter.clone());
        work.spawn(async move {
            let _permit = images.acquire().await;
            (position, image.warm(&reporter).await)
        });
    }
    let mut rows = work.join_all().await;
    rows.sort_by_key(|(position, _)| *position);
    let images: Vec<WarmedImage> = rows.into_iter().map(|(_, image)| image).collect();
    Ok(WarmReport { complete: images.iter().all(|image| image.error.is_none()), images })
}

/// Fetch of one reference.
struct ImageFetch {
    cache: Cache,
    reference: ImageReference,
    platforms: Arc<Vec<(String, Platform)>>,
    blobs: Arc<Semaphore>,
}

impl ImageFetch {
    async fn warm(&self, reporter: &ProgressReporter) -> WarmedImage {
        let mut image = WarmedImage { reference: self.reference.to_string(), ..WarmedImage::default() };
        let item = Arc::new(reporter.begin(image.reference.clone()));
        if let Err(error) = self.fetch(&mut image, &item).await {
            tracing::warn!(reference = image.reference, %error, "an image could not be fetched");
            image.error = Some(error.to_string());
        }
        image
    }

    async fn fetch(&self, image: &mut WarmedImage, item: &Arc<RunningItem>) -> Result<(), OpsError> {
        let found = self.root().await?;
        image.stale = found.stale.as_ref().map(ToString::to_string);
        image.digest = Some(found.manifest.digest);
        image.manifests = 1;
        let mut blobs = Vec::new();
        for manifest in self.manifests(&found.manifest, image).await? {
            blobs.extend(read(&manifest).map(|read| read.blobs).unwrap_or_default());
        }
        let mut seen = HashSet::new();
        blobs.retain(|blob| !blob.foreign && seen.insert(blob.digest));
        item.expect(blobs.iter().filter_map(|blob| blob.size).sum());
        let mut work = JoinSet::new();
        for blob in blobs {
            let (cache, repository) = (self.cache.clone(), self.reference.repository.clone());
            let (permits, item) = (Arc::clone(&self.blobs), Arc::clone(item));
            work.spawn(async move {
                let _permit = permits.acquire().await;
                let result = fetch_blob(&cache, &repository, &blob, &item).await;
                (blob, result)
            });
        }
        let mut failed = None;
        while let Some(ended) = work.join_next().await {
            let Ok((blob, result)) = ended else { continue };
            match result {
                Ok((fetched, size)) => {
                    image.blobs += 1;
                    image.bytes += size;
                    image.wrong_sizes.extend(wrong_size(&blob.digest, blob.size, Some(size)));
                    image.fetched += u64::from(fetched);
                }
                Err(CacheError::Store(error)) => {
                    failed = Some(OpsError::Content(format!("{} could not be stored: {error}", blob.digest)));
                }
                Err(error) => failed = Some(OpsError::Content(format!("{}: {error}", blob.digest))),
            }
        }
        image.wrong_sizes.sort_by_key(|wrong| wrong.digest);
        failed.map_or(Ok(()), Err)
    }

    /// Fetches the manifest of the reference. If the reference has a tag and a digest, the tag must name the digest.
    async fn root(&self) -> Result<ManifestAnswer, OpsError> {
        let ImageReference { repository, tag, digest } = &self.reference;
        let reference = match (tag, digest) {
            (Some(tag), _) => Reference::Tag(tag.clone()),
            (None, Some(digest)) => Reference::Digest(*digest),
            (None, None) => {
                return Err(OpsError::Invalid("the reference has neither a tag nor a digest".to_owned()));
            }
        };
        let found = manifest(&self.cache, repository, &reference).await?;
        match digest {
            Some(wanted) if found.manifest.digest != *wanted => {
                Err(OpsError::Content(format!("the tag names {}, not {wanted}", found.manifest.digest)))
            }
            _ => Ok(found),
        }
    }

    /// Fetches the manifests of the wanted platforms.
    async fn manifests(
        &self,
        root: &Arc<CachedManifest>,
        image: &mut WarmedImage,
    ) -> Result<Vec<Arc<CachedManifest>>, OpsError> {
        if root.media_type.kind() != Some(ManifestKind::Index) {
            return Ok(vec![Arc::clone(root)]);
        }
        let children = self.children(root, image).await?;
        let mut found = Vec::new();
        for position in choose_children(&self.reference, &self.platforms, &children)? {
            let Some(child) = children.get(position) else { continue };
            image.platforms.extend(child.platform.clone().filter(|platform| platform != NO_IMAGE));
            let reference = Reference::Digest(child.digest);
            let document = manifest(&self.cache, &self.reference.repository, &reference).await?.manifest;
            let size = Some(document.body.len() as u64);
            image.wrong_sizes.extend(wrong_size(&child.digest, child.size, size));
            found.push(document);
            image.manifests += 1;
        }
        Ok(found)
    }

    /// Returns the children of an index and of its nested indexes, without the indexes.
    async fn children(
        &self,
        root: &Arc<CachedManifest>,
        image: &mut WarmedImage,
    ) -> Result<Vec<Descriptor>, OpsError> {
        let Some(index) = read(root) else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        let mut walk = IndexWalk::below(root.digest, &index);
        while let Some(WalkItem { descriptor: child, repeated }) = walk.next() {
            // An index may list one manifest for several platforms.
            if repeated && child.platform.is_none() {
                continue;
            }
            if child.media_type.as_ref().is_none_or(|it| it.kind() != Some(ManifestKind::Index)) {
                found.push(child);
            } else if !repeated {
                let reference = Reference::Digest(child.digest);
                let document = manifest(&self.cache, &self.reference.repository, &reference).await?.manifest;
                image.manifests += 1;
                if let Some(nested) = read(&document) {
                    walk.visit(&nested, document.body.len() as u64);
                }
            }
        }
        Ok(found)
    }
}

fn read(document: &CachedManifest) -> Option<Manifest> {
    Manifest::read(&document.body, Some(document.media_type.as_str())).ok()
}

/// Returns the back-off between retries. It is longer than for a client, because no client waits.
pub(super) fn backoff() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(500))
        .with_max_delay(Duration::from_secs(10))
        .with_max_times(4)
        .with_jitter()
}

pub(super) async fn manifest(
    cache: &Cache,
    repository: &Repository,
    reference: &Reference,
) -> Result<ManifestAnswer, CacheError> {
    let anything = HeaderMap::new();
    let attempt = || cache.manifest(repository, reference, Accept::from_headers(&anything));
    attempt.retry(backoff()).when(CacheError::is_retryable).await
}

/// Fetches a blob and reports each byte once, also after a retry. Returns true if the blob was downloaded, and its size.
async fn fetch_blob(
    cache: &Cache,
    repository: &Repository,
    blob: &Descriptor,
    item: &RunningItem,
) -> Result<(bool, u64), CacheError> {
    let (reported, size) = (AtomicU64::new(0), AtomicU64::new(0));
    let attempt = || {
        cache.fetch_blob(repository, &blob.digest, |available| {
            size.store(available, Ordering::Relaxed);
            let before = reported.fetch_max(available, Ordering::Relaxed);
            item.done(available.saturating_sub(before));
        })
    };
    let fetched = attempt.retry(backoff()).when(CacheError::is_retryable).await?;
    Ok((fetched, size.into_inner()))
}
