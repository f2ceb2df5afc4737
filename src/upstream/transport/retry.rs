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

/// Runs `attempt` until it succeeds, fails with an error that is not retryable, or the next delay exceeds the deadline.
pub(crate) async fn until<T, F, A>(deadline: Instant, attempt: A) -> Result<T, SourceError>
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
        assert_eq!(attempts(unavailable(), Duration::from_millis(1)).await, 1);
    }
}
