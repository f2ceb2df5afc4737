//! The registries behind the cache: which one a request is for, and how its content is got.
//!
//! Nothing here keeps content or judges it: a digest that an upstream announces is a hint, and what it sends is
//! verified by whoever asked. Only what the configuration names is ever dialled.

mod admission;
mod auth;
mod context;
mod diagnose;
mod endpoint;
mod error;
mod fingerprint;
mod health;
mod layout;
pub mod probe;
mod quota;
mod registry;
mod router;
mod status;
mod tls;
mod transport;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

pub use context::Timeouts;
pub use error::{BuildError, UpstreamError};
pub use fingerprint::files;
pub use router::{RouteError, Router};
pub use status::{Breaker, EndpointState, HealthState, QuotaState, UpstreamState};

use crate::clock::Clock;
use crate::config::Config;
use crate::config::schema;
use crate::oci::{Digest, Name, Reference, Referrers, Tag, UpstreamName};
use crate::telemetry::Metrics;
use context::Context;
use endpoint::{Endpoint, EndpointIter, Place};
use fingerprint::EndpointFingerprint;
use health::Health;
use quota::Counted;
use registry::encoding::Gunzip;
use registry::{Body as RegistryBody, OpenedBlob};

/// No manifest is larger; several clients refuse larger ones too.
pub const MANIFEST_MAX: usize = 4 * 1024 * 1024;

/// No list, all its pages together, is larger.
pub const LIST_MAX: usize = 16 * 1024 * 1024;

/// No repository has more tags, as far as its list is passed on.
pub const TAGS_MAX: usize = 100_000;

/// All configured upstreams and the router over them.
#[derive(Debug)]
pub struct Upstreams {
    by_name: BTreeMap<UpstreamName, Arc<Upstream>>,
    router: Router,
    context: Context,
}

impl Upstreams {
    /// Reads CA files and parses URLs; contacts nobody.
    pub fn build(config: &Config, metrics: Arc<Metrics>, clock: Clock) -> Result<Self, BuildError> {
        Self::build_with(config, metrics, clock, Timeouts::default())
    }

    /// The same with other timeouts than the usual ones.
    pub fn build_with(
        config: &Config,
        metrics: Arc<Metrics>,
        clock: Clock,
        timeouts: Timeouts,
    ) -> Result<Self, BuildError> {
        Self::build_over(&BTreeMap::new(), config, Context { metrics, clock, timeouts })
    }

    /// The upstreams of another configuration. Endpoints whose settings, and the files that these name, are what they
    /// were are taken over with all that is known of them: their health, quota, tokens and connections.
    pub fn rebuilt(&self, config: &Config) -> Result<Self, BuildError> {
        let built = Self::build_over(&self.by_name, config, self.context.clone())?;
        for (name, upstream) in &self.by_name {
            let kept = built.get(name).map_or(&[][..], |upstream| &upstream.endpoints);
            for endpoint in upstream.endpoints.iter().map(|endpoint| endpoint.health.endpoint()) {
                if !kept.iter().any(|kept| kept.health.endpoint() == endpoint) {
                    self.context.metrics.endpoint_gone(name.as_str(), endpoint);
                }
            }
        }
        Ok(built)
    }

    fn build_over(
        earlier: &BTreeMap<UpstreamName, Arc<Upstream>>,
        config: &Config,
        context: Context,
    ) -> Result<Self, BuildError> {
        let mut by_name = BTreeMap::new();
        for (text, upstream) in &config.upstream {
            let name: UpstreamName = text.parse().map_err(|_| BuildError::Name(text.clone()))?;
            context.metrics.declare_upstream(text);
            let built = Upstream::build(name.clone(), upstream, config, earlier.get(&name), &context)?;
            by_name.insert(name, Arc::new(built));
        }
        Ok(Self { by_name, router: Router::new(&config.upstream)?, context })
    }

