//! The evictor: takes stock after a start, looks for room whenever something comes, removes what must go, and writes
//! down what was asked for.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytesize::ByteSize;

use crate::config::schema::BlobStoreKind;
use crate::oci::{Digest, Manifest};
use crate::store::{ContentEntry, Counts, DraftUsage, Store, StoreError};

use super::budget::{
    EvictionReason, Measurement, ceiling, content_budget, draft_budget, drafts_to_evict, excess,
    file_high_watermark,
};
use super::delete::{BlockedFills, clear_leftovers};
use super::index::{ContentKind, Victim};
use super::{Budget, needs};
use crate::cache::{Cache, CacheError, Shared, blocking};

/// How often everything is measured, whatever happens.
const MEASURE_EVERY: Duration = Duration::from_secs(10);
/// How often it is written down what was asked for: so much of it a crash forgets.
const NOTE_EVERY: u64 = 6;
/// How much goes at a time, so that what is about to go is blocked for moments only.
const ROUND: u64 = 256 << 20;

impl Cache {
    /// Keeps the store within its limits. Never ends.
    pub async fn run_evictor(self) {
        let shared = &self.0;
        let mut ticks = tokio::time::interval(MEASURE_EVERY);
        let (mut turn, mut short) = (0_u64, false);
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    turn += 1;
                    if turn.is_multiple_of(NOTE_EVERY) {
                        self.save_access_times().await;
                    }
                    tell(shared).await;
                }
                () = shared.eviction.look.notified() => {}
            }
            if !shared.eviction.complete.load(Ordering::Acquire)
                && let Err(error) = self.rebuild_index().await
            {
                shared.report_error("what is held cannot be listed; nothing is evicted until it can", &error);
            }
            let was_short = std::mem::replace(&mut short, enforce_limits(shared).await);
            if short && !was_short {
                tracing::warn!(
                    "there is less room than store.max_size and store.min_free ask for, and all that is held is in use"
                );
            }
        }
    }

    /// Writes down what was asked for lately, so that the next start knows.
    pub async fn save_access_times(&self) {
        let (store, touched) = (self.0.store.clone(), self.0.eviction.index().touched());
        if !touched.is_empty()
            && let Err(error) = blocking(move || store.note_access(&touched)).await
        {
            self.0.report_error("when content was last asked for could not be noted", &error);
        }
    }

    /// Enters all that is held into the index.
    pub async fn rebuild_index(&self) -> Result<(), CacheError> {
        let shared = Arc::clone(&self.0);
        blocking(move || rebuild_index(&shared)).await
    }
}

fn rebuild_index(shared: &Shared) -> Result<(), StoreError> {
    let (store, eviction, now) = (&shared.store, &shared.eviction, shared.clock.now_millis());
    let mut gone: HashSet<Digest> = eviction.index().all().collect();
    for ContentEntry { digest, size, last, .. } in store.held_manifests()? {
        gone.remove(&digest);
        if eviction.index().usage(&digest).is_none() {
            let needed = needed_by(store, &digest)?;
            let size = eviction.taken(size);
            eviction.index().admit(ContentKind::Manifest, &digest, size, last.min(now), needed);
        }
    }
    for ContentEntry { digest, size, last, .. } in store.held_blobs()? {
        gone.remove(&digest);
        eviction.index().admit(ContentKind::Blob, &digest, eviction.taken(size), last.min(now), []);
    }
    // A store that was opened anew may have lost some. What comes is entered after it is held, so that nobody can enter it
    // while it is looked for.
    for digest in gone {
        let mut index = eviction.index();
        if !store.holds(&digest)? {
            index.remove(&digest);
        }
    }
    // They take room and are in no count.
    clear_leftovers(shared)?;
    eviction.complete.store(true, Ordering::Release);
    Ok(())
}

