//! Why an operator does not get what was asked for: each with a word for programs and a sentence for people.

use serde::{Deserialize, Serialize};

use crate::cache::{CacheError, ImportError, RouteError};
use crate::oci::Digest;
use crate::oci::name::NameError;

/// Why there is no answer. Its words are part of the admin API.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpsError {
    /// Something in the question is not what it should be.
    #[error("{0}")]
    Invalid(String),
    /// What was asked about is not held.
    #[error("{0}")]
    NotHeld(String),
    /// There is no image for a platform; the platforms there are.
    #[error("{reference} has no image for {wanted}; there are: {}", listed(there))]
    NoPlatform {
        /// What was asked about.
        reference: String,
        /// The platform that was asked for.
        wanted: String,
        /// The platforms that there are.
        there: Vec<String>,
    },
    /// Nothing is held of a media type; the media types there are.
    #[error(
        "{reference} is held as {}, not as {wanted}; larder never converts one into another",
        listed(there)
    )]
    NoMediaType {
        /// What was asked about.
        reference: String,
        /// The media types that were asked for.
        wanted: String,
        /// Those that are held.
        there: Vec<String>,
    },
    /// Not all of it is held, and what is not must not be fetched.
    #[error(
        "{reference} is not held whole: {} missing, first {}; leave out --offline, or fetch it with `larder warm`",
        if missing.len() == 1 { "one thing is".to_owned() } else { format!("{} things are", missing.len()) },
        first(missing)
    )]
    Missing {
        /// What was asked about.
        reference: String,
        /// What is not held.
        missing: Vec<Digest>,
    },
    /// Something else has to end first.
    #[error("{0}")]
    Busy(String),
    /// The content that was given, or found, is not what it should be.
    #[error("{0}")]
    Content(String),
    /// The cache had nothing to give.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// As many of them as a person reads.
fn first(digests: &[Digest]) -> String {
    let shown: Vec<String> = digests.iter().take(5).map(ToString::to_string).collect();
    shown.join(", ")
}

impl OpsError {
    /// The word for it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid",
            Self::NotHeld(_) => "not-held",
            Self::NoPlatform { .. } => "no-platform",
            Self::NoMediaType { .. } => "no-media-type",
            Self::Missing { .. } => "missing",
            Self::Busy(_) => "busy",
            Self::Content(_) => "content",
            Self::Cache(CacheError::Store(_)) => "store",
            Self::Cache(_) => "upstream",
        }
    }

    /// As it is told to programs.
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

/// Why there is no answer, as it goes over the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error, utoipa::ToSchema)]
#[error("{message}")]
pub struct Failure {
    /// The word for it.
    pub code: String,
    /// The sentence for people.
    pub message: String,
}
