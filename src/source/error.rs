//! Errors of sources, by meaning.

use std::fmt;
use std::time::Duration;

/// Reason why a source sent nothing that can be used.
///
/// The texts reach clients. They contain no local path, address, URL or secret; such details are logged where the error
/// occurs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The source was asked and does not have the content.
    #[error("the upstream does not have it")]
    NotFound,
    /// The source has no list of referrers.
    #[error("the upstream has no referrers API")]
    NoReferrers {
        /// True if the source has no such lists at all, false if only this one is missing.
        lasting: bool,
    },
    /// The referrers API redirects to another host, which fails. Such a registry has no API: ghcr.io redirects to a web page.
    #[error("the upstream redirects its referrers API to a host that does not have it")]
    ReferrersElsewhere,
    /// The response of the referrers API is not a list: a web page, or another document. Some registries without the API answer
    /// so.
    #[error("the upstream's referrers API sends something else than a list")]
    NotReferrers,
    /// The source refused access, with or without credentials.
    #[error("the upstream refused access with {0}; check the upstream's credentials")]
    Denied(Denial),
    /// The rate limit is reached or the quota is used up.
    #[error("the upstream limits the rate of requests")]
    RateLimited {
        /// Time to wait before the next request, if the source announced one.
        retry_after: Option<Duration>,
    },
    /// The source is overloaded and asked for a pause.
    #[error("the upstream is overloaded and asks to be left alone")]
    Overloaded {
        /// Time to wait before the next request.
        retry_after: Duration,
    },
    /// All connections that may be open to the source are in use.
    #[error("all connections to the upstream (max_connections) are in use")]
    Busy,
    /// No memory for one more large manifest or list before the deadline.
    #[error("too many large manifests and lists are being processed; ask again")]
    TooManyDocuments,
    /// No answer before the deadline.
    #[error("the upstream did not answer in time: {0}")]
    Timeout(String),
    /// No connection was established in time.
    #[error("the upstream did not answer in time: no connection was established")]
    ConnectTimeout,
    /// No connection to the source.
    #[error("the upstream cannot be reached: {0}")]
    Unreachable(String),
    /// A connection that broke before the answer, or a failure of another host that the source named.
    #[error("the upstream sent no answer: {0}")]
    NoResponse(String),
    /// A failure of the source that may pass at once, with its status.
    #[error("the upstream answered with status {0}")]
    Unavailable(u16),
    /// A failure of a host that the source redirects to, with its status. Says nothing about other requests to the source.
    #[error("a host that the upstream redirects to answered with status {0}")]
    TargetUnavailable(u16),
    /// A failure of the source that a retry does not cure.
    #[error("the upstream answered with {0}")]
    Failed(String),
    /// The source does not support this kind of request. Says nothing about the content.
    #[error("the upstream answered with {0}")]
    Unsupported(String),
    /// An answer that breaks the protocol or one of larder's limits.
    #[error("the upstream's answer cannot be used: {0}")]
    Invalid(String),
    /// A body labelled as gzip that cannot be decoded.
    #[error("the upstream's answer is labelled as gzip and does not decode")]
    Undecodable,
    /// A body that ended early or stalled.
    #[error("the upstream's answer was interrupted: {0}")]
    Interrupted(String),
    /// The range begins at or after the end of the blob.
    #[error("the upstream has no such range of the blob")]
    RangeNotSatisfiable,
    /// The request has come back to a server that it has passed.
    #[error(
        "the request came back to a server that it had passed; check the endpoints of the upstream on all servers"
    )]
    Loop,
    /// A failure on this side, before the source was asked.
    #[error("larder cannot ask the upstream: {0}")]
    Local(String),
}

/// Kind of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// The source wants credentials, or others.
    Unauthenticated,
    /// The source knows the credentials and does not permit access with them.
    Forbidden,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unauthenticated => "status 401",
            Self::Forbidden => "status 403",
        })
    }
}

