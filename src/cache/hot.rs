//! What the hot path needs, in memory: documents, pointers, blobs and absences that were asked for lately.
//!
//! Everything here is keyed by repository, so that being found here means being linked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache as Memory;

use crate::clock::Clock;
use crate::oci::{Digest, MediaType, Repository, Tag};
use crate::store::{BlobEntry, Store, StoreError, TagFact};

use super::eviction::Stamp;
use super::{Pointer, freshness};

/// A verified manifest, ready to be served.
#[derive(Clone, Debug)]
pub struct Document {
    /// Its digest, in the algorithm it was asked for.
    pub digest: Digest,
    /// The type it is served under.
    pub media_type: MediaType,
    /// The document, byte for byte.
    pub body: Bytes,
    /// When it was last asked for.
    pub(super) stamp: Arc<Stamp>,
}

/// What an upstream was asked for. A blob that is not there says nothing about a manifest of the same digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Wanted {
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
pub(super) struct Checked {
    pub(super) fact: TagFact,
    pub(super) at: Option<Instant>,
}

impl Checked {
    /// How old the answer is, where that can be said.
    pub(super) fn age(&self, clock: &Clock) -> Option<Duration> {
        let lived = self.at.map(|at| clock.instant().saturating_duration_since(at));
        freshness::age(clock.now_millis(), self.fact.checked_at, lived)
    }
}

/// Bytes of documents kept in memory.
const DOCUMENT_BYTES: u64 = 32 << 20;
/// Pointers, blobs and absences kept in memory, each.
const ENTRIES: usize = 16_384;

#[derive(Clone, Debug)]
struct ByBody;

impl Weighter<(Repository, Digest), Arc<Document>> for ByBody {
    fn weight(&self, _key: &(Repository, Digest), document: &Arc<Document>) -> u64 {
        document.body.len() as u64 + 512
    }
}

/// The memory in front of the store.
#[derive(Debug)]
pub(super) struct Hot {
    pub(super) documents: Documents,
    pub(super) pointers: Memory<Pointer, Checked>,
    pub(super) blobs: Memory<(Repository, Digest), BlobEntry>,
    absences: Memory<(Repository, Wanted), Instant>,
    /// Repositories, or single manifests in them, for which the upstream has no referrers API.
    without_api: Memory<(Repository, Option<Digest>), Instant>,
    /// Indexes whose children were all found or fetched.
    pub(super) walked: Memory<(Repository, Digest), ()>,
}

/// Documents by repository and digest.
#[derive(Debug)]
pub(super) struct Documents(Memory<(Repository, Digest), Arc<Document>, ByBody>);

impl Hot {
    pub(super) fn new() -> Self {
        Self {
            documents: Documents(Memory::with_weighter(4096, DOCUMENT_BYTES, ByBody)),
            pointers: Memory::new(ENTRIES),
            blobs: Memory::new(ENTRIES),
            absences: Memory::new(ENTRIES),
            without_api: Memory::new(ENTRIES),
            walked: Memory::new(ENTRIES),
        }
    }

    /// Forgets content of which `gone` says that it is held no longer, and what leads to it.
    pub(super) fn forget(&self, gone: impl Fn(&Digest) -> bool) {
        self.documents.0.retain(|(_, digest), _| !gone(digest));
        self.pointers.retain(|_, checked| !gone(&checked.fact.digest));
        self.blobs.retain(|(_, digest), _| !gone(digest));
        self.walked.retain(|(_, digest), ()| !gone(digest));
    }

    /// Forgets what memory alone has: it came while nothing was kept, or what the store held of it is gone, and it would
    /// end with this process. Who asks for it next brings it into the store.
    pub(super) fn forget_unkept(&self, store: &Store) -> Result<(), StoreError> {
        for ((repository, digest), _) in self.documents.0.iter() {
            let kept = store.linked(&repository, &digest)?.is_some()
                && matches!(store.manifest(&digest), Ok(Some(_)));
            if !kept {
                self.documents.0.remove(&(repository, digest));
            }
        }
        for (pointer, Checked { fact, .. }) in self.pointers.iter() {
            if pointer.noted(store)?.is_none_or(|noted| noted.digest != fact.digest) {
                self.pointers.remove(&pointer);
            }
        }
        Ok(())
    }

    /// Remembers a definite 404 until `until`, by a clock that nobody sets.
    pub(super) fn remember_absence(&self, repository: &Repository, wanted: Wanted, until: Instant) {
        self.absences.insert((repository.clone(), wanted), until);
    }

    /// Whether the upstream said lately that it does not have this.
    pub(super) fn is_absent(&self, repository: &Repository, wanted: &Wanted, now: Instant) -> bool {
        self.absences.get(&(repository.clone(), wanted.clone())).is_some_and(|until| now < until)
    }
}

/// That an upstream has no referrers API for a repository, or for a single manifest in it.
impl Hot {
    /// Remembers it until `until`.
    pub(super) fn remember_without_api(
        &self,
        repository: &Repository,
        subject: Option<Digest>,
        until: Instant,
    ) {
        self.without_api.insert((repository.clone(), subject), until);
    }

    /// Whether the upstream said so lately.
    pub(super) fn is_without_api(&self, repository: &Repository, subject: &Digest, now: Instant) -> bool {
        [None, Some(*subject)].into_iter().any(|subject| {
            self.without_api.get(&(repository.clone(), subject)).is_some_and(|until| now < until)
        })
    }
}

impl Documents {
    pub(super) fn get(&self, repository: &Repository, digest: &Digest) -> Option<Arc<Document>> {
        self.0.get(&(repository.clone(), *digest))
    }

    pub(super) fn insert(&self, repository: &Repository, document: Arc<Document>) {
        self.0.insert((repository.clone(), document.digest), document);
    }
}
