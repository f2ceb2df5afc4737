//! Verified drafts on their way to becoming content: how many at once, and how long a stop waits for them.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Drafts copied at once. sled has one log, so that more write no faster, and each is read into memory that the system
/// keeps.
const COPIED: usize = 2;

/// What is known of all drafts that settle; clones share it.
#[derive(Clone, Debug)]
pub(in crate::store) struct CommitQueue(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    under_way: Mutex<usize>,
    ended: Condvar,
    copied: Arc<Semaphore>,
}

/// One draft that is to settle, until this is dropped.
#[derive(Debug)]
pub(in crate::store) struct PendingCommit(CommitQueue);

/// Leave to settle now. To be held until it is done.
#[derive(Debug)]
pub struct CommitPermit(#[allow(dead_code, reason = "held, not read")] Option<OwnedSemaphorePermit>);

impl CommitQueue {
    pub(in crate::store) fn new() -> Self {
        let copied = Arc::new(Semaphore::new(COPIED));
        Self(Arc::new(Shared { under_way: Mutex::default(), ended: Condvar::new(), copied }))
    }

    /// One more draft is to settle.
    pub(in crate::store) fn begin(&self) -> PendingCommit {
        *self.under_way() += 1;
        PendingCommit(self.clone())
    }

    /// Waits until it is a draft's turn to be copied. Needs no blocking thread.
    pub(in crate::store) async fn commit_permit(&self) -> CommitPermit {
        // Nobody closes it; without it a copy would only be in more company.
        CommitPermit(Arc::clone(&self.0.copied).acquire_owned().await.ok())
    }

    /// Waits until no draft is to settle, but no longer than `patience`. Returns how many are left.
    pub(in crate::store) fn wait(&self, patience: Duration) -> usize {
        let waited = self.0.ended.wait_timeout_while(self.under_way(), patience, |left| *left > 0);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn under_way(&self) -> MutexGuard<'_, usize> {
        // Nothing under this lock can panic halfway through a change.
        self.0.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CommitPermit {
    /// Where nothing is copied it is always one's turn.
    pub(in crate::store) const fn free() -> Self {
        Self(None)
    }
}

impl Drop for PendingCommit {
    fn drop(&mut self) {
        *self.0.under_way() -= 1;
        self.0.0.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_waits_for_what_settles_and_not_for_ever() {
        let commit_queue = CommitQueue::new();
        assert_eq!(commit_queue.wait(Duration::ZERO), 0);
        let (first, second) = (commit_queue.begin(), commit_queue.begin());
        assert_eq!(commit_queue.wait(Duration::ZERO), 2);
        drop(first);
        let waiting = std::thread::spawn({
            let commit_queue = commit_queue.clone();
            move || commit_queue.wait(Duration::from_mins(1))
        });
        drop(second);
        assert_eq!(waiting.join().expect("it ends"), 0);
    }

    #[tokio::test]
    async fn only_a_few_are_copied_at_once() {
        let commit_queue = CommitQueue::new();
        let mut turns = Vec::new();
        for _ in 0..COPIED {
            turns.push(commit_queue.commit_permit().await);
        }
        let next = tokio::spawn({
            let commit_queue = commit_queue.clone();
            async move { drop(commit_queue.commit_permit().await) }
        });
        tokio::task::yield_now().await;
        assert!(!next.is_finished());
        turns.pop();
        next.await.expect("its turn comes");
    }
}
