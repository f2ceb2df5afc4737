//! What can go wrong between larder and a registry, by meaning.

use std::path::PathBuf;
use std::time::Duration;

use crate::oci::PatternError;

/// Why an upstream gave nothing that can be used.
///
/// The texts reach clients: what is wrong and what helps, but no local path, no address, no URL and no secret. What
/// only the operator may know is logged where the error arises.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// A definite "not there".
    #[error("the upstream does not have it")]
    NotFound,
    /// The registry has no referrers API, as far as this question goes.
    #[error("the upstream has no referrers API")]
    NoReferrers {
        /// Whether its answer was about the API and not about what was asked for, so that it holds for the next
        /// question too.
        lasting: bool,
    },
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
    /// It asks to be left alone, for another reason than its quota (503 with `Retry-After`).
    #[error("the upstream is overloaded and asks to be left alone")]
    Overloaded {
        /// For how long.
        retry_after: Duration,
    },
    /// All connections that larder may have to it are in use.
    #[error("all connections to the upstream (max_connections) are in use")]
    Busy,
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
    /// A body labelled as gzip that is none.
    #[error("the upstream's answer is labelled as gzip and does not decode")]
    Undecodable,
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
    /// Whether a second attempt at once, within the same request, is worth its delay.
    pub(crate) fn transient(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Status(500 | 502 | 503 | 504))
    }

    /// How long the upstream wants to be left alone, if it said so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after } => *retry_after,
            Self::Overloaded { retry_after } => Some(*retry_after),
            _ => None,
        }
    }

    /// Whether this, in answer to a HEAD, may be about the method rather than about what was asked for: registries,
    /// proxies and signed addresses refuse HEAD alone with any of these, and only a GET can tell.
    pub fn may_be_about_head(&self) -> bool {
        match self {
            Self::NotFound | Self::Denied { .. } => true,
            Self::Status(status) => matches!(status, 400..=499 | 501),
            _ => false,
        }
    }

    /// Whether the endpoint failed as such, whatever it was asked for.
    pub(crate) fn is_outage(&self) -> bool {
        match self {
            Self::Timeout(_) | Self::Unreachable(_) | Self::Interrupted(_) => true,
            Self::Status(status) => *status >= 500,
            _ => false,
        }
    }

    /// How far this is from a definite "not there". Of several endpoints' errors the most doubtful one counts.
    pub(crate) fn doubt(&self) -> u8 {
        match self {
            Self::NotFound | Self::NoReferrers { lasting: true } => 0,
            Self::RangeNotSatisfiable | Self::NoReferrers { lasting: false } => 1,
            Self::Denied { .. } => 2,
            Self::RateLimited { .. } | Self::Overloaded { .. } => 3,
            _ => 4,
        }
    }
}

/// Why the upstreams of a configuration cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The table's name is no host name.
    #[error("[upstream.\"{0}\"]: the name is no host name; write it in lower case, with a port if need be")]
    Name(String),
    /// No endpoint at all.
    #[error("[upstream.\"{0}\"]: no endpoint is given; name at least one")]
    Endpoints(String),
    /// An endpoint that is no usable URL.
    #[error("[upstream.\"{upstream}\"]: an endpoint is wrong: {reason}")]
    Endpoint {
        /// The upstream's name.
        upstream: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A pattern of `allow` or `deny` that is none.
    #[error("[upstream.\"{upstream}\"]: {reason}")]
    Pattern {
        /// The upstream's name.
        upstream: String,
        /// The pattern, what is wrong with it, and the remedy.
        reason: PatternError,
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
    fn a_quota_is_not_hammered() {
        assert!(!UpstreamError::RateLimited { retry_after: None }.transient());
        assert!(!UpstreamError::Timeout(String::new()).transient());
        assert!(UpstreamError::Status(503).transient());
    }
}
