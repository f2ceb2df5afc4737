//! Memory in front of the store: manifests, pointers, blob entries and absences that were requested lately.
//!
//! Every entry is keyed by repository, so that a repository finds only what it is linked to.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache as LruCache;

use crate::clock::{Clock, Timestamp};
use crate::oci::{Digest, MediaType, Repository, Tag, UpstreamName};
use crate::store::{BlobEntry, Pointer, StoreError, StoreSession, TagFact};

use super::eviction::usage::Usage;
use super::freshness;

/// Bytes of manifests that memory holds.
const MANIFEST_BYTES: u64 = 32 << 20;
/// Expected number of manifests in memory.
const MANIFESTS_EXPECTED: usize = 4096;
/// Memory that an entry takes beside its body.
const ENTRY_OVERHEAD: u64 = 512;
/// Entries that memory holds of each other kind.
const ENTRIES: usize = 16_384;

/// Verified manifest or index, ready to be served.
#[derive(Clone, Debug)]
pub struct CachedManifest {
    /// Digest, in the algorithm that the client requested.
    pub digest: Digest,
    /// Media type that is sent to clients.
    pub media_type: MediaType,
    /// Body, byte for byte as the upstream sent it.
    pub body: Bytes,
    /// Last-access time and pins, shared with the eviction index.
    pub(super) usage: Arc<Usage>,
}

/// Resource of a repository that its upstream does not have. The absence of a blob says nothing about a manifest of the
/// same digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum AbsenceKey {
    /// Tag; with an `Accept` value for clients that accept only certain media types.
    Tag(Tag, Option<String>),
    /// List of tags.
    Tags,
    Manifest(Digest),
    /// Blob, according to an answer to a request for the whole blob.
    Blob(Digest),
    /// Blob, according to an answer to HEAD, or to a request for its first byte. Does not answer a request for the blob.
    BlobConfirmation(Digest),
}

/// Time of a check at the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CheckTime {
    pub(super) checked_at: Timestamp,
    /// Monotonic time of the check; `None` if an earlier process made it.
    pub(super) at: Option<Instant>,
}

impl CheckTime {
    /// Returns the current time.
    pub(super) fn now(clock: &Clock) -> Self {
        Self { checked_at: clock.now(), at: Some(clock.instant()) }
    }

    /// Returns the time since the check, or `None` if the clock makes it unknown.
    pub(super) fn age(&self, clock: &Clock) -> Option<Duration> {
        let elapsed = self.at.map(|at| clock.instant().saturating_duration_since(at));
        freshness::age(clock.now(), self.checked_at, elapsed)
    }
}

/// Target of a pointer, with the time of the last check.
#[derive(Clone, Copy, Debug)]
pub(super) struct CheckedPointer {
    pub(super) fact: TagFact,
    /// Monotonic time of the check; `None` if an earlier process made it.
    pub(super) at: Option<Instant>,
}

impl CheckedPointer {
    /// Returns the time since the last check, or `None` if the clock makes it unknown.
    pub(super) fn age(&self, clock: &Clock) -> Option<Duration> {
        CheckTime { checked_at: self.fact.checked_at, at: self.at }.age(clock)
    }

    /// Returns true if the upstream was asked after `known` was read. A difference is enough, whatever the times are: the
    /// clock may have been set back. If nothing was known, the check must be one of this process.
    pub(super) fn was_checked_after(&self, known: Option<&Self>) -> bool {
        match known {
            Some(known) => self.fact.checked_at != known.fact.checked_at,
            None => self.at.is_some(),
        }
    }
}

/// Manifests for which an upstream has no referrers API.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum ApiScope {
    /// All manifests of the upstream.
    Upstream(UpstreamName),
    /// All manifests of a repository: behind one name there may be registries of several kinds.
    Repository(Repository),
    Subject(Repository, Digest),
}

#[derive(Clone, Debug)]
struct BodyWeight;

impl Weighter<(Repository, Digest), Arc<CachedManifest>> for BodyWeight {
    fn weight(&self, _key: &(Repository, Digest), manifest: &Arc<CachedManifest>) -> u64 {
        manifest.body.len() as u64 + ENTRY_OVERHEAD
    }
}

/// Memory in front of the store.
#[derive(Debug)]
pub(super) struct MemoryCache {
    pub(super) manifests: ManifestMemory,
    pub(super) pointers: LruCache<Pointer, CheckedPointer>,
    /// Absences that the store keeps: pointers that belong to one manifest and that the upstream does not have.
    pub(super) absent_pointers: LruCache<Pointer, CheckTime>,
    pub(super) blobs: LruCache<(Repository, Digest), BlobEntry>,
    /// Indexes whose children are all cached.
    pub(super) prefetched: LruCache<(Repository, Digest), ()>,
    absences: LruCache<(Repository, AbsenceKey), Instant>,
    /// Missing referrers APIs.
    missing_apis: LruCache<ApiScope, Instant>,
    /// Upstreams that have sent a list of their referrers API.
    referrers_apis: LruCache<UpstreamName, ()>,
}

/// Manifests by repository and digest.
#[derive(Debug)]
pub(super) struct ManifestMemory(LruCache<(Repository, Digest), Arc<CachedManifest>, BodyWeight>);

impl MemoryCache {
    pub(super) fn new() -> Self {
        Self {
            manifests: ManifestMemory(LruCache::with_weighter(
                MANIFESTS_EXPECTED,
                MANIFEST_BYTES,
                BodyWeight,
            )),
            pointers: LruCache::new(ENTRIES),
            absent_pointers: LruCache::new(ENTRIES),
            blobs: LruCache::new(ENTRIES),
            prefetched: LruCache::new(ENTRIES),
            absences: LruCache::new(ENTRIES),
            missing_apis: LruCache::new(ENTRIES),
            referrers_apis: LruCache::new(ENTRIES),
        }
    }

