//! Upstreams: the registries behind the cache, the router that finds the one for a request, and how each is asked.
//!
//! An upstream has endpoints, each a [`Source`] with its own health and quota. Requests go through the endpoints in
//! order (`attempts`). Nothing here stores or verifies content. Only hosts that the configuration names are dialled,
//! and hosts that these redirect to, within the rules of `transport::address`.

mod admission;
mod attempts;
mod auth;
mod context;
mod endpoint;
mod error;
mod fingerprint;
#[cfg(test)]
mod fuzz;
mod health;
mod probe;
mod quota;
mod registry;
mod repository_backoff;
mod request_origin;
mod router;
mod settings;
mod slots;
mod status;
mod transport;
mod via;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

pub use context::Timeouts;
pub use error::BuildError;
pub use fingerprint::files;
pub use request_origin::RequestOrigin;
pub use router::{RouteError, Router};
pub use status::{
    Breaker, EndpointState, HealthState, QuotaState, RefusalReason, RefusedAccess, UpstreamState,
};
pub use via::{Hops, ServerId};

// Parts of a registry that `diagnose` checks one by one.
pub(crate) use auth::challenge::{Challenge, choose as choose_challenge};
pub(crate) use endpoint::{Endpoint, EndpointSource};
pub(crate) use registry::Registry;
pub(crate) use settings::EndpointSettings;
pub(crate) use slots::{DividedSlots, Slot};
pub(crate) use transport::client::{HttpClient, causes};
pub(crate) use transport::proxy;
pub(crate) use transport::status::check_status;

use crate::clock::Clock;
use crate::config::Config;
use crate::config::schema::{self, Unverifiable};
use crate::oci::{Digest, Name, Reference, Referrers, Tag, UnverifiableDigest, UpstreamName};
use crate::source::{
    BlobBody, BlobSender as _, ByteRange, Counted, DocumentBudget, DocumentMemory, ManifestHead, Source,
    SourceError, UnverifiedManifest,
};
use crate::telemetry::Metrics;
use attempts::EndpointIter;
use context::Context;
use fingerprint::EndpointFingerprint;
use quota::QuotaClass;
use repository_backoff::RequestPath;
use transport::peer::Peer;

/// Limit on the wait for work that may wait for this request.
const CIRCULAR_WAIT_MAX: Duration = Duration::from_secs(1);

/// All configured upstreams and the router over them.
#[derive(Debug)]
pub struct Upstreams {
    by_name: BTreeMap<UpstreamName, Arc<Upstream>>,
    router: Router,
    context: Context,
}

impl Upstreams {
    /// Creates the upstreams of a configuration. Reads CA files and parses URLs; does not connect.
    pub fn build(config: &Config, metrics: Arc<Metrics>, clock: Clock) -> Result<Self, BuildError> {
        Self::build_with(config, metrics, clock, Timeouts::default())
    }

    /// Creates the upstreams with other time-outs than the default ones.
    pub fn build_with(
        config: &Config,
        metrics: Arc<Metrics>,
        clock: Clock,
        timeouts: Timeouts,
    ) -> Result<Self, BuildError> {
        let (documents, identity) = (DocumentBudget::default(), ServerId::random());
        let context = Context { metrics, clock, timeouts, documents, identity };
        Self::build_over(&BTreeMap::new(), config, context)
    }

    /// Creates the upstreams of another configuration. Endpoints with unchanged settings and files are kept with their
    /// health, quota, tokens and connections.
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

    /// Returns the upstream with this name.
    pub fn get(&self, name: &UpstreamName) -> Option<&Arc<Upstream>> {
        self.by_name.get(name)
    }

    /// Returns the status of all upstreams, by name. Contacts none.
    pub fn states(&self) -> Vec<UpstreamState> {
        let default = self.router().default_upstream();
        self.iter().map(|upstream| upstream.state(default == Some(upstream.name()))).collect()
    }

    /// Returns the identity of this server towards other servers.
    pub fn identity(&self) -> ServerId {
        self.context.identity
    }

