//! Parts of a registry's response: status, headers, and the body of a manifest or list.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use reqwest::Response;
use tokio::time::{Instant, timeout};

use crate::source::gunzip::decode_document;
use crate::source::{DocumentMemory, ManifestHead, SMALL_DOCUMENT, SourceError};
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

/// Limits of one manifest, or of one page of a list.
pub(super) struct DocumentLimits {
    /// Word for messages and metrics.
    pub(super) kind: &'static str,
    /// Bytes of the earlier pages.
    pub(super) before: usize,
    /// Largest number of bytes of all pages together.
    pub(super) max: usize,
    /// Bytes for which a large document reserves memory.
    pub(super) reserved: usize,
    /// Latest time at which a large document gets its memory.
    pub(super) deadline: Instant,
}

impl DocumentLimits {
    /// Creates the limits. `size` is the length of the whole document, if it is known.
    pub(super) fn new(
        kind: &'static str,
        before: usize,
        size: Option<u64>,
        max: usize,
        deadline: Instant,
    ) -> Self {
        let reserved = size.and_then(|size| usize::try_from(size).ok()).map_or(max, |size| size.min(max));
        Self { kind, before, max, reserved, deadline }
    }
}

/// Reads the whole body of a manifest or list. `size` is the announced length.
pub(super) async fn read_document(
    http: &HttpClient,
    response: &mut Response,
    size: Option<u64>,
    limits: &DocumentLimits,
    memory: &mut DocumentMemory,
) -> Result<Bytes, SourceError> {
    let &DocumentLimits { kind, before, max, reserved, deadline } = limits;
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
            let length = body.len() + chunk.len();
            if length > budget {
                return Err(too_large());
            }
            if before + length > SMALL_DOCUMENT {
                memory.reserve(reserved.max(before + length), deadline).await?;
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

/// Decodes a body that is labelled as gzip, up to `max` bytes. A large document waits for its turn.
pub(super) async fn decode(
    body: Bytes,
    max: usize,
    memory: &DocumentMemory,
    deadline: Instant,
) -> Result<Bytes, SourceError> {
    if let Ok(small) = decode_document(body.clone(), SMALL_DOCUMENT) {
        return Ok(small);
    }
    memory.process(max, deadline, move || decode_document(body, max)).await?
}

/// Returns the error for a body that was interrupted.
pub(super) fn interrupted(error: reqwest::Error) -> SourceError {
    SourceError::Interrupted(causes(&error.without_url()))
}

/// Returns the error for a body of which nothing arrived for a time.
pub(super) fn stalled(idle: Duration) -> SourceError {
    SourceError::Interrupted(format!("nothing arrived for {}", humantime::format_duration(idle)))
}
