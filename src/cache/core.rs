//! State that all parts of the cache share.

use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::Semaphore;

use crate::clock::Clock;
use crate::config::schema::Prefetch;
use crate::oci::{Digest, Repository};
use crate::source::Source;
use crate::store::{CommitPermit, Store, StoreError, StoreSession, VerifiedDraft};
use crate::telemetry::Metrics;
use crate::upstream::{Upstream, Upstreams};

use super::blob::fills::Fills;
use super::error::CacheError;
use super::eviction::capacity::Capacity;
use super::eviction::delete::Deleter;
use super::eviction::tracker::ContentTracker;
use super::flight::Flights;
use super::lists::tags::TagLists;
use super::manifest::resolve::ResolvedPointer;
use super::memory::{CachedManifest, MemoryCache};
use super::pointer::Pointer;
use super::prefetch::queue::PrefetchQueue;
use super::store_health::StoreHealth;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) store: Store,
    pub(super) rules: RwLock<Arc<Rules>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) clock: Clock,
    pub(super) memory: MemoryCache,
    pub(super) eviction: ContentTracker,
    pub(super) capacity: Capacity,
    pub(super) pointer_flights: Flights<Pointer, ResolvedPointer>,
    pub(super) manifest_flights: Flights<(Repository, Digest), Arc<CachedManifest>>,
    pub(super) tag_lists: TagLists,
    pub(super) fills: Fills,
    /// Ranges passed through at once; each holds a connection of its upstream.
    pub(super) passing: Arc<Semaphore>,
    /// Room for reading further ahead than one step.
    pub(super) ahead: Arc<Semaphore>,
    /// Turns to read from the store.
    pub(super) reading: Arc<Semaphore>,
    pub(super) prefetch_queue: PrefetchQueue,
    pub(super) store_health: StoreHealth,
}

/// What the configuration says, as long as it says it: replaced as a whole, so that no request sees a half of it.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) upstreams: Upstreams,
    pub(super) prefetch: Prefetch,
}

impl Shared {
    /// Runs a unit of work on the store. It runs to its end even if the caller is cancelled.
    pub(super) async fn with_store<T, F>(&self, work: F) -> Result<T, CacheError>
    where
        T: Send + 'static,
        F: FnOnce(&StoreSession) -> Result<T, StoreError> + Send + 'static,
    {
        Ok(self.store.run(work).await?)
    }

    /// Returns the parts that a deletion changes.
    pub(super) fn deleter<'a>(&'a self, store: &'a StoreSession) -> Deleter<'a> {
        let Self { memory, eviction, fills, .. } = self;
        Deleter { store, memory, content: eviction, fills }
    }

    /// What counts now.
    pub(super) fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn upstream(&self, repository: &Repository) -> Result<Arc<Upstream>, CacheError> {
        self.rules().upstreams.get(&repository.upstream).cloned().ok_or(CacheError::NotFound)
    }

    /// Returns the sources of a repository's blobs, in the order in which they are asked.
    pub(super) fn sources(&self, repository: &Repository) -> Result<Vec<Arc<dyn Source>>, CacheError> {
        Ok(vec![self.upstream(repository)?])
    }

    /// Whether what is coming already leaves no room for another draft, of `size` bytes as far as is known.
    pub(super) fn is_crowded(&self, digest: &Digest, size: Option<u64>) -> bool {
        self.capacity.is_crowded(self.fills.pending_except(digest), size.unwrap_or_default())
    }

    /// Waits until it is a verified draft's turn to become content, and there is room for it.
    pub(super) async fn turn_of(&self, verified: &VerifiedDraft) -> CommitPermit {
        let turn = self.store.commit_permit().await;
        if let Some(size) = verified.kept() {
            self.capacity.wait_for_room(size, || self.store.counts().content).await;
        }
        turn
    }
}
