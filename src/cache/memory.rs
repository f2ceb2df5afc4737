//! What the hot path needs, in memory: manifests, pointers, blobs and absences that were asked for lately.
//!
//! Everything here is keyed by repository, so that being found here means being linked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache as Memory;

use crate::clock::Clock;
use crate::oci::{Digest, MediaType, Repository, Tag};
use crate::store::{BlobEntry, StoreError, StoreSession, TagFact};

use crate::cache::eviction::usage::Usage;
use crate::cache::freshness;
use crate::cache::pointer::Pointer;

/// A verified manifest, ready to be served.
#[derive(Clone, Debug)]
pub struct CachedManifest {
    /// Its digest, in the algorithm it was asked for.
    pub digest: Digest,
    /// The type it is served under.
    pub media_type: MediaType,
    /// The document, byte for byte.
    pub body: Bytes,
    /// When it was last asked for.
    pub(in crate::cache) usage: Arc<Usage>,
}

/// What an upstream was asked for. A blob that is not there says nothing about a manifest of the same digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::cache) enum AbsenceKey {
    /// A tag, for clients that accept certain types; `None` for all others.
    Tag(Tag, Option<String>),
    /// The list of tags.
    Tags,
    /// What refers to a manifest.
    Referrers(Digest),
    Manifest(Digest),
    Blob(Digest),
}

/// What a pointer stands for, and when this process asked the upstream for it, if it did.
#[derive(Clone, Copy, Debug)]
pub(in crate::cache) struct CheckedPointer {
    pub(in crate::cache) fact: TagFact,
    pub(in crate::cache) at: Option<Instant>,
}

impl CheckedPointer {
    /// How old the answer is, where that can be said.
    pub(in crate::cache) fn age(&self, clock: &Clock) -> Option<Duration> {
        let lived = self.at.map(|at| clock.instant().saturating_duration_since(at));
        freshness::age(clock.now_millis(), self.fact.checked_at.as_millis(), lived)
    }
}

/// Bytes of manifests kept in memory.
const DOCUMENT_BYTES: u64 = 32 << 20;
/// Pointers, blobs and absences kept in memory, each.
const ENTRIES: usize = 16_384;

#[derive(Clone, Debug)]
struct ByBody;

impl Weighter<(Repository, Digest), Arc<CachedManifest>> for ByBody {
    fn weight(&self, _key: &(Repository, Digest), document: &Arc<CachedManifest>) -> u64 {
        document.body.len() as u64 + 512
    }
}

/// The memory in front of the store.
#[derive(Debug)]
pub(in crate::cache) struct MemoryCache {
    pub(in crate::cache) manifests: ManifestMemory,
    pub(in crate::cache) pointers: Memory<Pointer, CheckedPointer>,
    pub(in crate::cache) blobs: Memory<(Repository, Digest), BlobEntry>,
    absences: Memory<(Repository, AbsenceKey), Instant>,
    /// Repositories, or single manifests in them, for which the upstream has no referrers API.
    without_api: Memory<(Repository, Option<Digest>), Instant>,
    /// Indexes whose children were all found or fetched.
    pub(in crate::cache) prefetched: Memory<(Repository, Digest), ()>,
}

/// Manifests by repository and digest.
#[derive(Debug)]
pub(in crate::cache) struct ManifestMemory(Memory<(Repository, Digest), Arc<CachedManifest>, ByBody>);

impl MemoryCache {
    pub(in crate::cache) fn new() -> Self {
        Self {
            manifests: ManifestMemory(Memory::with_weighter(4096, DOCUMENT_BYTES, ByBody)),
            pointers: Memory::new(ENTRIES),
            blobs: Memory::new(ENTRIES),
            absences: Memory::new(ENTRIES),
            without_api: Memory::new(ENTRIES),
            prefetched: Memory::new(ENTRIES),
        }
    }

    /// Forgets content of which `gone` says that it is held no longer, and what leads to it.
    pub(in crate::cache) fn remove_content(&self, gone: impl Fn(&Digest) -> bool) {
        self.manifests.0.retain(|(_, digest), _| !gone(digest));
        self.pointers.retain(|_, checked| !gone(&checked.fact.digest));
        self.blobs.retain(|(_, digest), _| !gone(digest));
        self.prefetched.retain(|(_, digest), ()| !gone(digest));
    }

    /// Removes a blob from the memory of all repositories.
    pub(in crate::cache) fn remove_blob(&self, digest: &Digest) {
        self.blobs.retain(|(_, it), _| it != digest);
    }

    /// Removes tags of a repository, with their variants.
    pub(in crate::cache) fn remove_tags(&self, repository: &Repository, tags: &[Tag]) {
        self.pointers.retain(|pointer, _| match pointer {
            Pointer::Tag(key) => key.repository != *repository || !tags.contains(&key.tag),
            Pointer::Referrers(..) => true,
        });
    }

    /// Forgets what memory alone has: it came while nothing was kept, or what the store held of it is gone, and it would
    /// end with this process. Who asks for it next brings it into the store.
    pub(in crate::cache) fn remove_unstored(&self, store: &StoreSession) -> Result<(), StoreError> {
        for ((repository, digest), _) in self.manifests.0.iter() {
            let kept =
                store.link(&repository, &digest)?.is_some() && matches!(store.manifest(&digest), Ok(Some(_)));
            if !kept {
                self.manifests.0.remove(&(repository, digest));
            }
        }
        for (pointer, CheckedPointer { fact, .. }) in self.pointers.iter() {
            if store.pointer(&pointer)?.is_none_or(|noted| noted.digest != fact.digest) {
                self.pointers.remove(&pointer);
            }
        }
        Ok(())
    }

    /// Remembers a definite 404 until `until`, by a clock that nobody sets.
    pub(in crate::cache) fn remember_absence(
        &self,
        repository: &Repository,
        wanted: AbsenceKey,
        until: Instant,
    ) {
        self.absences.insert((repository.clone(), wanted), until);
    }

    /// Whether the upstream said lately that it does not have this.
    pub(in crate::cache) fn is_absent(
        &self,
        repository: &Repository,
        wanted: &AbsenceKey,
        now: Instant,
    ) -> bool {
        self.absences.get(&(repository.clone(), wanted.clone())).is_some_and(|until| now < until)
    }
}

/// That an upstream has no referrers API for a repository, or for a single manifest in it.
impl MemoryCache {
    /// Remembers it until `until`.
    pub(in crate::cache) fn remember_without_api(
        &self,
        repository: &Repository,
        subject: Option<Digest>,
        until: Instant,
    ) {
        self.without_api.insert((repository.clone(), subject), until);
    }

    /// Whether the upstream said so lately.
    pub(in crate::cache) fn is_without_api(
        &self,
        repository: &Repository,
        subject: &Digest,
        now: Instant,
    ) -> bool {
        [None, Some(*subject)].into_iter().any(|subject| {
            self.without_api.get(&(repository.clone(), subject)).is_some_and(|until| now < until)
        })
    }
}

impl ManifestMemory {
    pub(in crate::cache) fn get(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Option<Arc<CachedManifest>> {
        self.0.get(&(repository.clone(), *digest))
    }

    pub(in crate::cache) fn insert(&self, repository: &Repository, document: Arc<CachedManifest>) {
        self.0.insert((repository.clone(), document.digest), document);
    }
}
