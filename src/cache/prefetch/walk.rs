//! Walk below one index: fetches its children, the blobs of attestations and of chosen platforms, and the lists of
//! referrers. For a manifest that is no index only its list is fetched.
//!
//! [`IndexWalk`] bounds the depth, count and bytes of the walk. [`CHILDREN_MAX`] bounds the requests that one pull causes.

use std::sync::Arc;
use std::time::Duration;

use crate::cache::blob::Blobs;
use crate::cache::error::{CacheError, CacheErrorKind};
use crate::cache::lists::{ReferrersLists, ReferrersQuery};
use crate::cache::manifest::{Children, Manifests};
use crate::cache::memory::CachedManifest;
use crate::cache::prefetch::paused_content::PausedContent;
use crate::cache::prefetch::quota_wait::QuotaGate;
use crate::cache::prefetch::upstream_slots::UpstreamSlots;
use crate::cache::prefetch_queue::{ActiveIndex, IndexKey, MissingGauge, Waiting};
use crate::cache::rules::Rules;
use crate::cache::storage::Storage;
use crate::oci::index_walk::{IndexWalk, WalkItem, WalkLimit};
use crate::oci::media::ManifestKind;
use crate::oci::{Descriptor, Digest, Repository};
use crate::store::Change;
use backon::{ExponentialBuilder, Retryable as _};

/// Largest number of children of one index that are prefetched. Indexes in use have fewer than 50.
const CHILDREN_MAX: usize = 256;

/// Largest blob of an attestation that is prefetched, by the size in its descriptor. Most have a few kilobytes.
const ATTESTATION_BLOB_MAX: u64 = 16 << 20;

/// Components and limits that all walks share.
#[derive(Debug)]
pub(super) struct WalkScope {
    pub(super) storage: Arc<Storage>,
    pub(super) rules: Arc<Rules>,
    pub(super) manifests: Arc<Manifests>,
    pub(super) blobs: Arc<Blobs>,
    pub(super) quota: QuotaGate,
    /// Slots for concurrent requests.
    pub(super) slots: UpstreamSlots,
    pub(super) lists: Arc<ReferrersLists>,
    /// Blobs that could not be stored.
    pub(super) unstored: PausedContent,
    /// Manifests whose lists of referrers could not be fetched.
    pub(super) paused: PausedContent,
}

/// Result of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WalkEnd {
    /// Everything within the bounds is cached, or the upstream does not have it.
    Complete,
    /// Some content was refused. A later walk may find it repaired.
    Flawed,
    /// The upstream or the store failed.
    Deferred {
        /// Children that are not cached yet.
        missing: usize,
    },
}

/// Result of a prefetch of one image's blobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BlobsEnd {
    Complete,
    Flawed,
    Deferred,
}

/// Walk in progress.
struct Prefetch<'a> {
    scope: &'a WalkScope,
    index: &'a IndexKey,
    walk: IndexWalk,
    gauge: &'a mut MissingGauge,
    /// Children that may still be prefetched.
    rest: usize,
    /// True once the store has a record of this walk.
    recorded: bool,
    /// True if lists of referrers are wanted.
    lists: bool,
    /// Manifests whose lists of referrers are fetched after the children.
    subjects: Vec<Digest>,
}

/// Fetches the missing content below an index.
pub(super) async fn walk(scope: &WalkScope, index: &mut ActiveIndex, manifest: &CachedManifest) -> WalkEnd {
    let Some(parsed) = scope.rules.parse(&index.key.0, manifest).await else { return WalkEnd::Complete };
    // A list of the referrers of a referrer is fetched when a client asks for it.
    let is_image = parsed.subject.is_none() && !parsed.is_build_cache();
    let subjects = is_image.then_some(manifest.digest);
    let mut prefetch = Prefetch {
        scope,
        index: &index.key,
        walk: IndexWalk::below(manifest.digest, &parsed),
        gauge: &mut index.gauge,
        rest: CHILDREN_MAX,
        recorded: false,
        lists: index.lists,
        subjects: subjects.into_iter().collect(),
    };
    prefetch.run().await
}

