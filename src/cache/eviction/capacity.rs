//! Capacity of the store: its limits, the room for arriving bytes, and back-pressure on fills while the evictor makes room.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::config::schema;
use crate::oci::Repository;
use crate::store::SpaceModel;

use super::budget::{
    BACKLOG_DRAFTS_MAX, DraftShares, Measurement, StoreLimits, backlog_max, file_high_watermark,
    is_above_high,
};
use super::draft_space::{DraftShare, DraftSpace};

/// Longest time for which a copy waits for room. Then it is better to exceed a limit for a while.
const COPY_WAIT_MAX: Duration = Duration::from_mins(1);
/// Longest time for which arriving bytes wait for room. Then they are passed through.
const ARRIVAL_WAIT_MAX: Duration = Duration::from_secs(10);
/// Bytes that arrive between two measurements of the disk at most: other programs use it too.
const MEASURE_BYTES: u64 = 16 << 20;
/// Smallest room with which a fill without a client starts.
const START_ROOM: u64 = 1 << 20;

/// Limits of the store, the budgets that the evictor has derived from them, and the sums of arriving bytes.
#[derive(Debug)]
pub(in crate::cache) struct Capacity {
    space: SpaceModel,
    limits: Mutex<StoreLimits>,
    /// Size of sled's file at the previous measurement; 0 before the first.
    file_size: AtomicU64,
    /// Wakes the evictor: content or bytes were added.
    wake: Notify,
    /// Latest budgets. Sent again after each deletion.
    budgets: watch::Sender<Budgets>,
    drafts: Arc<DraftSpace>,
    /// Bytes that have arrived since the evictor was woken.
    arrived: AtomicU64,
    /// Passes of the evictor that have begun.
    passes: AtomicU64,
}

/// Budgets in bytes, derived from the limits and the latest measurement.
#[derive(Clone, Copy, Debug)]
struct Budgets {
    /// Limit of the store's size on disk.
    disk: u64,
    /// Size on disk above which arriving bytes are not written.
    storable: u64,
    /// Content above which copies wait for the evictor; `None` if nothing is evictable, so that waiting is useless.
    content: Option<u64>,
    /// Passes of the evictor that have ended.
    passes: u64,
}

impl Capacity {
    pub(in crate::cache) fn new(options: &schema::Store, space: SpaceModel) -> Self {
        let budgets = Budgets { disk: u64::MAX, storable: u64::MAX, content: None, passes: 0 };
        Self {
            space,
            limits: StoreLimits::new(options).into(),
            file_size: AtomicU64::new(0),
            wake: Notify::new(),
            budgets: watch::Sender::new(budgets),
            drafts: Arc::default(),
            arrived: AtomicU64::new(0),
            passes: AtomicU64::new(0),
        }
    }

    /// Returns the sums of arriving bytes.
    pub(in crate::cache) fn drafts(&self) -> &Arc<DraftSpace> {
        &self.drafts
    }

    /// Returns the way in which the store uses disk space.
    pub(in crate::cache) fn space(&self) -> SpaceModel {
        self.space
    }

    /// Returns the current limits.
    pub(in crate::cache) fn limits(&self) -> StoreLimits {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the limits after a reload.
    pub(in crate::cache) fn set_limits(&self, options: &schema::Store) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = StoreLimits::new(options);
        self.wake_evictor();
    }

    /// Has the evictor check the limits soon.
    pub(in crate::cache) fn wake_evictor(&self) {
        self.arrived.store(0, Ordering::Relaxed);
        self.wake.notify_one();
    }

    /// Waits for [`wake_evictor`](Self::wake_evictor).
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Returns the limit of the store's size on disk, by the configuration and the latest measurement.
    fn disk_limit(&self) -> u64 {
        self.limits().max_size.min(self.budgets.borrow().disk)
    }

    /// Returns true if too many complete drafts wait for the disk, so that another fill should not be stored.
    pub(in crate::cache) fn is_backlogged(&self) -> bool {
        let usage = self.drafts.usage();
        usage.complete >= BACKLOG_DRAFTS_MAX || usage.verified > backlog_max(self.space, self.disk_limit())
    }

    /// Waits until a fill of a repository has room to start. Fills for which no client waits start only then.
    pub(in crate::cache) async fn wait_to_start(&self, owner: Option<&Repository>) {
        let can_start = || {
            let shares = DraftShares::of(self.disk_limit());
            // A store too small for any room refuses the fill at once.
            let room = START_ROOM.min(shares.repository);
            !self.is_backlogged() && self.drafts.has_room(owner, room, &shares)
        };
        self.drafts.wait_until(can_start).await;
    }