    /// The upstream of that name.
    pub fn get(&self, name: &UpstreamName) -> Option<&Arc<Upstream>> {
        self.by_name.get(name)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.by_name.values()
    }

    /// The table that requests are routed by.
    pub fn router(&self) -> &Router {
        &self.router
    }
}

/// One registry.
#[derive(Debug)]
pub struct Upstream {
    name: UpstreamName,
    settings: schema::Cache,
    /// At least one, in the order in which they are asked.
    endpoints: Vec<Arc<Endpoint>>,
    /// What they were built from.
    fingerprint: EndpointFingerprint,
    /// Wakes who waits for the quota.
    told: Arc<Notify>,
    timeouts: Timeouts,
}

impl Upstream {
    fn build(
        name: UpstreamName,
        upstream: &schema::Upstream,
        config: &Config,
        earlier: Option<&Arc<Self>>,
        context: &Context,
    ) -> Result<Self, BuildError> {
        let timeouts =
            Timeouts { idle: upstream.idle_timeout.unwrap_or(context.timeouts.idle), ..context.timeouts };
        let context = Context { timeouts, ..context.clone() };
        let fingerprint = EndpointFingerprint::of(upstream);
        let earlier = earlier.filter(|earlier| earlier.fingerprint == fingerprint);
        let told = earlier.map_or_else(Arc::default, |earlier| Arc::clone(&earlier.told));
        let mut endpoints = Vec::new();
        for endpoint in &upstream.endpoints {
            let kept = earlier.into_iter().flat_map(|earlier| &earlier.endpoints);
            endpoints.push(match kept.into_iter().find(|kept| kept.is_built_from(endpoint)) {
                Some(kept) => Arc::clone(kept),
                None => Arc::new(Endpoint::build(&name, upstream, endpoint, &told, &context)?),
            });
        }
        if endpoints.is_empty() {
            return Err(BuildError::Endpoints(name.to_string()));
        }
        let settings = upstream.cache(&config.cache);
        Ok(Self { name, settings, endpoints, fingerprint, told, timeouts })
    }

    /// Its configured name.
    pub fn name(&self) -> &UpstreamName {
        &self.name
    }

    /// How its content is cached: the common settings with this upstream's own over them.
    pub fn settings(&self) -> &schema::Cache {
        &self.settings
    }

    /// Whether it failed so often lately that nobody who has something to serve should wait for it.
    pub fn is_suspect(&self) -> bool {
        self.endpoints.iter().filter(|it| it.is_authoritative()).all(|it| it.health.is_suspect())
    }

    /// Whether more than this share of its quota is left for what nobody asked for, as far as is known.
    pub fn quota_is_above(&self, floor: f64) -> bool {
        // The first that is well is the one that will be asked.
        let asked = self.endpoints.iter().find(|endpoint| !endpoint.health.is_suspect());
        asked.is_none_or(|endpoint| endpoint.quota.is_above(floor))
    }

