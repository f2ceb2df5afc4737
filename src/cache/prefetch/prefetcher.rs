//! Background task that runs a walk below each queued index.

use std::sync::Arc;

use tracing::Instrument as _;

use crate::cache::blob::Blobs;
use crate::cache::lists::ReferrersLists;
use crate::cache::manifest::Manifests;
use crate::cache::prefetch::paused_content::PausedContent;
use crate::cache::prefetch::quota_wait::QuotaGate;
use crate::cache::prefetch::upstream_slots::UpstreamSlots;
use crate::cache::prefetch::walk::{WalkEnd, WalkScope, walk};
use crate::cache::prefetch_queue::{ActiveIndex, IndexKey, PAUSE_MIN, PrefetchQueue};
use crate::cache::rules::Rules;
use crate::cache::storage::Storage;
use crate::store::{Change, StoreSession};
use crate::telemetry::trace;

/// Limit on concurrent prefetch requests to one upstream: clients come first.
const CONCURRENT_FETCHES: usize = 4;
/// Limit on concurrent walks of one upstream. Each of them holds the manifest of an index.
const CONCURRENT_WALKS: usize = 16;

/// Prefetch of queued indexes.
#[derive(Debug)]
pub(in crate::cache) struct Prefetcher {
    queue: Arc<PrefetchQueue>,
    scope: WalkScope,
    /// Slots for concurrent walks.
    walks: UpstreamSlots,
}

impl Prefetcher {
    pub(in crate::cache) fn new(
        storage: &Arc<Storage>,
        rules: &Arc<Rules>,
        queue: &Arc<PrefetchQueue>,
        manifests: &Arc<Manifests>,
        blobs: &Arc<Blobs>,
        lists: &Arc<ReferrersLists>,
    ) -> Self {
        let scope = WalkScope {
            storage: Arc::clone(storage),
            rules: Arc::clone(rules),
            manifests: Arc::clone(manifests),
            blobs: Arc::clone(blobs),
            quota: QuotaGate::new(rules),
            slots: UpstreamSlots::new(CONCURRENT_FETCHES),
            lists: Arc::clone(lists),
            unstored: PausedContent::new(),
            paused: PausedContent::new(),
        };
        Self { queue: Arc::clone(queue), scope, walks: UpstreamSlots::new(CONCURRENT_WALKS) }
    }

    /// Runs walks below queued indexes, and resumes those of an earlier process and those that were deferred. Never ends.
    pub(in crate::cache) async fn run(self: Arc<Self>) {
        tokio::join!(self.start_ready(), self.resume_deferred());
    }

    async fn start_ready(self: &Arc<Self>) {
        loop {
            let index = self.queue.pop().await;
            let (prefetcher, span) = (Arc::clone(self), trace::background("children"));
            tokio::spawn(async move { prefetcher.process(index).await }.instrument(span));
        }
    }

    async fn process(&self, mut index: ActiveIndex) {
        let _slot = self.walks.acquire(&index.key.0).await;
        let manifest = match self.scope.manifests.get_stored(&index.key.0, &index.key.1).await {
            Ok(Some(manifest)) => manifest,
            // An index that was removed, or whose upstream is no longer configured, needs no children.
            Ok(None) => return self.remove_record(&index.key).await,
            Err(error) => {
                self.scope.storage.report_error("an index in the prefetch queue cannot be read", &error);
                return index.defer(1);
            }
        };
        match walk(&self.scope, &mut index, &manifest).await {
            WalkEnd::Complete => {
                self.remove_record(&index.key).await;
                self.scope.storage.memory.prefetched.insert(index.key.clone(), ());
            }
            // The index is queued again when its tag is next revalidated: the upstream may have repaired its content.
            WalkEnd::Flawed => self.remove_record(&index.key).await,
            WalkEnd::Deferred { missing } => index.defer(missing),
        }
    }

    async fn remove_record(&self, (repository, digest): &IndexKey) {
        let change = Change::DequeuePrefetch(repository.clone(), *digest);
        if let Err(error) = self.scope.storage.with_store(move |store| store.apply(&[change])).await {
            self.scope.storage.report_error("an index could not be removed from the prefetch queue", &error);
        }
    }

    async fn resume_deferred(&self) {
        let mut resumed = false;
        loop {
            // Read each time, because a reload may change it.
            let (enabled, interval) = {
                let rules = self.scope.rules.current();
                (rules.prefetch.is_enabled(true, true), rules.prefetch.quota_check)
            };
            if enabled {
                if !std::mem::replace(&mut resumed, true) {
                    self.resume_recorded().await;
                }
                for key in self.queue.due() {
                    // An upstream that keeps failing gets no prefetch requests.
                    if self.scope.rules.upstream(&key.0).is_ok_and(|upstream| !upstream.is_suspect()) {
                        self.queue.push(key, true);
                    }
                }
            }
            tokio::time::sleep(interval.min(PAUSE_MIN)).await;
        }
    }

    /// Resumes the indexes that an earlier process left in the store.
    async fn resume_recorded(&self) {
        match self.scope.storage.with_store(StoreSession::prefetch_queue).await {
            Ok(keys) => {
                if !keys.is_empty() {
                    tracing::info!(indexes = keys.len(), "resuming the prefetch queue");
                }
                for key in keys {
                    self.queue.push(key, true);
                }
            }
            Err(error) => self.scope.storage.report_error("the prefetch queue cannot be read", &error),
        }
    }
}