impl Prefetch<'_> {
    async fn run(&mut self) -> WalkEnd {
        let (mut end, mut deferred) = (WalkEnd::Complete, 0);
        while let Some(WalkItem { descriptor: child, repeated }) = self.walk.next() {
            // Layers in the index of a build cache are fetched when a client asks for them.
            if repeated || !child.is_manifest() || !self.scope.wants(&child) {
                continue;
            }
            let Some(rest) = self.rest.checked_sub(1) else {
                self.skip_rest();
                break;
            };
            self.rest = rest;
            match self.fetch(&child).await {
                WalkEnd::Complete => {}
                WalkEnd::Flawed => end = WalkEnd::Flawed,
                // An attestation that the upstream does not deliver must not delay the images.
                WalkEnd::Deferred { .. } if child.attests.is_some() => deferred += 1,
                end @ WalkEnd::Deferred { .. } => return end,
            }
        }
        if let Some(limit @ (WalkLimit::Count | WalkLimit::Bytes)) = self.walk.limit() {
            let (repository, index) = self.index;
            tracing::warn!(%repository, %index, %limit, "prefetch stopped; the other children are fetched on request");
        }
        for (position, subject) in std::mem::take(&mut self.subjects).into_iter().enumerate().rev() {
            match self.list(&subject, position + 1).await {
                WalkEnd::Complete => {}
                WalkEnd::Flawed => end = WalkEnd::Flawed,
                WalkEnd::Deferred { .. } => deferred += 1,
            }
        }
        if deferred > 0 { WalkEnd::Deferred { missing: deferred } } else { end }
    }

    /// Asks for the list of referrers of a manifest, unless it is known. `missing` lists are left.
    async fn list(&mut self, subject: &Digest, missing: usize) -> WalkEnd {
        let repository = &self.index.0;
        self.gauge.set(missing, Waiting::Queued);
        if !self.lists || !self.scope.rules.current().prefetch.referrers {
            return WalkEnd::Complete;
        }
        match self.scope.lists.is_known(repository, subject).await {
            Ok(true) => return WalkEnd::Complete,
            Ok(false) => {}
            Err(_) => return WalkEnd::Deferred { missing },
        }
        let now = self.scope.storage.clock.instant();
        if self.scope.paused.contains(subject, now) {
            return WalkEnd::Flawed;
        }
        self.record().await;
        if !self.scope.quota.is_open(repository) {
            self.gauge.set(missing, Waiting::Deferred);
        }
        let Err(error) = self.scope.fetch_list(repository, subject).await else { return WalkEnd::Complete };
        tracing::info!(
            %repository,
            %subject,
            %error,
            cause = error.cause().map(tracing::field::display),
            "list of referrers could not be prefetched"
        );
        let upstream = self.scope.rules.upstream(repository);
        let is_down = upstream.is_ok_and(|upstream| upstream.is_suspect());
        if is_down || error.kind() == CacheErrorKind::RateLimited {
            return WalkEnd::Deferred { missing };
        }
        // The upstream fails for this list only. A client that needs the list asks for it.
        self.scope.paused.add(subject, now);
        WalkEnd::Flawed
    }

    /// Records in the store that the walk has begun.
    async fn record(&mut self) {
        if !std::mem::replace(&mut self.recorded, true) {
            self.scope.record(self.index).await;
        }
    }

    /// Fetches a child of the index, and its blobs if they are wanted.
    async fn fetch(&mut self, child: &Descriptor) -> WalkEnd {
        let (repository, index) = self.index;
        let missing = self.walk.waiting().min(self.rest) + 1;
        self.gauge.set(missing, Waiting::Queued);
        let manifest = match self.obtain(child, missing).await {
            Ok(manifest) => manifest,
            // A dangling descriptor is a fault of the index, not of this walk.
            Err(error @ CacheError::NotFound) => {
                tracing::info!(%repository, child = %child.digest, %error, "upstream does not have a child of an index");
                return WalkEnd::Complete;
            }
            // The content was not stored. The upstream may repair it.
            Err(error) if error.is_content_fault() => {
                tracing::info!(%repository, child = %child.digest, %error, "child of an index refused");
                return WalkEnd::Flawed;
            }
            Err(error) => {
                tracing::info!(
                    %repository,
                    %index,
                    child = %child.digest,
                    %error,
                    cause = error.cause().map(tracing::field::display),
                    "prefetch deferred"
                );
                return WalkEnd::Deferred { missing };
            }
        };
        self.gauge.set(missing, Waiting::Queued);
        let blobs = match self.scope.largest_blob(child) {
            Some(size_max) => self.scope.fetch_blobs(repository, &manifest, size_max).await,
            None => BlobsEnd::Complete,
        };
        if let Some(parsed) = self.scope.rules.parse(repository, &manifest).await {
            if manifest.media_type.kind() != Some(ManifestKind::Index) {
                self.subjects.push(manifest.digest);
            }
            self.walk.visit(&parsed, manifest.body.len() as u64);
        }
        match blobs {
            BlobsEnd::Complete => WalkEnd::Complete,
            BlobsEnd::Flawed => WalkEnd::Flawed,
            BlobsEnd::Deferred => WalkEnd::Deferred { missing },
        }
    }

    /// Reports the children that are left to clients.
    fn skip_rest(&self) {
        let (repository, index) = self.index;
        let skipped = self.walk.waiting() + 1;
        self.scope.storage.metrics.children_skipped.inc_by(skipped as u64);
        tracing::warn!(
            %repository, %index, prefetched = CHILDREN_MAX, skipped,
            "the index has too many children; the others are fetched on request"
        );
    }

    /// Returns a child from the store, or fetches it. The fetch may take long, because no client waits for it.
    async fn obtain(
        &mut self,
        child: &Descriptor,
        missing: usize,
    ) -> Result<Arc<CachedManifest>, CacheError> {
        let repository = &self.index.0;
        if let Some(manifest) = self.scope.manifests.get_stored(repository, &child.digest).await? {
            return Ok(manifest);
        }
        self.record().await;
        if !self.scope.quota.is_open(repository) {
            self.gauge.set(missing, Waiting::Deferred);
        }
        self.scope.fetch_child(repository, child).await
    }
}

