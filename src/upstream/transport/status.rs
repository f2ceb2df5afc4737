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

/// As [`check_status`]. If a rate limit has no header `Retry-After`, the wait is read from the body, where ghcr.io has it.
pub(crate) async fn check_answer(response: &mut Response) -> Result<(), SourceError> {
    match check_status(response) {
        Err(SourceError::RateLimited { retry_after: None }) => {
            Err(SourceError::RateLimited { retry_after: wait_in_body(response).await })
        }
        checked => checked,
    }
}

/// Returns the time to wait that a response asks for.
fn retry_after(response: &Response) -> Option<Duration> {
    let headers = response.headers();
    // The date is by the upstream's clock, which may differ from the local one.
    let date = headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
    let value = text_of(headers.get(RETRY_AFTER)?.as_bytes());
    parse_retry_after(&value, date.unwrap_or_else(SystemTime::now))
}

/// Decodes a header or body that may contain the sign for micro, in UTF-8 or Latin-1.
fn text_of(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().copied().map(char::from).collect(),
    }
}

/// Parses `Retry-After`: seconds, or a date relative to `now` (RFC 9110, section 10.2.3), or a time with a fraction or units, as
/// some registries send. A date in the past is zero.
pub(super) fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        return value.parse().ok().map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
    }
    if let Ok(date) = httpdate::parse_http_date(value) {
        return Some(date.duration_since(now).unwrap_or_default().min(RETRY_AFTER_MAX));
    }
    let (wait, rest) = leading_wait(value)?;
    rest.is_empty().then_some(wait)
}

/// Finds the wait after the words `retry-after` in the body of a response.
async fn wait_in_body(response: &mut Response) -> Option<Duration> {
    /// Length of the part of a body that is read.
    const BODY_MAX: usize = 4096;
    /// Longest wait for a body.
    const BODY_TIMEOUT: Duration = Duration::from_secs(1);
    let mut body = Vec::new();
    let read = async {
        while body.len() < BODY_MAX
            && let Ok(Some(chunk)) = response.chunk().await
        {
            body.extend_from_slice(chunk.get(..BODY_MAX).unwrap_or(&chunk));
        }
    };
    // What has arrived by then is enough.
    let _ = tokio::time::timeout(BODY_TIMEOUT, read).await;
    wait_in_text(&text_of(&body))
}

/// Finds the wait after the words `retry-after` in a text, such as `toomanyrequests: retry-after: 714.6µs, allowed: 44000/minute`.
fn wait_in_text(text: &str) -> Option<Duration> {
    const WORDS: &str = "retry-after";
    let at = text.to_ascii_lowercase().find(WORDS)?;
    let rest = text.get(at + WORDS.len()..)?;
    leading_wait(rest.trim_start_matches([':', '=', ' ', '"', '\\'])).map(|(wait, _)| wait)
}

/// Parses a time at the beginning of a text, and returns the rest of the text: numbers with a fraction and a unit, as Go prints
/// them, or one number without a unit, which is seconds.
fn leading_wait(text: &str) -> Option<(Duration, &str)> {
    /// Units with their nanoseconds. A longer unit is before the beginning of it.
    const UNITS: [(&str, f64); 11] = [
        ("ns", 1.0),
        ("us", 1e3),
        ("\u{b5}s", 1e3),
        ("\u{3bc}s", 1e3),
        // As escaped in JSON.
        ("\\u00b5s", 1e3),
        ("\\u00B5s", 1e3),
        ("\\u03bcs", 1e3),
        ("ms", 1e6),
        ("s", 1e9),
        ("m", 60e9),
        ("h", 3600e9),
    ];
    let (mut nanos, mut rest, mut parts) = (0.0, text, 0);
    loop {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let Ok(number) = rest[..end].parse::<f64>() else { break };
        let unit = UNITS.iter().find_map(|(unit, length)| Some((rest[end..].strip_prefix(unit)?, length)));
        match unit {
            Some((after, length)) => (nanos, rest) = (nanos + number * length, after),
            None if parts == 0 => (nanos, rest) = (number * 1e9, &rest[end..]),
            None => break,
        }
        parts += 1;
        if unit.is_none() {
            break;
        }
    }
    // The number is not negative, and may be infinite.
    let wait = Duration::try_from_secs_f64(nanos / 1e9).unwrap_or(RETRY_AFTER_MAX).min(RETRY_AFTER_MAX);
    (parts > 0).then_some((wait, rest))
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
        for (value, nanos) in [
            ("0.5", 500_000_000),
            ("714.6\u{b5}s", 714_600),
            ("714.6\u{3bc}s", 714_600),
            ("714.6us", 714_600),
            ("20ms", 20_000_000),
            ("1m2.5s", 62_500_000_000),
            ("3ns", 3),
        ] {
            assert_eq!(parse(value), Some(Duration::from_nanos(nanos)), "{value}");
        }
        let past = httpdate::fmt_http_date(now - Duration::from_secs(90));
        assert_eq!(parse(&past), Some(Duration::ZERO));
        let day = Some(Duration::from_hours(24));
        assert_eq!(parse("18446744073709551615"), day);
        assert_eq!(parse("Fri, 31 Dec 9999 23:59:59 GMT"), day);
        assert_eq!(parse("1.5"), Some(Duration::from_millis(1500)));
        assert_eq!(parse(&"9".repeat(400)), None, "no number of seconds");
        assert_eq!(parse(&format!("{}.0", "9".repeat(400))), day);
        for bad in ["", "-1", ".", "1.2.3", "soon", "1 soon", "5x", "s", "99999999999999999999"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn wait_is_found_in_a_body() {
        let micros = Some(Duration::from_nanos(714_600));
        for text in [
            "toomanyrequests: retry-after: 714.6\u{b5}s, allowed: 44000/minute",
            r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"Retry-After: 714.6\u00b5s, allowed: 44000/minute"}]}"#,
            r#"{"retry-after": "714.6us"}"#,
        ] {
            assert_eq!(wait_in_text(text), micros, "{text}");
        }
        assert_eq!(wait_in_text("retry-after=3"), Some(Duration::from_secs(3)));
        assert_eq!(wait_in_text(&text_of(b"retry-after: 714.6\xb5s")), micros, "Latin-1");
        for text in ["", "retry-after", "retry-after: soon", "please retry after 3 s"] {
            assert_eq!(wait_in_text(text), None, "{text}");
        }
    }
}
