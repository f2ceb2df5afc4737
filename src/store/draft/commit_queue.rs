//! Queue of verified drafts that are being committed.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Largest number of drafts that are copied at the same time. sled has one log, so more copies are not faster, and each uses
/// the page cache.
const COPIED: usize = 2;

/// State of all commits; clones share it.
#[derive(Clone, Debug)]
pub(in crate::store) struct CommitQueue(Arc<CommitState>);

#[derive(Debug)]
struct CommitState {
    running: Mutex<usize>,
    ended: Condvar,
    copied: Arc<Semaphore>,
}

/// Draft that is to be committed. It counts until this is dropped.
#[derive(Debug)]
pub(in crate::store) struct PendingCommit(CommitQueue);

/// Permit to commit a verified draft. Hold it until the commit has finished.
#[derive(Debug)]
pub struct CommitPermit(#[allow(dead_code, reason = "held, not read")] Option<OwnedSemaphorePermit>);

impl CommitQueue {
    pub(in crate::store) fn new() -> Self {
        let copied = Arc::new(Semaphore::new(COPIED));
        Self(Arc::new(CommitState { running: Mutex::default(), ended: Condvar::new(), copied }))
    }

    /// Adds a draft.
    pub(in crate::store) fn begin(&self) -> PendingCommit {
        *self.running() += 1;
        PendingCommit(self.clone())
    }

    /// Waits for a permit to copy a draft.
    pub(in crate::store) async fn commit_permit(&self) -> CommitPermit {
        // The semaphore is never closed.
        CommitPermit(Arc::clone(&self.0.copied).acquire_owned().await.ok())
    }

    /// Waits until all drafts are committed, at most for `deadline`. Returns the number of drafts that are left.
    pub(in crate::store) fn wait(&self, deadline: Duration) -> usize {
        let waited = self.0.ended.wait_timeout_while(self.running(), deadline, |left| *left > 0);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn running(&self) -> MutexGuard<'_, usize> {
        // No code under this lock can panic in the middle of a change.
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CommitPermit {
    /// Returns a permit without a limit, for commits that copy nothing.
    pub(in crate::store) const fn free() -> Self {
        Self(None)
    }
}

impl Drop for PendingCommit {
    fn drop(&mut self) {
        *self.0.running() -= 1;
        self.0.0.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_ends_with_the_last_commit_or_at_the_deadline() {
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
    async fn commit_permits_are_limited() {
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
        next.await.expect("a permit");
    }
}
