//! Eviction: keeps the store within `store.max_size` and its disk at `store.min_free`, by taking out what was not asked
//! for longest.
//!
//! `index` knows what may go and in which order, `budget` how much must, `evictor` does it. A request that reads a blob
//! holds a `ContentPin` of it. One that finds no entry in a complete index has found a blob on its way out, which
//! is a miss; what goes is closed on the board of fills until it is gone, so that no fill writes what is being removed.

mod budget;
mod delete;
mod evictor;
mod index;
mod usage;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use crate::config::schema::{self, BlobStoreKind};
use crate::oci::{Digest, Manifest};
use crate::store::BlobEntry;

use budget::{StoreLimits, draft_budget};
pub(super) use delete::{BlockedFills, clear_leftovers};
use index::{ContentKind, EvictionIndex, IndexStats, Victim};
pub use index::{Reachability, Totals};
pub use usage::ContentPin;
pub(super) use usage::Usage;

/// How long a copy waits for room at most.
const ROOM_WITHIN: Duration = Duration::from_mins(1);
/// How long it is good enough to know what all that is held comes to.
const STATS_MAX_AGE: Duration = Duration::from_secs(5);

/// What all requests and the evictor share.
#[derive(Debug)]
pub(super) struct Eviction {
    kind: BlobStoreKind,
    limits: Mutex<StoreLimits>,
    index: Mutex<EvictionIndex>,
    /// Whether the index knows all that is held. Until then nothing goes.
    pub(super) complete: AtomicBool,
    /// How large sled's file was when something last went for that.
    seen: AtomicU64,
    /// Something came, or is about to: is there room?
    look: Notify,
    /// What the evictor found, told whenever something has gone.
    room: watch::Sender<Budget>,
    /// What all that is held came to lately, for who looks on.
    stats: Mutex<Option<(Instant, IndexStats)>>,
}

/// How much there may be, in bytes, as the evictor found last.
#[derive(Clone, Copy, Debug)]
struct Budget {
    /// What the store may take on disk.
    ceiling: u64,
    /// How much content there may be before more of it is copied; `None` while nothing can go for it.
    content: Option<u64>,
}

impl Eviction {
    pub(super) fn new(options: &schema::Store) -> Self {
        Self {
            kind: options.blobs,
            limits: StoreLimits::of(options).into(),
            index: Mutex::default(),
            complete: AtomicBool::new(false),
            seen: AtomicU64::new(0),
            look: Notify::new(),
            room: watch::Sender::new(Budget { ceiling: u64::MAX, content: None }),
            stats: Mutex::default(),
        }
    }

    /// Follows other limits; what is there does at once.
    pub(super) fn follow(&self, options: &schema::Store) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = StoreLimits::of(options);
        self.look();
    }

    /// Sees to it that the evictor looks for room soon.
    pub(super) fn look(&self) {
        self.look.notify_one();
    }

    /// Takes stock again: the store may hold less than it did.
    pub(super) fn invalidate_index(&self) {
        self.complete.store(false, Ordering::Release);
        self.look();
    }

    /// Keeps a blob while it is read. `None` if it is on its way out.
    pub(super) fn read(&self, entry: &BlobEntry, now: u64) -> Option<ContentPin> {
        let mut index = self.index();
        if !self.complete.load(Ordering::Acquire) {
            index.admit(ContentKind::Blob, entry.digest(), self.taken(entry.size()), now, []);
        }
        index.read(entry.digest(), now)
    }

    /// Whether what is coming leaves no room for another draft of `size` bytes. One alone may be of any size.
    pub(super) fn is_crowded(&self, pending: u64, size: u64) -> bool {
        let ceiling = self.limits().max_size.min(self.room.borrow().ceiling);
        pending > 0 && pending.saturating_add(size) > draft_budget(self.kind, ceiling)
    }

    /// Waits until there is room beside what is `held` for `size` bytes that are to be copied, or nothing more can go for
    /// them. Copies that are faster than removals would take the store over its limits.
    pub(super) async fn room_for(&self, size: u64, held: impl Fn() -> u64) {
        if self.kind == BlobStoreKind::Files {
            return;
        }
        self.look();
        let fits = |room: &Budget| room.content.is_none_or(|may| held().saturating_add(size) <= may);
        let mut room = self.room.subscribe();
        // To wait in vain would be worse than to take too much for once.
        drop(tokio::time::timeout(ROOM_WITHIN, room.wait_for(fits)).await);
    }

    /// Whether something is held, and not on its way out.
    pub(super) fn is_held(&self, digest: &Digest) -> bool {
        self.index().usage(digest).is_some()
    }

    /// Keeps a blob that is not read for a client. `None` if it is on its way out.
    pub(super) fn hold(&self, digest: &Digest) -> Option<ContentPin> {
        self.index().hold(digest)
    }

    /// Whether a manifest held needs this.
    pub(super) fn is_needed(&self, digest: &Digest) -> bool {
        self.index().is_needed(digest)
    }

    /// What can be reached from `roots`.
    pub(super) fn reached(&self, roots: &HashSet<Digest>) -> Reachability {
        self.index().reached(roots)
    }

    /// When something held was last asked for, or came in, in milliseconds since 1970.
    pub(super) fn last(&self, digest: &Digest) -> Option<u64> {
        Some(self.index().usage(digest)?.last())
    }

    /// Notes that a blob was asked for.
    pub(super) fn touch(&self, digest: &Digest, now: u64) {
        if let Some(usage) = self.index().usage(digest) {
            usage.touch(now);
        }
    }

    /// Notes that a blob is held from now on.
    pub(super) fn blob_added(&self, digest: &Digest, size: u64, now: u64) {
        self.index().admit(ContentKind::Blob, digest, self.taken(size), now, []);
        self.look();
    }

    /// Notes that a manifest is held from now on, with what it needs.
    pub(super) fn manifest_added(
        &self,
        digest: &Digest,
        body: &[u8],
        needs: impl Iterator<Item = Digest>,
        now: u64,
    ) -> Arc<Usage> {
        let size = self.taken(body.len() as u64);
        self.index().admit(ContentKind::Manifest, digest, size, now, needs)
    }

    /// The usage of a manifest that was found in the store. One on its way out has none, and is served all the same.
    pub(super) fn manifest_found(
        &self,
        digest: &Digest,
        body: &[u8],
        media_type: &str,
        now: u64,
    ) -> Arc<Usage> {
        if let Some(usage) = self.index().usage(digest) {
            return usage;
        }
        match Manifest::read(body, Some(media_type)) {
            Ok(read) if !self.complete.load(Ordering::Acquire) => {
                self.manifest_added(digest, body, needs(&read), now)
            }
            _ => Arc::default(),
        }
    }

    /// Where the bytes of blobs are.
    pub(super) fn kind(&self) -> BlobStoreKind {
        self.kind
    }

    /// What all that is held comes to, a few seconds old at most: to know it is to look at every entry, while requests
    /// wait, however many look on.
    pub(super) fn stats(&self) -> IndexStats {
        let mut known = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, stats)) = *known
            && at.elapsed() < STATS_MAX_AGE
        {
            return stats;
        }
        let stats = self.index().stats();
        *known = Some((Instant::now(), stats));
        stats
    }

    /// Whether the index knows all that is held.
    pub(super) fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// What something held needs.
    pub(super) fn needs_of(&self, digest: &Digest) -> Vec<Digest> {
        self.index().needs_of(digest)
    }

    /// Takes out what is to go, if it is held and nobody needs or reads it.
    pub(super) fn take(&self, digest: &Digest) -> Option<Taken> {
        let Victim { kind, size, .. } = self.index().take_free(digest)?;
        Some(Taken { manifest: kind == ContentKind::Manifest, size })
    }

    /// Notes that something is held no longer.
    pub(super) fn removed(&self, digest: &Digest) {
        self.index().remove(digest);
    }

    /// Bytes that content of a length takes on disk, where that can be told.
    fn taken(&self, size: u64) -> u64 {
        match self.kind {
            BlobStoreKind::Sled => size,
            // What file systems give out is blocks of this size.
            BlobStoreKind::Files => size.next_multiple_of(4096),
        }
    }

    fn index(&self) -> MutexGuard<'_, EvictionIndex> {
        // The index puts one thing after the other right; a panic in between leaves a wrong order at worst.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn limits(&self) -> StoreLimits {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was taken out of the index, and is to be removed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    /// Whether it is a manifest, not a blob.
    pub(super) manifest: bool,
    /// Bytes that it takes.
    pub(super) size: u64,
}

