//! How long a request waits for an upstream. What it waits for goes on without it.

use std::future::Future;
use std::time::Duration;

use crate::upstream::Upstream;

use crate::cache::error::CacheError;

/// How long a request waits for the head of an answer when nothing is held. Clients have no time-out of their own.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Ends `work`, which may ask the upstream more than one question in a row, in the time that a client waits.
pub(super) async fn in_time<T>(work: impl Future<Output = Result<T, CacheError>>) -> Result<T, CacheError> {
    match tokio::time::timeout(ANSWER_WITHIN, work).await {
        Ok(result) => result,
        Err(_) => Err(CacheError::too_late(ANSWER_WITHIN)),
    }
}

/// Taken before the upstream is asked, because the question itself changes what is known of it.
#[derive(Clone, Copy, Debug)]
pub(in crate::cache) struct Deadline {
    time: Duration,
    suspect: bool,
}

impl Deadline {
    /// Who has a `copy` to serve does not wait long, and not at all for an upstream that keeps failing.
    pub(in crate::cache) fn with(upstream: &Upstream, copy: bool) -> Self {
        let suspect = upstream.is_suspect();
        let time = match copy {
            true if suspect => Duration::ZERO,
            true => upstream.settings().revalidate_timeout,
            false => ANSWER_WITHIN,
        };
        Self { time, suspect }
    }

    /// Waits for an answer that somebody else is working on.
    pub(in crate::cache) async fn wait<T>(
        self,
        answer: impl Future<Output = Result<T, CacheError>>,
    ) -> Result<T, CacheError> {
        match tokio::time::timeout(self.time, answer).await {
            Ok(answer) => answer,
            Err(_) if self.suspect => {
                Err(CacheError::Timeout("it keeps failing and was not waited for".to_owned()))
            }
            Err(_) => Err(CacheError::too_late(self.time)),
        }
    }
}
