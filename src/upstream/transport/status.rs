//! Meaning of HTTP response statuses, and of `Retry-After`.

use std::time::{Duration, SystemTime};

use http::header::{DATE, RETRY_AFTER};
use reqwest::Response;

use super::retry;
use crate::upstream::error::UpstreamError;

/// What an answer's status means.
pub(crate) fn check_status(response: &Response) -> Result<(), UpstreamError> {
    match response.status().as_u16() {
        200..=299 => Ok(()),
        404 => Err(UpstreamError::NotFound),
        // A word of a proxy's alone (RFC 9110, section 15.5.8).
        407 => Err(UpstreamError::Unreachable("its proxy asks for credentials".to_owned())),
        status @ (401 | 403) => Err(UpstreamError::Denied { status }),
        416 => Err(UpstreamError::RangeNotSatisfiable),
        429 => Err(UpstreamError::RateLimited { retry_after: retry_after(response) }),
        status => match retry_after(response) {
            Some(retry_after) if status == 503 => Err(UpstreamError::Overloaded { retry_after }),
            _ => Err(UpstreamError::Status(status)),
        },
    }
}

/// How long an answer asks to be left alone.
fn retry_after(response: &Response) -> Option<Duration> {
    let text = |name| response.headers().get(name)?.to_str().ok();
    // The upstream's date counts from the upstream's clock; ours may stand elsewhere.
    let now =
        text(DATE).and_then(|date| httpdate::parse_http_date(date).ok()).unwrap_or_else(SystemTime::now);
    retry::retry_after(text(RETRY_AFTER)?, now)
}
