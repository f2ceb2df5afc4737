//! The `/v2` API: takes a request apart, asks the cache, and puts the answer together.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, IF_NONE_MATCH, TRANSFER_ENCODING};
use tracing::Instrument as _;

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};

use crate::cache::{BlobReader, Cache};
use crate::oci::name::NameError;
use crate::oci::{Accept, Digest, Reference, Repository};
use crate::telemetry::{Metrics, Outcome, RequestKind, trace};

use super::body::Body;
use super::request_log::{self, RequestLog};
use super::response::{self, Refusal};
use super::route::{RegistryQuery, Resource, Route};

/// The API on the port that clients pull from; clones share it.
#[derive(Clone, Debug)]
pub struct RegistryApi {
    pub(super) cache: Cache,
    metrics: Arc<Metrics>,
    options: Arc<RwLock<RegistryOptions>>,
}

/// How the API behaves beyond its protocol.
#[derive(Clone, Copy, Debug)]
pub struct RegistryOptions {
    /// Clients have no origin to fall back on: refusals and rate limits are passed on as such.
    pub gateway: bool,
    /// Each request gets a line in the log.
    pub log_requests: bool,
}

/// What the head of a request says, beside its headers.
pub(super) struct RequestHead<'a> {
    pub(super) headers: &'a HeaderMap,
    pub(super) path: &'a str,
    /// The host that the client means us to be.
    host: Option<&'a str>,
    pub(super) query: RegistryQuery,
    /// Whether only the head of the answer is wanted.
    head: bool,
}

/// An answer whose body is not yet put together.
pub(super) enum RegistryAnswer {
    Whole(Response<Body>, Outcome),
    Blob(Response<Body>, Outcome, BlobReader, Option<u64>),
}

impl RegistryApi {
    /// The API over `cache`.
    pub fn new(cache: Cache, metrics: Arc<Metrics>, options: RegistryOptions) -> Self {
        Self { cache, metrics, options: Arc::new(RwLock::new(options)) }
    }

    /// Behaves in another manner from now on.
    pub fn follow(&self, options: RegistryOptions) {
        *self.options.write().unwrap_or_else(PoisonError::into_inner) = options;
    }

    /// Answers a request. The request's body is never read: nothing here takes one.
    /// `client` is where it is, unless it came by a socket in the file system.
    pub async fn answer<B>(&self, request: Request<B>, client: Option<SocketAddr>) -> Response<Body> {
        let begin = Instant::now();
        let options = *self.options.read().unwrap_or_else(PoisonError::into_inner);
        let (head, _) = request.into_parts();
        let route = Route::parse(head.uri.path());
        let kind = route.as_ref().map_or(RequestKind::Other, |route| kind_of(&route.resource));
        let request = RequestHead {
            headers: &head.headers,
            path: head.uri.path(),
            // HTTP/2 has it in the target, as has HTTP/1.1 in the absolute form, where it wins (RFC 9112, section 3.2.2).
            host: match head.uri.authority() {
                Some(authority) => Some(authority.as_str()),
                None => head.headers.get(HOST).and_then(|host| host.to_str().ok()),
            },
            query: RegistryQuery::parse(head.uri.query()),
            head: head.method == Method::HEAD,
        };
        let id = request_log::request_id(request.headers);
        let name = id.to_str().unwrap_or_default();
        let span = trace::request(kind, head.method.as_str(), request.path, name, request.headers);
        let mut record = RequestLog {
            metrics: Arc::clone(&self.metrics),
            logged: options.log_requests,
            begin,
            method: head.method.clone(),
            path: request.path.to_owned(),
            client,
            id,
            repository: None,
            reference: None,
            upstream: None,
            kind,
            outcome: Outcome::None,
            status: 0,
            reason: None,
            over: false,
            span: span.clone(),
        };
        let result = match route {
            _ if head.method != Method::GET && !request.head => Err(Refusal::Write),
            _ if request.headers.contains_key(TRANSFER_ENCODING) => Err(Refusal::Framing),
            Some(route) => self.content(&request, route, &mut record).instrument(span).await,
            None => Err(Refusal::NoSuchPath),
        };
        let finish = |record: &mut RequestLog, answer: &mut Response<Body>, outcome| {
            let headers = answer.headers_mut();
            headers.insert(response::API_VERSION, HeaderValue::from_static("registry/2.0"));
            headers.insert(request_log::REQUEST_ID, record.id.clone());
            if let (Some(ns), Some(_)) = (&request.query.ns, &record.upstream) {
                response::insert_text(headers, response::NAMESPACE, ns);
            }
            record.outcome = outcome;
            record.status = answer.status().as_u16();
            record.answered();
        };
        match result {
            Ok(RegistryAnswer::Blob(mut answer, outcome, reader, length)) => {
                finish(&mut record, &mut answer, outcome);
                *answer.body_mut() = Body::blob(reader, length, record);
                answer
            }
            Ok(RegistryAnswer::Whole(mut answer, outcome)) => {
                finish(&mut record, &mut answer, outcome);
                ended(&mut record, &mut answer, request.head)
            }
            Err(refusal) => {
                let (mut answer, message) = refusal.answer(kind, options.gateway);
                finish(&mut record, &mut answer, Outcome::None);
                record.reason = Some(message);
                ended(&mut record, &mut answer, request.head)
            }
        }
    }

