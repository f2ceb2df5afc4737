//! Endpoints that read the state of the cache. Each one answers at once, changes nothing and contacts no upstream.

use http::{Response, StatusCode};

use crate::api::body::Body;
use crate::ops::protocol::{CheckQuery, InspectQuery, Query, ROOT};
use crate::ops::{check, inspect, list, status};

use super::reply::{self, Refused};
use super::request::ApiRequest;

/// Lists the cached images of one repository or of all repositories
#[utoipa::path(
    get,
    path = "/images",
    params(("repository" = Option<String>, Query, description = "Repository to list", nullable = false)),
    responses(
        (status = 200, description = "Cached images", body = list::ListReport),
        (status = 400, response = Refused),
        (status = 404, response = Refused),
    )
)]
pub(super) async fn list(request: ApiRequest) -> Response<Body> {
    answer(request).await
}

/// Lists the cached tags of a repository
#[utoipa::path(
    get,
    path = "/tags",
    params(("repository" = String, Query, description = "Repository to list")),
    responses(
        (status = 200, description = "Cached images that have a tag", body = list::ListReport),
        (status = 400, response = Refused),
        (status = 404, response = Refused),
    )
)]
pub(super) async fn tags(request: ApiRequest) -> Response<Body> {
    answer(request).await
}

/// Shows a cached index, manifest or config, and which of its parts are missing
#[utoipa::path(
    get,
    path = "/inspect",
    params(InspectQuery),
    responses(
        (status = 200, description = "Document and its parts", body = inspect::InspectReport),
        (status = 400, response = Refused),
        (status = 404, response = Refused),
    )
)]
pub(super) async fn inspect(request: ApiRequest) -> Response<Body> {
    answer(request).await
}

/// Checks if images can be pulled while the upstream is unavailable
#[utoipa::path(
    get,
    path = "/check",
    params(CheckQuery),
    responses(
        (status = 200, description = "Result for each reference", body = check::CheckReport),
        (status = 400, response = Refused),
        (status = 404, response = Refused),
    )
)]
pub(super) async fn check(request: ApiRequest) -> Response<Body> {
    answer(request).await
}

/// Shows the state of the server: hits, traffic, upstreams, fills, disk and jobs
#[utoipa::path(
    get,
    path = "/status",
    responses(
        (status = 200, description = "State of the server", body = status::StatusReport),
        (status = 400, response = Refused),
    )
)]
pub(super) async fn status(request: ApiRequest) -> Response<Body> {
    answer(request).await
}

/// Parses the query in the same module that writes it for the command line, and answers it.
async fn answer(request: ApiRequest) -> Response<Body> {
    let path = request.head.uri.path().strip_prefix(ROOT).unwrap_or_default();
    match Query::read(path, request.query()) {
        Some(Ok(query)) => reply::report(query.answer(&request.operations).await),
        Some(Err(error)) => reply::failed(&error),
        None => reply::refused(
            StatusCode::INTERNAL_SERVER_ERROR,
            "path",
            "this path has an endpoint but no query; report this as a defect of larder",
        ),
    }
}