    /// Ends when it tells its quota again; counts from this call, not from the first poll.
    pub fn quota_told(&self) -> Notified<'_> {
        self.told.notified()
    }

    /// Something that it sent for `digest` did not match: its other endpoints come first the next time.
    pub fn distrust(&self, digest: &Digest, sender: Sender) {
        if let Some(endpoint) = self.endpoints.get(sender.0) {
            endpoint.distrust(digest);
        }
    }

    fn attempts(&self, digest: Option<&Digest>, counted: Counted) -> EndpointIter<'_> {
        EndpointIter::new(&self.endpoints, digest, counted, self.timeouts.total)
    }

    /// Asks what a reference stands for. `None` is no answer at all: this upstream does not do HEAD, and whether it
    /// has the manifest only a GET can tell.
    pub async fn head_manifest(
        &self,
        name: &Name,
        reference: &Reference,
        accept: &str,
    ) -> Result<Option<Head>, UpstreamError> {
        let mut attempts = self.attempts(reference.digest(), Counted::Free);
        while let Some(attempt) = attempts.next() {
            let answer = match &attempt.endpoint.place {
                Place::Registry(registry) => {
                    registry.head_manifest(name, reference, accept, attempt.deadline).await
                }
                Place::Layout(layout) => layout.head_manifest(name, reference).await.map(Some),
            };
            if let Some(answer) = attempts.settle(&attempt, answer) {
                return Ok(answer);
            }
        }
        attempts.over()
    }

    /// Fetches a whole manifest of at most [`MANIFEST_MAX`] bytes.
    ///
    /// What was asked for by digest and is something else is handed on, for the asker to refuse, only if no endpoint
    /// has the right one.
    pub async fn get_manifest(
        &self,
        name: &Name,
        reference: &Reference,
        accept: &str,
    ) -> Result<Document, UpstreamError> {
        let digest = reference.digest();
        let mut attempts = self.attempts(digest, Counted::Manifest);
        let mut wrong = None;
        while let Some(attempt) = attempts.next() {
            let answer = match &attempt.endpoint.place {
                Place::Registry(registry) => {
                    registry.get_manifest(name, reference, accept, attempt.deadline).await
                }
                Place::Layout(layout) => layout.get_manifest(name, reference).await,
            };
            let Some(document) = attempts.settle(&attempt, answer) else { continue };
            match digest {
                Some(digest)
                    if self.endpoints.len() > 1
                        && Digest::of(digest.algorithm(), &document.body) != *digest =>
                {
                    attempt.endpoint.distrust(digest);
                    wrong = Some(document);
                }
                _ => return Ok(document),
            }
        }
        wrong.map_or_else(|| attempts.over(), Ok)
    }

    /// All tags of a repository, in no particular order, at most [`TAGS_MAX`].
    pub async fn tags(&self, name: &Name) -> Result<Vec<Tag>, UpstreamError> {
        let mut attempts = self.attempts(None, Counted::Free).of_lists();
        while let Some(attempt) = attempts.next() {
            let answer = match &attempt.endpoint.place {
                Place::Registry(registry) => registry.tags(name, attempt.deadline).await,
                Place::Layout(layout) => layout.tags(name).await,
            };
            if let Some(tags) = attempts.settle(&attempt, answer) {
                return Ok(tags);
            }
        }
        attempts.over()
    }

    /// All that refers to a manifest, of any type. Without the API it fails with [`UpstreamError::NoReferrers`].
    ///
    /// What refers to a digest changes, as what a tag stands for does: only authoritative endpoints are asked.
    pub async fn referrers(&self, name: &Name, subject: &Digest) -> Result<Referrers, UpstreamError> {
        let mut attempts = self.attempts(None, Counted::Free).of_lists();
        while let Some(attempt) = attempts.next() {
            let answer = match &attempt.endpoint.place {
                Place::Registry(registry) => registry.referrers(name, subject, attempt.deadline).await,
                Place::Layout(layout) => layout.referrers(name, subject).await,
            };
            if let Some(list) = attempts.settle(&attempt, answer) {
                return Ok(list);
            }
        }
        attempts.over()
    }

    /// Asks whether a blob is there; its size, if the upstream tells.
    pub async fn head_blob(&self, name: &Name, digest: &Digest) -> Result<Option<u64>, UpstreamError> {
        let mut attempts = self.attempts(Some(digest), Counted::Free);
        while let Some(attempt) = attempts.next() {
            let answer = match &attempt.endpoint.place {
                Place::Registry(registry) => registry.head_blob(name, digest, attempt.deadline).await,
                Place::Layout(layout) => layout.head_blob(name, digest).await.map(Some),
            };
            if let Some(answer) = attempts.settle(&attempt, answer) {
                return Ok(answer);
            }
        }
        attempts.over()
    }

    /// Opens a blob at byte `from`, up to and including byte `to` if given.
    ///
    /// A body that breaks midway is not resumed here: its reader knows how far it came and asks again, and may then be
    /// answered by another endpoint.
    pub async fn get_blob(
        &self,
        name: &Name,
        digest: &Digest,
        from: u64,
        to: Option<u64>,
    ) -> Result<BlobBody, UpstreamError> {
        let mut attempts = self.attempts(Some(digest), Counted::Free);
        while let Some(attempt) = attempts.next() {
            let answer = match &attempt.endpoint.place {
                Place::Registry(registry) => {
                    let opened = registry.get_blob(name, digest, from, to, attempt.deadline).await;
                    opened.map(|OpenedBlob { offset, total, gzip, body }| {
                        (offset, total, gzip, Source::Registry(Box::new(body)))
                    })
                }
                Place::Layout(layout) => layout
                    .get_blob(name, digest, from, to)
                    .await
                    .map(|(total, body)| (from, Some(total), false, Source::Layout(body))),
            };
            if let Some((offset, total, gzip, source)) = attempts.settle(&attempt, answer) {
                let sender = Sender(attempt.place);
                let health = Arc::clone(&attempt.endpoint.health);
                return Ok(BlobBody { offset, total, gzip, sender, gunzip: None, source, health });
            }
        }
        attempts.over()
    }
}

