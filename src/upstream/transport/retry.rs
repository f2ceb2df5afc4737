//! Retries of a request within its deadline.

use std::future::Future;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use tokio::time::Instant;

use crate::source::SourceError;

/// Two retries after about 50 and 200 ms. Jitter of up to the delay itself spreads concurrent requests.
const DELAYS: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(50))
    .with_factor(4.0)
    .with_max_times(2)
    .with_jitter();

/// Repetitions of a request that is refused for a moment only.
const SHORT_WAITS_MAX: u32 = 8;
/// Shortest wait before the first such repetition. It doubles with each one.
const SHORT_WAIT_MIN: Duration = Duration::from_millis(1);

/// Runs `attempt` until it succeeds, fails with an error that is not retryable, or the next delay exceeds the deadline. After a
/// refusal for less than a second it waits as long as the upstream asks.
pub(crate) async fn until<T, F, A>(deadline: Instant, mut attempt: A) -> Result<T, SourceError>
where
    F: Future<Output = Result<T, SourceError>>,
    A: FnMut() -> F,
{
    for number in 0..SHORT_WAITS_MAX {
        let error = match retried(deadline, &mut attempt).await {
            Err(error) if error.short_wait().is_some() => error,
            result => return result,
        };
        let wait = error.short_wait().unwrap_or_default().max(SHORT_WAIT_MIN * (1 << number));
        if Instant::now() + wait >= deadline {
            return Err(error);
        }
        tracing::debug!(%error, ?wait, "repeating a request that the upstream refused for a moment");
        tokio::time::sleep(wait).await;
    }
    retried(deadline, &mut attempt).await
}

async fn retried<T, F, A>(deadline: Instant, attempt: A) -> Result<T, SourceError>
where
    F: Future<Output = Result<T, SourceError>>,
    A: FnMut() -> F,
{
    attempt
        .retry(DELAYS)
        .when(SourceError::is_retryable)
        .adjust(|_, delay| delay.filter(|delay| Instant::now() + *delay < deadline))
        .notify(|error, delay| tracing::debug!(%error, ?delay, "retrying a request to an upstream"))
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn attempts(error: SourceError, left: Duration) -> usize {
        let mut count = 0;
        let deadline = Instant::now() + left;
        let result: Result<(), _> = until(deadline, || {
            count += 1;
            std::future::ready(Err(error.clone()))
        })
        .await;
        assert_eq!(result, Err(error));
        count
    }

    #[tokio::test]
    async fn until_retries_temporary_errors_within_the_deadline() {
        let minute = Duration::from_mins(1);
        let unavailable = || SourceError::Unavailable(503);
        assert_eq!(attempts(unavailable(), minute).await, 3);
        assert_eq!(attempts(SourceError::Unreachable(String::new()), minute).await, 3);
        assert_eq!(attempts(SourceError::Timeout(String::new()), minute).await, 1);
        assert_eq!(attempts(SourceError::RateLimited { retry_after: None }, minute).await, 1);
        assert_eq!(attempts(SourceError::NotFound, minute).await, 1);
        let limited = |wait| SourceError::RateLimited { retry_after: Some(wait) };
        assert_eq!(attempts(limited(Duration::from_secs(1)), minute).await, 1);
        assert_eq!(attempts(limited(Duration::from_micros(714)), minute).await, 9);
        assert_eq!(attempts(limited(Duration::from_millis(999)), Duration::from_millis(900)).await, 1);
        assert_eq!(attempts(SourceError::Overloaded { retry_after: Duration::ZERO }, minute).await, 9);
        assert_eq!(attempts(unavailable(), Duration::from_millis(1)).await, 1);
    }
}
