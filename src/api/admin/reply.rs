//! Responses of the admin API: reports and errors as JSON, and the status code for each error.

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};
use serde::Serialize;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};
use utoipa::{ToResponse, ToSchema};

use crate::api::body::Body;
use crate::cache::CacheError;
use crate::ops::protocol::{Failure, OpsError};

/// Media type of plain text.
pub(super) const TEXT: &str = "text/plain; charset=utf-8";
/// Media type of reports and errors.
pub(super) const JSON: &str = "application/json";

/// Body of every error response.
#[derive(Serialize, ToSchema)]
#[schema(as = Refusal)]
pub(super) struct ErrorBody {
    /// Code for programs and message for people.
    error: Failure,
}

/// Error response in the `OpenAPI` document.
pub(super) struct Refused;

impl<'r> ToResponse<'r> for Refused {
    fn response() -> (&'r str, RefOr<utoipa::openapi::Response>) {
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Refusal"))).build();
        let response =
            ResponseBuilder::new().description("the request failed").content(JSON, content).build();
        ("Refused", response.into())
    }
}

/// Returns a report as JSON, or the error response.
pub(super) fn report(result: Result<impl Serialize, OpsError>) -> Response<Body> {
    match result {
        Ok(report) => json(StatusCode::OK, &report),
        Err(error) => failed(&error),
    }
}

/// Returns the error response for an operation that failed.
pub(super) fn failed(error: &OpsError) -> Response<Body> {
    json(status_of(error), &ErrorBody { error: error.failure() })
}

/// Returns the status code for an error.
pub(super) fn status_of(error: &OpsError) -> StatusCode {
    match error {
        OpsError::Invalid(_) => StatusCode::BAD_REQUEST,
        OpsError::NotCached(_)
        | OpsError::Missing { .. }
        | OpsError::NoPlatform { .. }
        | OpsError::NoMediaType { .. } => StatusCode::NOT_FOUND,
        OpsError::Busy(_) => StatusCode::CONFLICT,
        OpsError::Content(_) => StatusCode::UNPROCESSABLE_ENTITY,
        OpsError::Cache(CacheError::Store(_)) => StatusCode::INTERNAL_SERVER_ERROR,
        OpsError::Cache(_) => StatusCode::BAD_GATEWAY,
    }
}

/// Returns an error response with a code and a message of the API's own.
pub(super) fn refused(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    json(status, &ErrorBody { error: Failure { code: code.to_owned(), message: message.to_owned() } })
}

/// Returns the response for a path without an endpoint.
pub(super) fn no_such_path() -> Response<Body> {
    refused(StatusCode::NOT_FOUND, "path", "no such path; /api/v1/openapi.json lists all paths")
}

/// Returns the response for a method that the path does not support; `allowed` is the value of `Allow`.
pub(super) fn method_not_allowed(allowed: &str) -> Response<Body> {
    let message = format!("method not allowed; use {allowed}");
    let mut response = refused(StatusCode::METHOD_NOT_ALLOWED, "method", &message);
    if let Ok(allowed) = HeaderValue::from_str(allowed) {
        response.headers_mut().insert(ALLOW, allowed);
    }
    response
}

/// Returns a document as JSON.
pub(super) fn json(status: StatusCode, document: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(document) {
        Ok(body) => plain(status, JSON, body),
        // Reports are plain data: an error here is a programming mistake.
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, TEXT, error.to_string()),
    }
}

/// Returns a response with a body that is complete in memory and must not be cached.
pub(super) fn plain(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let body = body.into();
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    *response.body_mut() = Body::Whole(body);
    response
}