    /// Iterates over the upstreams by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.by_name.values()
    }

    /// Returns the router over the upstreams.
    pub fn router(&self) -> &Router {
        &self.router
    }
}

/// Upstream: one registry with its endpoints.
#[derive(Debug)]
pub struct Upstream {
    name: UpstreamName,
    settings: schema::Cache,
    /// At least one endpoint, in the order in which they are asked.
    endpoints: Vec<Arc<Endpoint>>,
    /// Fingerprint of what the endpoints were built from.
    fingerprint: EndpointFingerprint,
    /// Notified of every announcement of the quota.
    quota_changed: Arc<Notify>,
    timeouts: Timeouts,
    documents: DocumentBudget,
    identity: ServerId,
    min_rate: MinRate,
    unverifiable: Unverifiable,
}

/// Rate below which a download is given up if no client reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MinRate {
    /// Bytes per second; 0 for no minimum.
    pub bytes_per_second: u64,
    /// Period over which the rate is averaged.
    pub time: Duration,
}

impl Upstream {
    fn build(
        name: UpstreamName,
        upstream: &schema::Upstream,
        config: &Config,
        earlier: Option<&Arc<Self>>,
        context: &Context,
    ) -> Result<Self, BuildError> {
        let timeouts = context.timeouts.with(upstream);
        let context = Context { timeouts, ..context.clone() };
        let fingerprint = EndpointFingerprint::of(upstream);
        let earlier = earlier.filter(|earlier| earlier.fingerprint == fingerprint);
        let quota_changed = earlier.map_or_else(Arc::default, |earlier| Arc::clone(&earlier.quota_changed));
        let settings = EndpointSettings::of(upstream);
        let mut endpoints = Vec::new();
        for endpoint in &upstream.endpoints {
            let kept = earlier.into_iter().flat_map(|earlier| &earlier.endpoints);
            endpoints.push(match kept.into_iter().find(|kept| kept.is_built_from(endpoint)) {
                Some(kept) => Arc::clone(kept),
                None => Arc::new(Endpoint::build(&name, &settings, endpoint, &quota_changed, &context)?),
            });
        }
        if endpoints.is_empty() {
            return Err(BuildError::Endpoints(name.to_string()));
        }
        let settings = upstream.cache(&config.cache);
        let min_rate = MinRate { bytes_per_second: upstream.min_rate.as_u64(), time: upstream.min_rate_time };
        let (documents, identity) = (context.documents.clone(), context.identity);
        Ok(Self {
            name,
            settings,
            endpoints,
            fingerprint,
            quota_changed,
            timeouts,
            documents,
            identity,
            min_rate,
            unverifiable: upstream.unverifiable,
        })
    }

    /// Returns the configured name.
    pub fn name(&self) -> &UpstreamName {
        &self.name
    }

    /// Returns the endpoints in the order in which they are asked.
    pub(crate) fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// Returns the cache settings: the common ones, overridden by those of this upstream.
    pub fn settings(&self) -> &schema::Cache {
        &self.settings
    }

    /// Returns the memory of a new document of this upstream: none yet.
    pub fn document_memory(&self) -> DocumentMemory {
        self.documents.document(self.name.as_str())
    }

    /// Returns the rate below which a download is given up if no client reads it.
    pub fn min_rate(&self) -> MinRate {
        self.min_rate
    }

    /// Returns true if blobs whose digest cannot be verified are passed through.
    pub fn passes_unverifiable(&self) -> bool {
        self.unverifiable == Unverifiable::Pass
    }

    /// Returns true if all authoritative endpoints keep failing, so that a request with cached content need not wait.
    pub fn is_suspect(&self) -> bool {
        self.endpoints.iter().filter(|it| it.is_authoritative()).all(|it| it.health.is_suspect())
    }

    /// Fails if the current request has passed this server before. It would wait for itself.
    pub fn check_loop(&self) -> Result<(), SourceError> {
        if RequestOrigin::current().hops.end_at(self.identity) { Err(SourceError::Loop) } else { Ok(()) }
    }

