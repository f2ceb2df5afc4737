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
    /// Definite absence at the last check. The upstream could not be asked again.
    #[error("the upstream did not have it when it was last asked")]
    StaleAbsence {
        /// Time since the last check.
        age: Duration,
        /// Reason for which the upstream could not be asked again.
        reason: Arc<CacheError>,
    },
    /// Missing referrers API of the upstream.
    #[error("the upstream has no referrers API")]
    NoReferrers,
    /// Refused access, with nothing cached.
    #[error("the upstream refuses access")]
    Denied {
        /// Original error.
        source: Option<Source>,
    },
    /// Exhausted quota of the upstream, with nothing cached.
    #[error("the upstream's rate limit is reached")]
    RateLimited {
        /// Pause that the upstream asks for.
        retry_after: Option<Duration>,
        /// Original error.
        source: Option<Source>,
    },
    /// Overloaded upstream that asks for a pause, with nothing cached.
    #[error("the upstream is overloaded")]
    Overloaded {
        /// Pause that the upstream asks for.
        retry_after: Duration,
        /// Original error.
        source: Option<Source>,
    },
    /// No memory for one more large manifest or list.
    #[error("too many large manifests and lists are being processed; ask again")]
    TooManyDocuments,
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
    /// Request that has come back to a server that it has passed.
    #[error("{}", SourceError::Loop)]
    Loop,
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
    /// [`CacheError::NotFound`] or [`CacheError::StaleAbsence`].
    NotFound,
    /// [`CacheError::NoReferrers`].
    NoReferrers,
    /// [`CacheError::Denied`].
    Denied,
    /// [`CacheError::RateLimited`].
    RateLimited,
    /// [`CacheError::Overloaded`].
    Overloaded,
    /// [`CacheError::TooManyDocuments`].
    TooManyDocuments,
    /// [`CacheError::Timeout`].
    Timeout,
    /// [`CacheError::Unreachable`].
    Unreachable,
    /// [`CacheError::Invalid`].
    Invalid,
    /// [`CacheError::Loop`].
    Loop,
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
            Self::NotFound | Self::StaleAbsence { .. } => CacheErrorKind::NotFound,
            Self::NoReferrers => CacheErrorKind::NoReferrers,
            Self::Denied { .. } => CacheErrorKind::Denied,
            Self::RateLimited { .. } => CacheErrorKind::RateLimited,
            Self::Overloaded { .. } => CacheErrorKind::Overloaded,
            Self::TooManyDocuments => CacheErrorKind::TooManyDocuments,
            Self::Timeout { .. } => CacheErrorKind::Timeout,
            Self::Unreachable { .. } => CacheErrorKind::Unreachable,
            Self::Invalid { .. } => CacheErrorKind::Invalid,
            Self::Loop => CacheErrorKind::Loop,
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
            CacheErrorKind::Timeout
                | CacheErrorKind::Unreachable
                | CacheErrorKind::Interrupted
                | CacheErrorKind::TooManyDocuments
        )
    }

    /// Returns the pause before a client should retry; `None` if no pause is known to help.
    pub fn retry_after(&self) -> Option<Duration> {
        /// Pause after a rate limit without one.
        const RATE_LIMIT_PAUSE: Duration = Duration::from_mins(1);
        /// Pause after a lost fetch: a new one starts at once.
        const INTERRUPTED_PAUSE: Duration = Duration::from_secs(1);
        /// Pause until other documents have been processed.
        const DOCUMENTS_PAUSE: Duration = Duration::from_secs(5);
        match self {
            Self::RateLimited { retry_after, .. } => Some(retry_after.unwrap_or(RATE_LIMIT_PAUSE)),
            Self::Overloaded { retry_after, .. } => Some(*retry_after),
            Self::Interrupted => Some(INTERRUPTED_PAUSE),
            Self::TooManyDocuments => Some(DOCUMENTS_PAUSE),
            _ => None,
        }
    }

    /// Returns the original error if the text of this error does not contain it, for logs. Clients do not get it.
    pub fn cause(&self) -> Option<&(dyn Error + Send + Sync)> {
        match self {
            Self::Denied { source } | Self::RateLimited { source, .. } | Self::Overloaded { source, .. } => {
                source.as_deref()
            }
            Self::StaleAbsence { reason, .. } => Some(&**reason),
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
        let source: Option<Source> = Some(Arc::new(error.clone()));
        match error {
            SourceError::NotFound => Self::NotFound,
            SourceError::Loop => Self::Loop,
            SourceError::NoReferrers { .. } | SourceError::ReferrersElsewhere | SourceError::NotReferrers => {
                Self::NoReferrers
            }
            SourceError::Denied(_) => Self::Denied { source },
            SourceError::RateLimited { retry_after } => Self::RateLimited { retry_after, source },
            SourceError::Overloaded { retry_after } => Self::Overloaded { retry_after, source },
            SourceError::Timeout(reason) => Self::Timeout { reason, source },
            SourceError::TooManyDocuments => Self::TooManyDocuments,
            SourceError::ConnectTimeout => {
                Self::Timeout { reason: "no connection was established".to_owned(), source }
            }
            SourceError::Busy => Self::Timeout { reason: error.to_string(), source },
            SourceError::Invalid(reason) => Self::Invalid { reason, source },
            SourceError::Undecodable => Self::Invalid { reason: error.to_string(), source },
            other => Self::Unreachable { reason: other.to_string(), source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Denial;

    #[test]
    fn is_retryable_is_true_for_what_passes_within_seconds() {
        let retryable = [CacheError::timeout(""), CacheError::unreachable(""), CacheError::Interrupted];
        assert!(retryable.iter().all(CacheError::is_retryable));
        let lasting = [
            CacheError::NotFound,
            SourceError::Denied(Denial::Forbidden).into(),
            SourceError::RateLimited { retry_after: None }.into(),
            SourceError::Overloaded { retry_after: Duration::ZERO }.into(),
            CacheError::Mismatch(String::new()),
            StoreError::Closed.into(),
        ];
        assert!(!lasting.iter().any(CacheError::is_retryable));
    }

    #[test]
    fn cause_is_the_error_that_the_text_does_not_contain() {
        let denied = CacheError::from(SourceError::Denied(Denial::Forbidden));
        assert_eq!(denied.to_string(), "the upstream refuses access");
        assert!(denied.cause().is_some_and(|cause| cause.to_string().contains("status 403")));
        assert!(denied.source().is_some());
        assert!(CacheError::from(SourceError::Failed("status 500".to_owned())).cause().is_none());
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
