//! The cache: the only place where the store and the upstreams meet.
//!
//! [`Cache::manifest`] and [`Cache::blob`] answer from the store where they can and start a fetch where they must.
//! A fetch belongs to the cache, never to a request: requests wait for it, tail it, leave it, and it goes on.

mod blob;
mod board;
mod children;
mod download;
mod error;
mod eviction;
mod fill;
mod flight;
pub mod freshness;
mod held;
mod hot;
mod intake;
mod listing;
mod manifest;
mod patience;
mod reader;
mod referrers;
mod removal;
mod resolve;
mod right;
mod room;
mod scrub;
mod state;
mod tags;
mod trouble;
mod verify;
mod walks;
mod writing;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::clock::Clock;
use crate::config::Config;
use crate::config::schema::{self, Prefetch};
use crate::oci::{Accept, Digest, Reference, Repository, Tag, UpstreamName};
use crate::store::{Store, StoreError, TagFact, Turn, VerifiedDraft};
use crate::telemetry::{Metrics, Outcome};
use crate::upstream::{BuildError, Upstream, Upstreams};

pub use blob::{Blob, Source};
pub use error::CacheError;
pub use eviction::{Reached, Reading, Tally};
pub use held::{Held, Standing};
pub use hot::Document;
pub use intake::{Intake, IntakeError};
pub use listing::{Listing, Page};
pub use reader::BlobReader;
pub use removal::{Removed, Target};
pub use scrub::{Condition, Damaged, Due, Rest};
pub use state::{DiskState, FillState, StoreState};

pub use crate::upstream::{Breaker, EndpointState, HealthState, QuotaState, RouteError, UpstreamState};

use board::Board;
use eviction::Eviction;
use flight::Flights;
use hot::Hot;
use resolve::Resolved;
use tags::TagLists;
use trouble::Trouble;
use walks::Walks;

/// How long a request waits for the head of an answer when nothing is held. Clients have no time-out of their own.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Ranges passed through at once.
const PASSING_MAX: usize = 8;

/// A manifest to serve, and how the cache came by it.
#[derive(Clone, Debug)]
pub struct Found {
    /// The document.
    pub document: Arc<Document>,
    /// What the cache did.
    pub outcome: Outcome,
    /// For a tag: how long ago the upstream last confirmed it.
    pub age: Option<Duration>,
    /// For a stale tag: why the upstream was not asked successfully.
    pub stale: Option<CacheError>,
}

/// A tag of a repository, as seen by clients that accept certain types.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct TagKey {
    repository: Repository,
    tag: Tag,
    /// The media types the upstream is asked for; `None` is our own canonical list.
    variant: Option<String>,
}

/// What an upstream may point anew at any time, and what therefore grows old.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Pointer {
    Tag(TagKey),
    /// The list of what refers to a manifest.
    Referrers(Repository, Digest),
}

impl Pointer {
    fn repository(&self) -> &Repository {
        match self {
            Self::Tag(TagKey { repository, .. }) | Self::Referrers(repository, _) => repository,
        }
    }

    /// What the store knows of it.
    fn noted(&self, store: &Store) -> Result<Option<TagFact>, StoreError> {
        match self {
            Self::Tag(key) => store.tag(&key.repository, &key.tag, key.variant.as_deref()),
            Self::Referrers(repository, subject) => store.referrers_list(repository, subject),
        }
    }
}

/// The cache; clones share it.
#[derive(Clone, Debug)]
pub struct Cache(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    store: Store,
    rules: RwLock<Arc<Rules>>,
    metrics: Arc<Metrics>,
    clock: Clock,
    hot: Hot,
    eviction: Eviction,
    pointer_flights: Flights<Pointer, Resolved>,
    manifest_flights: Flights<(Repository, Digest), Arc<Document>>,
    tag_lists: TagLists,
    fills: Board,
    /// Ranges passed through at once; each holds a connection of its upstream.
    passing: Arc<Semaphore>,
    /// Room for reading further ahead than one step.
    ahead: Arc<Semaphore>,
    /// Turns to read from the store.
    reading: Arc<Semaphore>,
    walks: Walks,
    trouble: Trouble,
}

/// What the configuration says, as long as it says it: replaced as a whole, so that no request sees a half of it.
#[derive(Debug)]
struct Rules {
    upstreams: Upstreams,
    prefetch: Prefetch,
}

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
            hot: Hot::new(),
            eviction: Eviction::new(options),
            pointer_flights: Flights::default(),
            manifest_flights: Flights::default(),
            tag_lists: TagLists::new(),
            fills: Board::default(),
            passing: Arc::new(Semaphore::new(PASSING_MAX)),
            ahead: Arc::new(Semaphore::new(reader::ahead_max())),
            reading: Arc::new(Semaphore::new(reader::READING_MAX)),
            walks: Walks::default(),
            trouble: Trouble::default(),
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
    ) -> Result<Found, CacheError> {
        let found = in_time(self.find_manifest(repository, reference, accept)).await?;
        found.document.stamp.touch(self.0.clock.now_millis());
        Ok(found)
    }

    async fn find_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        accept: Accept<'_>,
    ) -> Result<Found, CacheError> {
        let tag = match reference {
            Reference::Digest(digest) => return manifest::by_digest(&self.0, repository, digest).await,
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

impl Shared {
    /// What counts now.
    fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn upstream(&self, repository: &Repository) -> Result<Arc<Upstream>, CacheError> {
        self.rules().upstreams.get(&repository.upstream).cloned().ok_or(CacheError::NotFound)
    }

    /// Whether what is coming already leaves no room for another draft, of `size` bytes as far as is known.
    fn is_crowded(&self, digest: &Digest, size: Option<u64>) -> bool {
        self.eviction.is_crowded(self.fills.coming_beside(digest), size.unwrap_or_default())
    }

    /// Waits until it is a verified draft's turn to become content, and there is room for it.
    async fn turn_of(&self, verified: &VerifiedDraft) -> Turn {
        let turn = self.store.turn().await;
        if let Some(size) = verified.kept() {
            self.eviction.room_for(size, || self.store.census().content).await;
        }
        turn
    }
}

/// Ends `work`, which may ask the upstream more than one question in a row, in the time that a client waits.
async fn in_time<T>(work: impl Future<Output = Result<T, CacheError>>) -> Result<T, CacheError> {
    match tokio::time::timeout(ANSWER_WITHIN, work).await {
        Ok(result) => result,
        Err(_) => Err(CacheError::too_late(ANSWER_WITHIN)),
    }
}

/// Runs what may touch the disk off the async threads.
async fn blocking<T, F>(work: F) -> Result<T, CacheError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, StoreError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(error) if error.is_panic() => Err(StoreError::GaveUp.into()),
        Err(_) => Err(CacheError::Interrupted),
    }
}
