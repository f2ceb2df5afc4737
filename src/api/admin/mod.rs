//! The operator's port: is it alive, is it ready, what does it count; below `/api/v1` everything that the command line
//! does, and elsewhere pages for people.

mod authorize;
mod jobs;
mod request_body;
mod transfer;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use serde::Serialize;

use crate::cache::CacheError;
use crate::ops::query::{Query, ROOT};
use crate::ops::{Failure, Operations, OpsError, export, import};
use crate::telemetry::Metrics;

use super::body::Body;
use super::ui;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
/// What `/api/v1` understands and answers, for programs, in the form of the `OpenAPI` specification 3.1.
const OPENAPI: &str = include_str!("openapi.json");

/// The operator's API; clones share it.
#[derive(Clone, Debug)]
pub struct AdminApi {
    metrics: Arc<Metrics>,
    ready: Arc<AtomicBool>,
    operations: Operations,
    trusting: bool,
}

impl AdminApi {
    /// `ready` says whether clients should be sent here: false while stopping.
    pub fn new(metrics: Arc<Metrics>, ready: Arc<AtomicBool>, operations: Operations) -> Self {
        Self { metrics, ready, operations, trusting: false }
    }

    /// The same for sockets that only this machine reaches: no token is asked for.
    #[must_use]
    pub fn trusting(self) -> Self {
        Self { trusting: true, ..self }
    }

    /// Answers a request.
    pub async fn answer<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Unpin + Send + 'static,
    {
        let path = request.uri().path();
        if path == ROOT || path.strip_prefix(ROOT).is_some_and(|rest| rest.starts_with('/')) {
            return self.operate(request).await;
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return not_allowed("GET, HEAD");
        }
        match path {
            // Alive means that requests are answered; upstreams and disks play no part in it.
            "/livez" => plain(StatusCode::OK, TEXT, "ok\n"),
            // A larder without a store serves, and nobody would serve better in its place.
            "/readyz" if self.ready.load(Ordering::Relaxed) => {
                let fails = self.metrics.is_store_degraded();
                plain(
                    StatusCode::OK,
                    TEXT,
                    if fails { "ok, but the store fails: see the log\n" } else { "ok\n" },
                )
            }
            "/readyz" => plain(StatusCode::SERVICE_UNAVAILABLE, TEXT, "stopping\n"),
            "/metrics" => {
                plain(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", self.metrics.render())
            }
            _ => self.page(&request.into_parts().0).await,
        }
    }

    /// Answers with a page, to whom the API answers too.
    async fn page(&self, head: &Parts) -> Response<Body> {
        // The looks of the pages are no secret, and the page that asks for a token has them too.
        if let Some(file) = ui::file(head) {
            return file;
        }
        match authorize::authorize(head, self.trusting, &self.operations).await {
            Ok(()) => ui::answer(&self.operations, head, status_of).await,
            Err(denial) => denial.page(),
        }
    }

    /// Answers below `/api/v1`.
    async fn operate<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Unpin + Send + 'static,
    {
        let (head, body) = request.into_parts();
        if let Err(denial) = authorize::authorize(&head, self.trusting, &self.operations).await {
            return denial.answer();
        }
        let path = head.uri.path().strip_prefix(ROOT).unwrap_or_default();
        let reads = head.method == Method::GET || head.method == Method::HEAD;
        if let Some(question) = Query::read(path, head.uri.query().unwrap_or_default()) {
            if !reads {
                return not_allowed("GET, HEAD");
            }
            return match question {
                Ok(question) => answered(question.answer(&self.operations).await),
                Err(error) => failed(&error),
            };
        }
        match path {
            "" | "/" | "/openapi.json" if reads => plain(StatusCode::OK, JSON, OPENAPI),
            "" | "/" | "/openapi.json" => not_allowed("GET, HEAD"),
            "/jobs" => jobs::all(&self.operations, &head, body).await,
            export::ExportRequest::PATH => transfer::out(&self.operations, &head).await,
            import::ImportRequest::PATH => transfer::take(&self.operations, &head, body).await,
            _ => match path.strip_prefix("/jobs/") {
                Some(rest) => jobs::one(&self.operations, &head.method, rest),
                None => no_such_path(),
            },
        }
    }
}

/// Why a request is not even looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Denial {
    /// The token is missing or wrong.
    Token,
    /// No token is configured, so that nobody can have it.
    NoToken,
    /// It was sent for another host: by a page in a browser that was led here.
    Host,
    /// It changes something and is not JSON: a page in a browser could have sent it.
    MediaType,
}

