//! A registry over HTTP: what is asked of it, and what its answers must look like.

pub(crate) mod encoding;
mod link_header;
mod lists;
mod request;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE};
use http::{HeaderMap, Method, StatusCode};
use reqwest::Response;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};
use url::Url;

use super::auth::Auth;
use super::context::Context;
use super::error::{BuildError, UpstreamError};
use super::quota::Quota;
use super::transport::address::{Policy, Resolver};
use super::transport::client::{HttpClient, causes};
use super::transport::proxy::Proxies;
use super::{Document, Head, MANIFEST_MAX, tls};
use crate::config::schema;
use crate::oci::{Digest, Name, Reference, UpstreamName};
use encoding::is_gzip;
use request::RegistryRequest;

const DIGEST: &str = "docker-content-digest";
const USER_AGENT: &str = concat!("larder/", env!("CARGO_PKG_VERSION"));

/// A registry behind one URL.
#[derive(Debug)]
pub(crate) struct Registry {
    /// Without a slash at the end.
    pub(crate) base: String,
    pub(crate) http: Arc<HttpClient>,
    pub(crate) auth: Auth,
    /// Requests for bodies that may take long.
    blobs: Arc<Semaphore>,
    /// Requests that must not wait behind those.
    small: Arc<Semaphore>,
}

