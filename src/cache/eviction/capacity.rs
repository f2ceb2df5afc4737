//! Capacity of the store: its limits, and back-pressure on fills while the evictor makes room.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::config::schema;
use crate::store::SpaceModel;

use super::budget::{Measurement, StoreLimits, draft_budget, file_high_watermark};

/// Longest time for which a copy waits for room. Then it is better to exceed a limit for a while.
const WAIT_MAX: Duration = Duration::from_mins(1);

/// Limits of the store, and the budgets that the evictor has derived from them.
#[derive(Debug)]
pub(in crate::cache) struct Capacity {
    space: SpaceModel,
    limits: Mutex<StoreLimits>,
    /// Size of sled's file at the previous measurement; 0 before the first.
    file_size: AtomicU64,
    /// Wakes the evictor: content was added or announced.
    wake: Notify,
    /// Latest budgets. Sent again after each deletion.
    budgets: watch::Sender<Budgets>,
}

/// Budgets in bytes, derived from the limits and the latest measurement.
#[derive(Clone, Copy, Debug)]
struct Budgets {
    /// Limit of the store's size on disk.
    disk: u64,
    /// Content above which copies wait for the evictor; `None` if nothing is evictable, so that waiting is useless.
    content: Option<u64>,
}

impl Capacity {
    pub(in crate::cache) fn new(options: &schema::Store, space: SpaceModel) -> Self {
        Self {
            space,
            limits: StoreLimits::new(options).into(),
            file_size: AtomicU64::new(0),
            wake: Notify::new(),
            budgets: watch::Sender::new(Budgets { disk: u64::MAX, content: None }),
        }
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
        self.wake.notify_one();
    }

    /// Waits for [`wake_evictor`](Self::wake_evictor).
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Returns true if `pending` bytes of other fills leave no room for another draft of `size` bytes. A single draft may
    /// have any size.
    pub(in crate::cache) fn is_crowded(&self, pending: u64, size: u64) -> bool {
        let disk_limit = self.limits().max_size.min(self.budgets.borrow().disk);
        pending > 0 && pending.saturating_add(size) > draft_budget(self.space, disk_limit)
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
        drop(tokio::time::timeout(WAIT_MAX, budgets.wait_for(fits)).await);
    }

    /// Publishes new budgets to waiting fills.
    pub(super) fn set_budgets(&self, disk: u64, content: u64) {
        self.budgets.send_replace(Budgets { disk, content: Some(content) });
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
        capacity.set_budgets(u64::MAX, 100);
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
        capacity.set_budgets(u64::MAX, 100);
        let mut waiting = pin!(capacity.wait_for_room(1, || 100));
        assert!(!is_ready(&mut waiting).await);
        capacity.release_waiting();
        assert!(is_ready(&mut waiting).await);
    }

    #[tokio::test]
    async fn file_store_never_waits_because_it_does_not_copy() {
        let capacity = capacity(FILES);
        capacity.set_budgets(u64::MAX, 0);
        assert!(is_ready(&mut pin!(capacity.wait_for_room(1, || 100))).await);
    }

    #[test]
    fn draft_budget_is_smaller_on_a_small_disk() {
        let capacity = capacity(SpaceModel::Shared);
        assert!(!capacity.is_crowded(1000, 100));
        capacity.set_budgets(8000, u64::MAX);
        assert!(capacity.is_crowded(1000, 100) && !capacity.is_crowded(900, 100));
        assert!(!capacity.is_crowded(0, 5000), "a single draft may have any size");
    }

    #[test]
    fn file_growth_counts_above_the_watermark_only() {
        let capacity = capacity(SpaceModel::Shared);
        let limits = capacity.limits();
        let measure = |disk| Measurement {
            disk,
            drafts: 0,
            growth: 0,
            content: 0,
            pending: 0,
            pending_unwritten: 0,
            free: None,
        };
        let watermark = file_high_watermark(&measure(0), &limits);
        assert_eq!(capacity.file_growth(&measure(watermark + 50)), 0, "nothing to compare with");
        assert_eq!(capacity.file_growth(&measure(watermark + 70)), 20);
        assert_eq!(capacity.file_growth(&measure(watermark - 10)), 0);
        assert_eq!(capacity.file_growth(&measure(watermark + 5)), 5);
    }
}
