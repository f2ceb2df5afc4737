//! Registry API (`/v2`): parses a request, asks the cache, and builds the response.

mod blobs;
mod lists;
mod manifests;
mod request;
mod unverifiable;

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use http::header::{TRANSFER_ENCODING, VIA};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response};
use tracing::Instrument as _;

use crate::cache::{Cache, RequestOrigin, ServerId};
use crate::oci::name::NameError;
use crate::oci::{Digest, Repository, UnverifiableDigest};
use crate::ops::protocol::PROBE_HEADER;
use crate::telemetry::{Metrics, Outcome, RequestKind, trace};

use self::request::{RegistryAnswer, RequestHead, json};
use super::body::Body;
use super::host;
use super::refusal::Refusal;
use super::request_log::{self, RequestLog};
use super::response;
use super::route::{Resource, Route};

/// Registry API on the client port. Clones share their state.
#[derive(Clone, Debug)]
pub struct RegistryApi {
    cache: Cache,
    metrics: Arc<Metrics>,
    options: Arc<RwLock<RegistryOptions>>,
}

/// Options of the registry API.
#[derive(Clone, Copy, Debug)]
pub struct RegistryOptions {
    /// Gateway mode: clients have no other registry to fall back to, so denials and rate limits are passed on.
    pub gateway: bool,
    /// Log one line per request.
    pub log_requests: bool,
}

impl RegistryApi {
    /// Creates the API over a cache.
    pub fn new(cache: Cache, metrics: Arc<Metrics>, options: RegistryOptions) -> Self {
        Self { cache, metrics, options: Arc::new(RwLock::new(options)) }
    }

    /// Changes the options. Running requests keep the old ones.
    pub fn set_options(&self, options: RegistryOptions) {
        *self.options.write().unwrap_or_else(PoisonError::into_inner) = options;
    }

    /// Answers a request. `client` is `None` on a unix socket. The body of the request is never read.
    pub async fn answer<B>(&self, request: Request<B>, client: Option<SocketAddr>) -> Response<Body> {
        let options = *self.options.read().unwrap_or_else(PoisonError::into_inner);
        let (parts, _) = request.into_parts();
        let route = Route::parse(parts.uri.path());
        let kind = route.as_ref().map_or(RequestKind::Other, |route| kind_of(&route.resource));
        let request = RequestHead::new(&parts);
        let origin = RequestOrigin::of(&parts.headers, client);
        let via = (!origin.hops.is_empty()).then(|| self.cache.identity());
        let mut log = self.begin_log(&parts, kind, client, options.log_requests);
        let result = match (check(&parts), route) {
            (Err(refusal), _) => Err(refusal),
            (Ok(()), Some(route)) => {
                let span = log.span.clone();
                let content = self.content(&request, route, &mut log).instrument(span);
                // Boxed: the scope would move the whole future once more.
                Box::pin(origin.scope(content)).await
            }
            (Ok(()), None) => Err(Refusal::NoSuchPath),
        };
        match result {
            Ok(RegistryAnswer::Blob(mut response, outcome, blob)) => {
                finish_head(&request, &mut log, &mut response, outcome, via);
                *response.body_mut() = Body::blob(blob.bytes, blob.length, log);
                response
            }
            Ok(RegistryAnswer::Whole(mut response, outcome)) => {
                finish_head(&request, &mut log, &mut response, outcome, via);
                finish_whole(log, response, request.is_head)
            }
            Err(refusal) => {
                let (mut response, reason) = refusal.response(kind, options.gateway);
                finish_head(&request, &mut log, &mut response, refusal.outcome(), via);
                log.reason = Some(reason);
                finish_whole(log, response, request.is_head)
            }
        }
    }

    /// Starts the log entry and the span of a request.
    fn begin_log(
        &self,
        parts: &Parts,
        kind: RequestKind,
        client: Option<SocketAddr>,
        log_requests: bool,
    ) -> RequestLog {
        let id = request_log::request_id(&parts.headers);
        let id_text = id.to_str().unwrap_or_default();
        let span = trace::request(kind, parts.method.as_str(), parts.uri.path(), id_text, &parts.headers);
        RequestLog {
            counted: !parts.headers.contains_key(PROBE_HEADER),
            metrics: Arc::clone(&self.metrics),
            logged: log_requests,
            started: Instant::now(),
            method: parts.method.clone(),
            path: parts.uri.path().to_owned(),
            client,
            id,
            repository: None,
            reference: None,
            upstream: None,
            kind,
            outcome: Outcome::None,
            status: 0,
            reason: None,
            ended: false,
            span,
        }
    }

