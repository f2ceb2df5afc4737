//! Why the cache has nothing to serve: meanings, from which the API makes statuses.

use std::sync::Arc;
use std::time::Duration;

use crate::source::SourceError;
use crate::store::StoreError;

/// Why a request gets no content. Cheap to clone, because everybody in a flight gets the same one.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CacheError {
    /// The upstream says that there is no such thing.
    #[error("the upstream does not have it")]
    NotFound,
    /// The upstream has no referrers API.
    #[error("the upstream has no referrers API")]
    NoReferrers,
    /// The upstream refuses, and nothing is held.
    #[error("the upstream refuses access")]
    Denied,
    /// The upstream's quota is used up, and nothing is held.
    #[error("the upstream's rate limit is reached")]
    RateLimited {
        /// How long the upstream wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// The upstream asks to be left alone, and nothing is held.
    #[error("the upstream is overloaded")]
    Overloaded {
        /// For how long.
        retry_after: Duration,
    },
    /// The upstream gave no timely answer, and nothing is held.
    #[error("the upstream gave no timely answer: {0}")]
    Timeout(String),
    /// The upstream cannot be reached or fails, and nothing is held.
    #[error("{0}")]
    Unreachable(String),
    /// What the upstream sent is not kept: it breaks a rule, or two clients could read it in two ways.
    #[error("the upstream's answer was refused: {0}")]
    Invalid(String),
    /// What the upstream sent is not what its digest, or its descriptor, promised.
    #[error("the upstream's content does not verify: {0}")]
    Mismatch(String),
    /// The work that this request waited for was lost.
    #[error("the fetch that this request waited for was lost; ask again")]
    Interrupted,
    /// The store failed.
    #[error(transparent)]
    Store(Arc<StoreError>),
}

impl CacheError {
    /// Whether what is held has shown to be damaged.
    pub(super) fn is_damage(&self) -> bool {
        matches!(self, Self::Store(error) if matches!(**error, StoreError::Damaged(_)))
    }

    /// Nothing came in time.
    pub(super) fn too_late(patience: Duration) -> Self {
        Self::Timeout(format!("none within {patience:?}"))
    }

    /// Whether the upstream could not give a definite answer, so that what is held may be served instead.
    pub fn is_trouble(&self) -> bool {
        !matches!(self, Self::NotFound | Self::NoReferrers)
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
            busy @ SourceError::Busy => Self::Timeout(busy.to_string()),
            SourceError::Timeout(what) => Self::Timeout(what),
            SourceError::Invalid(what) => Self::Invalid(what),
            error @ SourceError::Undecodable => Self::Invalid(error.to_string()),
            other => Self::Unreachable(other.to_string()),
        }
    }
}