impl Registry {
    pub(crate) fn build(
        name: &UpstreamName,
        url: Url,
        upstream: &schema::Upstream,
        quota: &Arc<Quota>,
        context: &Context,
    ) -> Result<Self, BuildError> {
        let wrong =
            |reason: &str| BuildError::Endpoint { upstream: name.to_string(), reason: reason.to_owned() };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("credentials do not belong into a URL; use username and password_file"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("it has a query or a fragment"));
        }
        let own = url.host().ok_or_else(|| wrong("it has no host"))?.to_owned();
        let broken = |reason| BuildError::Client { upstream: name.to_string(), reason };
        let proxies = Proxies::new(upstream.proxy.as_ref(), &own).map_err(broken)?;
        if let Some(proxy) = proxies.towards(&url) {
            tracing::info!(upstream = %name, proxy = %proxy.uri(), "asked through a proxy");
        }
        let policy = Arc::new(Policy::new(own, upstream.allow_private).by_way_of(proxies.hosts()));
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::client_config(name.as_str(), upstream)?)
            .user_agent(USER_AGENT)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .connect_timeout(context.timeouts.connect)
            .dns_resolver(Arc::new(Resolver(Arc::clone(&policy))));
        let client = proxies.apply(client).and_then(reqwest::ClientBuilder::build);
        let client = client.map_err(|error| broken(causes(&error)))?;
        let http = Arc::new(HttpClient {
            upstream: name.clone(),
            client,
            proxies,
            policy,
            metrics: Arc::clone(&context.metrics),
            timeouts: context.timeouts,
            clock: context.clock.clone(),
            quota: Arc::clone(quota),
        });
        let base = url.as_str().trim_end_matches('/').to_owned();
        let auth = Auth::new(Arc::clone(&http), url, upstream);
        let (small, blobs) = shares(upstream.max_connections);
        Ok(Self {
            base,
            http,
            auth,
            blobs: Arc::new(Semaphore::new(blobs)),
            small: Arc::new(Semaphore::new(small)),
        })
    }

    pub(crate) async fn head_manifest(
        &self,
        name: &Name,
        reference: &Reference,
        accept: &str,
        deadline: Instant,
    ) -> Result<Option<Head>, UpstreamError> {
        let _permit = permit(&self.small, deadline).await?;
        let request = self.request(Method::HEAD, name, "manifests", reference, Some(accept))?;
        match request.send(&self.http, &self.auth, deadline).await {
            Ok(response) => {
                let encoded = is_gzip(response.headers())?;
                let head = head(response.headers());
                // The length is that of the encoded bytes.
                let size = head.size.filter(|_| !encoded);
                Ok(Some(Head { size, ..head }))
            }
            // Registries that cannot do HEAD exist; that says nothing about the manifest.
            Err(UpstreamError::Status(405 | 501)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn get_manifest(
        &self,
        name: &Name,
        reference: &Reference,
        accept: &str,
        deadline: Instant,
    ) -> Result<Document, UpstreamError> {
        let _permit = permit(&self.small, deadline).await?;
        let request = self.request(Method::GET, name, "manifests", reference, Some(accept))?;
        match self.document(&request, deadline).await {
            Err(error @ UpstreamError::Interrupted(_)) if Instant::now() < deadline => {
                tracing::debug!(%error, "asking for the manifest again");
                self.document(&request, deadline).await
            }
            answer => answer,
        }
    }

    async fn document(
        &self,
        request: &RegistryRequest<'_>,
        deadline: Instant,
    ) -> Result<Document, UpstreamError> {
        let mut response = request.send(&self.http, &self.auth, deadline).await?;
        only(&response, StatusCode::OK)?;
        let encoded = is_gzip(response.headers())?;
        let Head { digest, size, content_type } = head(response.headers());
        let body = self.body(&mut response, size, "manifest", 0, MANIFEST_MAX).await?;
        let body = if encoded { encoding::document(body, MANIFEST_MAX)? } else { body };
        Ok(Document { body, content_type, digest })
    }

    /// Reads the whole of a body that is no blob: `size` is what its head announced, `kind` what it is. With the `before`
    /// bytes of earlier bodies it may have `most`.
    async fn body(
        &self,
        response: &mut Response,
        size: Option<u64>,
        kind: &str,
        before: usize,
        most: usize,
    ) -> Result<Bytes, UpstreamError> {
        let too_large = || UpstreamError::Invalid(format!("the {kind} is larger than {most} bytes"));
        let room = most.saturating_sub(before);
        if size.is_some_and(|size| size > room as u64) {
            return Err(too_large());
        }
        let mut body = BytesMut::new();
        let idle = self.http.timeouts.idle;
        // The bound on the whole keeps a document that trickles in from holding its place for ever.
        let whole = timeout(idle, async {
            while let Some(chunk) = response.chunk().await.map_err(interrupted)? {
                self.http.metrics.fetched(self.http.upstream.as_str(), kind, chunk.len() as u64);
                if body.len() + chunk.len() > room {
                    return Err(too_large());
                }
                body.extend_from_slice(&chunk);
            }
            Ok(())
        });
        whole.await.map_err(|_| stalled(idle))??;
        if size.is_some_and(|size| size != body.len() as u64) {
            return Err(UpstreamError::Interrupted(format!("the {kind} ended early")));
        }
        Ok(body.freeze())
    }

    pub(crate) async fn head_blob(
        &self,
        name: &Name,
        digest: &Digest,
        deadline: Instant,
    ) -> Result<Option<u64>, UpstreamError> {
        let _permit = permit(&self.small, deadline).await?;
        let request = self.request(Method::HEAD, name, "blobs", digest, None)?;
        let response = request.send(&self.http, &self.auth, deadline).await?;
        let encoded = is_gzip(response.headers())?;
        Ok(length(response.headers()).filter(|_| !encoded))
    }

    /// The bytes as they come, and what the head says of them.
    pub(crate) async fn get_blob(
        &self,
        name: &Name,
        digest: &Digest,
        from: u64,
        to: Option<u64>,
        deadline: Instant,
    ) -> Result<OpenedBlob, UpstreamError> {
        let permit = permit(&self.blobs, deadline).await?;
        let mut request = self.request(Method::GET, name, "blobs", digest, None)?;
        request.range = match to {
            Some(to) => Some(format!("bytes={from}-{to}")),
            None if from > 0 => Some(format!("bytes={from}-")),
            None => None,
        };
        let response = request.send(&self.http, &self.auth, deadline).await?;
        let gzip = is_gzip(response.headers())?;
        let length = length(response.headers());
        let (offset, total, expected) =
            if request.range.is_some() && response.status() == StatusCode::PARTIAL_CONTENT {
                let value = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
                let part =
                    value.and_then(Part::parse).filter(|part| part.answers(from, to)).ok_or_else(|| {
                        UpstreamError::Invalid("its Content-Range is not the range asked for".to_owned())
                    })?;
                if length.is_some_and(|length| length != part.length()) {
                    return Err(UpstreamError::Invalid(
                        "its Content-Length and Content-Range disagree".to_owned(),
                    ));
                }
                (from, part.total, Some(part.length()))
            } else {
                only(&response, StatusCode::OK)?;
                (0, length, length)
            };
        let body = Body { response, left: expected, http: Arc::clone(&self.http), _permit: permit };
        Ok(OpenedBlob { offset, total, gzip, body })
    }

    fn request<'c>(
        &self,
        method: Method,
        name: &'c Name,
        kind: &str,
        reference: &impl fmt::Display,
        accept: Option<&'c str>,
    ) -> Result<RegistryRequest<'c>, UpstreamError> {
        let url = Url::parse(&format!("{}/v2/{name}/{kind}/{reference}", self.base))
            .map_err(|error| UpstreamError::Local(format!("no URL can be made for {name}: {error}")))?;
        Ok(RegistryRequest { method, url, name, accept, range: None, read_too: &[] })
    }
}

async fn permit(share: &Arc<Semaphore>, deadline: Instant) -> Result<OwnedSemaphorePermit, UpstreamError> {
    let permit = timeout_at(deadline, Arc::clone(share).acquire_owned()).await;
    permit.map_err(|_| UpstreamError::Busy)?.map_err(|_| UpstreamError::Busy)
}