impl WalkScope {
    /// Fetches a child manifest with retries.
    async fn fetch_child(
        &self,
        repository: &Repository,
        child: &Descriptor,
    ) -> Result<Arc<CachedManifest>, CacheError> {
        let backoff = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(500))
            .with_max_delay(Duration::from_secs(30))
            .with_max_times(5)
            .with_jitter();
        let attempt = || async {
            self.quota.wait(repository, &child.digest).await?;
            // Held during the request and not during the back-off: one failing upstream must not block the others.
            let _slot = self.slots.acquire(repository).await;
            self.manifests.fetch(repository, &child.digest, Children::ByCaller).await
        };
        // A rate limit is retried too: every attempt waits for the quota first.
        let is_retryable =
            |error: &CacheError| error.is_retryable() || error.kind() == CacheErrorKind::RateLimited;
        let (manifest, _) = attempt.retry(backoff).when(is_retryable).await?;
        Ok(manifest)
    }

    /// Asks for a list of referrers with retries. The cache keeps the answer, also that there are none.
    async fn fetch_list(&self, repository: &Repository, subject: &Digest) -> Result<(), CacheError> {
        let attempt = || async {
            self.quota.wait(repository, subject).await?;
            let _slot = self.slots.acquire(repository).await;
            self.lists.get(repository, subject, ReferrersQuery::default()).await.map(drop)
        };
        let backoff = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(500))
            .with_max_times(2)
            .with_jitter();
        attempt.retry(backoff).when(CacheError::is_retryable).await
    }

    /// Fetches the blobs of an image of at most `size_max` bytes by their descriptors, one after the other.
    async fn fetch_blobs(&self, repository: &Repository, image: &CachedManifest, size_max: u64) -> BlobsEnd {
        let Some(parsed) = self.rules.parse(repository, image).await else {
            return BlobsEnd::Complete;
        };
        let mut end = BlobsEnd::Complete;
        let is_small = |size: Option<u64>| size.unwrap_or(u64::MAX) <= size_max;
        for blob in parsed.blobs.iter().filter(|blob| !blob.foreign && is_small(blob.size)) {
            // Held until the fill has ended: only then there is room for the next one.
            let _slot = self.slots.acquire(repository).await;
            if self.storage.store_health.is_degraded() {
                return BlobsEnd::Deferred;
            }
            let now = self.storage.clock.instant();
            if self.unstored.contains(&blob.digest, now) {
                end = BlobsEnd::Flawed;
                continue;
            }
            if let Err(error) = self.blobs.fetch(repository, &blob.digest, |_| {}).await {
                if error.kind() == CacheErrorKind::Store {
                    self.unstored.add(&blob.digest, now);
                    tracing::warn!(
                        %repository,
                        blob = %blob.digest,
                        %error,
                        "a blob could not be stored, and is not prefetched again for an hour; check store.max_size and the disk"
                    );
                    if self.storage.store_health.is_degraded() {
                        return BlobsEnd::Deferred;
                    }
                    end = BlobsEnd::Flawed;
                    continue;
                }
                tracing::info!(
                    %repository,
                    blob = %blob.digest,
                    %error,
                    cause = error.cause().map(tracing::field::display),
                    "blob could not be prefetched"
                );
                if !error.is_content_fault() {
                    return BlobsEnd::Deferred;
                }
                end = BlobsEnd::Flawed;
            }
        }
        end
    }

    /// Returns true if a child of an index is prefetched.
    fn wants(&self, child: &Descriptor) -> bool {
        let rules = self.rules.current();
        rules.prefetch.children || rules.prefetch.attestations && child.attests.is_some()
    }

    /// Returns the largest size of the child's blobs that are prefetched, or `None` if its blobs are not prefetched.
    fn largest_blob(&self, child: &Descriptor) -> Option<u64> {
        let rules = self.rules.current();
        let platform = child.platform.as_deref().unwrap_or_default();
        // `linux/arm64` includes all its variants.
        let is_wanted = rules.prefetch.platforms.iter().any(|wanted| {
            let rest = platform.strip_prefix(wanted.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
        let is_attestation = rules.prefetch.attestations && child.attests.is_some();
        if is_wanted { Some(u64::MAX) } else { is_attestation.then_some(ATTESTATION_BLOB_MAX) }
    }

    /// Records in the store that children of an index are missing.
    async fn record(&self, (repository, digest): &IndexKey) {
        let change = Change::EnqueuePrefetch(repository.clone(), *digest);
        if let Err(error) = self.storage.with_store(move |store| store.apply(&[change])).await {
            self.storage.report_error("an index could not be added to the stored prefetch queue", &error);
        }
    }
}
