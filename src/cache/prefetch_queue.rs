//! Queue of indexes whose children are to be fetched: ready, active, or deferred after a failure.
//!
//! The store keeps a record of each index with missing children until its walk has ended, so that a restart loses none.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::clock::Clock;
use crate::oci::{Digest, Repository};
use crate::telemetry::Metrics;

use super::memory::CachedManifest;

/// Pause after the first failed walk. It doubles with each failure, up to [`PAUSE_MAX`].
pub(super) const PAUSE_MIN: Duration = Duration::from_secs(30);
/// Longest pause between two walks below one index.
const PAUSE_MAX: Duration = Duration::from_hours(1);

/// Index in a repository.
pub(super) type IndexKey = (Repository, Digest);

/// Queue of indexes. A walk below one index runs once at a time.
#[derive(Debug)]
pub(super) struct PrefetchQueue {
    metrics: Arc<Metrics>,
    clock: Clock,
    state: Mutex<QueueState>,
    pushed: Notify,
}

#[derive(Debug, Default)]
struct QueueState {
    ready: VecDeque<QueuedIndex>,
    /// Indexes that are ready or active.
    taken: HashSet<IndexKey>,
    deferred: HashMap<IndexKey, DeferredIndex>,
}

#[derive(Debug)]
struct QueuedIndex {
    key: IndexKey,
    manifest: Arc<CachedManifest>,
    /// Failed walks so far.
    failures: u32,
}

#[derive(Debug)]
struct DeferredIndex {
    failures: u32,
    due: Instant,
    /// Children that are not cached yet.
    missing: usize,
}

/// Index whose walk is running. Dropping it allows the next walk below the same index.
#[derive(Debug)]
pub(super) struct ActiveIndex {
    queue: Arc<PrefetchQueue>,
    pub(super) key: IndexKey,
    pub(super) manifest: Arc<CachedManifest>,
    failures: u32,
}

impl PrefetchQueue {
    pub(super) fn new(metrics: &Arc<Metrics>, clock: &Clock) -> Self {
        Self {
            metrics: Arc::clone(metrics),
            clock: clock.clone(),
            state: Mutex::default(),
            pushed: Notify::new(),
        }
    }

    /// Adds an index, unless it is ready or active already.
    pub(super) fn push(&self, key: IndexKey, manifest: &Arc<CachedManifest>) {
        let mut state = self.state();
        if !state.taken.insert(key.clone()) {
            return;
        }
        let failures = self.remove_deferred(&mut state, &key);
        state.ready.push_back(QueuedIndex { key, manifest: Arc::clone(manifest), failures });
        drop(state);
        self.pushed.notify_one();
    }

    /// Waits for an index that is ready.
    pub(super) async fn pop(self: &Arc<Self>) -> ActiveIndex {
        loop {
            let next = self.state().ready.pop_front();
            if let Some(QueuedIndex { key, manifest, failures }) = next {
                return ActiveIndex { queue: Arc::clone(self), key, manifest, failures };
            }
            self.pushed.notified().await;
        }
    }

    /// Returns the deferred indexes whose pause has ended.
    pub(super) fn due(&self) -> Vec<IndexKey> {
        let now = self.clock.instant();
        let state = self.state();
        state
            .deferred
            .iter()
            .filter(|(_, deferred)| deferred.due <= now)
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// Removes a deferred index that is no longer cached.
    pub(super) fn remove(&self, key: &IndexKey) {
        self.remove_deferred(&mut self.state(), key);
    }

    /// Returns the number of failed walks.
    fn remove_deferred(&self, state: &mut QueueState, key: &IndexKey) -> u32 {
        let Some(deferred) = state.deferred.remove(key) else { return 0 };
        self.metrics.children_deferred(deferred.missing, 0);
        deferred.failures
    }

    fn state(&self) -> MutexGuard<'_, QueueState> {
        // A poisoned lock is usable: no change under it can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ActiveIndex {
    /// Defers the index after a failed walk that left `missing` children.
    pub(super) fn defer(self, missing: usize) {
        let due = self.queue.clock.instant() + pause(self.failures);
        let failures = self.failures.saturating_add(1);
        self.queue.state().deferred.insert(self.key.clone(), DeferredIndex { failures, due, missing });
        self.queue.metrics.children_deferred(0, missing);
    }
}

impl Drop for ActiveIndex {
    fn drop(&mut self) {
        self.queue.state().taken.remove(&self.key);
    }
}

/// Returns the pause after this many failed walks before the last one.
fn pause(failures: u32) -> Duration {
    PAUSE_MIN.saturating_mul(1 << failures.min(10)).min(PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pause_doubles_up_to_its_maximum() {
        assert_eq!([0, 1, 2].map(|failures| pause(failures).as_secs()), [30, 60, 120]);
        assert_eq!(pause(7), PAUSE_MAX);
        assert_eq!(pause(u32::MAX), PAUSE_MAX);
    }
}
