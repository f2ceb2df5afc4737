//! The cache: the only place where the store and the upstreams meet.
//!
//! [`Cache::manifest`] and [`Cache::blob`] answer from the store where they can and start a fetch where they must.
//! A fetch belongs to the cache, never to a request: requests wait for it, tail it, leave it, and it goes on.

mod access;
mod blob;
mod blocking;
mod core;
mod deadline;
mod degraded_mode;
mod error;
mod eviction;
mod flight;
pub mod freshness;
mod lists;
mod maintenance;
mod manifest;
mod memory;
mod pointer;
mod prefetch;
mod store_health;

use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::Semaphore;

use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::config::schema::{self, Prefetch};
use crate::oci::{Accept, Digest, Reference, Repository, UpstreamName};
use crate::store::{Collected, Store, StoreError};
use crate::telemetry::Metrics;
use crate::upstream::{BuildError, Upstreams};

pub use blob::find::{BlobAnswer, BlobSource};
pub use blob::reader::BlobReader;
pub use error::CacheError;
pub use eviction::index::{Reachability, Totals};
pub use eviction::usage::ContentPin;
pub use lists::catalog::{ListResult, NamePage};
pub use maintenance::import::{ImportError, Importer};
pub use maintenance::remove::{RemovalReport, RemovalTarget};
pub use maintenance::scrub::{DamagedContent, Integrity, ScrubItem, Throttle};
pub use maintenance::status::{DiskUsage, FillStatus, StoreStatus};
pub use maintenance::view::{CacheView, TagStatus};
pub use manifest::answer::ManifestAnswer;
pub use memory::CachedManifest;

pub use crate::upstream::{Breaker, EndpointState, HealthState, QuotaState, RouteError, UpstreamState};

use blob::fills::Fills;
use blob::reader;
use core::{Rules, Shared};
use deadline::in_time;
use eviction::capacity::Capacity;
use eviction::evictor::Evictor;
use eviction::tracker::ContentTracker;
use flight::Flights;
use lists::catalog;
use lists::tags::TagLists;
use maintenance::{gc, remove, scrub, status};
use manifest::{by_digest, resolve};
use memory::MemoryCache;
use pointer::{Pointer, TagKey};
use prefetch::queue::PrefetchQueue;
use store_health::StoreHealth;

/// Ranges passed through at once.
const PASSING_MAX: usize = 8;

/// The cache; clones share it.
#[derive(Clone, Debug)]
pub struct Cache(Arc<Shared>);

impl Cache {
    /// A cache over `store`, which was opened with `options`, and `upstreams`.
    pub fn new(
        (store, options): (Store, &schema::Store),
        upstreams: Upstreams,
        metrics: Arc<Metrics>,
        clock: Clock,
        prefetch: Prefetch,
    ) -> Self {
        Self(Arc::new(Shared {
            rules: RwLock::new(Arc::new(Rules { upstreams, prefetch })),
            metrics,
            clock,
            memory: MemoryCache::new(),
            eviction: ContentTracker::new(store.space_model()),
            capacity: Capacity::new(options, store.space_model()),
            pointer_flights: Flights::default(),
            manifest_flights: Flights::default(),
            tag_lists: TagLists::new(),
            fills: Fills::default(),
            passing: Arc::new(Semaphore::new(PASSING_MAX)),
            ahead: Arc::new(Semaphore::new(reader::ahead_max())),
            reading: Arc::new(Semaphore::new(reader::READING_MAX)),
            prefetch_queue: PrefetchQueue::default(),
            store_health: StoreHealth::default(),
            store,
        }))
    }

    /// Finds the repository that a request means; the rules are [`Router::route`](crate::upstream::Router::route)'s.
    pub fn route(
        &self,
        ns: Option<&str>,
        prefix: Option<&str>,
        host: Option<&str>,
        name: &str,
    ) -> Result<Repository, RouteError> {
        self.0.rules().upstreams.router().route(ns, prefix, host, name)
    }

    /// The upstream that `ns`, or a path prefix, names.
    pub fn upstream_named(&self, text: &str) -> Result<UpstreamName, RouteError> {
        self.0.rules().upstreams.router().upstream(text).cloned()
    }

    /// Follows another configuration from now on, in all that it says of upstreams, freshness and prefetching. What runs
    /// goes on as it began; upstreams whose settings stay keep what they know. After an error nothing has changed.
    pub fn follow(&self, config: &Config) -> Result<(), BuildError> {
        let upstreams = self.0.rules().upstreams.rebuilt(config)?;
        let rules = Arc::new(Rules { upstreams, prefetch: config.prefetch.clone() });
        *self.0.rules.write().unwrap_or_else(PoisonError::into_inner) = rules;
        self.0.capacity.set_limits(&config.store);
        Ok(())
    }

