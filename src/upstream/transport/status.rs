//! Meaning of HTTP statuses, and of `Retry-After`.

use std::time::{Duration, SystemTime};

use http::header::{DATE, RETRY_AFTER};
use reqwest::Response;

use crate::source::{Denial, SourceError};

/// Upper limit of a `Retry-After`, whatever the registry sends.
const RETRY_AFTER_MAX: Duration = Duration::from_hours(24);

/// Returns the error for the status of a response.
pub(crate) fn check_status(response: &Response) -> Result<(), SourceError> {
    let status = response.status().as_u16();
    let answer = || format!("status {status}");
    Err(match status {
        200..=299 => return Ok(()),
        401 => SourceError::Denied(Denial::Unauthenticated),
        403 => SourceError::Denied(Denial::Forbidden),
        404 => SourceError::NotFound,
        // Only a proxy sends 407 (RFC 9110, section 15.5.8).
        407 => SourceError::Unreachable("its proxy asks for credentials".to_owned()),
        416 => SourceError::RangeNotSatisfiable,
        429 => SourceError::RateLimited { retry_after: retry_after(response) },
        503 => match retry_after(response) {
            Some(retry_after) => SourceError::Overloaded { retry_after },
            None => SourceError::Unavailable(status),
        },
        500 | 502 | 504 => SourceError::Unavailable(status),
        508 => SourceError::Loop,
        505.. => SourceError::Failed(answer()),
        // The rest of 4xx, 501, and redirects that cannot be followed.
        _ => SourceError::Unsupported(answer()),
    })
}

/// Returns the time to wait that a response asks for.
fn retry_after(response: &Response) -> Option<Duration> {
    let text = |name| response.headers().get(name)?.to_str().ok();
    // The date is by the upstream's clock, which may differ from the local one.
    let now =
        text(DATE).and_then(|date| httpdate::parse_http_date(date).ok()).unwrap_or_else(SystemTime::now);
    parse_retry_after(text(RETRY_AFTER)?, now)
}

/// Parses `Retry-After`: seconds, or a date relative to `now` (RFC 9110, section 10.2.3). A date in the past is zero.
pub(super) fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        return value.parse().ok().map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default().min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_retry_after_reads_seconds_and_dates() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let parse = |value: &str| parse_retry_after(value, now);
        assert_eq!(parse(" 120 "), Some(Duration::from_mins(2)));
        let date = httpdate::fmt_http_date(now + Duration::from_secs(90));
        assert_eq!(parse(&date), Some(Duration::from_secs(90)));
        let past = httpdate::fmt_http_date(now - Duration::from_secs(90));
        assert_eq!(parse(&past), Some(Duration::ZERO));
        let day = Some(Duration::from_hours(24));
        assert_eq!(parse("18446744073709551615"), day);
        assert_eq!(parse("Fri, 31 Dec 9999 23:59:59 GMT"), day);
        for bad in ["", "-1", "1.5", "soon", "99999999999999999999"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
