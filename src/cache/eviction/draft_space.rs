//! Disk space of unverified bytes: running sums of the bytes that have arrived, by repository and upstream.
//!
//! Only bytes that have arrived count, never an announced length. The sums are updated with each write step, so that no
//! decision has to visit all fills or list all drafts.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::oci::{Repository, UpstreamName};

use super::budget::DraftShares;

/// Sums of unverified bytes.
#[derive(Debug, Default)]
pub(in crate::cache) struct DraftSpace {
    sums: Mutex<Sums>,
    /// Notified when bytes leave the sums.
    released: Notify,
}

/// Bytes of the store, by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SpaceUsage {
    /// Content and database at the latest measurement, and the drafts that were committed since.
    pub(super) stored: u64,
    /// Drafts of running fills, including bytes that wait to be written.
    pub(super) running: u64,
    /// Part of `running` that is not written yet.
    pub(super) unwritten: u64,
    /// Part of `running` that is verified and waits to be committed.
    pub(super) verified: u64,
    /// Drafts without a fill.
    pub(super) abandoned: u64,
    /// Number of drafts that have all their bytes and are not committed yet.
    pub(super) complete: u64,
}

impl SpaceUsage {
    /// Returns the bytes of all drafts.
    pub(super) fn drafts(&self) -> u64 {
        self.running.saturating_add(self.abandoned)
    }

    /// Returns all bytes.
    pub(super) fn total(&self) -> u64 {
        self.stored.saturating_add(self.drafts())
    }
}

#[derive(Debug, Default)]
struct Sums {
    usage: SpaceUsage,
    upstreams: HashMap<UpstreamName, u64>,
    repositories: HashMap<Repository, u64>,
}

/// Share of one fill in the sums. Its bytes leave the sums when it is dropped.
#[derive(Debug)]
pub(in crate::cache) struct DraftShare {
    space: Arc<DraftSpace>,
    /// Repository of the fill; `None` for an import.
    owner: Option<Repository>,
    state: Mutex<ShareState>,
}

#[derive(Debug, Default)]
struct ShareState {
    bytes: u64,
    /// Part of `bytes` that is not written yet.
    unwritten: u64,
    is_complete: bool,
    is_verified: bool,
    /// True if the draft's file has no name any more: no later fill resumes it.
    is_unlinked: bool,
}

impl DraftSpace {
    /// Creates the share of a fill that resumes a draft of `left` bytes.
    pub(in crate::cache) fn share(self: &Arc<Self>, owner: Option<&Repository>, left: u64) -> DraftShare {
        let mut sums = self.sums();
        sums.usage.abandoned = sums.usage.abandoned.saturating_sub(left);
        sums.add(owner, left);
        let state = ShareState { bytes: left, ..ShareState::default() };
        DraftShare { space: Arc::clone(self), owner: owner.cloned(), state: state.into() }
    }

    /// Returns the bytes by state.
    pub(super) fn usage(&self) -> SpaceUsage {
        self.sums().usage
    }

    /// Returns true if another `bytes` of a repository are within the shares.
    pub(super) fn has_room(&self, owner: Option<&Repository>, bytes: u64, shares: &DraftShares) -> bool {
        self.sums().has_room(owner, bytes, shares)
    }

    /// Sets the measured bytes of content and database.
    pub(super) fn set_stored(&self, bytes: u64) {
        self.sums().usage.stored = bytes;
    }

    /// Sets the measured bytes of drafts without a fill.
    pub(super) fn set_abandoned(&self, bytes: u64) {
        self.sums().usage.abandoned = bytes;
        self.released.notify_waiters();
    }

    /// Lets waiting callers check their conditions again.
    pub(super) fn notify(&self) {
        self.released.notify_waiters();
    }

    /// Waits until `condition` is true. It is checked whenever bytes have left the sums.
    pub(super) async fn wait_until(&self, condition: impl Fn() -> bool) {
        loop {
            let released = self.released.notified();
            tokio::pin!(released);
            // Enabled before the check, so that no notification is missed.
            released.as_mut().enable();
            if condition() {
                return;
            }
            released.await;
        }
    }

