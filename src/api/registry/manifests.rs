//! Endpoint for manifests and indexes.

use http::header::{CONTENT_LENGTH, IF_NONE_MATCH};
use http::{HeaderValue, Response, StatusCode};

use crate::api::body::Body;
use crate::api::refusal::Refusal;
use crate::api::response;
use crate::cache::Cache;
use crate::oci::{Accept, Reference, Repository};

use super::request::{RegistryAnswer, RequestHead};

/// Answers a request for a manifest.
pub(super) async fn manifest(
    cache: &Cache,
    request: &RequestHead<'_>,
    repository: &Repository,
    reference: &Reference,
) -> Result<RegistryAnswer, Refusal> {
    let found = cache.manifest(repository, reference, Accept::from_headers(request.headers)).await?;
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
