//! Registry over HTTP as a source (distribution-spec): its requests, and the rules for its responses.

mod blob;
pub(crate) mod encoding;
#[cfg(test)]
mod fuzz;
mod limits;
mod link_header;
mod lists;
mod request;
mod response;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use http::header::CONTENT_RANGE;
use http::{Method, StatusCode};
use tokio::time::{Instant, timeout};
use url::Url;

use super::auth::Auth;
use super::context::Context;
use super::error::BuildError;
use super::quota::{Quota, QuotaClass};
use super::settings::{ConnectionSettings, RegistryLogin, ServerLogins};
use super::transport::address::{Policy, Resolver};
use super::transport::client::{HttpClient, text_of};
use super::transport::pool::Pool;
use super::transport::proxy::Proxies;
use crate::oci::{Digest, Name, Reference, Referrers, Tag, UnverifiableDigest, UpstreamName};
use crate::source::{
    BlobBody, ByteRange, Counted, DocumentBudget, ManifestHead, Source, SourceError, UnverifiedManifest,
};
use crate::tls;
use blob::{ContentRange, ResponseChunks};
use encoding::is_gzip;
use limits::ConnectionLimits;
use request::RegistryRequest;
use response::{DocumentLimits, content_length, decode, expect_status, manifest_head, read_document};

const USER_AGENT: &str = concat!("larder/", env!("CARGO_PKG_VERSION"));
/// Statuses of registries that do not support HEAD. They say nothing about the manifest.
const WITHOUT_HEAD: &[StatusCode] = &[StatusCode::METHOD_NOT_ALLOWED, StatusCode::NOT_IMPLEMENTED];

/// Registry at one URL.
#[derive(Debug)]
pub(crate) struct Registry {
    /// URL without a slash at the end.
    pub(crate) base: String,
    pub(crate) http: Arc<HttpClient>,
    pub(crate) auth: Auth,
    limits: ConnectionLimits,
    documents: DocumentBudget,
    /// Largest manifest in bytes.
    manifest_max: usize,
}

impl Registry {
    /// Creates the registry at `url` with the settings of its upstream. `login` is `None` for a mirror. Does not connect.
    pub(crate) fn build(
        name: &UpstreamName,
        url: Url,
        connection: &ConnectionSettings,
        servers: &ServerLogins,
        login: Option<&RegistryLogin>,
        quota: &Arc<Quota>,
        context: &Context,
    ) -> Result<Self, BuildError> {
        let http = Arc::new(http_client(name, &url, connection, quota, context)?);
        let base = url.as_str().trim_end_matches('/').to_owned();
        let auth = Auth::new(Arc::clone(&http), url, servers, login);
        let limits = ConnectionLimits::new(connection.max_connections);
        let manifest_max = usize::try_from(connection.manifest_max_size).unwrap_or(usize::MAX);
        Ok(Self { base, http, auth, limits, documents: context.documents.clone(), manifest_max })
    }

    /// Returns the deadline, or the one that follows from the upstream's time-out.
    fn deadline(&self, deadline: Option<Instant>) -> Instant {
        deadline.unwrap_or_else(|| Instant::now() + self.http.timeouts.total)
    }

    /// Returns an error if the registry does not respond to a request for `/v2/` within `limit`. Any status but a failure
    /// of the server is a response: the registry may want credentials, or have no such path.
    pub(crate) async fn probe(&self, limit: Duration) -> Result<(), SourceError> {
        let url = Url::parse(&format!("{}/v2/", self.base));
        let url = url.map_err(|error| SourceError::Local(format!("no URL can be made: {error}")))?;
        let sent = self.http.pool.send(reqwest::Request::new(Method::GET, url));
        let response =
            timeout(limit, sent).await.map_err(|_| SourceError::Timeout("the probe".to_owned()))?;
        let status = response.map_err(|error| SourceError::Unreachable(text_of(&error)))?.status();
        if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED {
            return Err(SourceError::Unavailable(status.as_u16()));
        }
        Ok(())
    }