/// What a manifest held needs. A damaged one needs nothing: it is found out when it is asked for.
fn needed_by(store: &Store, digest: &Digest) -> Result<Vec<Digest>, StoreError> {
    let kept = match store.manifest(digest) {
        Ok(Some(kept)) => kept,
        Ok(None) | Err(StoreError::Damaged(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let read = Manifest::read(&kept.body, Some(kept.media_type.as_str()));
    Ok(read.map(|read| needs(&read).collect()).unwrap_or_default())
}

/// How things are, and the drafts there are.
fn measure(shared: &Shared) -> Result<(Measurement, Vec<DraftUsage>), StoreError> {
    let Shared { store, fills, eviction, .. } = shared;
    let (pending, pending_unwritten) = fills.pending();
    let (disk, drafted) = (store.size_on_disk()?, store.drafts()?);
    let drafts = drafted.iter().map(|draft| draft.bytes).sum();
    let (content, free) = (store.counts().content, store.free_on_disk().ok());
    let mut found = Measurement { disk, drafts, growth: 0, content, pending, pending_unwritten, free };
    if eviction.kind == BlobStoreKind::Sled {
        let file = disk.saturating_sub(drafts);
        let mark = file_high_watermark(&found, &eviction.limits());
        let seen = eviction.seen.swap(file.max(mark), Ordering::Relaxed);
        // The first time there is nothing to compare with.
        found.growth = if seen == 0 { 0 } else { file.saturating_sub(seen.max(mark)) };
    }
    Ok((found, drafted))
}

/// Removes content until the limits hold. Tells whether they do not, because nothing more can go.
async fn enforce_limits(shared: &Arc<Shared>) -> bool {
    // What waits for room that nobody can make need not wait.
    let give_up = || shared.eviction.room.send_modify(|room| room.content = None);
    if !shared.eviction.complete.load(Ordering::Acquire) {
        give_up();
        return false;
    }
    loop {
        let of = Arc::clone(shared);
        let round = blocking(move || {
            let (kind, limits) = (of.eviction.kind, of.eviction.limits());
            let (found, drafts) = measure(&of)?;
            let ceiling = ceiling(&found, &limits).0;
            of.eviction.room.send_replace(Budget { ceiling, content: Some(content_budget(&found, ceiling)) });
            let over = excess(kind, &found, &limits);
            let wanted = over.map_or(0, |(bytes, _)| bytes);
            if remove_left_drafts(&of, drafts, wanted, draft_budget(kind, ceiling))? {
                return Ok(Some(1));
            }
            match over {
                Some((bytes, reason)) => evict(&of, bytes.min(ROUND), reason).map(Some),
                None => Ok(None),
            }
        });
        match round.await {
            Ok(Some(0)) => {
                give_up();
                return true;
            }
            Ok(Some(_)) => tell(shared).await,
            Ok(None) => return false,
            Err(error) => {
                give_up();
                failed(shared, &error);
                return false;
            }
        }
    }
}

/// Removes those of the drafts that nobody fills, for `wanted` bytes of room or because they take more than `most`. Tells
/// whether any went.
fn remove_left_drafts(
    shared: &Shared,
    mut left: Vec<DraftUsage>,
    wanted: u64,
    most: u64,
) -> Result<bool, StoreError> {
    left.retain(|draft| !shared.fills.contains(&draft.digest));
    let (mut blocked, mut gone, mut freed) = (BlockedFills::new(&shared.fills), 0, 0);
    for draft in drafts_to_evict(left, wanted, most, shared.clock.now_millis()) {
        // Somebody may have come back to it since.
        if blocked.block(&draft.digest) {
            shared.store.remove_draft(&draft.digest)?;
            blocked.unblock(&draft.digest);
            gone += 1;
            freed += draft.bytes;
        }
    }
    if gone > 0 {
        tracing::info!(drafts = gone, bytes = %ByteSize(freed), "made room: downloads that nobody went on with");
    }
    Ok(gone > 0)
}

/// What could not be removed is still held: the index has to find it again.
fn failed(shared: &Shared, error: &CacheError) {
    shared.eviction.complete.store(false, Ordering::Release);
    shared.report_error("room could not be made", error);
}

/// Removes about `bytes` of what may go. Returns how many went.
fn evict(shared: &Arc<Shared>, bytes: u64, reason: EvictionReason) -> Result<u64, StoreError> {
    let mut blocked = BlockedFills::new(&shared.fills);
    let victims = shared.eviction.index().victims(bytes, shared.clock.now_millis(), |victim| {
        victim.kind == ContentKind::Blob && !blocked.block(&victim.digest)
    });
    let freed = victims.iter().map(|victim| victim.size).sum();
    let of = |kind| move |victim: &&Victim| victim.kind == kind;
    let manifests: HashSet<Digest> =
        victims.iter().filter(of(ContentKind::Manifest)).map(|victim| victim.digest).collect();
    shared.memory.remove_content(|digest| manifests.contains(digest) || blocked.digests.contains(digest));
    if !manifests.is_empty() {
        // What leads to a document goes before it.
        shared.store.forget_pointers(&manifests)?;
        for digest in &manifests {
            shared.store.remove_manifest(digest)?;
        }
    }
    for victim in victims.iter().filter(of(ContentKind::Blob)) {
        shared.store.remove_blob(&victim.digest)?;
        blocked.unblock(&victim.digest);
        shared.eviction.room.send_modify(|_| {});
    }
    if freed > 0 {
        let blobs = victims.len() - manifests.len();
        shared.metrics.evicted(reason.as_str(), manifests.len(), blobs, freed);
        tracing::info!(
            manifests = manifests.len(),
            blobs,
            bytes = %ByteSize(freed),
            reason = reason.as_str(),
            "made room"
        );
    }
    Ok(freed)
}

/// Sets the store's gauges.
async fn tell(shared: &Arc<Shared>) {
    let of = Arc::clone(shared);
    let measured =
        blocking(move || Ok((of.store.size_on_disk()?, of.store.counts(), of.store.quarantined()?))).await;
    match measured {
        Ok((disk, Counts { content, manifests, blobs }, aside)) => {
            shared.metrics.set_quarantined_stores(aside);
            shared.metrics.set_store_usage(disk, content, manifests, blobs);
            let stats = shared.eviction.index().stats();
            shared.metrics.set_store_limits(stats.loose, stats.oldest, shared.eviction.limits().max_size);
        }
        Err(error) => shared.report_error("the store cannot be measured", &error),
    }
}
