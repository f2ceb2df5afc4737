//! Bounds on the time that a request waits. The work that the request waits for continues after the deadline.

use std::future::Future;
use std::time::Duration;

use crate::upstream::Upstream;

use super::error::CacheError;

/// Longest wait for the head of an answer if nothing is cached. Clients have no time-out of their own.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs `work`, which may send several requests to the upstream, within [`ANSWER_TIMEOUT`].
pub(super) async fn in_time<T>(work: impl Future<Output = Result<T, CacheError>>) -> Result<T, CacheError> {
    match tokio::time::timeout(ANSWER_TIMEOUT, work).await {
        Ok(result) => result,
        Err(_) => Err(timed_out(ANSWER_TIMEOUT)),
    }
}

/// Waits for the result of a flight. A request that has passed other servers does not wait for a flight of another request
/// that may wait for one of them.
pub(super) async fn joined<T>(
    upstream: &Upstream,
    leader: bool,
    result: impl Future<Output = Result<T, CacheError>>,
) -> Result<T, CacheError> {
    match upstream.circular_wait_limit().filter(|_| !leader) {
        None => result.await,
        Some(Duration::ZERO) => Err(CacheError::Loop),
        Some(limit) => tokio::time::timeout(limit, result).await.unwrap_or(Err(CacheError::Loop)),
    }
}

/// Deadline for one answer of an upstream. Created before the upstream is asked, because the request itself changes the
/// health of the upstream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    timeout: Duration,
    /// True if the upstream failed lately.
    suspect: bool,
}

impl Deadline {
    /// Creates the deadline for a request that has a cached copy to serve, or has none. With a copy the wait is short, and
    /// zero if the upstream keeps failing.
    pub(super) fn new(upstream: &Upstream, has_copy: bool) -> Self {
        let suspect = upstream.is_suspect();
        let timeout = match has_copy {
            true if suspect => Duration::ZERO,
            true => upstream.settings().revalidate_timeout,
            false => ANSWER_TIMEOUT,
        };
        Self { timeout, suspect }
    }

    /// Waits for an answer until the deadline.
    pub(super) async fn wait<T>(
        self,
        answer: impl Future<Output = Result<T, CacheError>>,
    ) -> Result<T, CacheError> {
        match tokio::time::timeout(self.timeout, answer).await {
            Ok(answer) => answer,
            Err(_) if self.suspect => {
                Err(CacheError::timeout("it keeps failing, so the server did not wait for it"))
            }
            Err(_) => Err(timed_out(self.timeout)),
        }
    }
}

fn timed_out(timeout: Duration) -> CacheError {
    CacheError::timeout(format!("none within {timeout:?}"))
}
