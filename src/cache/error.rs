//! Error of a request to the cache: a meaning from which the API makes a status, and the one place that decides about retries.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use crate::source::SourceError;
use crate::store::StoreError;

/// Original error, shared by all requests of a flight.
type Source = Arc<dyn Error + Send + Sync>;

/// Reason why a request gets no content. Cheap to clone, because all requests of a flight get the same error.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CacheError {
    /// Definite absence: the upstream answered 404.
    #[error("the upstream does not have it")]
    NotFound,
    /// Missing referrers API of the upstream.
    #[error("the upstream has no referrers API")]
    NoReferrers,
    /// Refused access, with nothing cached.
    #[error("the upstream refuses access")]
    Denied,
    /// Exhausted quota of the upstream, with nothing cached.
    #[error("the upstream's rate limit is reached")]
    RateLimited {
        /// Pause that the upstream asks for.
        retry_after: Option<Duration>,
    },
    /// Overloaded upstream that asks for a pause, with nothing cached.
    #[error("the upstream is overloaded")]
    Overloaded {
        /// Pause that the upstream asks for.
        retry_after: Duration,
    },
    /// Time-out of the upstream, with nothing cached.
    #[error("the upstream gave no timely answer: {reason}")]
    Timeout {
        /// Phase that timed out.
        reason: String,
        /// Original error.
        source: Option<Source>,
    },
    /// Failed upstream, with nothing cached.
    #[error("{reason}")]
    Unreachable {
        /// Failure as a complete sentence.
        reason: String,
        /// Original error.
        source: Option<Source>,
    },
    /// Answer of the upstream that breaks the protocol or is ambiguous. It is not stored.
    #[error("the upstream's answer was refused: {reason}")]
    Invalid {
        /// Rule that the answer breaks.
        reason: String,
        /// Original error.
        source: Option<Source>,
    },
    /// Content that does not match its digest or its descriptor. It is not stored.
    #[error("the upstream's content does not verify: {0}")]
    Mismatch(String),
    /// Lost fetch that this request waited for.
    #[error("the fetch that this request waited for was lost; ask again")]
    Interrupted,
    /// Failed store.
    #[error(transparent)]
    Store(Arc<StoreError>),
}

/// Meaning of a [`CacheError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CacheErrorKind {
    /// [`CacheError::NotFound`].
    NotFound,
    /// [`CacheError::NoReferrers`].
    NoReferrers,
    /// [`CacheError::Denied`].
    Denied,
    /// [`CacheError::RateLimited`].
    RateLimited,
    /// [`CacheError::Overloaded`].
    Overloaded,
    /// [`CacheError::Timeout`].
    Timeout,
    /// [`CacheError::Unreachable`].
    Unreachable,
    /// [`CacheError::Invalid`].
    Invalid,
    /// [`CacheError::Mismatch`].
    Mismatch,
    /// [`CacheError::Interrupted`].
    Interrupted,
    /// [`CacheError::Store`] that shows stored content to be corrupt.
    Corrupt,
    /// [`CacheError::Store`] for any other reason.
    Store,
}

impl CacheError {
    /// Creates a time-out of the upstream.
    pub fn timeout(reason: impl Into<String>) -> Self {
        Self::Timeout { reason: reason.into(), source: None }
    }

    /// Creates a failure of the upstream.
    pub fn unreachable(reason: impl Into<String>) -> Self {
        Self::Unreachable { reason: reason.into(), source: None }
    }

