//! Evictor: a background task that keeps the store within its limits, and writes access times to the store.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;

use crate::cache::error::CacheError;
use crate::cache::storage::Storage;
use crate::oci::{Digest, Manifest};
use crate::store::{Change, ContentEntry, Counts, DiskUsage, DraftUsage, StoreError, StoreSession};

use super::budget::{
    DraftShares, EvictionReason, Measurement, content_budget, disk_limit, drafts_to_evict, excess, storable,
};
use super::content::{ContentKind, dependencies};
use super::delete::{BlockedFills, DeletionBatch};

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

/// Knowledge about the drafts on disk, for one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DraftList {
    /// The running sums are exact enough. The drafts are listed only if a limit is exceeded.
    IfNeeded,
    /// The sums are corrected by a list of the drafts.
    Fresh,
}

/// Result of one step towards the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EvictionStep {
    /// The limits hold, or the content is not known yet.
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
            let list = tokio::select! {
                _ = ticks.tick() => {
                    intervals += 1;
                    if intervals.is_multiple_of(SAVE_INTERVALS) {
                        self.save_access_times().await;
                    }
                    DraftList::Fresh
                }
                () = storage.capacity.woken() => DraftList::IfNeeded,
            };
            let pass = storage.capacity.begin_pass();
            if !storage.content.is_complete() {
                // Before the list, which may take long: arriving bytes need the limits.
                self.enforce(DraftList::Fresh).await;
                if let Err(error) = self.rebuild_index().await {
                    storage.report_error(
                        "cannot list the cached content; nothing is evicted until it succeeds",
                        &error,
                    );
                }
            }
            let was_exhausted = std::mem::replace(&mut exhausted, self.enforce(list).await);
            storage.capacity.end_pass(pass);
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

    /// Deletes drafts and content until the limits hold, or nothing more is evictable.
    pub(in crate::cache) async fn enforce_limits(&self) {
        self.enforce(DraftList::IfNeeded).await;
    }

    /// Deletes drafts and content until the limits hold. Returns true if a limit stays exceeded because nothing more is
    /// evictable.
    async fn enforce(&self, mut list: DraftList) -> bool {
        let capacity = &self.storage.capacity;
        loop {
            let storage = Arc::clone(&self.storage);
            let step = self.storage.with_store_long(move |store| evict_step(&storage, store, list));
            match step.await {
                Ok(EvictionStep::WithinLimits) => break false,
                Ok(EvictionStep::Deleted) => list = DraftList::Fresh,
                Ok(EvictionStep::Exhausted) => {
                    capacity.release_waiting();
                    break true;
                }
                Err(error) => {
                    capacity.release_waiting();
                    // Content that could not be deleted is still in the store, and must return to the index.
                    self.storage.content.set_incomplete();
                    self.storage.report_error("eviction failed", &error);
                    break false;
                }
            }
        }
    }
}

