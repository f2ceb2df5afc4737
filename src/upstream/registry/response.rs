//! Parts of a registry's response: status, headers, and the body of a manifest or list.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use reqwest::Response;
use tokio::time::timeout;

use crate::source::{ManifestHead, SourceError};
use crate::upstream::transport::client::{HttpClient, causes};

/// Header with the digest of a manifest (distribution-spec, "Pulling manifests").
const DIGEST: &str = "docker-content-digest";

/// Returns what the headers of a response announce about a manifest.
pub(super) fn manifest_head(headers: &HeaderMap) -> ManifestHead {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    ManifestHead {
        digest: headers
            .get(DIGEST)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.trim().parse().ok()),
        size: content_length(headers),
        content_type: text(CONTENT_TYPE).map(str::to_owned),
    }
}

/// Returns the value of `Content-Length`.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// Refuses statuses of success other than `status`.
pub(super) fn expect_status(response: &Response, status: StatusCode) -> Result<(), SourceError> {
    let got = response.status();
    if got == status {
        Ok(())
    } else {
        let (got, status) = (got.as_u16(), status.as_u16());
        Err(SourceError::Invalid(format!("it has status {got} instead of {status}")))
    }
}

/// Reads the whole body of a manifest or list. `size` is the announced length and `kind` the word for messages and
/// metrics. Together with the `before` bytes of earlier pages, the body may have `max` bytes.
pub(super) async fn read_document(
    http: &HttpClient,
    response: &mut Response,
    size: Option<u64>,
    kind: &str,
    before: usize,
    max: usize,
) -> Result<Bytes, SourceError> {
    let too_large = || SourceError::Invalid(format!("the {kind} is larger than {max} bytes"));
    let budget = max.saturating_sub(before);
    if size.is_some_and(|size| size > budget as u64) {
        return Err(too_large());
    }
    let mut body = BytesMut::new();
    let idle = http.timeouts.idle;
    // The time-out is for the whole body: a document that trickles in must not hold its connection for ever.
    let whole = timeout(idle, async {
        while let Some(chunk) = response.chunk().await.map_err(interrupted)? {
            http.metrics.fetched(http.upstream.as_str(), kind, chunk.len() as u64);
            if body.len() + chunk.len() > budget {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(())
    });
    whole.await.map_err(|_| stalled(idle))??;
    if size.is_some_and(|size| size != body.len() as u64) {
        return Err(SourceError::Interrupted(format!("the {kind} ended early")));
    }
    Ok(body.freeze())
}

/// Returns the error for a body that was interrupted.
pub(super) fn interrupted(error: reqwest::Error) -> SourceError {
    SourceError::Interrupted(causes(&error.without_url()))
}

/// Returns the error for a body of which nothing arrived for a time.
pub(super) fn stalled(idle: Duration) -> SourceError {
    SourceError::Interrupted(format!("nothing arrived for {}", humantime::format_duration(idle)))
}