    /// Returns the limit on the time that the current request may wait for work of another request. That work may wait for a
    /// server that the current request has passed. `None` if this is impossible.
    pub fn circular_wait_limit(&self) -> Option<Duration> {
        let hops = &RequestOrigin::current().hops;
        if hops.is_empty() {
            return None;
        }
        let peers: Vec<_> = self.endpoints.iter().map(|endpoint| endpoint.source.peer()).collect();
        if peers.iter().any(|peer| peer.server().is_some_and(|server| hops.contains(server))) {
            return Some(Duration::ZERO);
        }
        // An endpoint that has not answered yet may be any server.
        peers.contains(&Peer::Unknown).then_some(CIRCULAR_WAIT_MAX)
    }

    /// Returns true if more than the share `floor` of the quota is left, or if the quota is unknown.
    pub fn quota_is_above(&self, floor: f64) -> bool {
        // The first healthy endpoint is the one that will be asked.
        let next = self.endpoints.iter().find(|endpoint| !endpoint.health.is_suspect());
        next.is_none_or(|endpoint| endpoint.quota.is_above(floor))
    }

    /// Completes with the next announcement of the quota after this call, also before the first poll.
    pub fn quota_changed(&self) -> Notified<'_> {
        self.quota_changed.notified()
    }

    fn state(&self, default: bool) -> UpstreamState {
        let endpoints = self.endpoints.iter().map(|endpoint| EndpointState {
            url: endpoint.health.endpoint().to_owned(),
            authoritative: endpoint.is_authoritative(),
            health: endpoint.health.state(),
            asked: endpoint.health.was_asked(),
            refused: endpoint.source.refused(),
            quota: endpoint.quota.state(),
            limited_until: endpoint.quota.limited_until(),
        });
        UpstreamState { name: self.name.to_string(), default, endpoints: endpoints.collect() }
    }

    fn endpoints_for(
        &self,
        name: &Name,
        resource: String,
        digest: Option<&Digest>,
        class: QuotaClass,
        deadline: Option<Instant>,
    ) -> EndpointIter<'_> {
        let path = RequestPath { repository: name.clone(), resource };
        EndpointIter::new(&self.endpoints, path, digest, class, deadline, self.timeouts.total)
            .without_loops(self.identity)
    }
}

impl Upstream {
    /// Opens a blob at one of the endpoints, within `timeout` for all of them. The error comes with the endpoints that did
    /// not answer in time.
    async fn blob_from(
        &self,
        endpoints: &[Arc<Endpoint>],
        name: &Name,
        digest: &Digest,
        range: ByteRange,
        deadline: Option<Instant>,
        timeout: Duration,
    ) -> Result<BlobBody, (SourceError, Vec<Arc<Endpoint>>)> {
        let path = RequestPath { repository: name.clone(), resource: format!("blobs/{digest}") };
        let mut endpoints =
            EndpointIter::new(endpoints, path, Some(digest), QuotaClass::Blob, deadline, timeout)
                .without_loops(self.identity);
        let mut slow = Vec::new();
        while let Some(attempt) = endpoints.next() {
            let source = attempt.endpoint.source.as_source();
            let result = source.blob(name, digest, range, Some(attempt.deadline)).await;
            if matches!(result, Err(SourceError::Timeout(_))) {
                slow.push(Arc::clone(attempt.endpoint));
            }
            if let Some(body) = endpoints.record(&attempt, result) {
                return Ok(attempt.label(body));
            }
        }
        endpoints.into_error().map_err(|error| (error, slow))
    }
}

/// An upstream as one source: its endpoints, asked in order until one has the answer.
#[async_trait]
impl Source for Upstream {
    async fn head(
        &self,
        name: &Name,
        reference: &Reference,
        accept: &str,
        deadline: Option<Instant>,
    ) -> Result<Option<ManifestHead>, SourceError> {
        let endpoints = self.endpoints_for(
            name,
            format!("HEAD manifests/{reference}"),
            reference.digest(),
            QuotaClass::Head,
            deadline,
        );
        endpoints.first(|source, deadline| source.head(name, reference, accept, deadline)).await
    }

