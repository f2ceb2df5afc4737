//! Endpoint for blobs whose digest cannot be verified.

use http::header::{ACCEPT_RANGES, CONTENT_ENCODING, CONTENT_LENGTH};
use http::{HeaderValue, Response};

use crate::api::body::{BlobBytes, Body};
use crate::api::refusal::Refusal;
use crate::api::response;
use crate::cache::Cache;
use crate::oci::{Repository, UnverifiableDigest};
use crate::telemetry::Outcome;

use super::request::{BlobContent, RegistryAnswer, RequestHead};

/// Answers a request for a blob whose digest cannot be verified. The whole blob is sent, unless the request is refused.
pub(super) async fn blob(
    cache: &Cache,
    request: &RequestHead<'_>,
    repository: &Repository,
    digest: &UnverifiableDigest,
) -> Result<RegistryAnswer, Refusal> {
    let blob = cache.unverifiable_blob(repository, digest).await?;
    let blob = blob
        .ok_or_else(|| Refusal::Unverifiable(digest.algorithm().to_owned(), repository.upstream.clone()))?;
    let outcome = Outcome::Bypass;
    let mut answer = Response::new(Body::Empty);
    let headers = answer.headers_mut();
    response::insert_unverified(headers, digest);
    response::insert_blob_type(headers);
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("none"));
    response::insert_outcome(headers, outcome);
    if blob.is_gzip {
        // Only the digest could tell whether the label is right.
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    if let Some(size) = blob.size {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(size));
    }
    if request.is_head {
        return Ok(RegistryAnswer::Whole(answer, outcome));
    }
    let length = blob.size;
    let bytes = BlobBytes::Unverifiable(blob.into_chunks());
    Ok(RegistryAnswer::Blob(answer, outcome, Box::new(BlobContent { bytes, length })))
}
