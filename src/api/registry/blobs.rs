//! Endpoint for blobs and byte ranges of blobs.

use std::ops::Range;

use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, IF_NONE_MATCH, IF_RANGE, RANGE,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use crate::api::body::{BlobBytes, Body};
use crate::api::multipart::Multipart;
use crate::api::refusal::Refusal;
use crate::api::response;
use crate::cache::{BlobAnswer, Cache};
use crate::oci::{ByteRange, Digest, RangeRequest, Repository};
use crate::telemetry::Outcome;

use super::request::{BlobContent, RegistryAnswer, RequestHead};

/// Maximum number of parts in one answer; more ranges are answered with the whole blob, which podman accepts. Parts far beyond the
/// end of a draft are requests to the upstream.
const PARTS_MAX: usize = 16;

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
    let selection = select(request, digest, &blob)?;
    let (mut parts, mut length) = (None, blob.size);
    let range = match selection {
        Selection::Whole => None,
        Selection::Part(range, size) => {
            let text = format!("bytes {}-{}/{size}", range.start, range.end - 1);
            response::insert_text(answer.headers_mut(), CONTENT_RANGE, &text);
            length = Some(range.end - range.start);
            Some(range)
        }
        Selection::Parts(first, multipart, size) => {
            (parts, length) = (Some(multipart), Some(size));
            Some(first)
        }
    };
    if range.is_some() {
        *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    if let Some(length) = length {
        answer.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    let (reader, outcome) = cache.reader(repository, digest, blob, range).await?;
    insert_blob(answer.headers_mut(), digest, outcome, reader.is_verified());
    let bytes = match parts {
        None => BlobBytes::One(reader),
        Some(parts) => {
            answer.headers_mut().insert(CONTENT_TYPE, parts.content_type());
            BlobBytes::Parts(reader, parts)
        }
    };
    Ok(RegistryAnswer::Blob(answer, outcome, Box::new(BlobContent { bytes, length })))
}

/// Parts of a blob that a request selects.
enum Selection {
    Whole,
    /// One part, and the size of the blob.
    Part(Range<u64>, u64),
    /// First of several parts, the body of all parts, and its length.
    Parts(Range<u64>, Multipart, u64),
}

/// Selects the parts of a blob that the headers `Range` and `If-Range` name.
fn select(request: &RequestHead<'_>, digest: &Digest, blob: &BlobAnswer) -> Result<Selection, Refusal> {
    let is_verified = blob.is_verified();
    // A stated size that is wrong spoils only a range of a blob whose upstream announces no length.
    //
    // Without a length there is no Content-Range, and the whole body is always a valid answer (RFC 9110, 14.2).
    // An empty blob has no valid range, but containerd asks for `bytes=0-` of every blob and cannot handle 416.
    let Some(size) = blob.size.or(blob.size_hint).filter(|size| *size > 0) else {
        return Ok(Selection::Whole);
    };
    let ranges = match RangeRequest::parse(range_header(request, digest, is_verified)) {
        RangeRequest::Whole => return Ok(Selection::Whole),
        RangeRequest::One(range) => {
            return match range.within(size) {
                Some(range) => Ok(Selection::Part(range, size)),
                // The upstream may have announced a wrong length.
                None if !is_verified => Ok(Selection::Whole),
                None => Err(Refusal::Range(size)),
            };
        }
        RangeRequest::Several(ranges) => ranges,
    };
    let parts = ByteRange::select(&ranges, size);
    match parts.as_slice() {
        [] if is_verified => Err(Refusal::Range(size)),
        [part] => Ok(Selection::Part(part.clone(), size)),
        [first, _, ..] if parts.len() <= PARTS_MAX => {
            let (first, is_ascending) = (first.clone(), parts.is_sorted_by_key(|part| part.start));
            let multipart = Multipart::new(parts, size);
            match multipart.length() {
                Some(length) if is_ascending || blob.is_rereadable() => {
                    Ok(Selection::Parts(first, multipart, length))
                }
                _ => Ok(Selection::Whole),
            }
        }
        // Too many parts; or none, but the length may be wrong.
        _ => Ok(Selection::Whole),
    }
}

/// Inserts the headers of a blob.
fn insert_blob(headers: &mut HeaderMap, digest: &Digest, outcome: Outcome, is_verified: bool) {
    if is_verified {
        response::insert_content(headers, digest);
    } else {
        response::insert_unverified(headers, digest);
    }
    response::insert_blob_type(headers);
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