/// How many small requests and how many blobs may be under way at once.
fn shares(max_connections: usize) -> (usize, usize) {
    let max = max_connections.clamp(1, Semaphore::MAX_PERMITS);
    let small = (max / 4).clamp(1, 16);
    (small, (max - small).max(1))
}

fn head(headers: &HeaderMap) -> Head {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    Head {
        digest: headers
            .get(DIGEST)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.trim().parse().ok()),
        size: length(headers),
        content_type: text(CONTENT_TYPE).map(str::to_owned),
    }
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// Of the statuses of success only one fits what was asked.
fn only(response: &Response, status: StatusCode) -> Result<(), UpstreamError> {
    let got = response.status();
    if got == status {
        Ok(())
    } else {
        Err(UpstreamError::Invalid(format!(
            "it has status {} where {} belongs",
            got.as_u16(),
            status.as_u16()
        )))
    }
}

fn interrupted(error: reqwest::Error) -> UpstreamError {
    UpstreamError::Interrupted(causes(&error.without_url()))
}

fn stalled(idle: Duration) -> UpstreamError {
    UpstreamError::Interrupted(format!("nothing came for {}", humantime::format_duration(idle)))
}

/// A `Content-Range` of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    first: u64,
    last: u64,
    total: Option<u64>,
}

impl Part {
    fn parse(value: &str) -> Option<Self> {
        let number = |text: &str| -> Option<u64> {
            if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
        };
        let (unit, rest) = value.trim().split_once(' ')?;
        let (range, total) = rest.trim().split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let total = if total == "*" { None } else { Some(number(total)?) };
        let part = Self { first: number(first)?, last: number(last)?, total };
        let ordered = part.first <= part.last && part.last < u64::MAX;
        let inside = part.total.is_none_or(|total| part.last < total);
        (unit.eq_ignore_ascii_case("bytes") && ordered && inside).then_some(part)
    }

    /// Whether this is what was asked for, or the beginning of it.
    fn answers(self, from: u64, to: Option<u64>) -> bool {
        self.first == from && to.is_none_or(|to| self.last <= to)
    }

    fn length(self) -> u64 {
        self.last - self.first + 1
    }
}

/// A blob whose head has come.
pub(crate) struct OpenedBlob {
    /// The first byte's offset.
    pub(crate) offset: u64,
    /// The length of all of it, if known.
    pub(crate) total: Option<u64>,
    /// Whether it is labelled as gzip.
    pub(crate) gzip: bool,
    pub(crate) body: Body,
}

/// The bytes of a blob on their way. No `Debug`: the answer knows the signed URL it came from.
pub(crate) struct Body {
    response: Response,
    /// What is still to come, if that is known.
    left: Option<u64>,
    http: Arc<HttpClient>,
    _permit: OwnedSemaphorePermit,
}

impl Body {
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        let idle = self.http.timeouts.idle;
        loop {
            let chunk = timeout(idle, self.response.chunk()).await.map_err(|_| stalled(idle))?;
            let Some(chunk) = chunk.map_err(interrupted)? else { break };
            if chunk.is_empty() {
                continue;
            }
            let size = chunk.len() as u64;
            self.http.metrics.fetched(self.http.upstream.as_str(), "blob", size);
            if let Some(left) = &mut self.left {
                *left = left.checked_sub(size).ok_or_else(|| {
                    UpstreamError::Invalid("the blob is longer than it was announced".to_owned())
                })?;
            }
            return Ok(Some(chunk));
        }
        match self.left {
            None | Some(0) => Ok(None),
            Some(left) => Err(UpstreamError::Interrupted(format!("{left} bytes of the blob are missing"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        let part = Part::parse("bytes 5-9/20").expect("a range");
        assert_eq!(part, Part { first: 5, last: 9, total: Some(20) });
        assert_eq!(part.length(), 5);
        assert!(part.answers(5, None) && part.answers(5, Some(9)) && part.answers(5, Some(12)));
        assert!(!part.answers(4, None) && !part.answers(5, Some(8)));
        assert_eq!(Part::parse("bytes 0-0/*").expect("a range").total, None);
        for bad in [
            "",
            "bytes */20",
            "bytes 9-5/20",
            "bytes 5-20/20",
            "items 5-9/20",
            "bytes +5-9/20",
            "bytes 5-9",
            "bytes -9/20",
            "bytes 0-18446744073709551615/*",
        ] {
            assert_eq!(Part::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn blobs_leave_room_for_the_rest() {
        assert_eq!(shares(64), (16, 48));
        assert_eq!(shares(8), (2, 6));
        assert_eq!(shares(1), (1, 1));
        assert_eq!(shares(0), (1, 1));
        let (small, blobs) = shares(usize::MAX);
        assert!(small + blobs <= Semaphore::MAX_PERMITS);
    }
}
