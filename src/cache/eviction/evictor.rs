//! Evictor: a background task that keeps the store within its limits, and writes access times to the store.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;

use crate::cache::blocking::blocking;
use crate::cache::core::Shared;
use crate::cache::error::CacheError;
use crate::clock::Timestamp;
use crate::oci::{Digest, Manifest};
use crate::store::{ContentEntry, Counts, DraftUsage, Store, StoreError};

use super::budget::{
    EvictionReason, Measurement, content_budget, disk_limit, draft_budget, drafts_to_evict, excess,
};
use super::delete::{BlockedFills, DeletionBatch};
use super::index::{ContentKind, dependencies};

/// Interval of measurements without any event.
const MEASURE_INTERVAL: Duration = Duration::from_secs(10);
/// Number of intervals between two writes of access times. A crash loses the access times since the last write.
const SAVE_INTERVALS: u64 = 6;
/// Bytes that are evicted at a time, so that fills of the victims are blocked for a short time only.
const BATCH_BYTES: u64 = 256 << 20;

/// Background task that evicts content.
#[derive(Clone, Debug)]
pub(in crate::cache) struct Evictor {
    shared: Arc<Shared>,
}

/// Result of one step towards the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EvictionStep {
    /// The limits hold.
    WithinLimits,
    /// Something was deleted; another step may be necessary.
    Deleted,
    /// A limit is exceeded and nothing is evictable.
    Exhausted,
}

impl Evictor {
    pub(in crate::cache) fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::clone(shared) }
    }

    /// Keeps the store within its limits. Never returns.
    pub(in crate::cache) async fn run(self) {
        let shared = &self.shared;
        let mut ticks = tokio::time::interval(MEASURE_INTERVAL);
        let (mut intervals, mut exhausted) = (0_u64, false);
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    intervals += 1;
                    if intervals.is_multiple_of(SAVE_INTERVALS) {
                        self.save_access_times().await;
                    }
                    self.update_gauges().await;
                }
                () = shared.capacity.woken() => {}
            }
            if !shared.eviction.is_complete()
                && let Err(error) = self.rebuild_index().await
            {
                shared.report_error(
                    "cannot list the cached content; nothing is evicted until it succeeds",
                    &error,
                );
            }
            let was_exhausted = std::mem::replace(&mut exhausted, self.enforce_limits().await);
            if exhausted && !was_exhausted {
                tracing::warn!(
                    "store.max_size or store.min_free is exceeded, and all cached content is in use; raise max_size or free \
                     space on the disk"
                );
            }
        }
    }

    /// Writes recent access times to the store, from where the next start reads them.
    pub(in crate::cache) async fn save_access_times(&self) {
        let store = self.shared.store.clone();
        let times = self.shared.eviction.index().take_access_times();
        if times.is_empty() {
            return;
        }
        let times: Vec<_> = times.into_iter().map(|(digest, at)| (digest, at.as_millis())).collect();
        if let Err(error) = blocking(move || store.note_access(&times)).await {
            self.shared.report_error("cannot save access times", &error);
        }
    }

    /// Adds all content of the store to the index.
    pub(in crate::cache) async fn rebuild_index(&self) -> Result<(), CacheError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || rebuild_index(&shared)).await
    }

    /// Deletes drafts and content until the limits hold. Returns true if a limit stays exceeded because nothing more is
    /// evictable.
    async fn enforce_limits(&self) -> bool {
        let capacity = &self.shared.capacity;
        if !self.shared.eviction.is_complete() {
            capacity.release_waiting();
            return false;
        }
        loop {
            let shared = Arc::clone(&self.shared);
            match blocking(move || evict_step(&shared)).await {
                Ok(EvictionStep::WithinLimits) => return false,
                Ok(EvictionStep::Deleted) => self.update_gauges().await,
                Ok(EvictionStep::Exhausted) => {
                    capacity.release_waiting();
                    return true;
                }
                Err(error) => {
                    capacity.release_waiting();
                    // Content that could not be deleted is still in the store, and must return to the index.
                    self.shared.eviction.set_incomplete();
                    self.shared.report_error("eviction failed", &error);
                    return false;
                }
            }
        }
    }

    /// Updates the metrics of the store.
    async fn update_gauges(&self) {
        let shared = &self.shared;
        let store = shared.store.clone();
        let measured =
            blocking(move || Ok((store.size_on_disk()?, store.counts(), store.quarantined()?))).await;
        match measured {
            Ok((disk, Counts { content, manifests, blobs }, quarantined)) => {
                shared.metrics.set_quarantined_stores(quarantined);
                shared.metrics.set_store_usage(disk, content, manifests, blobs);
                let stats = shared.eviction.index().stats();
                let oldest = stats.oldest_access.map(Timestamp::as_millis);
                shared.metrics.set_store_limits(
                    stats.unneeded_bytes,
                    oldest,
                    shared.capacity.limits().max_size,
                );
            }
            Err(error) => shared.report_error("cannot measure the store", &error),
        }
    }
}