    /// Returns the content that a request asks for.
    async fn content(
        &self,
        request: &RequestHead<'_>,
        route: Route,
        log: &mut RequestLog,
    ) -> Result<RegistryAnswer, Refusal> {
        if log.logged {
            log.reference = route.resource.reference().map(str::to_owned);
        }
        let prefix = route.prefix.as_deref();
        let repository = |log: &mut RequestLog| self.repository(request, prefix, &route.name, log);
        let cache = &self.cache;
        // Boxed except for manifests: the future of a request is as large as its largest branch, and it is moved.
        match &route.resource {
            Resource::Base => {
                if let Some(prefix) = prefix {
                    cache.upstream_named(prefix)?;
                }
                Ok(RegistryAnswer::Whole(json(b"{}".to_vec()), Outcome::None))
            }
            Resource::Catalog => Box::pin(lists::catalog(cache, request, prefix)).await,
            Resource::Manifest(reference) => {
                let repository = repository(log)?;
                manifests::manifest(cache, request, &repository, &reference.parse()?).await
            }
            Resource::Blob(digest) => {
                let repository = repository(log)?;
                let parsed = parse_digest(digest);
                if parsed.is_err()
                    && let Ok(digest) = digest.parse::<UnverifiableDigest>()
                {
                    return Box::pin(unverifiable::blob(cache, request, &repository, &digest)).await;
                }
                let digest = parsed?;
                if request.is_head {
                    Box::pin(blobs::blob_head(cache, request, &repository, &digest)).await
                } else {
                    Box::pin(blobs::blob(cache, request, &repository, &digest)).await
                }
            }
            Resource::Tags => Box::pin(lists::tags(cache, request, &repository(log)?)).await,
            Resource::Referrers(digest) => {
                let (repository, subject) = (repository(log)?, parse_digest(digest)?);
                Box::pin(lists::referrers(cache, request, &repository, &subject)).await
            }
        }
    }

    /// Returns the repository that a request names, and notes it in the log entry.
    fn repository(
        &self,
        request: &RequestHead<'_>,
        prefix: Option<&str>,
        name: &str,
        log: &mut RequestLog,
    ) -> Result<Repository, Refusal> {
        let repository = self.cache.route(request.query.ns.as_deref(), prefix, request.host, name)?;
        log.upstream = Some(repository.upstream.as_str().into());
        log.repository = Some(repository.name.clone());
        Ok(repository)
    }
}

/// Refuses requests that are not reads, and requests that two programs may read differently.
fn check(head: &Parts) -> Result<(), Refusal> {
    host::check(head).map_err(Refusal::Host)?;
    if head.method != Method::GET && head.method != Method::HEAD {
        return Err(Refusal::Write);
    }
    if head.headers.contains_key(TRANSFER_ENCODING) {
        return Err(Refusal::Framing);
    }
    Ok(())
}

/// Adds the headers that every response has, and records the head of the response.
fn finish_head(
    request: &RequestHead<'_>,
    log: &mut RequestLog,
    response: &mut Response<Body>,
    outcome: Outcome,
    via: Option<ServerId>,
) {
    let headers = response.headers_mut();
    headers.insert(response::API_VERSION, HeaderValue::from_static("registry/2.0"));
    headers.insert(request_log::REQUEST_ID, log.id.clone());
    // For other servers: a client that is none needs no identity.
    if let Some(server) = via {
        response::insert_text(headers, VIA, &server.to_string());
    }
    if let (Some(ns), Some(_)) = (&request.query.ns, &log.upstream) {
        response::insert_text(headers, response::NAMESPACE, ns);
    }
    log.outcome = outcome;
    log.status = response.status().as_u16();
    log.record_head();
}

/// Records the end of a response whose body is in memory. A response to `HEAD` has no body.
fn finish_whole(mut log: RequestLog, mut response: Response<Body>, is_head: bool) -> Response<Body> {
    if is_head {
        *response.body_mut() = Body::Empty;
    }
    let bytes = match response.body() {
        Body::Whole(bytes) => bytes.len() as u64,
        _ => 0,
    };
    log.record_end(bytes, true);
    response
}

/// Returns the kind of a request, for metrics and statuses.
fn kind_of(resource: &Resource) -> RequestKind {
    match resource {
        Resource::Base => RequestKind::Base,
        Resource::Catalog => RequestKind::Catalog,
        Resource::Manifest(reference) if reference.contains(':') => RequestKind::ManifestDigest,
        Resource::Manifest(_) => RequestKind::ManifestTag,
        Resource::Blob(_) => RequestKind::Blob,
        Resource::Tags => RequestKind::Tags,
        Resource::Referrers(_) => RequestKind::Referrers,
    }
}

fn parse_digest(text: &str) -> Result<Digest, Refusal> {
    text.parse().map_err(|error| Refusal::Name(NameError::Digest(error)))
}
