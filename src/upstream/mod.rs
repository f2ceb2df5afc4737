//! Upstreams: the registries behind the cache, the router that finds the one for a request, and how each is asked.
//!
//! An upstream has endpoints, each a [`Source`] with its own health and quota. Requests go through the endpoints in
//! order ([`attempts`]). Nothing here stores or verifies content. Only hosts that the configuration names are dialled,
//! and hosts that these redirect to, within the rules of [`transport::address`].

mod admission;
mod attempts;
mod auth;
mod context;
mod diagnose;
mod endpoint;
mod error;
mod fingerprint;
mod health;
pub mod probe;
mod quota;
mod registry;
mod router;
mod status;
mod transport;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

pub use context::Timeouts;
pub use error::BuildError;
pub use fingerprint::files;
pub use router::{RouteError, Router};
pub use status::{Breaker, EndpointState, HealthState, QuotaState, UpstreamState};

use crate::clock::Clock;
use crate::config::Config;
use crate::config::schema;
use crate::oci::{Digest, Name, Reference, Referrers, Tag, UpstreamName};
use crate::source::{
    BlobBody, BlobSender as _, ByteRange, ManifestHead, Source, SourceError, UnverifiedManifest,
};
use crate::telemetry::Metrics;
use attempts::EndpointIter;
use context::Context;
use endpoint::Endpoint;
use fingerprint::EndpointFingerprint;
use quota::Counted;

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

    fn endpoints_for(
        &self,
        digest: Option<&Digest>,
        counted: Counted,
        deadline: Option<Instant>,
    ) -> EndpointIter<'_> {
        EndpointIter::new(&self.endpoints, digest, counted, deadline, self.timeouts.total)
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
        let endpoints = self.endpoints_for(reference.digest(), Counted::Free, deadline);
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
        let mut endpoints = self.endpoints_for(digest, Counted::Manifest, deadline);
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
        let endpoints = self.endpoints_for(Some(digest), Counted::Free, deadline);
        endpoints.first(|source, deadline| source.blob_size(name, digest, deadline)).await
    }

    /// The rest of a body that breaks off may be sent by another endpoint.
    async fn blob(
        &self,
        name: &Name,
        digest: &Digest,
        range: ByteRange,
        deadline: Option<Instant>,
    ) -> Result<BlobBody, SourceError> {
        let mut endpoints = self.endpoints_for(Some(digest), Counted::Free, deadline);
        while let Some(attempt) = endpoints.next() {
            let source = attempt.endpoint.source.as_source();
            let result = source.blob(name, digest, range, Some(attempt.deadline)).await;
            if let Some(body) = endpoints.record(&attempt, result) {
                return Ok(attempt.label(body));
            }
        }
        endpoints.into_error()
    }

    async fn tags(&self, name: &Name, deadline: Option<Instant>) -> Result<Vec<Tag>, SourceError> {
        let endpoints = self.endpoints_for(None, Counted::Free, deadline).for_list();
        endpoints.first(|source, deadline| source.tags(name, deadline)).await
    }

    /// The referrers of a digest change, like the digest of a tag, so only authoritative endpoints are asked.
    async fn referrers(
        &self,
        name: &Name,
        subject: &Digest,
        deadline: Option<Instant>,
    ) -> Result<Referrers, SourceError> {
        let endpoints = self.endpoints_for(None, Counted::Free, deadline).for_list();
        endpoints.first(|source, deadline| source.referrers(name, subject, deadline)).await
    }
}
