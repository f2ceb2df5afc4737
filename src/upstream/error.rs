//! What can go wrong between larder and a registry, by meaning: whose fault it is, and whether asking again can help.

use std::path::PathBuf;
use std::time::Duration;

/// Who has to act for the next request to succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The client asked for something that is not there.
    Client,
    /// The upstream or the way to it.
    Upstream,
    /// larder itself, its configuration or its machine.
    Larder,
}

/// Why an upstream gave nothing that can be used. Texts hold no secrets and no query strings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// A definite "not there".
    #[error("the upstream does not have it")]
    NotFound,
    /// Refused, with or without our credentials.
    #[error("the upstream refused access with status {status}; check the upstream's credentials")]
    Denied {
        /// 401 or 403.
        status: u16,
    },
    /// The quota is used up.
    #[error("the upstream limits the rate of requests")]
    RateLimited {
        /// How long it wants to be left alone, if it said so.
        retry_after: Option<Duration>,
    },
    /// No answer in time.
    #[error("the upstream did not answer in time: {0}")]
    Timeout(String),
    /// No connection, or one that broke before the answer's head.
    #[error("the upstream cannot be reached: {0}")]
    Unreachable(String),
    /// A status that means nothing definite.
    #[error("the upstream answered with status {0}")]
    Status(u16),
    /// An answer that breaks the protocol or a limit of ours.
    #[error("the upstream's answer cannot be used: {0}")]
    Invalid(String),
    /// A body that ended early or stopped coming.
    #[error("the upstream's answer was interrupted: {0}")]
    Interrupted(String),
    /// The range begins beyond the blob's end.
    #[error("the upstream has no such range of the blob")]
    RangeNotSatisfiable,
    /// Something on our side stood in the way before the upstream was asked.
    #[error("larder cannot ask the upstream: {0}")]
    Local(String),
}

impl UpstreamError {
    /// Whether the same request may succeed later without anybody changing anything.
    pub fn retryable(&self) -> bool {
        match self {
            Self::RateLimited { .. } | Self::Timeout(_) | Self::Unreachable(_) | Self::Interrupted(_) => true,
            Self::Status(status) => matches!(status, 408 | 425 | 500..),
            Self::NotFound
            | Self::Denied { .. }
            | Self::Invalid(_)
            | Self::RangeNotSatisfiable
            | Self::Local(_) => false,
        }
    }

    /// Who has to act.
    pub fn fault(&self) -> Fault {
        match self {
            Self::NotFound | Self::Denied { .. } | Self::RangeNotSatisfiable => Fault::Client,
            Self::Local(_) => Fault::Larder,
            Self::RateLimited { .. }
            | Self::Timeout(_)
            | Self::Unreachable(_)
            | Self::Status(_)
            | Self::Invalid(_)
            | Self::Interrupted(_) => Fault::Upstream,
        }
    }

    /// Whether this tells nothing about the content, so that a copy may be served in its place.
    ///
    /// Only "not there" and "no such range" are answers; everything else is the lack of one.
    pub fn is_trouble(&self) -> bool {
        !matches!(self, Self::NotFound | Self::RangeNotSatisfiable)
    }

    /// How long the upstream wants to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after } => *retry_after,
            _ => None,
        }
    }

    /// Whether a second attempt at once, within the same request, is worth its delay.
    pub(super) fn transient(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Status(500 | 502 | 503 | 504))
    }
}

/// Why the upstreams of a configuration cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The table's name is no host name.
    #[error("[upstream.\"{0}\"]: the name is no host name; write it in lower case, with a port if need be")]
    Name(String),
    /// Not exactly one endpoint.
    #[error("[upstream.\"{upstream}\"]: {count} endpoints are given; exactly one is supported")]
    Endpoints {
        /// The upstream's name.
        upstream: String,
        /// How many it has.
        count: usize,
    },
    /// An endpoint that is no usable URL.
    #[error("[upstream.\"{upstream}\"]: an endpoint is wrong: {reason}")]
    Endpoint {
        /// The upstream's name.
        upstream: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A PEM file that cannot be used.
    #[error("[upstream.\"{upstream}\"]: {}: {reason}", path.display())]
    Pem {
        /// The upstream's name.
        upstream: String,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// TLS or the HTTP client could not be set up.
    #[error("[upstream.\"{upstream}\"]: the connection cannot be set up: {reason}")]
    Client {
        /// The upstream's name.
        upstream: String,
        /// What went wrong.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_definite_answers_are_no_trouble() {
        assert!(!UpstreamError::NotFound.is_trouble());
        assert!(!UpstreamError::RangeNotSatisfiable.is_trouble());
        assert!(UpstreamError::Denied { status: 401 }.is_trouble());
        assert!(UpstreamError::Status(500).is_trouble());
        assert!(UpstreamError::RateLimited { retry_after: None }.is_trouble());
    }

    #[test]
    fn a_quota_is_waited_for_and_not_hammered() {
        let error = UpstreamError::RateLimited { retry_after: Some(Duration::from_secs(7)) };
        assert!(error.retryable() && !error.transient());
        assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
        assert!(!UpstreamError::Timeout(String::new()).transient());
    }
}