    /// Creates the refusal of an answer of the upstream.
    pub fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid { reason: reason.into(), source: None }
    }

    /// Returns the meaning of the error.
    pub fn kind(&self) -> CacheErrorKind {
        match self {
            Self::NotFound => CacheErrorKind::NotFound,
            Self::NoReferrers => CacheErrorKind::NoReferrers,
            Self::Denied => CacheErrorKind::Denied,
            Self::RateLimited { .. } => CacheErrorKind::RateLimited,
            Self::Overloaded { .. } => CacheErrorKind::Overloaded,
            Self::Timeout { .. } => CacheErrorKind::Timeout,
            Self::Unreachable { .. } => CacheErrorKind::Unreachable,
            Self::Invalid { .. } => CacheErrorKind::Invalid,
            Self::Mismatch(_) => CacheErrorKind::Mismatch,
            Self::Interrupted => CacheErrorKind::Interrupted,
            Self::Store(error) if matches!(**error, StoreError::Damaged(_)) => CacheErrorKind::Corrupt,
            Self::Store(_) => CacheErrorKind::Store,
        }
    }

    /// Returns true if the same request may succeed within seconds. A rate limit or an overload may last for hours: see
    /// [`retry_after`](Self::retry_after). Corrupt content needs another fetch, not another read.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.kind(),
            CacheErrorKind::Timeout | CacheErrorKind::Unreachable | CacheErrorKind::Interrupted
        )
    }

    /// Returns the pause before a client should retry; `None` if no pause is known to help.
    pub fn retry_after(&self) -> Option<Duration> {
        /// Pause after a rate limit without one.
        const RATE_LIMIT_PAUSE: Duration = Duration::from_mins(1);
        /// Pause after a lost fetch: a new one starts at once.
        const INTERRUPTED_PAUSE: Duration = Duration::from_secs(1);
        match self {
            Self::RateLimited { retry_after } => Some(retry_after.unwrap_or(RATE_LIMIT_PAUSE)),
            Self::Overloaded { retry_after } => Some(*retry_after),
            Self::Interrupted => Some(INTERRUPTED_PAUSE),
            _ => None,
        }
    }

    /// Returns true unless the upstream gave a definite negative answer, so that cached content may be served stale.
    pub fn allows_stale(&self) -> bool {
        !matches!(self.kind(), CacheErrorKind::NotFound | CacheErrorKind::NoReferrers)
    }

    /// Returns true if the upstream's content is wrong or missing, so that a retry now would get the same content.
    pub(super) fn is_content_fault(&self) -> bool {
        matches!(self.kind(), CacheErrorKind::NotFound | CacheErrorKind::Invalid | CacheErrorKind::Mismatch)
    }
}

impl From<StoreError> for CacheError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl From<SourceError> for CacheError {
    fn from(error: SourceError) -> Self {
        match error {
            SourceError::NotFound => Self::NotFound,
            SourceError::NoReferrers { .. } => Self::NoReferrers,
            SourceError::Denied(_) => Self::Denied,
            SourceError::RateLimited { retry_after } => Self::RateLimited { retry_after },
            SourceError::Overloaded { retry_after } => Self::Overloaded { retry_after },
            error => {
                let reason = match &error {
                    SourceError::Timeout(reason) | SourceError::Invalid(reason) => reason.clone(),
                    other => other.to_string(),
                };
                let is_timeout = matches!(error, SourceError::Busy | SourceError::Timeout(_));
                let is_invalid = matches!(error, SourceError::Invalid(_) | SourceError::Undecodable);
                let source: Option<Source> = Some(Arc::new(error));
                if is_timeout {
                    Self::Timeout { reason, source }
                } else if is_invalid {
                    Self::Invalid { reason, source }
                } else {
                    Self::Unreachable { reason, source }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_retryable_is_true_for_what_passes_within_seconds() {
        let retryable = [CacheError::timeout(""), CacheError::unreachable(""), CacheError::Interrupted];
        assert!(retryable.iter().all(CacheError::is_retryable));
        let lasting = [
            CacheError::NotFound,
            CacheError::Denied,
            CacheError::RateLimited { retry_after: None },
            CacheError::Overloaded { retry_after: Duration::ZERO },
            CacheError::Mismatch(String::new()),
            StoreError::Closed.into(),
        ];
        assert!(!lasting.iter().any(CacheError::is_retryable));
    }

    #[test]
    fn error_keeps_the_text_and_the_error_of_the_upstream() {
        let error = CacheError::from(SourceError::Timeout("connect".to_owned()));
        assert_eq!(error.to_string(), "the upstream gave no timely answer: connect");
        assert_eq!(error.kind(), CacheErrorKind::Timeout);
        assert!(error.source().is_some_and(|source| source.to_string().contains("connect")));
        let error = CacheError::from(SourceError::Failed("status 500".to_owned()));
        assert_eq!(
            (error.kind(), error.to_string()),
            (CacheErrorKind::Unreachable, SourceError::Failed("status 500".to_owned()).to_string())
        );
    }
}
