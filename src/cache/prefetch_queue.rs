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

/// Index without its manifest, which may be large. The manifest is read when the walk starts.
#[derive(Debug)]
struct QueuedIndex {
    key: IndexKey,
    /// Failed walks so far.
    failures: u32,
    /// True if lists of referrers are wanted.
    lists: bool,
    gauge: MissingGauge,
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
    /// True if lists of referrers are wanted.
    pub(super) lists: bool,
    pub(super) gauge: MissingGauge,
    failures: u32,
}

/// Reason why missing children wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiting {
    /// The walk has not reached them yet.
    Queued,
    /// The upstream's quota is too low.
    Deferred,
}

/// Share of one walk in the gauges of missing children. Dropping it removes the share.
#[derive(Debug)]
pub(super) struct MissingGauge {
    metrics: Arc<Metrics>,
    count: usize,
    waiting: Waiting,
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

    /// Adds an index or a manifest, unless it is ready or active already. `lists` is true if lists of referrers are wanted.
    pub(super) fn push(&self, key: IndexKey, lists: bool) {
        let mut state = self.state();
        if !state.taken.insert(key.clone()) {
            return;
        }
        let failures = self.remove_deferred(&mut state, &key);
        // The number of its children is not known yet.
        let mut gauge = MissingGauge::new(&self.metrics);
        gauge.set(1, Waiting::Queued);
        state.ready.push_back(QueuedIndex { key, failures, lists, gauge });
        drop(state);
        self.pushed.notify_one();
    }

    /// Waits for an index that is ready.
    pub(super) async fn pop(self: &Arc<Self>) -> ActiveIndex {
        loop {
            let next = self.state().ready.pop_front();
            if let Some(QueuedIndex { key, failures, lists, gauge }) = next {
                return ActiveIndex { queue: Arc::clone(self), key, lists, gauge, failures };
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

impl MissingGauge {
    fn new(metrics: &Arc<Metrics>) -> Self {
        Self { metrics: Arc::clone(metrics), count: 0, waiting: Waiting::Queued }
    }

    /// Sets the share. No reader of the metrics sees a moment without these children.
    pub(super) fn set(&mut self, count: usize, waiting: Waiting) {
        let before = std::mem::replace(&mut self.count, count);
        if self.waiting == waiting {
            return self.change(waiting, before, count);
        }
        let left = std::mem::replace(&mut self.waiting, waiting);
        self.change(waiting, 0, count);
        self.change(left, before, 0);
    }

    fn change(&self, waiting: Waiting, before: usize, after: usize) {
        match waiting {
            Waiting::Queued => self.metrics.children_queued(before, after),
            Waiting::Deferred => self.metrics.children_deferred(before, after),
        }
    }
}

impl Drop for MissingGauge {
    fn drop(&mut self) {
        self.set(0, self.waiting);
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
