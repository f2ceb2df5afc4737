//! Evictor: a background task that keeps the store within its limits, and writes access times to the store.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;

use crate::cache::error::CacheError;
use crate::cache::storage::Storage;
use crate::oci::{Digest, Manifest};
use crate::store::{Change, ContentEntry, Counts, DraftUsage, StoreError, StoreSession};

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
    storage: Arc<Storage>,
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
    pub(in crate::cache) fn new(storage: &Arc<Storage>) -> Self {
        Self { storage: Arc::clone(storage) }
    }

    /// Keeps the store within its limits. Never returns.
    pub(in crate::cache) async fn run(self) {
        let storage = &self.storage;
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
                () = storage.capacity.woken() => {}
            }
            if !storage.content.is_complete()
                && let Err(error) = self.rebuild_index().await
            {
                storage.report_error(
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
        let times = self.storage.content.index().take_access_times();
        if times.is_empty() {
            return;
        }
        let changes: Vec<_> = times.into_iter().map(|(digest, at)| Change::SetAccessed(digest, at)).collect();
        if let Err(error) = self.storage.with_store(move |store| store.apply(&changes)).await {
            self.storage.report_error("cannot save access times", &error);
        }
    }

    /// Adds all content of the store to the index.
    pub(in crate::cache) async fn rebuild_index(&self) -> Result<(), CacheError> {
        let storage = Arc::clone(&self.storage);
        self.storage.with_store_long(move |store| rebuild_index(&storage, store)).await
    }

    /// Deletes drafts and content until the limits hold. Returns true if a limit stays exceeded because nothing more is
    /// evictable.
    pub(in crate::cache) async fn enforce_limits(&self) -> bool {
        let capacity = &self.storage.capacity;
        if !self.storage.content.is_complete() {
            capacity.release_waiting();
            return false;
        }
        loop {
            let storage = Arc::clone(&self.storage);
            let step = self.storage.with_store_long(move |store| evict_step(&storage, store));
            match step.await {
                Ok(EvictionStep::WithinLimits) => return false,
                Ok(EvictionStep::Deleted) => self.update_gauges().await,
                Ok(EvictionStep::Exhausted) => {
                    capacity.release_waiting();
                    return true;
                }
                Err(error) => {
                    capacity.release_waiting();
                    // Content that could not be deleted is still in the store, and must return to the index.
                    self.storage.content.set_incomplete();
                    self.storage.report_error("eviction failed", &error);
                    return false;
                }
            }
        }
    }

    /// Updates the metrics of the store.
    async fn update_gauges(&self) {
        let storage = &self.storage;
        match storage.with_store_long(StoreSession::usage).await {
            Ok(usage) => {
                let Counts { content, manifests, blobs } = storage.store.counts();
                storage.metrics.set_quarantined_stores(usage.quarantined);
                storage.metrics.set_store_usage(usage.total, content, manifests, blobs);
                let stats = storage.content.index().stats();
                storage.metrics.set_store_limits(
                    stats.unneeded_bytes,
                    stats.oldest_access,
                    storage.capacity.limits().max_size,
                );
            }
            Err(error) => storage.report_error("cannot measure the store", &error),
        }
    }
}

fn rebuild_index(storage: &Storage, store: &StoreSession) -> Result<(), StoreError> {
    let (content, now) = (&storage.content, storage.clock.now());
    let inventory = store.inventory()?;
    let mut deleted: HashSet<Digest> = content.index().digests().collect();
    let last_access = |entry: &ContentEntry| entry.last.min(now);
    for entry in inventory.manifests {
        deleted.remove(&entry.digest);
        if !content.contains(&entry.digest) {
            let needs = stored_dependencies(store, &entry.digest)?;
            let size = content.size_on_disk(entry.size);
            content.index().insert(ContentKind::Manifest, &entry.digest, size, last_access(&entry), needs);
        }
    }
    for entry in inventory.blobs {
        deleted.remove(&entry.digest);
        let size = content.size_on_disk(entry.size);
        content.index().insert(ContentKind::Blob, &entry.digest, size, last_access(&entry), []);
    }
    // A store that was reopened may have lost content. New content enters the store before the index, so nothing can add an
    // entry between the look-up and the removal.
    for digest in deleted {
        let mut index = content.index();
        if !is_stored(store, &digest)? {
            index.remove(&digest);
        }
    }
    // Leftovers occupy space and are in no counter.
    storage.deleter(store).delete_leftovers(&inventory.leftovers)?;
    content.set_complete();
    Ok(())
}

