//! Budget for the bytes of drafts in memory, divided among the drafts that are growing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of all windows together, as long as each has more than the smallest size.
const WINDOWS_MAX: u64 = 24 << 20;
/// Smallest window, however many drafts are growing and whatever the other windows contain.
const WINDOW_MIN: u64 = 64 << 10;
/// Bytes of small verified drafts that wait in memory for their commit. Others wait in their files.
const VERIFIED_MAX: u64 = 24 << 20;

/// Budget of one store; clones share it.
#[derive(Clone, Debug, Default)]
pub(in crate::store) struct MemoryBudget(Arc<BudgetState>);

#[derive(Debug, Default)]
struct BudgetState {
    windows: AtomicU64,
    /// Bytes in all windows.
    used: AtomicU64,
    verified: AtomicU64,
}

/// Share of a growing draft. Dropping it leaves more for the others.
#[derive(Debug)]
pub(in crate::store) struct WindowShare {
    budget: MemoryBudget,
    /// Bytes in the window.
    used: u64,
}

/// Memory of a verified draft that waits for its commit. Dropping it frees the memory for others.
#[derive(Debug)]
pub(in crate::store) struct VerifiedMemory {
    budget: MemoryBudget,
    bytes: u64,
}

impl MemoryBudget {
    /// Returns a share for one more draft.
    pub(in crate::store) fn share(&self) -> WindowShare {
        self.0.windows.fetch_add(1, Ordering::Relaxed);
        WindowShare { budget: self.clone(), used: 0 }
    }

    /// Reserves memory for a verified draft. `None` if others use it.
    pub(in crate::store) fn reserve(&self, bytes: u64) -> Option<VerifiedMemory> {
        let used = self.0.verified.fetch_add(bytes, Ordering::Relaxed);
        let reserved = VerifiedMemory { budget: self.clone(), bytes };
        (used.saturating_add(bytes) <= VERIFIED_MAX).then_some(reserved)
    }
}

impl WindowShare {
    /// Returns the bytes that the draft may keep in memory, at most `most`. Windows that were filled while there were fewer
    /// of them shrink with their readers, so the budget is not divided without them.
    pub(in crate::store) fn bytes(&self, most: u64) -> u64 {
        let BudgetState { windows, used, .. } = &*self.budget.0;
        let part = WINDOWS_MAX / windows.load(Ordering::Relaxed).max(1);
        let others = used.load(Ordering::Relaxed).saturating_sub(self.used);
        part.min(WINDOWS_MAX.saturating_sub(others)).max(WINDOW_MIN).min(most)
    }

    /// Sets the number of bytes in the window.
    pub(in crate::store) fn set_used(&mut self, bytes: u64) {
        let used = &self.budget.0.used;
        // Wraps to the right sum in either direction.
        used.fetch_add(bytes.wrapping_sub(self.used), Ordering::Relaxed);
        self.used = bytes;
    }
}

impl Drop for WindowShare {
    fn drop(&mut self) {
        self.set_used(0);
        self.budget.0.windows.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for VerifiedMemory {
    fn drop(&mut self) {
        self.budget.0.verified.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_shrink_with_the_number_of_growing_drafts() {
        let budget = MemoryBudget::default();
        let mut shares = vec![budget.share()];
        assert_eq!(shares[0].bytes(1 << 20), 1 << 20);
        shares.extend((1..48).map(|_| budget.share()));
        assert_eq!(shares[0].bytes(4 << 20), 512 << 10);
        shares.extend((48..5000).map(|_| budget.share()));
        assert_eq!(shares[0].bytes(4 << 20), WINDOW_MIN);
        shares.truncate(1);
        assert_eq!(shares[0].bytes(4 << 20), 4 << 20);
    }

    #[test]
    fn windows_of_slow_readers_leave_the_smallest_size() {
        let budget = MemoryBudget::default();
        let mut slow: Vec<_> = (0..6).map(|_| budget.share()).collect();
        for share in &mut slow {
            share.set_used(4 << 20);
        }
        let mut next = budget.share();
        assert_eq!(next.bytes(4 << 20), WINDOW_MIN);
        slow[0].set_used(3 << 20);
        assert_eq!(next.bytes(4 << 20), 1 << 20);
        next.set_used(1 << 20);
        assert_eq!(next.bytes(4 << 20), 1 << 20, "its own bytes count once");
        drop(slow);
        assert_eq!(next.bytes(4 << 20), 4 << 20);
        drop(next);
        assert_eq!(budget.0.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn verified_drafts_reserve_memory_until_it_is_used_up() {
        let budget = MemoryBudget::default();
        let first = budget.reserve(VERIFIED_MAX - 1).expect("memory");
        assert!(budget.reserve(2).is_none());
        let second = budget.reserve(1).expect("memory");
        drop(first);
        assert!(budget.reserve(VERIFIED_MAX - 1).is_some());
        drop(second);
        assert!(budget.reserve(u64::MAX).is_none());
    }
}
