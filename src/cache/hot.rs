//! What the hot path needs, in memory: documents, tags, blobs and absences that were asked for lately.
//!
//! Everything here is keyed by repository, so that being found here means being linked.

use std::sync::Arc;

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache as Memory;

use crate::oci::{Digest, MediaType, Repository, Tag};
use crate::store::{BlobEntry, TagFact};

use super::TagKey;

/// A verified manifest, ready to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its digest, in the algorithm it was asked for.
    pub digest: Digest,
    /// The type it is served under.
    pub media_type: MediaType,
    /// The document, byte for byte.
    pub body: Bytes,
}

/// What an upstream was asked for. A blob that is not there says nothing about a manifest of the same digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Wanted {
    Tag(Tag),
    Manifest(Digest),
    Blob(Digest),
}

/// Bytes of documents kept in memory.
const DOCUMENT_BYTES: u64 = 32 << 20;
/// Tags, blobs and absences kept in memory, each.
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
    pub(super) tags: Memory<TagKey, TagFact>,
    pub(super) blobs: Memory<(Repository, Digest), BlobEntry>,
    absences: Memory<(Repository, Wanted), u64>,
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
            tags: Memory::new(ENTRIES),
            blobs: Memory::new(ENTRIES),
            absences: Memory::new(ENTRIES),
            walked: Memory::new(ENTRIES),
        }
    }

    /// Remembers a definite 404 until `until` (milliseconds since 1970).
    pub(super) fn remember_absence(&self, repository: &Repository, wanted: Wanted, until: u64) {
        self.absences.insert((repository.clone(), wanted), until);
    }

    /// Whether the upstream said lately that it does not have this.
    pub(super) fn is_absent(&self, repository: &Repository, wanted: &Wanted, now: u64) -> bool {
        self.absences.get(&(repository.clone(), wanted.clone())).is_some_and(|until| now < until)
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