    /// Removes content for which `is_removed` is true, together with the pointers to it.
    pub(super) fn remove_content(&self, is_removed: impl Fn(&Digest) -> bool) {
        self.manifests.0.retain(|(_, digest), _| !is_removed(digest));
        self.pointers.retain(|_, checked| !is_removed(&checked.fact.digest));
        self.absent_pointers
            .retain(|pointer, _| pointer.subject().is_none_or(|(subject, _)| !is_removed(&subject)));
        self.blobs.retain(|(_, digest), _| !is_removed(digest));
        self.prefetched.retain(|(_, digest), ()| !is_removed(digest));
    }

    /// Adds a pointer that was set now, which ends the absences that it refutes.
    pub(super) fn insert_pointer(&self, pointer: &Pointer, checked: CheckedPointer) {
        for absent in pointer.refuted_absences() {
            self.absent_pointers.remove(&absent);
        }
        self.pointers.insert(pointer.clone(), checked);
    }

    /// Removes a blob from the memory of all repositories.
    pub(super) fn remove_blob(&self, digest: &Digest) {
        self.blobs.retain(|(_, it), _| it != digest);
    }

    /// Removes tags of a repository, with their variants.
    pub(super) fn remove_tags(&self, repository: &Repository, tags: &[Tag]) {
        self.pointers.retain(|pointer, _| match pointer {
            Pointer::Tag(key) => key.repository != *repository || !tags.contains(&key.tag),
            Pointer::Referrers(..) => true,
        });
    }

    /// Removes entries that the store does not have: they were added while the store failed, or the store has lost them.
    /// The next request fetches them again and stores them. Blocks.
    pub(super) fn remove_unstored(&self, store: &StoreSession) -> Result<(), StoreError> {
        for ((repository, digest), _) in self.manifests.0.iter() {
            let stored = store.access(&repository, &digest)?.is_some()
                && matches!(store.manifest(&digest), Ok(Some(_)));
            if !stored {
                self.manifests.0.remove(&(repository, digest));
            }
        }
        for (pointer, CheckedPointer { fact, .. }) in self.pointers.iter() {
            if store.pointer(&pointer)?.is_none_or(|stored| stored.digest != fact.digest) {
                self.pointers.remove(&pointer);
            }
        }
        for (pointer, _) in self.absent_pointers.iter() {
            if store.absence(&pointer)?.is_none() {
                self.absent_pointers.remove(&pointer);
            }
        }
        Ok(())
    }

    /// Remembers a definite 404 until the monotonic time `until`.
    pub(super) fn remember_absence(&self, repository: &Repository, absence: AbsenceKey, until: Instant) {
        self.absences.insert((repository.clone(), absence), until);
    }

    /// Returns true while a definite 404 is remembered.
    pub(super) fn is_absent(&self, repository: &Repository, absence: &AbsenceKey, now: Instant) -> bool {
        self.absences.get(&(repository.clone(), absence.clone())).is_some_and(|until| now < until)
    }

    /// Remembers a missing referrers API until the monotonic time `until`.
    pub(super) fn remember_missing_api(&self, scope: ApiScope, until: Instant) {
        self.missing_apis.insert(scope, until);
    }

    /// Returns true while a missing referrers API is remembered that concerns the manifest.
    pub(super) fn is_missing_api(&self, repository: &Repository, subject: &Digest, now: Instant) -> bool {
        let scopes = [
            ApiScope::Upstream(repository.upstream.clone()),
            ApiScope::Repository(repository.clone()),
            ApiScope::Subject(repository.clone(), *subject),
        ];
        scopes.iter().any(|scope| self.missing_apis.get(scope).is_some_and(|until| now < until))
    }

    /// Remembers that an upstream has a referrers API.
    pub(super) fn remember_api(&self, upstream: &UpstreamName) {
        self.referrers_apis.insert(upstream.clone(), ());
    }

    /// Returns true if an upstream has sent a list of its referrers API.
    pub(super) fn has_sent_list(&self, upstream: &UpstreamName) -> bool {
        self.referrers_apis.get(upstream).is_some()
    }
}

impl ManifestMemory {
    pub(super) fn get(&self, repository: &Repository, digest: &Digest) -> Option<Arc<CachedManifest>> {
        self.0.get(&(repository.clone(), *digest))
    }

    pub(super) fn insert(&self, repository: &Repository, manifest: Arc<CachedManifest>) {
        self.0.insert((repository.clone(), manifest.digest), manifest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn check_of_another_request_is_newer_than_what_was_read() {
        let pointer = |checked_at, at| {
            let (digest, checked_at) =
                (Digest::of(Algorithm::Sha256, b"x"), Timestamp::from_millis(checked_at));
            CheckedPointer { fact: TagFact { digest, checked_at, moved_at: checked_at }, at }
        };
        let now = Some(Instant::now());
        let stored = pointer(5, None);
        assert!(pointer(6, now).was_checked_after(Some(&stored)));
        assert!(pointer(4, now).was_checked_after(Some(&stored)), "the clock was set back");
        assert!(!stored.was_checked_after(Some(&stored)));
        assert!(pointer(5, now).was_checked_after(None), "nothing was known");
        assert!(!stored.was_checked_after(None), "an earlier process checked it");
    }
}
