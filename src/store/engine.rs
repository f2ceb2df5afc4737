//! Parts of an open store, and their counters.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;

use crate::oci::MediaType;
use crate::store::blobs::Blobs;
use crate::store::draft::budget::MemoryBudget;
use crate::store::draft::commit_queue::CommitQueue;
use crate::store::error::StoreError;
use crate::store::index::database::Database;
use crate::store::index::fact::{Fact, readable};
use crate::store::index::key::Key;
use crate::store::lifecycle::location::Location;
use crate::store::work::WorkThreads;

/// Manifest with the media type under which it is served.
#[derive(Clone, Debug)]
pub struct StoredManifest {
    /// Media type from the upstream, or detected from the body.
    pub media_type: MediaType,
    /// Bytes of the manifest, unchanged.
    pub body: Bytes,
}

/// Amount of stored content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bytes of manifests and blobs, without overhead.
    pub content: u64,
    /// Number of manifests.
    pub manifests: u64,
    /// Number of blobs.
    pub blobs: u64,
}

/// Counters of stored content.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) content: AtomicU64,
    pub(super) manifests: AtomicU64,
    pub(super) blobs: AtomicU64,
}

impl Counters {
    /// Replaces all counters.
    pub(super) fn set(&self, counts: Counts) {
        self.manifests.store(counts.manifests, Ordering::Relaxed);
        self.blobs.store(counts.blobs, Ordering::Relaxed);
        self.content.store(counts.content, Ordering::Relaxed);
    }
}

/// Time for which a flush waits for verified drafts to be committed.
const COMMIT_DEADLINE: Duration = Duration::from_secs(5);

/// Parts of a store; clones share them. All methods block.
#[derive(Clone, Debug)]
pub(super) struct Engine {
    pub(super) database: Database,
    pub(super) blobs: Arc<dyn Blobs>,
    pub(super) commit_queue: CommitQueue,
    pub(super) memory_budget: MemoryBudget,
    pub(super) threads: WorkThreads,
    pub(super) counters: Arc<Counters>,
    pub(super) location: Arc<Location>,
    /// Locked while a manifest is stored or removed, so that neither happens between the pages and the fact of the other.
    pub(super) manifest_lock: Arc<Mutex<()>>,
    /// New absences since they were last counted.
    pub(super) new_absences: Arc<AtomicUsize>,
}

impl Engine {
    /// Returns the amount of stored content. Does not access the disk.
    pub(super) fn counts(&self) -> Counts {
        Counts {
            content: self.counters.content.load(Ordering::Relaxed),
            manifests: self.counters.manifests.load(Ordering::Relaxed),
            blobs: self.counters.blobs.load(Ordering::Relaxed),
        }
    }

    /// Returns the bytes that content and database use on disk.
    pub(super) fn stored_size(&self) -> Result<u64, StoreError> {
        Ok(self.database.trees()?.size_on_disk()?.saturating_add(self.blobs.size_on_disk()?))
    }

    /// Waits until everything written so far is on disk. Waits a limited time for verified drafts to be committed; what is
    /// not committed by then stays a complete draft, which the next fill commits.
    pub(super) fn flush(&self) -> Result<(), StoreError> {
        let left = self.commit_queue.wait(COMMIT_DEADLINE);
        if left > 0 {
            tracing::warn!(
                drafts = left,
                "verified drafts are not committed yet; their next requests commit them"
            );
        }
        self.database.trees()?.flush()
    }

    /// Returns a fact.
    pub(super) fn fact<F: Fact>(&self, key: &Key<'_>) -> Result<Option<F>, StoreError> {
        let Some(bytes) = self.database.facts()?.get(key.to_bytes())? else { return Ok(None) };
        Ok(readable(&bytes))
    }
}
