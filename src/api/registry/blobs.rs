//! Endpoint for blobs and byte ranges of blobs.

use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, IF_NONE_MATCH, IF_RANGE, RANGE,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use crate::api::body::Body;
use crate::api::refusal::Refusal;
use crate::api::response;
use crate::cache::Cache;
use crate::oci::{Digest, RangeRequest, Repository};
use crate::telemetry::Outcome;

use super::request::{RegistryAnswer, RequestHead};

/// Answers a `HEAD` request for a blob.
pub(super) async fn blob_head(
    cache: &Cache,
    request: &RequestHead<'_>,
    repository: &Repository,
    digest: &Digest,
) -> Result<RegistryAnswer, Refusal> {
    let blob = cache.blob_size(repository, digest).await?;
    let mut answer = Response::new(Body::Empty);
    if response::is_match(request.headers, IF_NONE_MATCH, digest) == Some(true) {
        insert_blob(answer.headers_mut(), digest, blob.outcome, true);
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(RegistryAnswer::Whole(answer, blob.outcome));
    }
    insert_blob(answer.headers_mut(), digest, blob.outcome, blob.is_verified());
    if let Some(size) = blob.size {
        answer.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(size));
    }
    Ok(RegistryAnswer::Whole(answer, blob.outcome))
}

/// Answers a `GET` request for a blob.
pub(super) async fn blob(
    cache: &Cache,
    request: &RequestHead<'_>,
    repository: &Repository,
    digest: &Digest,
) -> Result<RegistryAnswer, Refusal> {
    let blob = cache.blob(repository, digest).await?;
    let mut answer = Response::new(Body::Empty);
    if response::is_match(request.headers, IF_NONE_MATCH, digest) == Some(true) {
        insert_blob(answer.headers_mut(), digest, blob.outcome, true);
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(RegistryAnswer::Whole(answer, blob.outcome));
    }
    // A stated size that is wrong spoils only a range of a blob whose upstream announces no length.
    let size = blob.size.or(blob.size_hint);
    let range = match (RangeRequest::parse(range_header(request, digest, blob.is_verified())), size) {
        // Without a length there is no Content-Range, and the whole body is always a valid answer (RFC 9110, 14.2).
        // An empty blob has no valid range, but containerd asks for `bytes=0-` of every blob and cannot handle 416.
        (RangeRequest::Whole, _) | (_, None | Some(0)) => None,
        (RangeRequest::One(range), Some(size)) => match range.within(size) {
            None if blob.size.is_none() => None,
            None => return Err(Refusal::Range(size)),
            Some(range) => {
                *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
                let text = format!("bytes {}-{}/{size}", range.start, range.end - 1);
                response::insert_text(answer.headers_mut(), CONTENT_RANGE, &text);
                Some(range)
            }
        },
    };
    let length = range.as_ref().map_or(blob.size, |range| Some(range.end - range.start));
    if let Some(length) = length {
        answer.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    let (reader, outcome) = cache.reader(repository, digest, blob, range).await?;
    insert_blob(answer.headers_mut(), digest, outcome, reader.is_verified());
    Ok(RegistryAnswer::Blob(answer, outcome, reader, length))
}

/// Inserts the headers of a blob.
fn insert_blob(headers: &mut HeaderMap, digest: &Digest, outcome: Outcome, is_verified: bool) {
    if is_verified {
        response::insert_content(headers, digest);
    } else {
        response::insert_unverified(headers, digest);
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    response::insert_outcome(headers, outcome);
}

/// Returns the `Range` header, unless `If-Range` names other content or is a weak validator (RFC 9110, 13.1.5). Content that
/// is not verified has no validator that could match.
fn range_header<'a>(request: &RequestHead<'a>, digest: &Digest, is_verified: bool) -> Option<&'a str> {
    if let Some(validator) = request.headers.get(IF_RANGE) {
        let tag = validator.to_str().ok()?.trim();
        if !is_verified || tag.trim_matches('"') != digest.to_string() {
            return None;
        }
    }
    request.headers.get(RANGE)?.to_str().ok()
}