    fn request<'r>(
        &self,
        method: Method,
        name: &'r Name,
        kind: &str,
        reference: &impl fmt::Display,
        accept: Option<&'r str>,
    ) -> Result<RegistryRequest<'r>, SourceError> {
        let url = Url::parse(&format!("{}/v2/{name}/{kind}/{reference}", self.base))
            .map_err(|error| SourceError::Local(format!("no URL can be made for {name}: {error}")))?;
        let class = QuotaClass::of(&method, kind);
        Ok(RegistryRequest {
            method,
            url,
            name,
            class,
            accept,
            range: None,
            accepted_statuses: &[],
            is_referrers: false,
        })
    }

    async fn fetch_manifest(
        &self,
        request: &RegistryRequest<'_>,
        deadline: Instant,
    ) -> Result<UnverifiedManifest, SourceError> {
        let mut response = request.send(&self.http, &self.auth, deadline).await?;
        expect_status(&response, StatusCode::OK)?;
        let encoded = is_gzip(response.headers())?;
        let ManifestHead { digest, size, content_type } = manifest_head(response.headers());
        let mut memory = self.documents.document(self.http.upstream.as_str());
        if encoded {
            memory.reserve(self.manifest_max, deadline).await?;
        }
        let limits = DocumentLimits::new("manifest", 0, size, self.manifest_max, deadline);
        let body = read_document(&self.http, &mut response, size, &limits, &mut memory).await?;
        let body = if encoded { decode(body, self.manifest_max, &memory, deadline).await? } else { body };
        memory.shrink(body.len());
        Ok(UnverifiedManifest { body, content_type, digest, memory: Some(memory) })
    }
}

#[async_trait]
impl Source for Registry {
    async fn head(
        &self,
        name: &Name,
        reference: &Reference,
        accept: &str,
        deadline: Option<Instant>,
    ) -> Result<Option<ManifestHead>, SourceError> {
        let deadline = self.deadline(deadline);
        let _permit = self.limits.for_document(name, deadline).await?;
        let mut request = self.request(Method::HEAD, name, "manifests", reference, Some(accept))?;
        request.accepted_statuses = WITHOUT_HEAD;
        let response = request.send(&self.http, &self.auth, deadline).await?;
        if WITHOUT_HEAD.contains(&response.status()) {
            return Ok(None);
        }
        let encoded = is_gzip(response.headers())?;
        let head = manifest_head(response.headers());
        // The length is that of the encoded bytes.
        let size = head.size.filter(|_| !encoded);
        Ok(Some(ManifestHead { size, ..head }))
    }

    async fn manifest(
        &self,
        name: &Name,
        reference: &Reference,
        accept: &str,
        deadline: Option<Instant>,
    ) -> Result<UnverifiedManifest, SourceError> {
        let deadline = self.deadline(deadline);
        let _permit = self.limits.for_document(name, deadline).await?;
        let request = self.request(Method::GET, name, "manifests", reference, Some(accept))?;
        match self.fetch_manifest(&request, deadline).await {
            Err(error @ SourceError::Interrupted(_)) if Instant::now() < deadline => {
                tracing::debug!(%error, "retrying an interrupted manifest");
                self.fetch_manifest(&request, deadline).await
            }
            result => result,
        }
    }

    async fn blob_size(
        &self,
        name: &Name,
        digest: &Digest,
        deadline: Option<Instant>,
    ) -> Result<Option<u64>, SourceError> {
        let deadline = self.deadline(deadline);
        let _permit = self.limits.for_document(name, deadline).await?;
        let request = self.request(Method::HEAD, name, "blobs", digest, None)?;
        let response = request.send(&self.http, &self.auth, deadline).await?;
        let encoded = is_gzip(response.headers())?;
        Ok(content_length(response.headers()).filter(|_| !encoded))
    }

    async fn blob(
        &self,
        name: &Name,
        digest: &Digest,
        range: ByteRange,
        deadline: Option<Instant>,
    ) -> Result<BlobBody, SourceError> {
        self.open_blob(name, digest, range, deadline).await
    }

    async fn unverifiable_blob(
        &self,
        name: &Name,
        digest: &UnverifiableDigest,
        deadline: Option<Instant>,
    ) -> Result<BlobBody, SourceError> {
        self.open_blob(name, digest, ByteRange::ALL, deadline).await
    }

    async fn tags(&self, name: &Name, deadline: Option<Instant>) -> Result<Vec<Tag>, SourceError> {
        let mut request = self.request(Method::GET, name, "tags", &"list", None)?;
        request.url.set_query(Some(lists::TAGS_PER_PAGE));
        lists::tags(self.pages(request, deadline)).await
    }

