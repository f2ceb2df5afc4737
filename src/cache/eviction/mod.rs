//! Eviction: keeps the store within `store.max_size` and its disk at `store.min_free`, by taking out what was not asked
//! for longest.
//!
//! `ledger` knows what may go and in which order, `budget` how much must, `keeper` does it. A request that reads a blob
//! holds a `Reading` of it. One that finds no entry in a complete ledger has found a blob on its way out, which
//! is a miss; what goes is closed on the board of fills until it is gone, so that no fill writes what is being removed.

mod budget;
mod keeper;
mod ledger;
mod stamp;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use crate::config::schema::{self, BlobStore};
use crate::oci::{Digest, Manifest};
use crate::store::BlobEntry;

use budget::{Limits, for_drafts};
pub(super) use keeper::Closed;
use ledger::{Figures, Kind, Ledger, Victim};
pub use ledger::{Reached, Tally};
pub use stamp::Reading;
pub(super) use stamp::Stamp;

/// How long a copy waits for room at most.
const ROOM_WITHIN: Duration = Duration::from_mins(1);
/// How long it is good enough to know what all that is held comes to.
const FIGURES_FOR: Duration = Duration::from_secs(5);

/// What all requests and the keeper share.
#[derive(Debug)]
pub(super) struct Eviction {
    kind: BlobStore,
    limits: Mutex<Limits>,
    ledger: Mutex<Ledger>,
    /// Whether the ledger knows all that is held. Until then nothing goes.
    pub(super) complete: AtomicBool,
    /// How large sled's file was when something last went for that.
    seen: AtomicU64,
    /// Something came, or is about to: is there room?
    look: Notify,
    /// What the keeper found, told whenever something has gone.
    room: watch::Sender<Room>,
    /// What all that is held came to lately, for who looks on.
    figures: Mutex<Option<(Instant, Figures)>>,
}

/// How much there may be, in bytes, as the keeper found last.
#[derive(Clone, Copy, Debug)]
struct Room {
    /// What the store may take on disk.
    ceiling: u64,
    /// How much content there may be before more of it is copied; `None` while nothing can go for it.
    content: Option<u64>,
}

impl Eviction {
    pub(super) fn new(options: &schema::Store) -> Self {
        Self {
            kind: options.blobs,
            limits: Limits::of(options).into(),
            ledger: Mutex::default(),
            complete: AtomicBool::new(false),
            seen: AtomicU64::new(0),
            look: Notify::new(),
            room: watch::Sender::new(Room { ceiling: u64::MAX, content: None }),
            figures: Mutex::default(),
        }
    }

