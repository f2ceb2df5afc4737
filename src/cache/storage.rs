//! Store together with the state that must agree with it: memory, content index, running fills and health.

use std::sync::Arc;

use crate::clock::Clock;
use crate::config::schema;
use crate::store::{BlobEntry, CommitPermit, Store, StoreError, StoreSession, VerifiedDraft};
use crate::telemetry::Metrics;

use super::error::CacheError;
use super::eviction::capacity::Capacity;
use super::eviction::delete::Deleter;
use super::eviction::tracker::ContentTracker;
use super::fills::Fills;
use super::memory::MemoryCache;
use super::store_health::StoreHealth;

/// Store, and everything that changes together with its content.
#[derive(Debug)]
pub(super) struct Storage {
    pub(super) store: Store,
    pub(super) memory: MemoryCache,
    pub(super) content: ContentTracker,
    pub(super) capacity: Capacity,
    pub(super) fills: Fills,
    pub(super) store_health: StoreHealth,
    pub(super) metrics: Arc<Metrics>,
    pub(super) clock: Clock,
}

impl Storage {
    /// Creates the storage over a store that was opened with `options`.
    pub(super) fn new(store: Store, options: &schema::Store, metrics: Arc<Metrics>, clock: Clock) -> Self {
        Self {
            memory: MemoryCache::new(),
            content: ContentTracker::new(store.space_model()),
            capacity: Capacity::new(options, store.space_model()),
            store,
            fills: Fills::default(),
            store_health: StoreHealth::default(),
            metrics,
            clock,
        }
    }

    /// Runs a unit of work on the store. It runs to its end even if the caller is cancelled.
    pub(super) async fn with_store<T, F>(&self, work: F) -> Result<T, CacheError>
    where
        T: Send + 'static,
        F: FnOnce(&StoreSession) -> Result<T, StoreError> + Send + 'static,
    {
        Ok(self.store.run(work).await?)
    }

    /// Runs a unit of work on the store that may take long.
    pub(super) async fn with_store_long<T, F>(&self, work: F) -> Result<T, CacheError>
    where
        T: Send + 'static,
        F: FnOnce(&StoreSession) -> Result<T, StoreError> + Send + 'static,
    {
        Ok(self.store.run_long(work).await?)
    }

    /// Returns the parts that a deletion changes.
    pub(super) fn deleter<'a>(&'a self, store: &'a StoreSession) -> Deleter<'a> {
        let Self { memory, content, fills, .. } = self;
        Deleter { store, memory, content, fills }
    }

    /// Waits for a permit to commit a verified draft, and until eviction has made room for it. A draft in memory waits for
    /// nothing.
    pub(super) async fn commit_permit(&self, verified: &VerifiedDraft) -> CommitPermit {
        let permit = self.store.commit_permit(verified).await;
        if let Some(size) = verified.kept() {
            self.capacity.wait_for_room(size, || self.store.counts().content).await;
        }
        permit
    }

    /// Deletes a damaged blob. The next request fetches it again.
    pub(super) async fn delete_damaged_blob(self: &Arc<Self>, entry: &BlobEntry, error: &StoreError) {
        self.report_store_error("a blob is damaged and will be fetched again", error);
        let (storage, damaged) = (Arc::clone(self), entry.clone());
        let deleted = self.with_store(move |store| storage.deleter(store).delete_damaged_blob(&damaged));
        if let Err(error) = deleted.await {
            self.report_error("a damaged blob could not be deleted", &error);
        }
    }
}
