//! Errors of setting up the upstreams of a configuration.

use std::path::PathBuf;

use crate::oci::PatternError;
use crate::tls::ClientTlsError;

/// Reason why the upstreams of a configuration cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A table whose name is not a host name.
    #[error(
        "[upstream.\"{0}\"]: the name is not a host name; write it in lower case, with a port if need be"
    )]
    Name(String),
    /// A table without endpoints.
    #[error("[upstream.\"{0}\"]: no endpoint is given; add at least one")]
    Endpoints(String),
    /// An endpoint that is not a usable URL.
    #[error("[upstream.\"{upstream}\"]: an endpoint is wrong: {reason}")]
    Endpoint {
        /// Name of the upstream.
        upstream: String,
        /// Description of the fault.
        reason: String,
    },
    /// An invalid pattern in `allow` or `deny`.
    #[error("[upstream.\"{upstream}\"]: {reason}")]
    Pattern {
        /// Name of the upstream.
        upstream: String,
        /// The pattern, its fault, and the remedy.
        reason: PatternError,
    },
    /// A PEM file that cannot be used.
    #[error("[upstream.\"{upstream}\"]: {}: {reason}", path.display())]
    Pem {
        /// Name of the upstream.
        upstream: String,
        /// Path of the file.
        path: PathBuf,
        /// Description of the fault.
        reason: String,
    },
    /// TLS or the HTTP client could not be set up.
    #[error("[upstream.\"{upstream}\"]: the connection cannot be set up: {reason}")]
    Client {
        /// Name of the upstream.
        upstream: String,
        /// Description of the fault.
        reason: String,
    },
}

impl BuildError {
    /// Adds the upstream's name to an error of its TLS set-up.
    pub(crate) fn tls(upstream: &str, error: ClientTlsError) -> Self {
        let upstream = upstream.to_owned();
        match error {
            ClientTlsError::File { path, reason } => Self::Pem { upstream, path, reason },
            ClientTlsError::Setup(reason) => Self::Client { upstream, reason },
        }
    }
}
