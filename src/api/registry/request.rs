//! Head of a request and answer to it, as the endpoints of the registry API share them.

use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response};

use crate::api::body::{BlobBytes, Body};
use crate::api::host;
use crate::api::route::RegistryQuery;
use crate::telemetry::Outcome;

/// Head of a request, without the resource that its path names.
pub(super) struct RequestHead<'a> {
    pub(super) headers: &'a HeaderMap,
    pub(super) path: &'a str,
    /// Host name by which the client addresses this server.
    pub(super) host: Option<&'a str>,
    pub(super) query: RegistryQuery,
    /// True if the method is `HEAD`.
    pub(super) is_head: bool,
}

impl<'a> RequestHead<'a> {
    /// Reads the head of a request.
    pub(super) fn new(parts: &'a Parts) -> Self {
        Self {
            headers: &parts.headers,
            path: parts.uri.path(),
            host: host::of(parts),
            query: RegistryQuery::parse(parts.uri.query()),
            is_head: parts.method == Method::HEAD,
        }
    }
}

/// Answer of an endpoint.
pub(super) enum RegistryAnswer {
    /// Response whose body, if any, is in memory.
    Whole(Response<Body>, Outcome),
    /// Head of a response whose body is read from the cache.
    Blob(Response<Body>, Outcome, Box<BlobContent>),
}

/// Content of a blob that is sent.
pub(super) struct BlobContent {
    pub(super) bytes: BlobBytes,
    /// Length of the body, where known.
    pub(super) length: Option<u64>,
}

/// Returns a JSON document.
pub(super) fn json(body: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    *response.body_mut() = Body::Whole(body.into());
    response
}