    fn sums(&self) -> MutexGuard<'_, Sums> {
        // No code under this lock can panic in the middle of a change.
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DraftShare {
    /// Adds bytes that have arrived and are not written yet. Returns false if a share would be exceeded; then the sums are
    /// unchanged.
    pub(super) fn add(&self, bytes: u64, shares: &DraftShares) -> bool {
        let mut state = self.state();
        let mut sums = self.space.sums();
        if !sums.has_room(self.owner.as_ref(), bytes, shares) {
            return false;
        }
        sums.add(self.owner.as_ref(), bytes);
        sums.usage.unwritten = sums.usage.unwritten.saturating_add(bytes);
        state.bytes = state.bytes.saturating_add(bytes);
        state.unwritten = state.unwritten.saturating_add(bytes);
        true
    }

    /// Removes bytes that were added and are not stored.
    pub(super) fn take_back(&self, bytes: u64) {
        {
            let mut state = self.state();
            let mut sums = self.space.sums();
            sums.subtract(self.owner.as_ref(), bytes);
            sums.usage.unwritten = sums.usage.unwritten.saturating_sub(bytes);
            state.bytes = state.bytes.saturating_sub(bytes);
            state.unwritten = state.unwritten.saturating_sub(bytes);
        }
        self.space.released.notify_waiters();
    }

    /// Records that all bytes are written, except `unwritten` bytes.
    pub(in crate::cache) fn set_unwritten(&self, unwritten: u64) {
        let mut state = self.state();
        let before = std::mem::replace(&mut state.unwritten, unwritten);
        let usage = &mut self.space.sums().usage;
        usage.unwritten = usage.unwritten.saturating_sub(before).saturating_add(unwritten);
    }

    /// Returns the repository of the fill; `None` for an import.
    pub(in crate::cache) fn owner(&self) -> Option<&Repository> {
        self.owner.as_ref()
    }

    /// Returns the bytes of the share.
    pub(in crate::cache) fn bytes(&self) -> u64 {
        self.state().bytes
    }

    /// Counts the draft as complete: it waits to be hashed, synchronised or copied.
    pub(in crate::cache) fn set_complete(&self) {
        let mut state = self.state();
        if !std::mem::replace(&mut state.is_complete, true) {
            self.space.sums().usage.complete += 1;
        }
    }

    /// Counts the bytes as verified: they wait to be committed.
    pub(in crate::cache) fn set_verified(&self) {
        let mut state = self.state();
        if !std::mem::replace(&mut state.is_verified, true) {
            let usage = &mut self.space.sums().usage;
            usage.verified = usage.verified.saturating_add(state.bytes);
        }
    }

    /// Records that the draft's file has been removed. Readers may still have it open.
    pub(in crate::cache) fn set_unlinked(&self) {
        self.state().is_unlinked = true;
    }

    /// Counts the bytes as content.
    pub(in crate::cache) fn commit(&self) {
        let mut state = self.state();
        state.is_unlinked = true;
        let bytes = state.bytes;
        self.release(&mut state);
        let usage = &mut self.space.sums().usage;
        usage.stored = usage.stored.saturating_add(bytes);
    }

    fn release(&self, state: &mut ShareState) {
        {
            let mut sums = self.space.sums();
            let bytes = std::mem::take(&mut state.bytes);
            sums.subtract(self.owner.as_ref(), bytes);
            let unwritten = std::mem::take(&mut state.unwritten);
            sums.usage.unwritten = sums.usage.unwritten.saturating_sub(unwritten);
            if std::mem::take(&mut state.is_complete) {
                sums.usage.complete -= 1;
            }
            if std::mem::take(&mut state.is_verified) {
                sums.usage.verified = sums.usage.verified.saturating_sub(bytes);
            }
            if !state.is_unlinked {
                // The file stays, for the next fill.
                sums.usage.abandoned = sums.usage.abandoned.saturating_add(bytes);
            }
        }
        self.space.released.notify_waiters();
    }

    fn state(&self) -> MutexGuard<'_, ShareState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for DraftShare {
    fn drop(&mut self) {
        let mut state = std::mem::take(&mut *self.state());
        self.release(&mut state);
    }
}

impl Sums {
    fn has_room(&self, owner: Option<&Repository>, bytes: u64, shares: &DraftShares) -> bool {
        let fits = |before: u64, limit: u64| before.saturating_add(bytes) <= limit;
        let own_fits = owner.is_none_or(|owner| {
            fits(of(&self.repositories, owner), shares.repository)
                && fits(of(&self.upstreams, &owner.upstream), shares.upstream)
        });
        own_fits && fits(self.usage.running, shares.total)
    }

    fn add(&mut self, owner: Option<&Repository>, bytes: u64) {
        self.usage.running = self.usage.running.saturating_add(bytes);
        if let Some(owner) = owner.filter(|_| bytes > 0) {
            add_to(&mut self.repositories, owner, bytes);
            add_to(&mut self.upstreams, &owner.upstream, bytes);
        }
    }

