//! The walks below indexes that are under way or left for later, and when it is time for the latter.
//!
//! A walk that has something to fetch is noted in the store until it has come to its end, so that a restart loses
//! none. What waits because the upstream's quota is low, or because it is in trouble, is shown by a gauge of its own.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tracing::Instrument as _;

use crate::config::schema::Prefetch;
use crate::oci::media::ManifestKind;
use crate::oci::{Repository, UpstreamName};
use crate::store::{Change, StoreSession};
use crate::telemetry::trace;

use crate::cache::Cache;
use crate::cache::core::Shared;
use crate::cache::manifest::by_digest::stored;
use crate::cache::memory::CachedManifest;
use crate::cache::prefetch::walk::{self, PrefetchEnd, PrefetchRoot};

/// Fetches of children at once, over all walks: clients come first.
const AT_ONCE: usize = 4;
/// How long a walk that met trouble is left at first, and at most; doubled in between.
const FIRST: Duration = Duration::from_secs(30);
const LONGEST: Duration = Duration::from_hours(1);

/// What all walks share.
#[derive(Debug)]
pub(in crate::cache) struct PrefetchQueue {
    pub(in crate::cache) turns: Semaphore,
    record: Mutex<QueueState>,
    /// One walk per upstream at a time finds out whether its quota has returned.
    gates: Mutex<HashMap<UpstreamName, Arc<tokio::sync::Mutex<()>>>>,
}

#[derive(Debug, Default)]
struct QueueState {
    under_way: HashSet<PrefetchRoot>,
    later: HashMap<PrefetchRoot, DeferredWalk>,
}

/// A walk that met trouble.
#[derive(Debug)]
struct DeferredWalk {
    times: u32,
    due: Instant,
    /// Children not yet there.
    waiting: usize,
}

impl Default for PrefetchQueue {
    fn default() -> Self {
        Self { turns: Semaphore::new(AT_ONCE), record: Mutex::default(), gates: Mutex::default() }
    }
}

impl PrefetchQueue {
    fn record(&self) -> MutexGuard<'_, QueueState> {
        // Nothing under this lock can panic halfway through a change.
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::cache) fn gate(&self, upstream: &UpstreamName) -> Arc<tokio::sync::Mutex<()>> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(gates.entry(upstream.clone()).or_default())
    }
}

/// How long a walk that has met trouble this often is left.
fn pause(times: u32) -> Duration {
    FIRST.saturating_mul(1 << times.min(10)).min(LONGEST)
}

/// A walk under way; there is one at a time below an index.
struct ActiveWalk {
    shared: Arc<Shared>,
    root: PrefetchRoot,
    /// How often it met trouble before.
    times: u32,
}

impl ActiveWalk {
    /// Enters the walk; `None` if it is under way already.
    fn begin(shared: &Arc<Shared>, root: PrefetchRoot) -> Option<Self> {
        let mut record = shared.prefetch_queue.record();
        if !record.under_way.insert(root.clone()) {
            return None;
        }
        let before = record.later.remove(&root);
        drop(record);
        if let Some(before) = &before {
            shared.metrics.children_deferred(before.waiting, 0);
        }
        Some(Self { shared: Arc::clone(shared), root, times: before.map_or(0, |before| before.times) })
    }

    fn leave_for_later(&self, waiting: usize) {
        let due = self.shared.clock.instant() + pause(self.times);
        let later = DeferredWalk { times: self.times.saturating_add(1), due, waiting };
        self.shared.prefetch_queue.record().later.insert(self.root.clone(), later);
        self.shared.metrics.children_deferred(0, waiting);
    }
}

impl Drop for ActiveWalk {
    fn drop(&mut self) {
        self.shared.prefetch_queue.record().under_way.remove(&self.root);
    }
}