    /// A manifest or index by tag or digest.
    ///
    /// By digest the stored bytes are the answer whatever `accept` says. By tag a client that does not take the
    /// tag's type gets what the upstream gives for just the types that it does take.
    pub async fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        accept: Accept<'_>,
    ) -> Result<ManifestAnswer, CacheError> {
        let answer = in_time(self.find_manifest(repository, reference, accept)).await?;
        answer.document.usage.touch(self.0.clock.now());
        Ok(answer)
    }

    async fn find_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        accept: Accept<'_>,
    ) -> Result<ManifestAnswer, CacheError> {
        let tag = match reference {
            Reference::Digest(digest) => return by_digest::by_digest(&self.0, repository, digest).await,
            Reference::Tag(tag) => tag,
        };
        let key = TagKey { repository: repository.clone(), tag: tag.clone(), variant: None };
        let found = resolve::resolve(&self.0, &Pointer::Tag(key.clone()), false).await?;
        if accept.allows(&found.document.media_type) {
            return Ok(found);
        }
        let types = accept.canonical();
        if types.is_empty() {
            return Ok(found);
        }
        let variant = TagKey { variant: Some(types.join(", ")), ..key };
        resolve::resolve(&self.0, &Pointer::Tag(variant), false).await
    }
}

/// Maintenance and read-only views.
impl Cache {
    /// Keeps the store within its limits. Never returns.
    pub async fn run_evictor(self) {
        Evictor::new(&self.0).run().await;
    }

    /// Writes recent access times to the store, from where the next start reads them.
    pub async fn save_access_times(&self) {
        Evictor::new(&self.0).save_access_times().await;
    }

    /// Adds all content of the store to the eviction index.
    pub async fn rebuild_index(&self) -> Result<(), CacheError> {
        Evictor::new(&self.0).rebuild_index().await
    }

    /// Checks without any request whether the store works, and retries a failed store. Never returns.
    pub async fn watch_store(self) {
        degraded_mode::watch_store(&self.0).await;
    }

    /// Lists the content that was last verified before `before`, least recently verified first.
    pub async fn list_due(&self, before: Timestamp) -> Result<Vec<ScrubItem>, CacheError> {
        self.0.with_store(move |store| scrub::list_due(store, before)).await
    }

    /// Compares content with its digest, and deletes damaged content.
    pub async fn verify(&self, item: &ScrubItem, throttle: Throttle<'_>) -> Result<Integrity, CacheError> {
        scrub::verify(self, item, throttle).await
    }

    /// Fetches damaged content again. Returns the digests that were fetched, or are being fetched.
    pub async fn repair(&self, damaged: &[DamagedContent]) -> Result<Vec<Digest>, CacheError> {
        scrub::repair(self, damaged).await
    }

    /// Deletes facts, bytes and drafts that no cached content uses.
    pub async fn collect_garbage(&self) -> Result<Collected, CacheError> {
        let shared = Arc::clone(&self.0);
        self.0.with_store(move |store| gc::collect(&shared, store)).await
    }

    /// Counts content that tags and lists of referrers lead to, and other content.
    pub async fn reachability(&self) -> Result<Reachability, CacheError> {
        let shared = Arc::clone(&self.0);
        self.0.with_store(move |store| gc::reachability(&shared, store)).await
    }

    /// Starts an import. Its methods block, and must be called on a thread of the runtime for blocking work.
    pub fn importer(&self) -> Result<Importer, ImportError> {
        Importer::new(self)
    }

    /// Returns up to `limit` cached repositories that sort after `last`, of the upstream `only` or of all upstreams.
    pub async fn repositories(
        &self,
        only: Option<UpstreamName>,
        last: Option<String>,
        limit: usize,
    ) -> Result<NamePage, CacheError> {
        catalog::repositories(&self.0, only, last, limit).await
    }

    /// Removes a tag or a manifest of a repository, and the content that nothing else points at or needs.
    pub async fn remove(
        &self,
        repository: &Repository,
        target: RemovalTarget,
    ) -> Result<RemovalReport, CacheError> {
        remove::remove(&self.0, repository, target).await
    }

    /// Runs `view` on a read-only view of the cached content, off the async threads.
    pub async fn view<T, F>(&self, view: F) -> Result<T, CacheError>
    where
        T: Send + 'static,
        F: FnOnce(CacheView<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let shared = Arc::clone(&self.0);
        self.0.with_store(move |store| view(CacheView(&shared, store))).await
    }

    /// Returns the status of the running fills, oldest first.
    pub fn fills(&self) -> Vec<FillStatus> {
        let now = self.0.clock.now();
        let mut fills = self.0.fills.running();
        fills.sort_by_key(|fill| fill.since);
        fills.into_iter().map(|fill| status::fill_status(fill, now)).collect()
    }

    /// Returns the status of the upstreams, sorted by name.
    pub fn upstreams(&self) -> Vec<UpstreamState> {
        self.0.rules().upstreams.states()
    }

    /// Returns the status of the store.
    pub async fn store_status(&self) -> Result<StoreStatus, CacheError> {
        let shared = Arc::clone(&self.0);
        self.0.with_store(move |store| Ok(status::store_status(&shared, store))).await
    }
}