impl SourceError {
    /// Returns true if the same request to the same place may succeed at once.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Unreachable(_) | Self::NoResponse(_) | Self::Unavailable(_) | Self::TargetUnavailable(_)
        )
    }

    /// Returns true if no connection to the source was established. Any other failure may be limited to one request.
    pub fn is_connection_failure(&self) -> bool {
        matches!(self, Self::ConnectTimeout | Self::Unreachable(_))
    }

    /// Returns true if nothing arrived, not even the head of an answer.
    pub fn is_silence(&self) -> bool {
        self.is_connection_failure() || matches!(self, Self::Timeout(_) | Self::NoResponse(_))
    }

    /// Returns the time to wait that the source asked for.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after } => *retry_after,
            Self::Overloaded { retry_after } => Some(*retry_after),
            _ => None,
        }
    }

    /// Returns the wait if the source refuses requests for a moment only: so short that the request can be repeated at once.
    /// ghcr.io asks for less than a millisecond.
    pub fn short_wait(&self) -> Option<Duration> {
        const SHORT_WAIT: Duration = Duration::from_secs(1);
        self.retry_after().filter(|wait| *wait < SHORT_WAIT)
    }

    /// Returns true if this answer to [`head`](super::Source::head) or [`blob_size`](super::Source::blob_size) may be
    /// about the kind of request and not about the content. Some registries, proxies and signed URLs refuse `HEAD` in
    /// this way; only a request for the content itself is conclusive.
    pub fn may_be_about_head(&self) -> bool {
        matches!(self, Self::NotFound | Self::Denied(_) | Self::Unsupported(_))
    }

    /// Returns true if this answer to a request for a range is about the range and not about the blob. Ranges are optional
    /// (RFC 9110, section 14.2).
    pub fn is_about_range(&self) -> bool {
        matches!(self, Self::Unsupported(_) | Self::Invalid(_))
    }

    /// Returns true if this answer to a request for a range has several possible causes: a server that refuses ranges, a
    /// signed address that has expired, or a failure.
    pub fn may_be_about_range(&self) -> bool {
        matches!(self, Self::Denied(_) | Self::Unavailable(500) | Self::TargetUnavailable(500))
    }

    /// Returns true if the source failed. Other requests may fail too, or only those for the same content.
    pub fn is_outage(&self) -> bool {
        matches!(
            self,
            Self::Timeout(_)
                | Self::ConnectTimeout
                | Self::Unreachable(_)
                | Self::NoResponse(_)
                | Self::Interrupted(_)
                | Self::Unavailable(_)
                | Self::TargetUnavailable(_)
                | Self::Failed(_)
        )
    }

    /// Returns the less definite of two errors. Of several places, all must say "not found" for the content not to
    /// exist, so the least definite error counts.
    #[must_use]
    pub fn less_definite(self, other: Self) -> Self {
        // A server in a circle has nothing to say beyond what the others say.
        match (self, other) {
            (Self::Loop, other) => other,
            (kept, Self::Loop) => kept,
            (kept, other) if kept.doubt() < other.doubt() => other,
            (kept, _) => kept,
        }
    }

    /// Returns the distance from a definite "not found".
    fn doubt(&self) -> u8 {
        match self {
            Self::NotFound | Self::NoReferrers { lasting: true } | Self::ReferrersElsewhere => 0,
            Self::RangeNotSatisfiable | Self::NoReferrers { lasting: false } | Self::NotReferrers => 1,
            Self::Denied(_) => 2,
            Self::RateLimited { .. } | Self::Overloaded { .. } => 3,
            _ => 4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_retryable_excludes_rate_limits_and_timeouts() {
        assert!(!SourceError::RateLimited { retry_after: None }.is_retryable());
        assert!(!SourceError::Timeout(String::new()).is_retryable());
        assert!(SourceError::Unavailable(503).is_retryable());
    }

    #[test]
    fn less_definite_prefers_the_error_that_proves_least() {
        let busy = SourceError::Busy;
        assert_eq!(SourceError::NotFound.less_definite(busy.clone()), busy);
        assert_eq!(busy.clone().less_definite(SourceError::NotFound), busy);
        let denied = SourceError::Denied(Denial::Forbidden);
        assert_eq!(denied.clone().less_definite(SourceError::NotFound), denied);
        assert_eq!(SourceError::Loop.less_definite(SourceError::NotFound), SourceError::NotFound);
        assert_eq!(SourceError::NotFound.less_definite(SourceError::Loop), SourceError::NotFound);
        let first = SourceError::Timeout("first".to_owned());
        assert_eq!(first.clone().less_definite(SourceError::Busy), first);
    }
}