impl Denial {
    fn told(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::Token => (
                StatusCode::UNAUTHORIZED,
                "token",
                "the token of admin.token_file is needed here, as `Authorization: Bearer TOKEN`",
            ),
            Self::NoToken => (
                StatusCode::FORBIDDEN,
                "token",
                "beyond loopback this API needs a token; set admin.token_file, or ask on a loopback address or a unix socket",
            ),
            Self::Host => (
                StatusCode::FORBIDDEN,
                "host",
                "this address is for this machine alone; ask it by its IP address or as localhost",
            ),
            Self::MediaType => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "media-type",
                "send it with `Content-Type: application/json`, or an archive with `application/x-tar`",
            ),
        }
    }

    /// As a page. The browser is told to ask for the token.
    fn page(self) -> Response<Body> {
        let (status, _, message) = self.told();
        if self != Self::Token {
            return ui::failure(status, message);
        }
        let message = "sign in with any name, and the token of admin.token_file as the password";
        let mut answer = ui::failure(status, message);
        let challenge = HeaderValue::from_static("Basic realm=\"larder\", charset=\"UTF-8\"");
        answer.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        answer
    }

    fn answer(self) -> Response<Body> {
        let (status, code, message) = self.told();
        let mut answer = refused(status, code, message);
        if self == Self::Token {
            answer
                .headers_mut()
                .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"larder\""));
        }
        answer
    }
}

fn answered(result: Result<impl Serialize, OpsError>) -> Response<Body> {
    match result {
        Ok(report) => json(StatusCode::OK, &report),
        Err(error) => failed(&error),
    }
}

/// From meanings to statuses.
fn failed(error: &OpsError) -> Response<Body> {
    json(status_of(error), &ErrorBody { error: error.failure() })
}

fn status_of(error: &OpsError) -> StatusCode {
    match error {
        OpsError::Invalid(_) => StatusCode::BAD_REQUEST,
        OpsError::NotHeld(_)
        | OpsError::Missing { .. }
        | OpsError::NoPlatform { .. }
        | OpsError::NoMediaType { .. } => StatusCode::NOT_FOUND,
        OpsError::Busy(_) => StatusCode::CONFLICT,
        OpsError::Content(_) => StatusCode::UNPROCESSABLE_ENTITY,
        OpsError::Cache(CacheError::Store(_)) => StatusCode::INTERNAL_SERVER_ERROR,
        OpsError::Cache(_) => StatusCode::BAD_GATEWAY,
    }
}

/// The document of every denial.
#[derive(Serialize)]
struct ErrorBody {
    error: Failure,
}

fn refused(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    json(status, &ErrorBody { error: Failure { code: code.to_owned(), message: message.to_owned() } })
}

fn no_such_path() -> Response<Body> {
    refused(
        StatusCode::NOT_FOUND,
        "path",
        "there is no such path; /api/v1/openapi.json lists those that there are",
    )
}

fn not_allowed(methods: &'static str) -> Response<Body> {
    let mut answer = refused(StatusCode::METHOD_NOT_ALLOWED, "method", &format!("only {methods}"));
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    answer
}

fn json(status: StatusCode, document: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(document) {
        Ok(body) => plain(status, JSON, body),
        // Reports are plain data; this would be a mistake of ours.
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, TEXT, error.to_string()),
    }
}

fn plain(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let body = body.into();
    let mut answer = Response::new(Body::Empty);
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    answer.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    *answer.body_mut() = Body::Whole(body);
    answer
}
