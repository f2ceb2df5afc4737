//! The registries behind the cache: which one a request is for, and how its content is got.
//!
//! Nothing here keeps content or judges it: a digest that an upstream announces is a hint, and what it sends is
//! verified by whoever asked. Only what the configuration names is ever dialled.

mod address;
mod auth;
mod challenge;
mod error;
mod exchange;
mod layout;
mod realm;
mod remote;
mod retry;
mod router;
mod tls;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub use error::{BuildError, UpstreamError};
pub use router::{RouteError, Router};

use crate::config::Config;
use crate::config::schema;
use crate::oci::{Digest, Name, Reference, UpstreamName};
use crate::telemetry::Metrics;
use layout::Layout;
use remote::Remote;

/// No manifest is larger; several clients refuse larger ones too.
pub const MANIFEST_MAX: usize = 4 * 1024 * 1024;

/// How long an upstream is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection, including name look-up and TLS.
    pub connect: Duration,
    /// For the head of one answer.
    pub head: Duration,
    /// For all it takes to get the head of the final answer: a free connection, tokens, redirects and repetitions.
    /// Clients in the field wait without a limit of their own, so it stays below ten seconds.
    pub total: Duration,
    /// Between two pieces of a blob, and for the whole body of a manifest.
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            head: Duration::from_secs(8),
            total: Duration::from_secs(9),
            idle: Duration::from_secs(30),
        }
    }
}

/// All configured upstreams and the router over them.
#[derive(Debug)]
pub struct Upstreams {
    by_name: BTreeMap<UpstreamName, Arc<Upstream>>,
    router: Router,
}

impl Upstreams {
    /// Reads CA files and parses URLs; contacts nobody.
    #[expect(clippy::needless_pass_by_value, reason = "every layer is handed its own share of the metrics")]
    pub fn build(config: &Config, metrics: Arc<Metrics>) -> Result<Self, BuildError> {
        Self::build_with(config, &metrics, Timeouts::default())
    }

    /// The same with other timeouts than the usual ones.
    pub fn build_with(
        config: &Config,
        metrics: &Arc<Metrics>,
        timeouts: Timeouts,
    ) -> Result<Self, BuildError> {
        let mut by_name = BTreeMap::new();
        for (text, upstream) in &config.upstream {
            let name: UpstreamName = text.parse().map_err(|_| BuildError::Name(text.clone()))?;
            metrics.declare_upstream(text);
            let endpoint = Endpoint::build(&name, upstream, metrics, timeouts)?;
            let settings = upstream.cache(&config.cache);
            by_name.insert(name.clone(), Arc::new(Upstream { name, settings, endpoint }));
        }
        Ok(Self { by_name, router: Router::new(&config.upstream) })
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
    endpoint: Endpoint,
}

/// Where a registry's content is.
#[derive(Debug)]
enum Endpoint {
    Remote(Box<Remote>),
    Layout(Layout),
}

impl Endpoint {
    fn build(
        name: &UpstreamName,
        upstream: &schema::Upstream,
        metrics: &Arc<Metrics>,
        timeouts: Timeouts,
    ) -> Result<Self, BuildError> {
        let wrong =
            |reason: &str| BuildError::Endpoint { upstream: name.to_string(), reason: reason.to_owned() };
        let [endpoint] = upstream.endpoints.as_slice() else {
            return Err(BuildError::Endpoints {
                upstream: name.to_string(),
                count: upstream.endpoints.len(),
            });
        };
        let url = url::Url::parse(&endpoint.url).map_err(|error| {
            wrong(&format!("{error}; write it as https://host, http://host or oci:///folder"))
        })?;
        match url.scheme() {
            "http" | "https" => {
                Remote::build(name, url, upstream, metrics, timeouts).map(|it| Self::Remote(Box::new(it)))
            }
            "oci" => {
                if url.host_str().is_some_and(|host| !host.is_empty()) {
                    return Err(wrong("an oci:// endpoint is an absolute folder: oci:///folder"));
                }
                if url.query().is_some() || url.fragment().is_some() {
                    return Err(wrong("write `?` and `#` in a folder's name as %3F and %23"));
                }
                let root = percent_encoding::percent_decode_str(url.path()).decode_utf8();
                let root = root.map_err(|_| wrong("the folder's name is not UTF-8"))?;
                Ok(Self::Layout(Layout::new(name.clone(), root.as_ref().into(), Arc::clone(metrics))))
            }
            _ => Err(wrong("only http://, https:// and oci:// are supported")),
        }
    }
}

impl Upstream {
    /// Its configured name.
    pub fn name(&self) -> &UpstreamName {
        &self.name
    }

    /// How its content is cached: the common settings with this upstream's own over them.
    pub fn settings(&self) -> &schema::Cache {
        &self.settings
    }

    /// Asks what a reference stands for. `None` is no answer at all: this upstream does not do HEAD, and whether it
    /// has the manifest only a GET can tell.
    pub async fn head_manifest(
        &self,
        name: &Name,
        reference: &Reference,
        accept: &str,
    ) -> Result<Option<Head>, UpstreamError> {
        match &self.endpoint {
            Endpoint::Remote(remote) => remote.head_manifest(name, reference, accept).await,
            Endpoint::Layout(layout) => layout.head_manifest(name, reference).await.map(Some),
        }
    }

    /// Fetches a whole manifest of at most [`MANIFEST_MAX`] bytes.
    pub async fn get_manifest(
        &self,
        name: &Name,
        reference: &Reference,
        accept: &str,
    ) -> Result<Document, UpstreamError> {
        match &self.endpoint {
            Endpoint::Remote(remote) => remote.get_manifest(name, reference, accept).await,
            Endpoint::Layout(layout) => layout.get_manifest(name, reference).await,
        }
    }

    /// Asks whether a blob is there; its size, if the upstream tells.
    pub async fn head_blob(&self, name: &Name, digest: &Digest) -> Result<Option<u64>, UpstreamError> {
        match &self.endpoint {
            Endpoint::Remote(remote) => remote.head_blob(name, digest).await,
            Endpoint::Layout(layout) => layout.head_blob(name, digest).await.map(Some),
        }
    }

    /// Opens a blob at byte `from`, up to and including byte `to` if given.
    ///
    /// A body that breaks midway is not resumed here: its reader knows how far it came and asks again.
    pub async fn get_blob(
        &self,
        name: &Name,
        digest: &Digest,
        from: u64,
        to: Option<u64>,
    ) -> Result<BlobBody, UpstreamError> {
        match &self.endpoint {
            Endpoint::Remote(remote) => {
                let (offset, total, body) = remote.get_blob(name, digest, from, to).await?;
                Ok(BlobBody { offset, total, source: Source::Remote(Box::new(body)) })
            }
            Endpoint::Layout(layout) => {
                let (total, body) = layout.get_blob(name, digest, from, to).await?;
                Ok(BlobBody { offset: from, total: Some(total), source: Source::Layout(body) })
            }
        }
    }
}

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
    source: Source,
}

enum Source {
    Remote(Box<remote::Body>),
    Layout(layout::Body),
}

impl BlobBody {
    /// The next piece, never empty; `None` at a clean end. Dropping the future loses no bytes.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        match &mut self.source {
            Source::Remote(body) => body.chunk().await,
            Source::Layout(body) => body.chunk().await,
        }
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