    /// By digest, a manifest that does not match is returned only if no endpoint has the right one.
    async fn manifest(
        &self,
        name: &Name,
        reference: &Reference,
        accept: &str,
        deadline: Option<Instant>,
    ) -> Result<UnverifiedManifest, SourceError> {
        let digest = reference.digest();
        let resource = format!("manifests/{reference}");
        let mut endpoints = self.endpoints_for(name, resource, digest, QuotaClass::Manifest, deadline);
        let mut wrong = None;
        while let Some(attempt) = endpoints.next() {
            let source = attempt.endpoint.source.as_source();
            let result = source.manifest(name, reference, accept, Some(attempt.deadline)).await;
            let Some(manifest) = endpoints.record(&attempt, result) else { continue };
            match digest {
                Some(digest)
                    if self.endpoints.len() > 1
                        && Digest::of(digest.algorithm(), &manifest.body) != *digest =>
                {
                    attempt.endpoint.report_mismatch(digest);
                    wrong = Some(manifest);
                }
                _ => return Ok(manifest),
            }
        }
        wrong.map_or_else(|| endpoints.into_error(), Ok)
    }

    async fn blob_size(
        &self,
        name: &Name,
        digest: &Digest,
        deadline: Option<Instant>,
    ) -> Result<Option<u64>, SourceError> {
        let resource = format!("HEAD blobs/{digest}");
        let endpoints = self.endpoints_for(name, resource, Some(digest), QuotaClass::Head, deadline);
        endpoints.first(|source, deadline| source.blob_size(name, digest, deadline)).await
    }

    /// Another endpoint may send the rest of an interrupted body.
    ///
    /// A slow endpoint must not delay the others. Each of several endpoints first gets the short time of other requests. If
    /// none of them has the blob, those that did not answer in time are asked again, with the long time for blobs.
    async fn blob(
        &self,
        name: &Name,
        digest: &Digest,
        range: ByteRange,
        deadline: Option<Instant>,
    ) -> Result<BlobBody, SourceError> {
        let (short, long) = (self.timeouts.total, self.timeouts.total.max(self.timeouts.blob_head));
        if let [_] = *self.endpoints {
            return self
                .blob_from(&self.endpoints, name, digest, range, deadline, long)
                .await
                .map_err(|(error, _)| error);
        }
        match self.blob_from(&self.endpoints, name, digest, range, deadline, short).await {
            Err((_, slow)) if !slow.is_empty() && deadline.is_none() => {
                self.blob_from(&slow, name, digest, range, deadline, long).await.map_err(|(error, _)| error)
            }
            result => result.map_err(|(error, _)| error),
        }
    }

    /// The bytes cannot show that an endpoint is wrong, so only authoritative endpoints are asked.
    async fn unverifiable_blob(
        &self,
        name: &Name,
        digest: &UnverifiableDigest,
        deadline: Option<Instant>,
    ) -> Result<BlobBody, SourceError> {
        let endpoints = self.endpoints_for(name, format!("blobs/{digest}"), None, QuotaClass::Blob, deadline);
        endpoints.first(|source, deadline| source.unverifiable_blob(name, digest, deadline)).await
    }

    async fn tags(&self, name: &Name, deadline: Option<Instant>) -> Result<Vec<Tag>, SourceError> {
        let endpoints = self.endpoints_for(name, "tags".to_owned(), None, QuotaClass::List, deadline);
        endpoints.first(|source, deadline| source.tags(name, deadline)).await
    }

    /// The referrers of a digest change, like the digest of a tag, so only authoritative endpoints are asked.
    async fn referrers(
        &self,
        name: &Name,
        subject: &Digest,
        deadline: Option<Instant>,
    ) -> Result<Counted<Referrers>, SourceError> {
        let resource = format!("referrers/{subject}");
        let endpoints = self.endpoints_for(name, resource, None, QuotaClass::List, deadline);
        endpoints.first(|source, deadline| source.referrers(name, subject, deadline)).await
    }
}