    fn subtract(&mut self, owner: Option<&Repository>, bytes: u64) {
        self.usage.running = self.usage.running.saturating_sub(bytes);
        if let Some(owner) = owner {
            subtract_from(&mut self.repositories, owner, bytes);
            subtract_from(&mut self.upstreams, &owner.upstream, bytes);
        }
    }
}

fn of<K: Eq + Hash>(sums: &HashMap<K, u64>, key: &K) -> u64 {
    sums.get(key).copied().unwrap_or_default()
}

fn add_to<K: Clone + Eq + Hash>(sums: &mut HashMap<K, u64>, key: &K, bytes: u64) {
    let sum = sums.entry(key.clone()).or_default();
    *sum = sum.saturating_add(bytes);
}

/// Subtracts from a sum, and removes a sum of zero: the map has the keys of running fills only.
fn subtract_from<K: Clone + Eq + Hash>(sums: &mut HashMap<K, u64>, key: &K, bytes: u64) {
    if let Entry::Occupied(mut entry) = sums.entry(key.clone()) {
        let left = entry.get().saturating_sub(bytes);
        if left == 0 {
            entry.remove();
        } else {
            *entry.get_mut() = left;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARES: DraftShares = DraftShares { total: 100, upstream: 80, repository: 60 };
    const EXTREMES: [u64; 7] = [0, 1, 60, 100, u64::MAX / 2, u64::MAX - 1, u64::MAX];

    fn repository(upstream: &str, name: &str) -> Repository {
        Repository { upstream: upstream.parse().expect("a name"), name: name.parse().expect("a name") }
    }

    fn space() -> Arc<DraftSpace> {
        Arc::default()
    }

    #[test]
    fn repository_and_upstream_leave_room_for_others() {
        let space = space();
        let share = |upstream, name| space.share(Some(&repository(upstream, name)), 0);
        let (first, same) = (share("a.test", "x"), share("a.test", "x"));
        assert!(first.add(60, &SHARES) && !same.add(1, &SHARES));
        let second = share("a.test", "y");
        assert!(!second.add(21, &SHARES) && second.add(20, &SHARES));
        assert!(!share("a.test", "z").add(1, &SHARES));
        let other = share("b.test", "x");
        assert!(!other.add(21, &SHARES) && other.add(20, &SHARES));
        drop(first);
        assert!(same.add(1, &SHARES));
    }

    #[test]
    fn bytes_move_between_states() {
        let space = space();
        space.set_abandoned(10);
        space.set_stored(5);
        let share = space.share(None, 10);
        assert!(share.add(30, &SHARES));
        let before = space.usage();
        assert_eq!((before.running, before.unwritten, before.abandoned), (40, 30, 0));
        share.set_unwritten(5);
        assert_eq!((space.usage().unwritten, share.bytes()), (5, 40));
        share.set_verified();
        share.set_verified();
        assert_eq!(space.usage().verified, 40);
        share.commit();
        drop(share);
        assert_eq!(space.usage(), SpaceUsage { stored: 45, ..SpaceUsage::default() });
    }

    #[test]
    fn interrupted_draft_stays_and_removed_draft_does_not() {
        let space = space();
        for (is_unlinked, abandoned) in [(false, 7), (true, 7), (false, 14)] {
            let share = space.share(None, 0);
            assert!(share.add(7, &SHARES));
            if is_unlinked {
                share.set_unlinked();
            }
            drop(share);
            assert_eq!(space.usage(), SpaceUsage { abandoned, ..SpaceUsage::default() });
        }
        let share = space.share(None, 0);
        assert!(share.add(9, &SHARES));
        share.take_back(9);
        assert_eq!((share.bytes(), space.usage().running, space.usage().unwritten), (0, 0, 0));
    }

    /// Property: for all sequences of extreme values nothing overflows, a share is never exceeded by bytes that arrive, and
    /// all sums return to zero.
    #[test]
    fn extreme_values_exceed_no_share_and_leave_no_rest() {
        for limit in EXTREMES {
            let shares = DraftShares { total: limit, upstream: limit / 2, repository: limit / 4 };
            for left in EXTREMES {
                let space = space();
                let owner = repository("a.test", "x");
                let resumed = space.share(Some(&owner), left);
                for bytes in EXTREMES {
                    let share = space.share(Some(&owner), 0);
                    let added = share.add(bytes, &shares);
                    share.set_unwritten(u64::MAX);
                    let sum = u128::from(left) + u128::from(bytes);
                    assert_eq!(added, sum <= u128::from(limit / 4), "{left} and {bytes} of {limit}");
                    share.set_verified();
                    share.set_unlinked();
                }
                resumed.set_unlinked();
                drop(resumed);
                assert_eq!(space.usage(), SpaceUsage::default());
                let sums = space.sums();
                assert!(sums.upstreams.is_empty() && sums.repositories.is_empty());
            }
        }
    }

    /// The cost of a fill must not depend on the number of fills: the maps have an entry for each repository, not one for
    /// each fill, and no method iterates over them.
    #[test]
    fn sums_do_not_grow_with_the_number_of_fills() {
        let space = space();
        let (owner, shares) = (repository("a.test", "x"), DraftShares::UNLIMITED);
        let fills: Vec<_> = (0..12_000).map(|_| space.share(Some(&owner), 0)).collect();
        for fill in &fills {
            assert!(fill.add(1, &shares));
        }
        let sums = space.sums();
        assert_eq!((sums.usage.running, sums.repositories.len(), sums.upstreams.len()), (12_000, 1, 1));
    }

    #[tokio::test]
    async fn wait_ends_when_bytes_are_released() {
        let space = space();
        let share = space.share(None, 50);
        let waiting = tokio::spawn({
            let space = Arc::clone(&space);
            async move { space.wait_until(|| space.usage().running == 0).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(share);
        waiting.await.expect("it ends");
    }
}
