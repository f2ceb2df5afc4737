//! Error responses of the registry API: the only place that picks a status and an OCI error code.

use std::time::Duration;

use http::header::{ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};

use crate::cache::{CacheError, CacheErrorKind, RouteError};
use crate::oci::UpstreamName;
use crate::oci::error::{Code, document};
use crate::oci::name::NameError;
use crate::telemetry::{Outcome, RequestKind};

use super::body::Body;
use super::host::HostError;
use super::response::{insert_age, insert_outcome, insert_text};

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Reason for which a request gets no content.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The path names no resource.
    NoSuchPath,
    /// The method is not a read.
    Write,
    /// The request has a body with `Transfer-Encoding`, a possible request smuggling attack (RFC 9112, 6.1).
    Framing,
    /// The request has no valid `Host`, or several.
    Host(HostError),
    /// The name, tag or digest is invalid.
    Name(NameError),
    /// The request names no configured repository.
    Route(RouteError),
    /// The page size is not a number, or larger than the maximum.
    PageSize(Option<usize>),
    /// The range has no byte of the blob, which has this length.
    Range(u64),
    /// The digest has an algorithm that cannot be verified, and the upstream does not permit such blobs.
    Unverifiable(String, UpstreamName),
    /// No tag of the repository is cached.
    NoTags,
    /// The cache cannot serve the content.
    Cache(CacheError),
}

impl From<CacheError> for Refusal {
    fn from(error: CacheError) -> Self {
        Self::Cache(error)
    }
}

impl From<NameError> for Refusal {
    fn from(error: NameError) -> Self {
        Self::Name(error)
    }
}

impl From<RouteError> for Refusal {
    fn from(error: RouteError) -> Self {
        Self::Route(error)
    }
}

impl Refusal {
    /// Returns the status, the OCI error code and the message.
    ///
    /// Clients of a mirror fall back to the registry after each of these statuses. So a response must not say "does not
    /// exist" if that is unknown, and must not ask for credentials.
    fn meaning(&self, kind: RequestKind, gateway: bool) -> (StatusCode, Code, String) {
        match self {
            Self::NoSuchPath => (
                StatusCode::NOT_FOUND,
                Code::UNSUPPORTED,
                "no such path; the registry API is under /v2/".into(),
            ),
            Self::Write => (
                StatusCode::METHOD_NOT_ALLOWED,
                Code::UNSUPPORTED,
                "this is a read-only cache; push to the registry itself".into(),
            ),
            Self::Framing => {
                (StatusCode::BAD_REQUEST, Code::UNSUPPORTED, "a read request must not have a body".into())
            }
            Self::Host(error) => (StatusCode::BAD_REQUEST, Code::UNSUPPORTED, error.message().into()),
            // The conformance suite requires 404 for an invalid tag.
            Self::Name(error @ NameError::Tag(_)) => {
                (StatusCode::NOT_FOUND, Code::MANIFEST_UNKNOWN, error.to_string())
            }
            Self::Name(error @ NameError::Digest(_)) => {
                (StatusCode::BAD_REQUEST, Code::DIGEST_INVALID, error.to_string())
            }
            Self::Name(error @ NameError::Name(_)) | Self::Route(RouteError::Name(error)) => {
                (StatusCode::BAD_REQUEST, Code::NAME_INVALID, error.to_string())
            }
            Self::Route(error) => (StatusCode::NOT_FOUND, Code::NAME_UNKNOWN, error.to_string()),
            Self::PageSize(maximum) => {
                let message = maximum.map_or_else(
                    || "`n` must be a number that is not negative".to_owned(),
                    |maximum| format!("`n` must not be larger than {maximum}"),
                );
                (StatusCode::BAD_REQUEST, Code::PAGINATION_NUMBER_INVALID, message)
            }
            Self::Range(length) => (
                StatusCode::RANGE_NOT_SATISFIABLE,
                Code::RANGE_INVALID,
                format!("the blob has {length} bytes, none of them in the range"),
            ),
            Self::Unverifiable(algorithm, upstream) => {
                let message = format!(
                    "digest algorithm `{algorithm}` is not supported: only sha256 and sha512 can be verified; \
                     unverifiable = \"pass\" of the upstream {upstream} passes such blobs through"
                );
                (StatusCode::BAD_REQUEST, Code::DIGEST_INVALID, message)
            }
            Self::NoTags => {
                (StatusCode::NOT_FOUND, Code::NAME_UNKNOWN, "no tag of this repository is cached".into())
            }
            Self::Cache(error) => {
                let (status, code) = cache_meaning(error, kind, gateway);
                (status, code, error.to_string())
            }
        }
    }