fn rebuild_index(shared: &Shared) -> Result<(), StoreError> {
    let (store, content, now) = (&shared.store, &shared.eviction, shared.clock.now());
    let mut deleted: HashSet<Digest> = content.index().digests().collect();
    let last_access = |entry: &ContentEntry| Timestamp::from_millis(entry.last).min(now);
    for entry in store.held_manifests()? {
        deleted.remove(&entry.digest);
        if !content.contains(&entry.digest) {
            let needs = stored_dependencies(store, &entry.digest)?;
            let size = content.size_on_disk(entry.size);
            content.index().insert(ContentKind::Manifest, &entry.digest, size, last_access(&entry), needs);
        }
    }
    for entry in store.held_blobs()? {
        deleted.remove(&entry.digest);
        let size = content.size_on_disk(entry.size);
        content.index().insert(ContentKind::Blob, &entry.digest, size, last_access(&entry), []);
    }
    // A store that was reopened may have lost content. New content enters the store before the index, so nothing can add an
    // entry between the look-up and the removal.
    for digest in deleted {
        let mut index = content.index();
        if !store.holds(&digest)? {
            index.remove(&digest);
        }
    }
    // Leftovers occupy space and are in no counter.
    shared.deleter().delete_leftovers()?;
    content.set_complete();
    Ok(())
}

/// Returns the digests that a stored manifest needs. A damaged manifest needs nothing until a request finds the damage.
fn stored_dependencies(store: &Store, digest: &Digest) -> Result<Vec<Digest>, StoreError> {
    let stored = match store.manifest(digest) {
        Ok(Some(stored)) => stored,
        Ok(None) | Err(StoreError::Damaged(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let manifest = Manifest::read(&stored.body, Some(stored.media_type.as_str()));
    Ok(manifest.map(|manifest| dependencies(&manifest).collect()).unwrap_or_default())
}

/// Measures the store. Returns also the drafts on disk.
fn measure(shared: &Shared) -> Result<(Measurement, Vec<DraftUsage>), StoreError> {
    let store = &shared.store;
    let (pending, pending_unwritten) = shared.fills.pending();
    let (disk, drafts) = (store.size_on_disk()?, store.drafts()?);
    let mut measured = Measurement {
        disk,
        drafts: drafts.iter().map(|draft| draft.bytes).sum(),
        growth: 0,
        content: store.counts().content,
        pending,
        pending_unwritten,
        free: store.free_on_disk().ok(),
    };
    measured.growth = shared.capacity.file_growth(&measured);
    Ok((measured, drafts))
}

/// Measures the store, and deletes abandoned drafts or a batch of content if a limit is exceeded.
fn evict_step(shared: &Shared) -> Result<EvictionStep, StoreError> {
    let (kind, limits) = (shared.capacity.kind(), shared.capacity.limits());
    let (measured, drafts) = measure(shared)?;
    let disk_limit = disk_limit(&measured, &limits).0;
    shared.capacity.set_budgets(disk_limit, content_budget(&measured, disk_limit));
    let excess = excess(kind, &measured, &limits);
    let wanted = excess.map_or(0, |(bytes, _)| bytes);
    if evict_drafts(shared, drafts, wanted, draft_budget(kind, disk_limit))? {
        return Ok(EvictionStep::Deleted);
    }
    let Some((bytes, reason)) = excess else { return Ok(EvictionStep::WithinLimits) };
    let freed = evict_content(shared, bytes.min(BATCH_BYTES), reason)?;
    Ok(if freed > 0 { EvictionStep::Deleted } else { EvictionStep::Exhausted })
}

/// Deletes abandoned drafts to free `wanted` bytes, or because they exceed `budget`. Returns true if any was deleted.
fn evict_drafts(
    shared: &Shared,
    mut drafts: Vec<DraftUsage>,
    wanted: u64,
    budget: u64,
) -> Result<bool, StoreError> {
    drafts.retain(|draft| !shared.fills.contains(&draft.digest));
    let drafts = drafts_to_evict(drafts, wanted, budget, shared.clock.now());
    let (drafts, bytes) = shared.deleter().delete_drafts(drafts)?;
    if drafts > 0 {
        tracing::info!(drafts, bytes = %ByteSize(bytes), "evicted abandoned drafts");
    }
    Ok(drafts > 0)
}

/// Evicts content of about `bytes`. Returns the bytes that were freed.
fn evict_content(shared: &Shared, bytes: u64, reason: EvictionReason) -> Result<u64, StoreError> {
    let mut blocked = BlockedFills::new(&shared.fills);
    let victims = shared.eviction.index().take_victims(bytes, shared.clock.now(), |victim| {
        victim.kind == ContentKind::Blob && !blocked.block(&victim.digest)
    });
    let mut batch = DeletionBatch::default();
    for victim in &victims {
        batch.push(victim);
    }
    shared.deleter().delete(&batch, None, &mut blocked, || shared.capacity.content_deleted())?;
    let (manifests, blobs, bytes) = (batch.manifests(), batch.blobs(), batch.bytes());
    if bytes > 0 {
        shared.metrics.evicted(reason.as_str(), manifests, blobs, bytes);
        tracing::info!(manifests, blobs, bytes = %ByteSize(bytes), reason = reason.as_str(), "evicted");
    }
    Ok(bytes)
}