/// Starts the walk below `document` in the background, if it is an index that was not walked to its end before.
pub(in crate::cache) fn seek(shared: &Arc<Shared>, repository: &Repository, document: &Arc<CachedManifest>) {
    let index = document.media_type.kind() == Some(ManifestKind::Index);
    let root = (repository.clone(), document.digest);
    if !index || !shared.rules().prefetch.children || shared.memory.prefetched.get(&root).is_some() {
        return;
    }
    let Some(under_way) = ActiveWalk::begin(shared, root) else { return };
    let document = Arc::clone(document);
    let span = trace::background("children");
    tokio::spawn(async move { run(&under_way, &document).await }.instrument(span));
}

async fn run(under_way: &ActiveWalk, index: &CachedManifest) {
    let ActiveWalk { shared, root, .. } = under_way;
    match walk::walk(shared, root, index).await {
        PrefetchEnd::Complete => {
            forget(shared, root).await;
            shared.memory.prefetched.insert(root.clone(), ());
        }
        // The index is walked again when its tag is next confirmed: then the upstream may have mended it.
        PrefetchEnd::Flawed => forget(shared, root).await,
        PrefetchEnd::Deferred { waiting } => under_way.leave_for_later(waiting),
    }
}

async fn forget(shared: &Shared, root: &PrefetchRoot) {
    let (repository, digest) = root.clone();
    let change = Change::DequeuePrefetch(repository, digest);
    if let Err(error) = shared.with_store(move |store| store.apply(&[change])).await {
        shared.report_error("the end of a walk below an index could not be noted", &error);
    }
}

impl Cache {
    /// Takes up the walks that an earlier run left, and from time to time those that met trouble. Never ends.
    pub async fn attend(self) {
        let shared = &self.0;
        let mut begun = false;
        loop {
            // Asked each time, because the configuration may change.
            let Prefetch { children, quota_check, .. } = shared.rules().prefetch.clone();
            if children && !std::mem::replace(&mut begun, true) {
                take_up_earlier(shared).await;
            }
            if children {
                for root in due(shared) {
                    take_up(shared, root).await;
                }
            }
            tokio::time::sleep(quota_check.min(FIRST)).await;
        }
    }
}

/// Takes up the walks that an earlier run left.
async fn take_up_earlier(shared: &Arc<Shared>) {
    match shared.with_store(StoreSession::prefetch_queue).await {
        Ok(roots) => {
            if !roots.is_empty() {
                tracing::info!(indexes = roots.len(), "taking up what an earlier run had still to fetch");
            }
            for root in roots {
                take_up(shared, root).await;
            }
        }
        Err(error) => shared.report_error("the walks of an earlier run cannot be read", &error),
    }
}

/// The walks that were left for later and whose time has come. An upstream that keeps failing is left alone.
fn due(shared: &Shared) -> Vec<PrefetchRoot> {
    let now = shared.clock.instant();
    let record = shared.prefetch_queue.record();
    let due = record.later.iter().filter(|(_, later)| later.due <= now).map(|(root, _)| root);
    let well = |root: &&PrefetchRoot| shared.upstream(&root.0).is_ok_and(|upstream| !upstream.is_suspect());
    due.filter(well).cloned().collect()
}

async fn take_up(shared: &Arc<Shared>, root: PrefetchRoot) {
    match stored(shared, &root.0, &root.1).await {
        Ok(Some(index)) => {
            if let Some(under_way) = ActiveWalk::begin(shared, root) {
                let span = trace::background("children");
                tokio::spawn(async move { run(&under_way, &index).await }.instrument(span));
            }
        }
        // What is no longer held, or whose upstream is no longer configured, needs no children.
        Ok(None) => {
            forget(shared, &root).await;
            if let Some(later) = shared.prefetch_queue.record().later.remove(&root) {
                shared.metrics.children_deferred(later.waiting, 0);
            }
        }
        Err(error) => shared.report_error("an index whose children are missing cannot be read", &error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_met_ever_less_often() {
        assert_eq!([0, 1, 2].map(|times| pause(times).as_secs()), [30, 60, 120]);
        assert_eq!(pause(7), LONGEST);
        assert_eq!(pause(u32::MAX), LONGEST);
    }
}