/// What a manifest cannot be served without.
pub(super) fn needs(read: &Manifest) -> impl Iterator<Item = Digest> {
    read.children.iter().chain(&read.blobs).filter(|it| !it.foreign).map(|it| it.digest)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    fn of(kind: BlobStoreKind) -> Eviction {
        Eviction::new(&schema::Store { blobs: kind, ..schema::Store::default() })
    }

    /// Whether work ends without anything else happening.
    async fn ends(work: &mut (impl Future<Output = ()> + Unpin)) -> bool {
        tokio::select! {
            biased;
            () = work => true,
            () = std::future::ready(()) => false,
        }
    }

    #[tokio::test]
    async fn a_copy_waits_until_enough_has_gone() {
        let (eviction, held) = (of(BlobStoreKind::Sled), AtomicU64::new(90));
        let room = |bytes| eviction.room_for(bytes, || held.load(Ordering::Relaxed));
        assert!(ends(&mut pin!(room(u64::MAX))).await, "nothing is known yet");
        eviction.room.send_modify(|room| room.content = Some(100));
        assert!(ends(&mut pin!(room(10))).await);
        let mut waiting = pin!(room(20));
        assert!(!ends(&mut waiting).await);
        eviction.room.send_modify(|_| {});
        assert!(!ends(&mut waiting).await, "nothing has gone");
        held.store(80, Ordering::Relaxed);
        eviction.room.send_modify(|_| {});
        assert!(ends(&mut waiting).await);
    }

    #[tokio::test]
    async fn a_copy_for_which_nothing_can_go_does_not_wait() {
        let eviction = of(BlobStoreKind::Sled);
        eviction.room.send_modify(|room| room.content = Some(100));
        let mut waiting = pin!(eviction.room_for(1, || 100));
        assert!(!ends(&mut waiting).await);
        eviction.room.send_modify(|room| room.content = None);
        assert!(ends(&mut waiting).await);
    }

    #[tokio::test]
    async fn a_file_is_content_as_it_is() {
        let eviction = of(BlobStoreKind::Files);
        eviction.room.send_modify(|room| room.content = Some(0));
        assert!(ends(&mut pin!(eviction.room_for(1, || 100))).await);
    }

    #[test]
    fn a_small_disk_is_crowded_sooner() {
        let eviction = of(BlobStoreKind::Sled);
        assert!(!eviction.is_crowded(1000, 100));
        eviction.room.send_modify(|room| room.ceiling = 8000);
        assert!(eviction.is_crowded(1000, 100) && !eviction.is_crowded(900, 100));
        // One alone may be of any size.
        assert!(!eviction.is_crowded(0, 5000));
    }
}
