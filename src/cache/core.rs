//! Components of the cache, composed.

use std::ops::Deref;
use std::sync::Arc;

use crate::clock::Clock;
use crate::config::schema::{self, Prefetch};
use crate::store::Store;
use crate::telemetry::Metrics;
use crate::upstream::Upstreams;

use super::blob::Blobs;
use super::lists::{Catalog, ReferrersLists, TagLists};
use super::manifest::{Manifests, Pointers};
use super::prefetch::Prefetcher;
use super::prefetch_queue::PrefetchQueue;
use super::rules::{RuleSet, Rules};
use super::storage::Storage;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) storage: Arc<Storage>,
    pub(super) rules: Arc<Rules>,
    pub(super) manifests: Arc<Manifests>,
    pub(super) pointers: Arc<Pointers>,
    pub(super) blobs: Arc<Blobs>,
    pub(super) tag_lists: Arc<TagLists>,
    pub(super) referrers_lists: ReferrersLists,
    pub(super) catalog: Catalog,
    pub(super) prefetcher: Arc<Prefetcher>,
}

impl Shared {
    pub(super) fn new(
        (store, options): (Store, &schema::Store),
        upstreams: Upstreams,
        metrics: Arc<Metrics>,
        clock: Clock,
        prefetch: Prefetch,
    ) -> Self {
        let prefetch_queue = Arc::new(PrefetchQueue::new(&metrics, &clock));
        let storage = Arc::new(Storage::new(store, options, metrics, clock));
        let rules = Arc::new(Rules::new(upstreams, prefetch));
        let manifests = Arc::new(Manifests::new(&storage, &rules, &prefetch_queue));
        let pointers = Arc::new(Pointers::new(&storage, &rules, &manifests));
        let blobs = Arc::new(Blobs::new(&storage, &rules));
        let prefetcher = Prefetcher::new(&storage, &rules, &prefetch_queue, &manifests, &blobs);
        Self {
            tag_lists: Arc::new(TagLists::new(&storage, &rules)),
            referrers_lists: ReferrersLists::new(&storage, &pointers),
            catalog: Catalog::new(&storage, &rules),
            prefetcher: Arc::new(prefetcher),
            storage,
            rules,
            manifests,
            pointers,
            blobs,
        }
    }

    pub(super) fn rules(&self) -> Arc<RuleSet> {
        self.rules.current()
    }
}

impl Deref for Shared {
    type Target = Storage;

    fn deref(&self) -> &Storage {
        &self.storage
    }
}