    async fn referrers(
        &self,
        name: &Name,
        subject: &Digest,
        deadline: Option<Instant>,
    ) -> Result<Counted<Referrers>, SourceError> {
        let accept = Some(crate::oci::media::OCI_INDEX);
        let mut request = self.request(Method::GET, name, "referrers", subject, accept)?;
        request.accepted_statuses = lists::WITHOUT_REFERRERS_API;
        request.is_referrers = true;
        lists::referrers(self.pages(request, deadline)).await
    }
}

impl Registry {
    async fn open_blob(
        &self,
        name: &Name,
        digest: &(impl fmt::Display + Sync),
        range: ByteRange,
        deadline: Option<Instant>,
    ) -> Result<BlobBody, SourceError> {
        let busy = Instant::now() + self.http.timeouts.total;
        let slot = self.limits.for_blob(name, deadline.map_or(busy, |deadline| deadline.min(busy))).await?;
        let timeout = self.http.timeouts.blob_head.max(self.http.timeouts.total);
        let deadline = deadline.unwrap_or_else(|| Instant::now() + timeout);
        let mut request = self.request(Method::GET, name, "blobs", digest, None)?;
        request.range = (!range.is_all()).then_some(range);
        let response = request.send(&self.http, &self.auth, deadline).await?;
        let gzip = is_gzip(response.headers())?;
        let length = content_length(response.headers());
        let is_part = !range.is_all() && response.status() == StatusCode::PARTIAL_CONTENT;
        let (offset, total, expected) = if is_part {
            let value = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
            let part = value.and_then(ContentRange::parse).filter(|part| part.answers(range));
            let part = part.ok_or_else(|| invalid("its Content-Range is not the range asked for"))?;
            if length.is_some_and(|length| length != part.length()) {
                return Err(invalid("its Content-Length and Content-Range disagree"));
            }
            (range.first, part.total, Some(part.length()))
        } else {
            // RFC 9110, section 14.2: a server may ignore Range.
            expect_status(&response, StatusCode::OK)?;
            (0, length, length)
        };
        let chunks = ResponseChunks::new(response, expected, Arc::clone(&self.http), slot);
        Ok(BlobBody::new(offset, total, chunks).labelled_gzip(gzip))
    }

    fn pages<'r>(&'r self, request: RegistryRequest<'r>, deadline: Option<Instant>) -> lists::Pages<'r> {
        let memory = self.documents.document(self.http.upstream.as_str());
        lists::Pages::new(&self.http, &self.auth, &self.limits, request, self.deadline(deadline), memory)
    }
}

fn invalid(reason: &str) -> SourceError {
    SourceError::Invalid(reason.to_owned())
}

/// Creates the HTTP client for the endpoint at `url`.
fn http_client(
    name: &UpstreamName,
    url: &Url,
    connection: &ConnectionSettings,
    quota: &Arc<Quota>,
    context: &Context,
) -> Result<HttpClient, BuildError> {
    let wrong = |reason: &str| BuildError::Endpoint { upstream: name.to_string(), reason: reason.to_owned() };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("credentials do not belong into a URL; use username and password_file"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("it has a query or a fragment"));
    }
    let own = url.host().ok_or_else(|| wrong("it has no host"))?.to_owned();
    let broken = |reason| BuildError::Client { upstream: name.to_string(), reason };
    let proxies = Proxies::new(connection.proxy.as_ref(), &own).map_err(broken)?;
    if let Some(proxy) = proxies.towards(url) {
        tracing::info!(upstream = %name, proxy = %proxy.uri(), "using a proxy");
    }
    let policy = Policy::new(own, url.port_or_known_default(), connection.allow_private);
    let policy = Arc::new(policy.with_proxies(proxies.hosts()));
    let tls = tls::client_config(name.as_str(), &connection.tls)
        .map_err(|error| BuildError::tls(name.as_str(), error))?;
    let (proxies, resolver) = (Arc::new(proxies), Resolver::new(&policy));
    let pool = Pool::new(resolver, Arc::clone(&proxies), tls, USER_AGENT, context.timeouts.connect);
    Ok(HttpClient {
        upstream: name.clone(),
        pool,
        proxies,
        policy,
        metrics: Arc::clone(&context.metrics),
        timeouts: context.timeouts,
        clock: context.clock.clone(),
        quota: Arc::clone(quota),
        identity: context.identity,
        peer: Mutex::default(),
    })
}