    async fn content(
        &self,
        request: &RequestHead<'_>,
        route: Route,
        record: &mut RequestLog,
    ) -> Result<RegistryAnswer, Refusal> {
        if record.logged {
            record.reference = route.resource.reference().map(str::to_owned);
        }
        // Boxed but for manifests: every request moves its future, at the size of its longest way.
        match route.resource {
            Resource::Base => {
                if let Some(prefix) = &route.prefix {
                    self.cache.upstream_named(prefix)?;
                }
                Ok(RegistryAnswer::Whole(json(b"{}".to_vec()), Outcome::None))
            }
            Resource::Catalog => Box::pin(self.catalog(request, route.prefix.as_deref())).await,
            Resource::Manifest(reference) => {
                let repository = self.repository(request, route.prefix.as_deref(), &route.name, record)?;
                self.manifest(request, &repository, &reference.parse()?).await
            }
            Resource::Blob(digest) => {
                let repository = self.repository(request, route.prefix.as_deref(), &route.name, record)?;
                let digest = parse_digest(&digest)?;
                if request.head {
                    Box::pin(self.blob_head(request, &repository, &digest)).await
                } else {
                    Box::pin(self.blob(request, &repository, &digest)).await
                }
            }
            Resource::Tags => {
                let repository = self.repository(request, route.prefix.as_deref(), &route.name, record)?;
                Box::pin(self.tags(request, &repository)).await
            }
            Resource::Referrers(digest) => {
                let repository = self.repository(request, route.prefix.as_deref(), &route.name, record)?;
                Box::pin(self.referrers(request, &repository, &parse_digest(&digest)?)).await
            }
        }
    }

    fn repository(
        &self,
        request: &RequestHead<'_>,
        prefix: Option<&str>,
        name: &str,
        record: &mut RequestLog,
    ) -> Result<Repository, Refusal> {
        let repository = self.cache.route(request.query.ns.as_deref(), prefix, request.host, name)?;
        record.upstream = Some(repository.upstream.as_str().into());
        record.repository = Some(repository.name.clone());
        Ok(repository)
    }

    async fn manifest(
        &self,
        request: &RequestHead<'_>,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<RegistryAnswer, Refusal> {
        let found = self.cache.manifest(repository, reference, Accept::from_headers(request.headers)).await?;
        let mut answer = Response::new(Body::Empty);
        response::insert_manifest(answer.headers_mut(), &found);
        if response::is_match(request.headers, IF_NONE_MATCH, &found.manifest.digest) == Some(true) {
            *answer.status_mut() = StatusCode::NOT_MODIFIED;
            return Ok(RegistryAnswer::Whole(answer, found.outcome));
        }
        let body = found.manifest.body.clone();
        answer.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        *answer.body_mut() = Body::Whole(body);
        Ok(RegistryAnswer::Whole(answer, found.outcome))
    }
}

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

/// Notes the end of an answer whose body, if it has one, is in memory.
fn ended(record: &mut RequestLog, answer: &mut Response<Body>, head: bool) -> Response<Body> {
    if head {
        *answer.body_mut() = Body::Empty;
    }
    let bytes = match answer.body() {
        Body::Whole(bytes) => bytes.len() as u64,
        _ => 0,
    };
    record.ended(bytes, true);
    std::mem::replace(answer, Response::new(Body::Empty))
}

fn parse_digest(text: &str) -> Result<Digest, Refusal> {
    text.parse().map_err(|error| Refusal::Name(NameError::Digest(error)))
}

/// A document that is written here.
pub(super) fn json(body: Vec<u8>) -> Response<Body> {
    let mut answer = Response::new(Body::Empty);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    *answer.body_mut() = Body::Whole(body.into());
    answer
}