    /// Returns the outcome of the request.
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Cache(CacheError::StaleAbsence { .. }) => Outcome::Stale,
            _ => Outcome::None,
        }
    }

    /// Returns the response, and the reason for the log.
    pub(super) fn response(&self, kind: RequestKind, gateway: bool) -> (Response<Body>, String) {
        let (status, code, message) = self.meaning(kind, gateway);
        let body = document(code, &message);
        let cause = if let Self::Cache(error) = self { error.cause() } else { None };
        let reason = cause.map_or(message, ToString::to_string);
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, JSON);
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        match self {
            // The next request on the connection may be part of an attack.
            Self::Framing | Self::Host(_) => {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Self::Write => {
                headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            }
            Self::Range(length) => {
                insert_text(headers, http::header::CONTENT_RANGE, &format!("bytes */{length}"));
            }
            Self::Cache(CacheError::StaleAbsence { age, reason }) => {
                insert_age(headers, Some(*age), Some(reason));
                insert_outcome(headers, self.outcome());
            }
            Self::Cache(error) => {
                if let Some(pause) = error.retry_after() {
                    headers.insert(RETRY_AFTER, HeaderValue::from(rounded_up(pause).max(1)));
                }
            }
            _ => {}
        }
        *response.body_mut() = Body::Whole(body.into());
        (response, reason)
    }
}

/// Returns the seconds of a pause. A client that comes back before its end is refused again.
fn rounded_up(pause: Duration) -> u64 {
    pause.as_secs().saturating_add(u64::from(pause.subsec_nanos() > 0))
}

/// Returns the status for content that the cache cannot serve.
fn cache_meaning(error: &CacheError, kind: RequestKind, gateway: bool) -> (StatusCode, Code) {
    let unknown = match kind {
        RequestKind::Blob => Code::BLOB_UNKNOWN,
        RequestKind::ManifestTag | RequestKind::ManifestDigest => Code::MANIFEST_UNKNOWN,
        _ => Code::NAME_UNKNOWN,
    };
    match (error.kind(), gateway) {
        // Clients read a 404 for referrers as an empty list.
        (CacheErrorKind::Denied, false) if kind == RequestKind::Referrers => {
            (StatusCode::FORBIDDEN, Code::DENIED)
        }
        (CacheErrorKind::NoReferrers, _) => (StatusCode::NOT_FOUND, Code::UNSUPPORTED),
        (CacheErrorKind::NotFound, _) | (CacheErrorKind::Denied, false) => (StatusCode::NOT_FOUND, unknown),
        (CacheErrorKind::Denied, true) => (StatusCode::FORBIDDEN, Code::DENIED),
        (CacheErrorKind::RateLimited, true) => (StatusCode::TOO_MANY_REQUESTS, Code::TOOMANYREQUESTS),
        // podman and containerd retry a 429 of a mirror for a long time before they fall back.
        (CacheErrorKind::RateLimited, false)
        | (CacheErrorKind::Overloaded | CacheErrorKind::Interrupted | CacheErrorKind::TooManyDocuments, _) => {
            (StatusCode::SERVICE_UNAVAILABLE, Code::UNAVAILABLE)
        }
        (CacheErrorKind::Loop, _) => (StatusCode::LOOP_DETECTED, Code::UNAVAILABLE),
        (CacheErrorKind::Timeout, _) => (StatusCode::GATEWAY_TIMEOUT, Code::UNAVAILABLE),
        (CacheErrorKind::Unreachable | CacheErrorKind::Invalid | CacheErrorKind::Mismatch, _) => {
            (StatusCode::BAD_GATEWAY, Code::UNAVAILABLE)
        }
        (CacheErrorKind::Corrupt | CacheErrorKind::Store, _) => {
            (StatusCode::INTERNAL_SERVER_ERROR, Code::UNKNOWN)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(error: CacheError, gateway: bool) -> u16 {
        Refusal::Cache(error).response(RequestKind::ManifestTag, gateway).0.status().as_u16()
    }

    #[test]
    fn retry_after_is_rounded_up() {
        for (pause, told) in [(0, "1"), (700, "1"), (1000, "1"), (1001, "2"), (2500, "3"), (60_000, "60")] {
            let retry_after = Some(Duration::from_millis(pause));
            let refusal = Refusal::Cache(CacheError::RateLimited { retry_after, source: None });
            let response = refusal.response(RequestKind::ManifestTag, false).0;
            assert_eq!(response.headers().get(RETRY_AFTER).expect("a pause"), told);
        }
    }

    #[test]
    fn refusal_depends_on_the_mode() {
        let limited = || CacheError::RateLimited { retry_after: None, source: None };
        assert_eq!(status(limited(), false), 503);
        assert_eq!(status(limited(), true), 429);
        let denied = || CacheError::Denied { source: None };
        assert_eq!(status(denied(), false), 404);
        assert_eq!(status(denied(), true), 403);
        assert_eq!(status(CacheError::timeout(""), false), 504);
        assert_eq!(status(CacheError::unreachable(""), false), 502);
        assert_eq!(status(CacheError::invalid(""), false), 502);
        assert_eq!(status(CacheError::NotFound, false), 404);
    }
}
