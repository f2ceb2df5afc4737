//! The cache: the only place where the store and the upstreams meet.
//!
//! [`Cache::manifest`] and [`Cache::blob`] answer from the store where they can and start a fetch where they must.
//! A fetch belongs to the cache, never to a request: requests wait for it, tail it, leave it, and it goes on.

mod access;
mod blob;
mod blocking;
mod core;
mod deadline;
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

use crate::clock::Clock;
use crate::config::Config;
use crate::config::schema::{self, Prefetch};
use crate::oci::{Accept, Reference, Repository, UpstreamName};
use crate::store::Store;
use crate::telemetry::Metrics;
use crate::upstream::{BuildError, Upstreams};

pub use blob::find::{BlobAnswer, BlobSource};
pub use blob::reader::BlobReader;
pub use error::CacheError;
pub use eviction::{ContentPin, Reachability, Totals};
pub use lists::catalog::{ListResult, NamePage};
pub use maintenance::{
    CacheView, DamagedContent, DiskUsage, FillStatus, ImportError, Importer, Integrity, RemovalReport,
    RemovalTarget, ScrubItem, StoreStatus, TagStatus, Throttle,
};
pub use manifest::answer::ManifestAnswer;
pub use memory::CachedManifest;

pub use crate::upstream::{Breaker, EndpointState, HealthState, QuotaState, RouteError, UpstreamState};

use blob::fills::Fills;
use blob::reader;
use blocking::blocking;
use core::{Rules, Shared};
use deadline::in_time;
use eviction::Eviction;
use flight::Flights;
use lists::tags::TagLists;
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
            store,
            rules: RwLock::new(Arc::new(Rules { upstreams, prefetch })),
            metrics,
            clock,
            memory: MemoryCache::new(),
            eviction: Eviction::new(options),
            pointer_flights: Flights::default(),
            manifest_flights: Flights::default(),
            tag_lists: TagLists::new(),
            fills: Fills::default(),
            passing: Arc::new(Semaphore::new(PASSING_MAX)),
            ahead: Arc::new(Semaphore::new(reader::ahead_max())),
            reading: Arc::new(Semaphore::new(reader::READING_MAX)),
            prefetch_queue: PrefetchQueue::default(),
            store_health: StoreHealth::default(),
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
        self.0.eviction.follow(&config.store);
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
        answer.document.usage.touch(self.0.clock.now_millis());
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
