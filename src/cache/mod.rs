//! Cache: the only layer that uses both the store and the upstreams.
//!
//! [`Cache`] is a facade over components that own what they need. From top to bottom:
//!
//! | module | content |
//! |---|---|
//! | `maintenance` | scrub, garbage collection, import, removal, status, read-only view |
//! | `prefetch` | fetches the children of cached indexes |
//! | `lists` | lists of tags, of referrers and of repositories |
//! | `manifest`, `blob` | manifests by tag and digest; blobs, fills and readers |
//! | `access`, `deadline`, `flight`, `freshness` | rules that all of them follow |
//! | `storage`, `eviction`, `memory`, `fills`, `rules`, `error` | state that all of them share |
//!
//! A fetch belongs to the cache and not to a request: it continues when no request waits for it any more.

mod access;
mod blob;
mod deadline;
mod degraded_mode;
mod error;
mod eviction;
mod fills;
mod flight;
pub mod freshness;
#[cfg(test)]
mod fuzz;
mod lists;
mod maintenance;
mod manifest;
mod memory;
mod prefetch;
mod prefetch_queue;
mod rules;
mod storage;
mod store_health;
mod verify;

use std::ops::Range;
use std::sync::Arc;

use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::config::schema::{self, Prefetch};
use crate::oci::{Accept, Digest, Reference, Repository, UnverifiableDigest, UpstreamName};
use crate::store::{Collected, Pointer, Store, StoreError, StoreSession, TagKey};
use crate::telemetry::{Metrics, Outcome};
use crate::upstream::{BuildError, Upstreams};

pub use blob::{BlobAnswer, BlobReader, BlobSource, FetchProgress, UnverifiableBlob};
pub use error::{CacheError, CacheErrorKind};
pub use eviction::content::{Reachability, Totals};
pub use eviction::usage::ContentPin;
pub use lists::{KnownReferrers, ListResult, NamePage, ReferrersAnswer, ReferrersQuery};
pub use maintenance::import::{ImportError, Importer};
pub use maintenance::remove::{RemovalReport, RemovalTarget};
pub use maintenance::scrub::{DamagedContent, Integrity, ScrubItem, Throttle};
pub use maintenance::status::{DiskStatus, FillStatus, StoreStatus};
pub use maintenance::view::{CacheView, TagStatus};
pub use manifest::ManifestAnswer;
pub use memory::CachedManifest;

pub use crate::upstream::{
    Breaker, EndpointState, HealthState, QuotaState, RefusalReason, RefusedAccess, RequestOrigin, RouteError,
    ServerId, UpstreamState,
};

use blob::Blobs;
use deadline::in_time;
use eviction::evictor::Evictor;
use lists::{Catalog, ReferrersLists, TagLists};
use maintenance::{gc, remove, scrub, status};
use manifest::{Manifests, Pointers};
use prefetch::Prefetcher;
use prefetch_queue::PrefetchQueue;
use rules::Rules;
use storage::Storage;

/// Components of the cache. Each one owns the components that it needs.
#[derive(Debug)]
struct Components {
    storage: Arc<Storage>,
    rules: Arc<Rules>,
    manifests: Arc<Manifests>,
    pointers: Arc<Pointers>,
    blobs: Arc<Blobs>,
    tag_lists: Arc<TagLists>,
    referrers_lists: Arc<ReferrersLists>,
    catalog: Catalog,
    prefetcher: Arc<Prefetcher>,
}

impl Components {
    fn new(
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
        let lists = Arc::new(ReferrersLists::new(&storage, &rules, &pointers));
        let prefetcher = Prefetcher::new(&storage, &rules, &prefetch_queue, &manifests, &blobs, &lists);
        Self {
            tag_lists: Arc::new(TagLists::new(&storage, &rules)),
            referrers_lists: lists,
            catalog: Catalog::new(&storage, &rules),
            prefetcher: Arc::new(prefetcher),
            storage,
            rules,
            manifests,
            pointers,
            blobs,
        }
    }
}

/// Cache. Clones share the same content and state.
#[derive(Clone, Debug)]
pub struct Cache(Arc<Components>);

impl Cache {
    /// Creates a cache over `store`, which was opened with `options`, and `upstreams`.
    pub fn new(
        store: (Store, &schema::Store),
        upstreams: Upstreams,
        metrics: Arc<Metrics>,
        clock: Clock,
        prefetch: Prefetch,
    ) -> Self {
        Self(Arc::new(Components::new(store, upstreams, metrics, clock, prefetch)))
    }

