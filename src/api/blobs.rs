//! Blobs and parts of them.

use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, IF_NONE_MATCH, IF_RANGE, RANGE,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use crate::oci::{Digest, RangeRequest, Repository};
use crate::telemetry::Outcome;

use super::body::Body;
use super::registry::{RegistryAnswer, RegistryApi, RequestHead};
use super::response::{self, Refusal};

impl RegistryApi {
    pub(super) async fn blob_head(
        &self,
        request: &RequestHead<'_>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<RegistryAnswer, Refusal> {
        let blob = self.cache.blob_size(repository, digest).await?;
        let mut answer = Response::new(Body::Empty);
        insert_blob(answer.headers_mut(), digest, blob.outcome);
        if response::is_match(request.headers, IF_NONE_MATCH, digest) == Some(true) {
            *answer.status_mut() = StatusCode::NOT_MODIFIED;
            return Ok(RegistryAnswer::Whole(answer, blob.outcome));
        }
        if let Some(size) = blob.size {
            answer.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(size));
        }
        Ok(RegistryAnswer::Whole(answer, blob.outcome))
    }

    pub(super) async fn blob(
        &self,
        request: &RequestHead<'_>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<RegistryAnswer, Refusal> {
        let blob = self.cache.blob(repository, digest).await?;
        let mut answer = Response::new(Body::Empty);
        insert_blob(answer.headers_mut(), digest, blob.outcome);
        if response::is_match(request.headers, IF_NONE_MATCH, digest) == Some(true) {
            *answer.status_mut() = StatusCode::NOT_MODIFIED;
            return Ok(RegistryAnswer::Whole(answer, blob.outcome));
        }
        let range = match (RangeRequest::parse(range_header(request, digest)), blob.size) {
            // Without a length there is no Content-Range to write; all of it is always allowed (RFC 9110, 14.2). Of
            // nothing there is no range, and containerd, which asks for `bytes=0-` of everything, takes no 416 for it.
            (RangeRequest::Whole, _) | (_, None | Some(0)) => None,
            (RangeRequest::One(range), Some(size)) => {
                let range = range.within(size).ok_or(Refusal::Range(size))?;
                *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
                let text = format!("bytes {}-{}/{size}", range.start, range.end - 1);
                response::insert_text(answer.headers_mut(), CONTENT_RANGE, &text);
                Some(range)
            }
        };
        let length = range.as_ref().map_or(blob.size, |range| Some(range.end - range.start));
        if let Some(length) = length {
            answer.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        let (reader, outcome) = self.cache.reader(repository, digest, blob, range).await?;
        response::insert_outcome(answer.headers_mut(), outcome);
        Ok(RegistryAnswer::Blob(answer, outcome, reader, length))
    }
}

fn insert_blob(headers: &mut HeaderMap, digest: &Digest, outcome: Outcome) {
    response::insert_content(headers, digest);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    response::insert_outcome(headers, outcome);
}

/// The Range header, unless an If-Range names anything but this content, strongly (RFC 9110, 13.1.5).
fn range_header<'a>(request: &RequestHead<'a>, digest: &Digest) -> Option<&'a str> {
    if let Some(validator) = request.headers.get(IF_RANGE) {
        let tag = validator.to_str().ok()?.trim();
        if tag.trim_matches('"') != digest.to_string() {
            return None;
        }
    }
    request.headers.get(RANGE)?.to_str().ok()
}