/// Updates the metrics of the store.
fn update_gauges(storage: &Storage, usage: &DiskUsage) {
    let Counts { content, manifests, blobs } = storage.store.counts();
    storage.metrics.set_quarantined_stores(usage.quarantined);
    storage.metrics.set_store_usage(usage.total, content, manifests, blobs);
    let stats = storage.content.index().stats();
    let max_size = storage.capacity.limits().max_size;
    storage.metrics.set_store_limits(stats.unneeded_bytes, stats.oldest_access, max_size);
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

/// Lists the drafts on disk, corrects the sums by them, and updates the metrics. Returns the drafts without a fill.
fn list_drafts(storage: &Storage, store: &StoreSession) -> Result<Vec<DraftUsage>, StoreError> {
    let mut usage = store.usage()?;
    update_gauges(storage, &usage);
    usage.drafts.retain(|draft| !storage.fills.is_growing(&draft.key));
    storage.capacity.drafts().set_abandoned(usage.draft_bytes());
    Ok(usage.drafts)
}

/// Measures the store without a list of its drafts.
fn measure(storage: &Storage, store: &StoreSession) -> Result<Measurement, StoreError> {
    let drafts = storage.capacity.drafts();
    drafts.set_stored(store.stored_size()?);
    let usage = drafts.usage();
    let mut measured = Measurement {
        disk: usage.total(),
        drafts: usage.drafts(),
        unwritten: usage.unwritten,
        growth: 0,
        content: storage.store.counts().content,
        verified: usage.verified,
        free: store.free_space(),
    };
    measured.growth = storage.capacity.file_growth(&measured);
    Ok(measured)
}

/// Measures the store, and deletes abandoned drafts or a batch of content if a limit is exceeded.
///
/// A step lists the drafts at most once, because a list costs as much as there are drafts.
fn evict_step(storage: &Storage, store: &StoreSession, list: DraftList) -> Result<EvictionStep, StoreError> {
    let (space, limits) = (storage.capacity.space(), storage.capacity.limits());
    let mut abandoned = match list {
        DraftList::IfNeeded => None,
        DraftList::Fresh => Some(list_drafts(storage, store)?),
    };
    let mut measured = measure(storage, store)?;
    let abandoned_max = |measured: &Measurement| {
        let running = storage.capacity.drafts().usage().running;
        DraftShares::of(disk_limit(measured, &limits).0).abandoned(running)
    };
    let has_excess = excess(space, &measured, &limits).is_some()
        || storage.capacity.drafts().usage().abandoned > abandoned_max(&measured);
    if has_excess && abandoned.is_none() {
        abandoned = Some(list_drafts(storage, store)?);
        let growth = measured.growth;
        measured = Measurement { growth, ..measure(storage, store)? };
    }
    let disk_limit = disk_limit(&measured, &limits).0;
    let content_budget = content_budget(&measured, disk_limit);
    storage.capacity.set_budgets(disk_limit, storable(space, &measured, &limits), content_budget);
    let excess = excess(space, &measured, &limits);
    let wanted = excess.map_or(0, |(bytes, _)| bytes);
    if let Some(abandoned) = abandoned
        && evict_drafts(storage, store, abandoned, wanted, abandoned_max(&measured))?
    {
        return Ok(EvictionStep::Deleted);
    }
    let Some((bytes, reason)) = excess else { return Ok(EvictionStep::WithinLimits) };
    if !storage.content.is_complete() {
        storage.capacity.release_waiting();
        return Ok(EvictionStep::WithinLimits);
    }
    let freed = evict_content(storage, store, bytes.min(BATCH_BYTES), reason)?;
    Ok(if freed > 0 { EvictionStep::Deleted } else { EvictionStep::Exhausted })
}

/// Deletes abandoned drafts to free `wanted` bytes, or because they exceed `budget`. Returns true if any was deleted.
fn evict_drafts(
    storage: &Storage,
    store: &StoreSession,
    drafts: Vec<DraftUsage>,
    wanted: u64,
    budget: u64,
) -> Result<bool, StoreError> {
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::clock::Clock;
    use crate::config::schema::{self, BlobStoreKind};
    use crate::oci::Algorithm;
    use crate::store::{DraftKey, Store};
    use crate::telemetry::Metrics;

    /// The cost of a step must not grow with the number of drafts, except if a limit is exceeded.
    #[tokio::test]
    async fn step_lists_the_drafts_only_if_a_limit_is_exceeded() {
        let folder = tempfile::tempdir().expect("a folder");
        let options = schema::Store {
            path: folder.path().to_owned(),
            blobs: BlobStoreKind::Files,
            max_size: ByteSize::mib(64),
            min_free: ByteSize::b(0),
            ..schema::Store::default()
        };
        let store = Store::open(&options, None).await.expect("a store");
        let metrics = Arc::new(Metrics::new());
        let storage = Arc::new(Storage::new(store, &options, metrics, Clock::default()));
        let work = Arc::clone(&storage);
        let checked = storage.with_store(move |session| {
            let write = |seed: u32, length: usize| {
                let digest = Digest::of(Algorithm::Sha256, &seed.to_be_bytes());
                let mut writer = session.open_draft(&DraftKey::unowned(&digest))?;
                writer.append(Bytes::from(vec![7; length]))?;
                writer.flush()
            };
            (0..200).try_for_each(|seed| write(seed, 1000))?;
            let before = session.draft_lists();
            let lists = || session.draft_lists() - before;
            let step = |list| evict_step(&work, session, list);
            assert_eq!(step(DraftList::Fresh)?, EvictionStep::WithinLimits);
            assert_eq!(lists(), 1);
            for _ in 0..100 {
                assert_eq!(step(DraftList::IfNeeded)?, EvictionStep::WithinLimits);
            }
            assert_eq!(lists(), 1);
            // More than abandoned drafts may take.
            write(1000, 30 << 20)?;
            work.capacity.drafts().set_abandoned(30 << 20);
            assert_eq!(step(DraftList::IfNeeded)?, EvictionStep::Deleted);
            assert_eq!(lists(), 2);
            Ok(())
        });
        checked.await.expect("the store works");
    }
}