/// Returns true if a blob or a manifest is stored. A damaged manifest counts as stored until a request finds the damage.
fn is_stored(store: &StoreSession, digest: &Digest) -> Result<bool, StoreError> {
    if store.blob(digest)?.is_some() {
        return Ok(true);
    }
    match store.manifest(digest) {
        Ok(found) => Ok(found.is_some()),
        Err(StoreError::Damaged(_)) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Returns the digests that a stored manifest needs. A damaged manifest needs nothing until a request finds the damage.
fn stored_dependencies(store: &StoreSession, digest: &Digest) -> Result<Vec<Digest>, StoreError> {
    let stored = match store.manifest(digest) {
        Ok(Some(stored)) => stored,
        Ok(None) | Err(StoreError::Damaged(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let manifest = Manifest::read(&stored.body, Some(stored.media_type.as_str()));
    Ok(manifest.map(|manifest| dependencies(&manifest).collect()).unwrap_or_default())
}

/// Measures the store. Returns also the drafts on disk.
fn measure(storage: &Storage, store: &StoreSession) -> Result<(Measurement, Vec<DraftUsage>), StoreError> {
    let (pending, pending_unwritten) = storage.fills.pending();
    let usage = store.usage()?;
    let mut measured = Measurement {
        disk: usage.total,
        drafts: usage.draft_bytes(),
        growth: 0,
        content: storage.store.counts().content,
        pending,
        pending_unwritten,
        free: usage.free,
    };
    measured.growth = storage.capacity.file_growth(&measured);
    Ok((measured, usage.drafts))
}

/// Measures the store, and deletes abandoned drafts or a batch of content if a limit is exceeded.
fn evict_step(storage: &Storage, store: &StoreSession) -> Result<EvictionStep, StoreError> {
    let (space, limits) = (storage.capacity.space(), storage.capacity.limits());
    let (measured, drafts) = measure(storage, store)?;
    let disk_limit = disk_limit(&measured, &limits).0;
    storage.capacity.set_budgets(disk_limit, content_budget(&measured, disk_limit));
    let excess = excess(space, &measured, &limits);
    let wanted = excess.map_or(0, |(bytes, _)| bytes);
    if evict_drafts(storage, store, drafts, wanted, draft_budget(space, disk_limit))? {
        return Ok(EvictionStep::Deleted);
    }
    let Some((bytes, reason)) = excess else { return Ok(EvictionStep::WithinLimits) };
    let freed = evict_content(storage, store, bytes.min(BATCH_BYTES), reason)?;
    Ok(if freed > 0 { EvictionStep::Deleted } else { EvictionStep::Exhausted })
}

/// Deletes abandoned drafts to free `wanted` bytes, or because they exceed `budget`. Returns true if any was deleted.
fn evict_drafts(
    storage: &Storage,
    store: &StoreSession,
    mut drafts: Vec<DraftUsage>,
    wanted: u64,
    budget: u64,
) -> Result<bool, StoreError> {
    drafts.retain(|draft| !storage.fills.contains(&draft.digest));
    let drafts = drafts_to_evict(drafts, wanted, budget, storage.clock.now());
    let (drafts, bytes) = storage.deleter(store).delete_drafts(drafts)?;
    if drafts > 0 {
        tracing::info!(drafts, bytes = %ByteSize(bytes), "evicted abandoned drafts");
    }
    Ok(drafts > 0)
}

/// Evicts content of about `bytes`. Returns the bytes that were freed.
fn evict_content(
    storage: &Storage,
    store: &StoreSession,
    bytes: u64,
    reason: EvictionReason,
) -> Result<u64, StoreError> {
    let mut blocked = BlockedFills::new(&storage.fills);
    let victims = storage.content.index().take_victims(bytes, storage.clock.now(), |victim| {
        victim.kind == ContentKind::Blob && !blocked.block(&victim.digest)
    });
    let mut batch = DeletionBatch::default();
    for victim in &victims {
        batch.push(victim);
    }
    storage.deleter(store).delete(&batch, None, &mut blocked, || storage.capacity.content_deleted())?;
    let (manifests, blobs, bytes) = (batch.manifests(), batch.blobs(), batch.bytes());
    if bytes > 0 {
        storage.metrics.evicted(reason.as_str(), manifests, blobs, bytes);
        tracing::info!(manifests, blobs, bytes = %ByteSize(bytes), reason = reason.as_str(), "evicted");
    }
    Ok(bytes)
}