    /// Finds the repository that a request addresses, by the rules of
    /// [`Router::route`](crate::upstream::Router::route).
    pub fn route(
        &self,
        ns: Option<&str>,
        prefix: Option<&str>,
        host: Option<&str>,
        name: &str,
    ) -> Result<Repository, RouteError> {
        self.0.rules.current().upstreams.router().route(ns, prefix, host, name)
    }

    /// Returns the upstream that `ns` or a path prefix names.
    pub fn upstream_named(&self, text: &str) -> Result<UpstreamName, RouteError> {
        self.0.rules.current().upstreams.router().upstream(text).cloned()
    }

    /// Applies another configuration of upstreams, freshness, prefetch and store limits. Running requests finish with the old
    /// one. Upstreams with unchanged settings keep their connections and tokens. After an error nothing has changed.
    pub fn reload(&self, config: &Config) -> Result<(), BuildError> {
        self.0.rules.reload(config)?;
        self.0.storage.capacity.set_limits(&config.store);
        Ok(())
    }

    /// Returns a manifest or index by tag or digest.
    ///
    /// By digest the stored bytes are the answer, whatever `accept` allows. By tag, a client that does not accept the tag's
    /// media type gets the upstream's answer to a request for only the types that the client accepts.
    pub async fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        accept: Accept<'_>,
    ) -> Result<ManifestAnswer, CacheError> {
        let answer = in_time(self.find_manifest(repository, reference, accept)).await?;
        answer.manifest.usage.touch(self.0.storage.clock.now());
        Ok(answer)
    }

    async fn find_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        accept: Accept<'_>,
    ) -> Result<ManifestAnswer, CacheError> {
        let tag = match reference {
            Reference::Digest(digest) => return self.0.manifests.get(repository, digest).await,
            Reference::Tag(tag) => tag,
        };
        let key = TagKey { repository: repository.clone(), tag: tag.clone(), variant: None };
        let answer = self.0.pointers.manifest(&Pointer::Tag(key.clone()), false).await?;
        if accept.allows(&answer.manifest.media_type) {
            return Ok(answer);
        }
        let types = accept.canonical();
        if types.is_empty() {
            return Ok(answer);
        }
        let variant = TagKey { variant: Some(types.join(", ")), ..key };
        self.0.pointers.manifest(&Pointer::Tag(variant), false).await
    }

    /// Returns a blob with a source to read from. Starts a fill if the blob is not cached.
    pub async fn blob(&self, repository: &Repository, digest: &Digest) -> Result<BlobAnswer, CacheError> {
        self.0.blobs.get(repository, digest).await
    }

    /// Returns a blob's size without downloading the blob.
    pub async fn blob_size(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<BlobAnswer, CacheError> {
        self.0.blobs.size(repository, digest).await
    }

    /// Opens a blob whose digest cannot be verified at its upstream. `None` unless the configuration permits such blobs.
    pub async fn unverifiable_blob(
        &self,
        repository: &Repository,
        digest: &UnverifiableDigest,
    ) -> Result<Option<UnverifiableBlob>, CacheError> {
        self.0.blobs.unverifiable(repository, digest).await
    }

    /// Creates a reader over `range` of a blob, or over the whole blob. The outcome may change to `bypass` for a range that
    /// is passed through from the upstream.
    pub async fn reader(
        &self,
        repository: &Repository,
        digest: &Digest,
        blob: BlobAnswer,
        range: Option<Range<u64>>,
    ) -> Result<(BlobReader, Outcome), CacheError> {
        self.0.blobs.reader(repository, digest, blob, range).await
    }

    /// Fetches a blob unless it is cached, and waits until it is complete. Returns true if the blob had to be fetched.
    pub async fn fetch_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        progress: impl FnMut(FetchProgress) + Send,
    ) -> Result<bool, CacheError> {
        self.0.blobs.fetch(repository, digest, progress).await
    }

    /// Returns up to `limit` tags of a repository that sort after `last`, from the lists that `tags_list` selects. `None` if
    /// only cached tags are selected and there are none.
    pub async fn tags(
        &self,
        repository: &Repository,
        last: Option<String>,
        limit: usize,
    ) -> Result<Option<ListResult<NamePage>>, CacheError> {
        self.0.tag_lists.get(repository, last, limit).await
    }

    /// Returns a page of the referrers of `subject`. The upstream has confirmed an empty list, now or when it could last be
    /// asked.
    pub async fn referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
        query: ReferrersQuery<'_>,
    ) -> Result<ReferrersAnswer, CacheError> {
        self.0.referrers_lists.get(repository, subject, query).await
    }

    /// Returns up to `limit` cached repositories that sort after `last`: those of one upstream, under their own names, or
    /// those of all upstreams. Then repositories of upstreams other than the default one have their upstream's name in front.
    /// Repositories that `allow` and `deny` exclude are not listed.
    pub async fn repositories(
        &self,
        only: Option<UpstreamName>,
        last: Option<String>,
        limit: usize,
    ) -> Result<NamePage, CacheError> {
        self.0.catalog.repositories(only, last, limit).await
    }

    /// Runs the prefetch of queued indexes. Never ends.
    pub async fn run_prefetch(self) {
        Arc::clone(&self.0.prefetcher).run().await;
    }
}