/// Which of an upstream's endpoints sent something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender(usize);

/// What an upstream says about a manifest without sending it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The digest it announces: a hint only.
    pub digest: Option<Digest>,
    /// The size it announces.
    pub size: Option<u64>,
    /// The raw `Content-Type`.
    pub content_type: Option<String>,
}

/// A manifest as it came, unverified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// The bytes.
    pub body: Bytes,
    /// The raw `Content-Type`.
    pub content_type: Option<String>,
    /// The digest that came with it: a hint only.
    pub digest: Option<Digest>,
}

/// A blob's bytes as they come, unverified.
pub struct BlobBody {
    /// The first byte's offset: what was asked for, or 0 if the upstream ignored the range.
    pub offset: u64,
    /// The whole blob's length, if known.
    pub total: Option<u64>,
    /// Whether it is labelled as gzip-encoded. Then offset and length are those of the bytes as they come, which may
    /// be the blob, if it is a gzip file itself, or need [`BlobBody::decoded`].
    pub gzip: bool,
    /// Who sends it.
    pub sender: Sender,
    gunzip: Option<Gunzip>,
    source: Source,
    health: Arc<Health>,
}

enum Source {
    Registry(Box<RegistryBody>),
    Layout(layout::Body),
}

impl BlobBody {
    /// The same with the encoding undone, for a body that begins at the blob's first byte. How long it is only its
    /// end tells.
    #[must_use]
    pub fn decoded(self) -> Self {
        Self { total: None, gzip: false, gunzip: Some(Gunzip::new()), ..self }
    }

    /// The next piece, never empty; `None` at a clean end. Dropping the future loses no bytes.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        loop {
            if let Some(piece) = self.gunzip.as_mut().map(Gunzip::piece).transpose()?.flatten() {
                return Ok(Some(piece));
            }
            let chunk = self.encoded_chunk().await?;
            match (&mut self.gunzip, chunk) {
                (None, chunk) => return Ok(chunk),
                (Some(gunzip), Some(chunk)) => gunzip.feed(chunk),
                (Some(gunzip), None) => return gunzip.end(),
            }
        }
    }

    async fn encoded_chunk(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        let chunk = match &mut self.source {
            Source::Registry(body) => body.chunk().await,
            Source::Layout(body) => body.chunk().await,
        };
        if let Err(error) = &chunk
            && error.is_outage()
        {
            self.health.failed(error);
        }
        chunk
    }
}

impl fmt::Debug for BlobBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobBody")
            .field("offset", &self.offset)
            .field("total", &self.total)
            .finish_non_exhaustive()
    }
}