    /// Adds bytes that have arrived to a share, and waits until the evictor has made room for them. Returns false if the
    /// bytes cannot be stored: a share is used up, or nothing more is evictable.
    pub(in crate::cache) async fn admit(&self, share: &DraftShare, bytes: u64) -> bool {
        if !share.add(bytes, &DraftShares::of(self.disk_limit())) {
            return false;
        }
        let fits = |budgets: &Budgets| self.drafts.usage().total() <= budgets.storable;
        let is_due = self.arrived.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) >= MEASURE_BYTES;
        let mut budgets = self.budgets.subscribe();
        let (fits_now, is_high) = {
            let current = budgets.borrow();
            (fits(&current), is_above_high(self.drafts.usage().total(), current.storable))
        };
        // A pass that has begun may have measured before these bytes arrived.
        let pass = self.passes.load(Ordering::Acquire) + 1;
        if is_due || is_high || !fits_now {
            self.wake_evictor();
        }
        if fits_now {
            return true;
        }
        let done = budgets.wait_for(|budgets| fits(budgets) || budgets.passes >= pass);
        let has_room = match tokio::time::timeout(ARRIVAL_WAIT_MAX, done).await {
            Ok(Ok(budgets)) => fits(&budgets),
            Ok(Err(_)) | Err(_) => false,
        };
        if !has_room {
            share.take_back(bytes);
        }
        has_room
    }

    /// Waits until the content budget has room for a copy of `size` bytes, or until nothing is evictable. Without this
    /// back-pressure, copies that are faster than deletions exceed the limits. `content` returns the present bytes of
    /// content.
    pub(in crate::cache) async fn wait_for_room(&self, size: u64, content: impl Fn() -> u64) {
        if matches!(self.space, SpaceModel::Separate { .. }) {
            return;
        }
        self.wake_evictor();
        let fits =
            |budgets: &Budgets| budgets.content.is_none_or(|budget| content().saturating_add(size) <= budget);
        let mut budgets = self.budgets.subscribe();
        drop(tokio::time::timeout(COPY_WAIT_MAX, budgets.wait_for(fits)).await);
    }

    /// Begins a pass of the evictor. Returns its number.
    pub(super) fn begin_pass(&self) -> u64 {
        self.passes.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Ends a pass of the evictor: fills that still have no room are passed through.
    pub(super) fn end_pass(&self, pass: u64) {
        self.budgets.send_modify(|budgets| budgets.passes = pass);
    }

    /// Publishes new budgets to waiting fills.
    pub(super) fn set_budgets(&self, disk: u64, storable: u64, content: u64) {
        let before = self.budgets.borrow().disk;
        self.budgets.send_modify(|budgets| {
            *budgets = Budgets { disk, storable, content: Some(content), ..*budgets };
        });
        if before != disk {
            self.drafts.notify();
        }
    }

    /// Lets waiting copies check the budget again after a deletion.
    pub(super) fn content_deleted(&self) {
        self.budgets.send_modify(|_| {});
    }

    /// Releases waiting copies: nothing is evictable.
    pub(super) fn release_waiting(&self) {
        self.budgets.send_modify(|budgets| budgets.content = None);
    }

    /// Returns the growth of sled's file above its high watermark since the previous call, and 0 for the first call.
    pub(super) fn file_growth(&self, measured: &Measurement) -> u64 {
        if matches!(self.space, SpaceModel::Separate { .. }) {
            return 0;
        }
        let size = measured.disk.saturating_sub(measured.drafts);
        let watermark = file_high_watermark(measured, &self.limits());
        let previous = self.file_size.swap(size.max(watermark), Ordering::Relaxed);
        if previous == 0 { 0 } else { size.saturating_sub(previous.max(watermark)) }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    const FILES: SpaceModel = SpaceModel::Separate { block_size: 4096 };

    fn capacity(space: SpaceModel) -> Capacity {
        Capacity::new(&schema::Store::default(), space)
    }

    /// Returns true if `work` is ready at its first poll.
    async fn is_ready(work: &mut (impl Future<Output = ()> + Unpin)) -> bool {
        tokio::select! {
            biased;
            () = work => true,
            () = std::future::ready(()) => false,
        }
    }

    #[tokio::test]
    async fn copy_waits_until_enough_content_is_deleted() {
        let (capacity, content) = (capacity(SpaceModel::Shared), AtomicU64::new(90));
        let wait = |size| capacity.wait_for_room(size, || content.load(Ordering::Relaxed));
        assert!(is_ready(&mut pin!(wait(u64::MAX))).await, "no budget is known yet");
        capacity.set_budgets(u64::MAX, u64::MAX, 100);
        assert!(is_ready(&mut pin!(wait(10))).await);
        let mut waiting = pin!(wait(20));
        assert!(!is_ready(&mut waiting).await);
        capacity.content_deleted();
        assert!(!is_ready(&mut waiting).await, "the content has not changed");
        content.store(80, Ordering::Relaxed);
        capacity.content_deleted();
        assert!(is_ready(&mut waiting).await);
    }

    #[tokio::test]
    async fn copy_does_not_wait_if_nothing_is_evictable() {
        let capacity = capacity(SpaceModel::Shared);
        capacity.set_budgets(u64::MAX, u64::MAX, 100);
        let mut waiting = pin!(capacity.wait_for_room(1, || 100));
        assert!(!is_ready(&mut waiting).await);
        capacity.release_waiting();
        assert!(is_ready(&mut waiting).await);
    }

    #[tokio::test]
    async fn file_store_never_waits_because_it_does_not_copy() {
        let capacity = capacity(FILES);
        capacity.set_budgets(u64::MAX, u64::MAX, 0);
        assert!(is_ready(&mut pin!(capacity.wait_for_room(1, || 100))).await);
    }

    #[tokio::test]
    async fn backlog_of_verified_drafts_delays_fills_without_a_client() {
        let capacity = capacity(SpaceModel::Shared);
        capacity.set_budgets(8000, u64::MAX, u64::MAX);
        let (waiting, small) = (capacity.drafts().share(None, 1001), capacity.drafts().share(None, 100));
        assert!(!capacity.is_backlogged(), "a running fill does not wait for its copy");
        waiting.set_verified();
        assert!(capacity.is_backlogged());
        let mut start = pin!(capacity.wait_to_start(None));
        assert!(!is_ready(&mut start).await);
        drop(small);
        assert!(!is_ready(&mut start).await);
        waiting.commit();
        assert!(is_ready(&mut start).await);
    }

    #[tokio::test]
    async fn number_of_complete_drafts_is_limited_in_both_kinds() {
        for space in [SpaceModel::Shared, FILES] {
            let capacity = capacity(space);
            let mut waiting: Vec<_> =
                (0..BACKLOG_DRAFTS_MAX).map(|_| capacity.drafts().share(None, 1)).collect();
            waiting.iter().skip(1).for_each(DraftShare::set_complete);
            assert!(!capacity.is_backlogged());
            waiting[0].set_complete();
            waiting[0].set_complete();
            assert!(capacity.is_backlogged());
            waiting.pop();
            assert!(!capacity.is_backlogged());
        }
    }

    /// Polls a future once.
    async fn poll<T>(work: &mut (impl Future<Output = T> + Unpin)) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = std::future::ready(()) => None,
        }
    }

    #[tokio::test]
    async fn arriving_bytes_wait_for_the_evictor_and_are_refused_if_it_finds_nothing() {
        let capacity = capacity(FILES);
        let share = capacity.drafts().share(None, 0);
        capacity.set_budgets(1000, 1000, 0);
        capacity.drafts().set_stored(950);
        assert!(capacity.admit(&share, 50).await);
        // The evictor is in a pass that began before these bytes arrived.
        let before = capacity.begin_pass();
        let mut admitted = pin!(capacity.admit(&share, 50));
        assert!(poll(&mut admitted).await.is_none());
        capacity.end_pass(before);
        assert!(poll(&mut admitted).await.is_none());
        let pass = capacity.begin_pass();
        capacity.drafts().set_stored(900);
        capacity.set_budgets(1000, 1000, 0);
        assert!(poll(&mut admitted).await == Some(true));
        capacity.end_pass(pass);
        let mut refused = pin!(capacity.admit(&share, 1));
        assert!(poll(&mut refused).await.is_none());
        let pass = capacity.begin_pass();
        capacity.end_pass(pass);
        assert!(poll(&mut refused).await == Some(false));
        assert_eq!(share.bytes(), 100);
    }

    #[tokio::test]
    async fn bytes_beyond_a_share_are_refused_without_a_wait() {
        let capacity = capacity(FILES);
        capacity.set_budgets(1000, u64::MAX, 0);
        let share = capacity.drafts().share(None, 0);
        assert!(capacity.admit(&share, 620).await && !capacity.admit(&share, 1).await);
        assert!(!capacity.admit(&share, u64::MAX).await);
    }

    #[test]
    fn file_growth_counts_above_the_watermark_only() {
        let capacity = capacity(SpaceModel::Shared);
        let limits = capacity.limits();
        let measure = |disk| Measurement {
            disk,
            drafts: 0,
            unwritten: 0,
            growth: 0,
            content: 0,
            verified: 0,
            free: None,
        };
        let watermark = file_high_watermark(&measure(0), &limits);
        assert_eq!(capacity.file_growth(&measure(watermark + 50)), 0, "nothing to compare with");
        assert_eq!(capacity.file_growth(&measure(watermark + 70)), 20);
        assert_eq!(capacity.file_growth(&measure(watermark - 10)), 0);
        assert_eq!(capacity.file_growth(&measure(watermark + 5)), 5);
    }
}