/// Maintenance and read-only views.
impl Cache {
    /// Keeps the store within its limits. Never returns.
    pub async fn run_evictor(self) {
        Evictor::new(&self.0.storage).run().await;
    }

    /// Evicts content until the limits of the store hold, or nothing more is evictable.
    pub async fn enforce_limits(&self) {
        Evictor::new(&self.0.storage).enforce_limits().await;
    }

    /// Writes recent access times to the store, from where the next start reads them.
    pub async fn save_access_times(&self) {
        Evictor::new(&self.0.storage).save_access_times().await;
    }

    /// Adds all content of the store to the eviction index.
    pub async fn rebuild_index(&self) -> Result<(), CacheError> {
        Evictor::new(&self.0.storage).rebuild_index().await
    }

    /// Checks without any request whether the store works, and retries a failed store. Never returns.
    pub async fn watch_store(self) {
        degraded_mode::watch_store(&self.0.storage).await;
    }

    /// Lists the content that was last verified before `before`, least recently verified first.
    pub async fn list_due(&self, before: Timestamp) -> Result<Vec<ScrubItem>, CacheError> {
        self.0.storage.with_store_long(move |store| scrub::list_due(store, before)).await
    }

    /// Compares content with its digest, and deletes damaged content.
    pub async fn verify(&self, item: &ScrubItem, throttle: Throttle<'_>) -> Result<Integrity, CacheError> {
        scrub::verify(&self.0.storage, item, throttle).await
    }

    /// Fetches damaged content again. Returns the digests that were fetched, or are being fetched.
    pub async fn repair(&self, damaged: &[DamagedContent]) -> Result<Vec<Digest>, CacheError> {
        scrub::repair(&self.0.storage, &self.0.manifests, &self.0.blobs, damaged).await
    }

    /// Deletes facts, bytes and drafts that no cached content uses.
    pub async fn collect_garbage(&self) -> Result<Collected, CacheError> {
        let storage = Arc::clone(&self.0.storage);
        self.0.storage.with_store_long(move |store| gc::collect(&storage, store)).await
    }

    /// Counts content that tags and lists of referrers lead to, and other content.
    pub async fn reachability(&self) -> Result<Reachability, CacheError> {
        let storage = Arc::clone(&self.0.storage);
        self.0.storage.with_store_long(move |store| gc::reachability(&storage, store)).await
    }

    /// Starts an import. Its methods block, and must be called on a thread of the runtime for blocking work.
    pub fn importer(&self) -> Result<Importer, ImportError> {
        Importer::new(&self.0.storage)
    }

    /// Removes a tag or a manifest of a repository, and the content that nothing else points at or needs.
    pub async fn remove(
        &self,
        repository: &Repository,
        target: RemovalTarget,
    ) -> Result<RemovalReport, CacheError> {
        remove::remove(&self.0.storage, repository, target).await
    }

    /// Runs `view` on a read-only view of the cached content, off the async threads.
    pub async fn view<T, F>(&self, view: F) -> Result<T, CacheError>
    where
        T: Send + 'static,
        F: FnOnce(CacheView<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let (storage, rules) = (Arc::clone(&self.0.storage), self.0.rules.current());
        let work =
            move |session: &StoreSession| view(CacheView { storage: &storage, rules: &rules, session });
        self.0.storage.with_store_long(work).await
    }

    /// Returns the status of the running fills, oldest first.
    pub fn fills(&self) -> Vec<FillStatus> {
        let now = self.0.storage.clock.now();
        let mut fills = self.0.storage.fills.running();
        fills.sort_by_key(|fill| fill.since);
        fills.into_iter().map(|fill| status::fill_status(fill, now)).collect()
    }

    /// Returns the identity of this server towards other servers.
    pub fn identity(&self) -> ServerId {
        self.0.rules.current().upstreams.identity()
    }

    /// Returns the status of the upstreams, sorted by name.
    pub fn upstreams(&self) -> Vec<UpstreamState> {
        self.0.rules.current().upstreams.states()
    }

    /// Returns the status of the store.
    pub async fn store_status(&self) -> Result<StoreStatus, CacheError> {
        let storage = Arc::clone(&self.0.storage);
        self.0.storage.with_store_long(move |store| Ok(status::store_status(&storage, store))).await
    }
}
