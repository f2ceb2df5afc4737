//! When a request is sent a second time at once, and how long a registry wants to be left alone.

use std::future::Future;
use std::time::{Duration, SystemTime};

use backon::{ExponentialBuilder, Retryable};
use tokio::time::Instant;

use crate::upstream::error::UpstreamError;

/// Two more attempts after about 50 and 200 ms, each up to doubled at random so that many waiters spread out.
const DELAYS: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(50))
    .with_factor(4.0)
    .with_max_times(2)
    .with_jitter();

/// Runs `attempt` until it succeeds, fails for good, or no time is left before `deadline`.
pub(crate) async fn run<T, F, A>(deadline: Instant, attempt: A) -> Result<T, UpstreamError>
where
    F: Future<Output = Result<T, UpstreamError>>,
    A: FnMut() -> F,
{
    attempt
        .retry(DELAYS)
        .when(UpstreamError::transient)
        .adjust(|_, delay| delay.filter(|delay| Instant::now() + *delay < deadline))
        .notify(|error, delay| tracing::debug!(%error, ?delay, "asking the upstream again"))
        .await
}

/// Nobody waits longer for a quota, whatever a registry writes.
const RETRY_AFTER_MAX: Duration = Duration::from_hours(24);

/// Reads `Retry-After`: seconds, or a date, which counts from `now`. A date that has passed means "at once".
pub(crate) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
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
    fn both_forms_of_retry_after() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        assert_eq!(retry_after(" 120 ", now), Some(Duration::from_mins(2)));
        let date = httpdate::fmt_http_date(now + Duration::from_secs(90));
        assert_eq!(retry_after(&date, now), Some(Duration::from_secs(90)));
        let past = httpdate::fmt_http_date(now - Duration::from_secs(90));
        assert_eq!(retry_after(&past, now), Some(Duration::ZERO));
        let day = Some(Duration::from_hours(24));
        assert_eq!(retry_after("18446744073709551615", now), day);
        assert_eq!(retry_after("Fri, 31 Dec 9999 23:59:59 GMT", now), day);
        for bad in ["", "-1", "1.5", "soon", "99999999999999999999"] {
            assert_eq!(retry_after(bad, now), None, "{bad}");
        }
    }

    async fn attempts(error: UpstreamError, left: Duration) -> usize {
        let mut count = 0;
        let deadline = Instant::now() + left;
        let result: Result<(), _> = run(deadline, || {
            count += 1;
            std::future::ready(Err(error.clone()))
        })
        .await;
        assert_eq!(result, Err(error));
        count
    }

    #[tokio::test]
    async fn only_what_may_pass_is_repeated() {
        let minute = Duration::from_mins(1);
        assert_eq!(attempts(UpstreamError::Status(503), minute).await, 3);
        assert_eq!(attempts(UpstreamError::Unreachable(String::new()), minute).await, 3);
        assert_eq!(attempts(UpstreamError::Timeout(String::new()), minute).await, 1);
        assert_eq!(attempts(UpstreamError::RateLimited { retry_after: None }, minute).await, 1);
        assert_eq!(attempts(UpstreamError::NotFound, minute).await, 1);
        assert_eq!(attempts(UpstreamError::Status(503), Duration::from_millis(1)).await, 1);
    }
}