    /// Follows other limits; what is there does at once.
    pub(super) fn follow(&self, options: &schema::Store) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = Limits::of(options);
        self.look();
    }

    /// Sees to it that the keeper looks for room soon.
    pub(super) fn look(&self) {
        self.look.notify_one();
    }

    /// Takes stock again: the store may hold less than it did.
    pub(super) fn take_stock_again(&self) {
        self.complete.store(false, Ordering::Release);
        self.look();
    }

    /// Keeps a blob while it is read. `None` if it is on its way out.
    pub(super) fn read(&self, entry: &BlobEntry, now: u64) -> Option<Reading> {
        let mut ledger = self.ledger();
        if !self.complete.load(Ordering::Acquire) {
            ledger.admit(Kind::Blob, entry.digest(), self.taken(entry.size()), now, []);
        }
        ledger.read(entry.digest(), now)
    }

    /// Whether what is coming leaves no room for another draft of `size` bytes. One alone may be of any size.
    pub(super) fn is_crowded(&self, coming: u64, size: u64) -> bool {
        let ceiling = self.limits().max_size.min(self.room.borrow().ceiling);
        coming > 0 && coming.saturating_add(size) > for_drafts(self.kind, ceiling)
    }

    /// Waits until there is room beside what is `held` for `size` bytes that are to be copied, or nothing more can go for
    /// them. Copies that are faster than removals would take the store over its limits.
    pub(super) async fn room_for(&self, size: u64, held: impl Fn() -> u64) {
        if self.kind == BlobStore::Files {
            return;
        }
        self.look();
        let fits = |room: &Room| room.content.is_none_or(|may| held().saturating_add(size) <= may);
        let mut room = self.room.subscribe();
        // To wait in vain would be worse than to take too much for once.
        drop(tokio::time::timeout(ROOM_WITHIN, room.wait_for(fits)).await);
    }

    /// Whether something is held, and not on its way out.
    pub(super) fn is_held(&self, digest: &Digest) -> bool {
        self.ledger().stamp(digest).is_some()
    }

    /// Keeps a blob that is not read for a client. `None` if it is on its way out.
    pub(super) fn hold(&self, digest: &Digest) -> Option<Reading> {
        self.ledger().hold(digest)
    }

    /// Whether a manifest held needs this.
    pub(super) fn is_needed(&self, digest: &Digest) -> bool {
        self.ledger().is_needed(digest)
    }

    /// What can be reached from `roots`.
    pub(super) fn reached(&self, roots: &HashSet<Digest>) -> Reached {
        self.ledger().reached(roots)
    }

    /// When something held was last asked for, or came in, in milliseconds since 1970.
    pub(super) fn last(&self, digest: &Digest) -> Option<u64> {
        Some(self.ledger().stamp(digest)?.last())
    }

    /// Notes that a blob was asked for.
    pub(super) fn touch(&self, digest: &Digest, now: u64) {
        if let Some(stamp) = self.ledger().stamp(digest) {
            stamp.touch(now);
        }
    }

    /// Notes that a blob is held from now on.
    pub(super) fn blob_came(&self, digest: &Digest, size: u64, now: u64) {
        self.ledger().admit(Kind::Blob, digest, self.taken(size), now, []);
        self.look();
    }

    /// Notes that a manifest is held from now on, with what it needs.
    pub(super) fn manifest_came(
        &self,
        digest: &Digest,
        body: &[u8],
        needs: impl Iterator<Item = Digest>,
        now: u64,
    ) -> Arc<Stamp> {
        let size = self.taken(body.len() as u64);
        self.ledger().admit(Kind::Manifest, digest, size, now, needs)
    }

    /// The stamp of a manifest that was found in the store. One on its way out has none, and is served all the same.
    pub(super) fn manifest_found(
        &self,
        digest: &Digest,
        body: &[u8],
        media_type: &str,
        now: u64,
    ) -> Arc<Stamp> {
        if let Some(stamp) = self.ledger().stamp(digest) {
            return stamp;
        }
        match Manifest::read(body, Some(media_type)) {
            Ok(read) if !self.complete.load(Ordering::Acquire) => {
                self.manifest_came(digest, body, needs(&read), now)
            }
            _ => Arc::default(),
        }
    }

    /// Where the bytes of blobs are.
    pub(super) fn kind(&self) -> BlobStore {
        self.kind
    }

    /// What all that is held comes to, a few seconds old at most: to know it is to look at every entry, while requests
    /// wait, however many look on.
    pub(super) fn figures(&self) -> Figures {
        let mut known = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, figures)) = *known
            && at.elapsed() < FIGURES_FOR
        {
            return figures;
        }
        let figures = self.ledger().figures();
        *known = Some((Instant::now(), figures));
        figures
    }

    /// Whether the ledger knows all that is held.
    pub(super) fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// What something held needs.
    pub(super) fn needs_of(&self, digest: &Digest) -> Vec<Digest> {
        self.ledger().needs_of(digest)
    }

    /// Takes out what is to go, if it is held and nobody needs or reads it.
    pub(super) fn take(&self, digest: &Digest) -> Option<Taken> {
        let Victim { kind, size, .. } = self.ledger().take_free(digest)?;
        Some(Taken { manifest: kind == Kind::Manifest, size })
    }

    /// Notes that something is held no longer.
    pub(super) fn left(&self, digest: &Digest) {
        self.ledger().remove(digest);
    }

    /// Bytes that content of a length takes on disk, where that can be told.
    fn taken(&self, size: u64) -> u64 {
        match self.kind {
            BlobStore::Sled => size,
            // What file systems give out is blocks of this size.
            BlobStore::Files => size.next_multiple_of(4096),
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // The ledger puts one thing after the other right; a panic in between leaves a wrong order at worst.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn limits(&self) -> Limits {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was taken out of the ledger, and is to be removed.
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

    fn of(kind: BlobStore) -> Eviction {
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
        let (eviction, held) = (of(BlobStore::Sled), AtomicU64::new(90));
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
        let eviction = of(BlobStore::Sled);
        eviction.room.send_modify(|room| room.content = Some(100));
        let mut waiting = pin!(eviction.room_for(1, || 100));
        assert!(!ends(&mut waiting).await);
        eviction.room.send_modify(|room| room.content = None);
        assert!(ends(&mut waiting).await);
    }

    #[tokio::test]
    async fn a_file_is_content_as_it_is() {
        let eviction = of(BlobStore::Files);
        eviction.room.send_modify(|room| room.content = Some(0));
        assert!(ends(&mut pin!(eviction.room_for(1, || 100))).await);
    }

    #[test]
    fn a_small_disk_is_crowded_sooner() {
        let eviction = of(BlobStore::Sled);
        assert!(!eviction.is_crowded(1000, 100));
        eviction.room.send_modify(|room| room.ceiling = 8000);
        assert!(eviction.is_crowded(1000, 100) && !eviction.is_crowded(900, 100));
        // One alone may be of any size.
        assert!(!eviction.is_crowded(0, 5000));
    }
}
