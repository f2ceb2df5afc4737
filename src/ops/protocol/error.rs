//! Errors of operations, each with a code for programs and a message for people.

use serde::{Deserialize, Serialize};

use crate::cache::{CacheError, ImportError, RouteError};
use crate::oci::Digest;
use crate::oci::name::NameError;

/// Error of an operation. Its codes are part of the admin API.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpsError {
    /// The request is invalid.
    #[error("{0}")]
    Invalid(String),
    /// The requested content is not cached.
    #[error("{0}")]
    NotCached(String),
    /// The index has no image for a platform.
    #[error("{reference} has no image for {wanted}; available: {}", listed(available))]
    NoPlatform {
        /// Reference in the request.
        reference: String,
        /// Requested platform.
        wanted: String,
        /// Available platforms.
        available: Vec<String>,
    },
    /// The image is not cached with a media type.
    #[error(
        "{reference} is cached as {}, not as {wanted}; larder does not convert media types",
        listed(available)
    )]
    NoMediaType {
        /// Reference in the request.
        reference: String,
        /// Requested media types.
        wanted: String,
        /// Cached media types.
        available: Vec<String>,
    },
    /// Content is missing, and fetching it was not permitted.
    #[error(
        "{reference} is not completely cached: {} missing, first {}; leave out --offline, or fetch it with `larder warm`",
        if missing.len() == 1 { "one part is".to_owned() } else { format!("{} parts are", missing.len()) },
        first(missing)
    )]
    Missing {
        /// Reference in the request.
        reference: String,
        /// Digests of the missing content.
        missing: Vec<Digest>,
    },
    /// Another operation must finish first.
    #[error("{0}")]
    Busy(String),
    /// The content is invalid.
    #[error("{0}")]
    Content(String),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// Formats the first digests, as many as a person reads.
fn first(digests: &[Digest]) -> String {
    let shown: Vec<String> = digests.iter().take(5).map(ToString::to_string).collect();
    shown.join(", ")
}

impl OpsError {
    /// Returns the code for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid",
            Self::NotCached(_) => "not-held",
            Self::NoPlatform { .. } => "no-platform",
            Self::NoMediaType { .. } => "no-media-type",
            Self::Missing { .. } => "missing",
            Self::Busy(_) => "busy",
            Self::Content(_) => "content",
            Self::Cache(CacheError::Store(_)) => "store",
            Self::Cache(_) => "upstream",
        }
    }

    /// Returns the error in the form of the admin API.
    pub fn failure(&self) -> Failure {
        Failure { code: self.code().to_owned(), message: self.to_string() }
    }
}

impl From<ImportError> for OpsError {
    fn from(error: ImportError) -> Self {
        match error {
            ImportError::Store(error) => Self::Cache(error.into()),
            other => Self::Content(other.to_string()),
        }
    }
}

impl From<NameError> for OpsError {
    fn from(error: NameError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<RouteError> for OpsError {
    fn from(error: RouteError) -> Self {
        Self::Invalid(error.to_string())
    }
}

/// Error in the form of the admin API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error, utoipa::ToSchema)]
#[error("{message}")]
pub struct Failure {
    /// Code for programs.
    pub code: String,
    /// Message for people.
    pub message: String,
}
