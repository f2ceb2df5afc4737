//! `warm`: fetches images before a client pulls them. Cached content is not fetched again, and an interrupted fetch is
//! resumed.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::cache::{Cache, CacheError, FetchProgress, ManifestAnswer, ReferrersQuery};
use crate::oci::{Accept, Digest, Manifest, Reference, Repository, Tag};

use super::artifacts::{Artifacts, COUNT_MAX};
use super::completeness::{MissingPart, Needs, Platforms};
use super::image_tree::ImageTree;
use super::platform::Platform;
use super::protocol::{OpsError, ProgressReporter, RunningItem, WarmSpec};
use super::reference::{self, ImageReference};
use super::size_check::WrongSize;

/// Images that are fetched concurrently.
const IMAGES_MAX: usize = 4;
/// Manifests and blobs that are fetched concurrently, for all images together.
const FETCHES_MAX: usize = 8;

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
    /// Digest that the tag names now, if the digest in the reference is of another image.
    #[serde(default)]
    pub moved: Option<Digest>,
    /// Reason why the upstream did not confirm the tag. The last known image of the tag was fetched.
    pub stale: Option<String>,
    /// Sizes in descriptors that contradict the content. Some clients refuse such an image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wrong_sizes: Vec<WrongSize>,
    /// Number of artifacts that refer to the image, if they were requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifacts: Option<u64>,
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
    let (images, fetches) = (Arc::new(Semaphore::new(IMAGES_MAX)), Arc::new(Semaphore::new(FETCHES_MAX)));
    let mut work = JoinSet::new();
    for (position, reference) in references.into_iter().enumerate() {
        let image = ImageFetch {
            cache: cache.clone(),
            reference,
            platforms: Arc::clone(&platforms),
            referrers: spec.referrers,
            fetches: Arc::clone(&fetches),
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
    /// True if the artifacts that refer to the image are fetched too.
    referrers: bool,
    /// Permits for concurrent fetches.
    fetches: Arc<Semaphore>,
}

/// Results of the fetches for one image.
#[derive(Default)]
struct Fetched {
    /// Blobs that were downloaded.
    blobs: HashSet<Digest>,
    /// Reason why a list of referrers or the tag of a signature is not known.
    list_error: Option<OpsError>,
    /// True once the tags of signatures were requested.
    has_tags: bool,
}

/// Cached part of an image.
struct Snapshot {
    root: Digest,
    needs: Needs,
    /// Artifacts that refer to the image, if they are requested.
    artifacts: Option<Artifacts>,
    manifests: u64,
    /// Blobs with their sizes.
    blobs: HashMap<Digest, u64>,
}

impl Snapshot {
    fn of(tree: &ImageTree, platforms: &Platforms) -> Self {
        let mut needs = Needs::of(tree, platforms);
        if platforms.is_empty() {
            needs.add_other_manifests(tree);
        }
        let below = tree.indexes.iter().chain(needs.images.iter().map(|image| &image.manifest));
        let below = if tree.is_index { below.filter(|part| part.cached).count() } else { 0 };
        let blobs = needs.images.iter().flat_map(|image| &image.blobs).chain(&tree.blobs);
        let mut sizes: HashMap<Digest, u64> = HashMap::new();
        sizes.extend(
            blobs.filter(|part| part.cached).map(|part| (part.digest, part.size.unwrap_or_default())),
        );
        Self { root: tree.digest, needs, artifacts: None, manifests: 1 + below as u64, blobs: sizes }
    }

    /// Returns the parts of the image that are not cached, or may state its platforms.
    fn image_parts(&self) -> impl Iterator<Item = &MissingPart> {
        self.needs.missing.iter().chain(&self.needs.unknown)
    }

    /// Returns the content of the artifacts that is not cached, and lists that are not known.
    fn artifact_parts(&self) -> impl Iterator<Item = &MissingPart> {
        self.artifacts.iter().flat_map(|artifacts| artifacts.missing.iter().chain(&artifacts.lists))
    }

    /// Writes the figures to the report. `fetched` are the blobs that were downloaded.
    fn report(&self, image: &mut WarmedImage, fetched: &HashSet<Digest>) {
        image.manifests = self.manifests;
        image.blobs = self.blobs.len() as u64;
        image.bytes = self.blobs.values().fold(0, |sum: u64, size| sum.saturating_add(*size));
        // Configs of other platforms are fetched only to find the wanted platform.
        image.fetched = fetched.iter().filter(|digest| self.blobs.contains_key(*digest)).count() as u64;
        let images = self.needs.images.iter().filter(|image| image.is_image());
        image.platforms = images.filter_map(|image| image.platform.clone()).collect();
        image.platforms.dedup();
        image.wrong_sizes.clone_from(&self.needs.wrong_sizes);
        image.artifacts = self.artifacts.as_ref().map(|artifacts| artifacts.digests.len() as u64);
    }

    /// Returns the error for an image that is not complete after everything was fetched.
    fn verdict(self) -> Result<(), OpsError> {
        let Needs { mut missing, reason, .. } = self.needs;
        if let Some(reason) = reason {
            return Err(OpsError::Content(reason));
        }
        if let Some(artifacts) = self.artifacts {
            if artifacts.is_limited {
                let message = format!(
                    "more than {COUNT_MAX} artifacts refer to the image; the others are fetched on request"
                );
                return Err(OpsError::Content(message));
            }
            missing.extend(artifacts.missing);
        }
        let is_foreign = |missing: &&MissingPart| missing.part.foreign;
        if let Some(lost) = missing.iter().find(|missing| !missing.part.foreign) {
            let count = missing.len() - missing.iter().filter(is_foreign).count();
            return Err(OpsError::Content(format!(
                "{count} manifests or blobs are no longer cached, for example {}: they were evicted again; raise \
                 store.max_size, or fetch fewer images",
                lost.part.digest
            )));
        }
        match missing.first() {
            Some(foreign) => Err(OpsError::Content(format!(
                "the registry does not have {}, which clients fetch from an address outside the registry (`urls`)",
                foreign.part.digest
            ))),
            None => Ok(()),
        }
    }
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

    /// Fetches what a pull needs until nothing is missing. Each manifest and blob is fetched at most once.
    async fn fetch(&self, image: &mut WarmedImage, item: &Arc<RunningItem>) -> Result<(), OpsError> {
        let root = self.root(image).await?;
        image.digest = Some(root);
        let (mut done, mut fetched) = (HashSet::new(), Fetched::default());
        loop {
            let snapshot = self.snapshot(root).await?;
            snapshot.report(image, &fetched.blobs);
            let mut is_new = |missing: &&MissingPart| done.insert((missing.is_list(), missing.part.digest));
            let mut wanted: Vec<MissingPart> = snapshot.image_parts().filter(&mut is_new).cloned().collect();
            // The image comes first: an artifact may be missing in the registry.
            if wanted.is_empty() {
                if self.referrers && !std::mem::replace(&mut fetched.has_tags, true) {
                    self.fetch_signature_tags(&snapshot, &mut fetched).await;
                    continue;
                }
                wanted.extend(snapshot.artifact_parts().filter(is_new).cloned());
            }
            if wanted.is_empty() {
                // What exceeds the limits would be evicted just after the report.
                self.cache.enforce_limits().await;
                return match fetched.list_error {
                    Some(error) => Err(error),
                    None => self.snapshot(root).await?.verdict(),
                };
            }
            self.fetch_parts(wanted, &mut fetched, item).await?;
        }
    }

    /// Fetches parts of the image, several concurrently, and adds the results to `fetched`.
    async fn fetch_parts(
        &self,
        parts: Vec<MissingPart>,
        fetched: &mut Fetched,
        item: &Arc<RunningItem>,
    ) -> Result<(), OpsError> {
        let blobs = parts.iter().filter(|missing| !missing.is_manifest() && !missing.is_list());
        item.expect(blobs.filter_map(|missing| missing.part.size).fold(0, u64::saturating_add));
        let mut work = JoinSet::new();
        for missing in parts {
            let (cache, repository) = (self.cache.clone(), self.reference.repository.clone());
            let (permits, item) = (Arc::clone(&self.fetches), Arc::clone(item));
            work.spawn(async move {
                let _permit = permits.acquire().await;
                let digest = missing.part.digest;
                let result = if missing.is_list() {
                    list_referrers(&cache, &repository, &digest).await.map(|()| false)
                } else if missing.is_manifest() {
                    manifest(&cache, &repository, &Reference::Digest(digest)).await.map(|_| false)
                } else {
                    fetch_blob(&cache, &repository, &digest, &item).await
                };
                (missing, result)
            });
        }
        let mut failed = None;
        while let Some(ended) = work.join_next().await {
            let Ok((missing, result)) = ended else { continue };
            let is_list = missing.is_list();
            let part = missing.part;
            match result {
                Ok(downloaded) => {
                    if downloaded {
                        fetched.blobs.insert(part.digest);
                    }
                }
                // Some registries have layers that are also stored elsewhere, and others do not.
                Err(CacheError::NotFound) if part.foreign => {}
                Err(CacheError::Store(error)) => {
                    failed = Some(OpsError::Content(format!("{} could not be stored: {error}", part.digest)));
                }
                // The image itself is fetched nevertheless.
                Err(error) if is_list => {
                    fetched.list_error = Some(OpsError::Content(format!(
                        "the list of referrers of {} is not known, and some clients need it: {error}",
                        part.digest
                    )));
                }
                Err(error) => failed = Some(OpsError::Content(format!("{}: {error}", part.digest))),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Fetches the tags of signatures of the index and the images. Most of them do not exist.
    async fn fetch_signature_tags(&self, snapshot: &Snapshot, fetched: &mut Fetched) {
        let images = snapshot.needs.images.iter().filter(|image| image.is_image());
        let images = images.map(|image| image.manifest.digest);
        let subjects: HashSet<Digest> = std::iter::once(snapshot.root).chain(images).collect();
        for tag in subjects.iter().flat_map(Tag::of_signatures) {
            let _permit = self.fetches.acquire().await;
            let reference = Reference::Tag(tag.clone());
            match manifest(&self.cache, &self.reference.repository, &reference).await {
                Ok(_) | Err(CacheError::NotFound | CacheError::StaleAbsence { .. }) => {}
                Err(error) => {
                    let message = format!("the tag {tag} of a signature is not known: {error}");
                    fetched.list_error = Some(OpsError::Content(message));
                }
            }
        }
    }

    /// Reads the cached part of the image.
    async fn snapshot(&self, root: Digest) -> Result<Snapshot, OpsError> {
        let (repository, platforms) = (self.reference.repository.clone(), Arc::clone(&self.platforms));
        let referrers = self.referrers;
        let found = self.cache.view(move |view| {
            let Some(tree) = ImageTree::below(&view, &repository, &root)? else { return Ok(None) };
            let mut snapshot = Snapshot::of(&tree, &platforms);
            if referrers {
                snapshot.artifacts = Some(Artifacts::of(&view, &repository, &tree, &snapshot.needs)?);
            }
            Ok(Some(snapshot))
        });
        found.await?.ok_or_else(|| {
            OpsError::Content(format!(
                "{root} is no longer cached: it was evicted again; raise store.max_size, or fetch fewer images"
            ))
        })
    }

    /// Fetches the manifest of the reference, and returns its digest.
    async fn root(&self, image: &mut WarmedImage) -> Result<Digest, OpsError> {
        let ImageReference { repository, tag, digest } = &self.reference;
        let reference = match (tag, digest) {
            (Some(tag), Some(digest)) => {
                image.moved = self.moved(tag, digest).await;
                Reference::Digest(*digest)
            }
            (Some(tag), None) => Reference::Tag(tag.clone()),
            (None, Some(digest)) => Reference::Digest(*digest),
            (None, None) => {
                return Err(OpsError::Invalid("the reference has neither a tag nor a digest".to_owned()));
            }
        };
        let found = manifest(&self.cache, repository, &reference).await?;
        image.stale = found.stale.as_ref().map(ToString::to_string);
        Ok(found.manifest.digest)
    }

    /// Fetches the tag of a reference with a digest. Returns the digest that the tag names, if that is another image.
    ///
    /// Clients use the digest and ignore the tag, so a tag that is not available is no error.
    async fn moved(&self, tag: &Tag, digest: &Digest) -> Option<Digest> {
        let (repository, anything) = (&self.reference.repository, HeaderMap::new());
        let tag = Reference::Tag(tag.clone());
        let found = self.cache.manifest(repository, &tag, Accept::from_headers(&anything)).await.ok()?;
        let index = Manifest::read(&found.manifest.body, Some(found.manifest.media_type.as_str())).ok();
        // The digest of one platform names a part of the tag's image.
        let is_part = index.is_some_and(|index| index.children.iter().any(|child| child.digest == *digest));
        (found.manifest.digest != *digest && !is_part).then_some(found.manifest.digest)
    }
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

/// Asks the upstream for the list of referrers of a manifest, which the cache keeps.
pub(super) async fn list_referrers(
    cache: &Cache,
    repository: &Repository,
    subject: &Digest,
) -> Result<(), CacheError> {
    let attempt = || cache.referrers(repository, subject, ReferrersQuery::default());
    attempt.retry(backoff()).when(CacheError::is_retryable).await.map(drop)
}

/// Fetches a blob and reports each byte once, also after a retry. Returns true if the blob was downloaded, and its size.
async fn fetch_blob(
    cache: &Cache,
    repository: &Repository,
    digest: &Digest,
    item: &RunningItem,
) -> Result<bool, CacheError> {
    let (reported, waits) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let attempt = || {
        cache.fetch_blob(repository, digest, |progress| match progress {
            FetchProgress::Received(available) => {
                let before = reported.fetch_max(available, Ordering::Relaxed);
                item.done(available.saturating_sub(before));
            }
            FetchProgress::WaitingFor(other) => {
                tracing::info!(%repository, %digest, other, "waiting: the same blob is being stored for another upstream");
                waits.lock().unwrap_or_else(PoisonError::into_inner).push(other.clone());
                item.begin_wait(other);
            }
        })
    };
    let result = attempt.retry(backoff()).when(CacheError::is_retryable).await;
    for other in waits.into_inner().unwrap_or_else(PoisonError::into_inner) {
        item.end_wait(&other);
    }
    result
}
