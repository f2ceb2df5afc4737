//! One endpoint of an upstream: a source, with its health, its quota, and the digests it sent wrong content for.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::sync::Notify;
use tokio::time::timeout;
use url::Url;

use super::context::Context;
use super::error::BuildError;
use super::health::Health;
use super::quota::Quota;
use super::registry::Registry;
use super::settings::EndpointSettings;
use super::status::RefusedAccess;
use super::transport::peer::Peer;
use crate::config::schema;
use crate::oci::{Digest, UpstreamName};
use crate::source::{BlobSender, OciLayout, Source, SourceError};

/// Number of digests remembered per endpoint for which it sent wrong content.
const MISMATCHES_MAX: usize = 256;

/// Endpoint of an upstream.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) source: EndpointSource,
    pub(crate) health: Arc<Health>,
    pub(crate) quota: Arc<Quota>,
    /// Settings of the endpoint.
    configured: schema::Endpoint,
    /// Number of times that it sent wrong content, by digest.
    mismatches: Cache<Digest, u32>,
}

/// Source behind an endpoint.
#[derive(Debug)]
pub(crate) enum EndpointSource {
    Registry(Box<Registry>),
    OciLayout(OciLayout),
}

impl EndpointSource {
    /// Returns the source.
    pub(crate) fn as_source(&self) -> &dyn Source {
        match self {
            Self::Registry(registry) => registry.as_ref(),
            Self::OciLayout(layout) => layout,
        }
    }

    /// Returns the last refusal of the credentials.
    pub(crate) fn refused(&self) -> Option<RefusedAccess> {
        match self {
            Self::Registry(registry) => registry.auth.refusals.state(),
            Self::OciLayout(_) => None,
        }
    }

    /// Returns the server at the endpoint.
    pub(crate) fn peer(&self) -> Peer {
        match self {
            Self::Registry(registry) => registry.http.peer(),
            Self::OciLayout(_) => Peer::Other,
        }
    }

    /// Returns an error if the endpoint does not respond within `limit`.
    pub(crate) async fn probe(&self, limit: Duration) -> Result<(), SourceError> {
        match self {
            Self::Registry(registry) => registry.probe(limit).await,
            Self::OciLayout(layout) => {
                let root = layout.root().to_owned();
                let found = timeout(limit, tokio::task::spawn_blocking(move || root.is_dir())).await;
                found
                    .is_ok_and(|found| found.unwrap_or(false))
                    .then_some(())
                    .ok_or_else(|| SourceError::Unreachable("its folder does not exist".to_owned()))
            }
        }
    }
}

impl Endpoint {
    /// Creates an endpoint from the settings of its upstream. Does not connect.
    pub(crate) fn build(
        name: &UpstreamName,
        settings: &EndpointSettings,
        endpoint: &schema::Endpoint,
        quota_changed: &Arc<Notify>,
        context: &Context,
    ) -> Result<Self, BuildError> {
        let wrong = |reason: String| BuildError::Endpoint { upstream: name.to_string(), reason };
        let url = Url::parse(&endpoint.url).map_err(|error| {
            wrong(format!("{error}; write it as https://host, http://host or oci:///folder"))
        })?;
        let quota = Arc::new(Quota::new(name.clone(), Arc::clone(quota_changed), context));
        let source = match url.scheme() {
            "http" | "https" => {
                let EndpointSettings { connection, servers, login } = settings;
                let login = endpoint.authoritative.then_some(login);
                let registry = Registry::build(name, url, connection, servers, login, &quota, context)?;
                EndpointSource::Registry(Box::new(registry))
            }
            "oci" => {
                let root = layout_root(&url).map_err(|reason| wrong(reason.to_owned()))?;
                let layout = OciLayout::new(name.clone(), root, Arc::clone(&context.metrics));
                EndpointSource::OciLayout(layout.with_manifest_max(settings.connection.manifest_max_size))
            }
            _ => return Err(wrong("only http://, https:// and oci:// are supported".to_owned())),
        };
        let label = endpoint.url.trim_end_matches('/').to_owned();
        let health = Health::new(name.clone(), label, context.clock.clone(), Arc::clone(&context.metrics));
        let mismatches = Cache::new(MISMATCHES_MAX);
        Ok(Self { source, health: Arc::new(health), quota, configured: endpoint.clone(), mismatches })
    }

    /// Returns true if the endpoint may say which digest a tag points to.
    pub(crate) fn is_authoritative(&self) -> bool {
        self.configured.authoritative
    }

    /// Returns true if the endpoint was built from these settings.
    pub(crate) fn is_built_from(&self, endpoint: &schema::Endpoint) -> bool {
        self.configured == *endpoint
    }

    /// Returns the number of times that the endpoint sent wrong content for a digest.
    pub(crate) fn mismatches(&self, digest: &Digest) -> u32 {
        self.mismatches.get(digest).unwrap_or_default()
    }
}

impl BlobSender for Endpoint {
    /// Puts the endpoint behind others for this digest.
    fn report_mismatch(&self, digest: &Digest) {
        self.mismatches.insert(*digest, self.mismatches(digest).saturating_add(1));
    }
}

/// Returns the folder that an `oci://` URL names.
fn layout_root(url: &Url) -> Result<PathBuf, &'static str> {
    if url.host_str().is_some_and(|host| !host.is_empty()) {
        return Err("an oci:// endpoint is an absolute folder: oci:///folder");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("write `?` and `#` in a folder's name as %3F and %23");
    }
    let root = percent_encoding::percent_decode_str(url.path()).decode_utf8();
    Ok(root.map_err(|_| "the folder's name is not UTF-8")?.as_ref().into())
}
