//! Cached content as requests and the evictor see it: the eviction index behind a lock.
//!
//! A request that reads a blob pins it. Once the index is complete, a blob in the store without an entry is being deleted,
//! and a request for it is a miss.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::clock::Timestamp;
use crate::oci::{Digest, Manifest};
use crate::store::{BlobEntry, SpaceModel};

use super::content::{ContentKind, IndexStats, Reachability, Victim, dependencies};
use super::index::EvictionIndex;
use super::usage::{ContentPin, Usage};

/// Time for which a computed summary is reused: it takes a scan of all entries under the lock.
const STATS_MAX_AGE: Duration = Duration::from_secs(5);

/// Shared index of the cached content.
#[derive(Debug)]
pub(in crate::cache) struct ContentTracker {
    space: SpaceModel,
    index: Mutex<EvictionIndex>,
    /// True if the index has all content of the store. Before that nothing is evicted.
    complete: AtomicBool,
    stats: Mutex<Option<(Instant, IndexStats)>>,
}

impl ContentTracker {
    pub(in crate::cache) fn new(space: SpaceModel) -> Self {
        Self { space, index: Mutex::default(), complete: AtomicBool::new(false), stats: Mutex::default() }
    }

    /// Returns true if the index has all content of the store.
    pub(in crate::cache) fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// Declares that the index has all content of the store.
    pub(super) fn set_complete(&self) {
        self.complete.store(true, Ordering::Release);
    }

    /// Has the evictor compare the index with the store: after a failed deletion, or after the store was reopened.
    pub(in crate::cache) fn set_incomplete(&self) {
        self.complete.store(false, Ordering::Release);
    }

    /// Returns true if content is cached and not being deleted.
    pub(in crate::cache) fn contains(&self, digest: &Digest) -> bool {
        self.index().usage(digest).is_some()
    }

    /// Pins a blob for a client, which counts as an access. `None` if the blob is being deleted.
    pub(in crate::cache) fn pin_for_client(&self, entry: &BlobEntry, now: Timestamp) -> Option<ContentPin> {
        let mut index = self.index();
        if !self.is_complete() {
            index.insert(ContentKind::Blob, entry.digest(), self.size_on_disk(entry.size()), now, []);
        }
        index.pin_for_client(entry.digest(), now)
    }

    /// Pins content without counting an access. `None` if the content is being deleted.
    pub(in crate::cache) fn pin(&self, digest: &Digest) -> Option<ContentPin> {
        self.index().pin(digest)
    }

    /// Counts an access to a blob.
    pub(in crate::cache) fn touch(&self, digest: &Digest, now: Timestamp) {
        if let Some(usage) = self.index().usage(digest) {
            usage.touch(now);
        }
    }

    /// Returns the last access to content, or the time at which it was stored.
    pub(in crate::cache) fn last_access(&self, digest: &Digest) -> Option<Timestamp> {
        Some(self.index().usage(digest)?.last_access())
    }

    /// Adds a blob that was stored.
    pub(in crate::cache) fn add_blob(&self, digest: &Digest, size: u64, now: Timestamp) {
        self.index().insert(ContentKind::Blob, digest, self.size_on_disk(size), now, []);
    }

    /// Adds a manifest that was stored, with the digests that it needs.
    pub(in crate::cache) fn add_manifest(
        &self,
        digest: &Digest,
        body: &[u8],
        dependencies: impl Iterator<Item = Digest>,
        now: Timestamp,
    ) -> Arc<Usage> {
        let size = self.size_on_disk(body.len() as u64);
        self.index().insert(ContentKind::Manifest, digest, size, now, dependencies)
    }

    /// Returns the usage of a manifest that was read from the store. A manifest that is being deleted is still served, with
    /// a usage of its own.
    pub(in crate::cache) fn manifest_usage(
        &self,
        digest: &Digest,
        body: &[u8],
        media_type: &str,
        now: Timestamp,
    ) -> Arc<Usage> {
        if let Some(usage) = self.index().usage(digest) {
            return usage;
        }
        match Manifest::read(body, Some(media_type)) {
            Ok(manifest) if !self.is_complete() => {
                self.add_manifest(digest, body, dependencies(&manifest), now)
            }
            _ => Arc::default(),
        }
    }

    /// Removes content that is no longer in the store.
    pub(in crate::cache) fn remove(&self, digest: &Digest) {
        self.index().remove(digest);
    }

    /// Takes content out of the index, to be deleted. `None` if it is not cached, pinned, or needed by a manifest.
    pub(in crate::cache) fn take(&self, digest: &Digest) -> Option<Victim> {
        self.index().take(digest)
    }

    /// Returns true if a cached manifest needs the digest.
    pub(in crate::cache) fn is_needed(&self, digest: &Digest) -> bool {
        self.index().is_needed(digest)
    }

    /// Returns the digests that cached content needs.
    pub(in crate::cache) fn dependencies(&self, digest: &Digest) -> Vec<Digest> {
        self.index().dependencies(digest)
    }

    /// Divides the cached content by whether it can be reached from `roots`.
    pub(in crate::cache) fn reachability(&self, roots: &HashSet<Digest>) -> Reachability {
        self.index().reachability(roots)
    }

    /// Returns the summary of the index, at most a few seconds old.
    pub(in crate::cache) fn stats(&self) -> IndexStats {
        let mut cached = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, stats)) = *cached
            && at.elapsed() < STATS_MAX_AGE
        {
            return stats;
        }
        let stats = self.index().stats();
        *cached = Some((Instant::now(), stats));
        stats
    }

    /// Returns the bytes on disk of content with a length. Overhead of sled is part of the [budget](super::budget).
    pub(super) fn size_on_disk(&self, length: u64) -> u64 {
        match self.space {
            SpaceModel::Shared => length,
            SpaceModel::Separate { block_size } => length.next_multiple_of(block_size),
        }
    }

    pub(super) fn index(&self) -> MutexGuard<'_, EvictionIndex> {
        // A panic in the middle of a change leaves a wrong eviction order at worst.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
