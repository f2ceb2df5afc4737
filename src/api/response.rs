//! From meanings to answers: the one place that picks a status and an OCI error code.

use std::time::Duration;

use http::header::{
    AGE, ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, ETAG, RETRY_AFTER, WARNING,
};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use crate::cache::{CacheError, CacheErrorKind, ListResult, ManifestAnswer, RouteError};
use crate::oci::error::{Code, document};
use crate::oci::name::NameError;
use crate::oci::{Digest, MediaType};
use crate::telemetry::{Outcome, RequestKind};

use super::body::Body;

/// Says what kind of registry this is (Docker's v2 API requires it, OCI allows it).
pub(super) const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
/// The digest of the content, always computed here.
pub(super) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// The namespace that a request was scoped to (distribution-spec, "Registry Proxying").
pub(super) const NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");
/// Which filters a list of referrers has been through (distribution-spec, "Listing Referrers").
pub(super) const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
/// RFC 9211.
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

const IMMUTABLE: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable, no-transform");
const NO_CACHE: HeaderValue = HeaderValue::from_static("no-cache, no-transform");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Why there is no content to send.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The path belongs to no resource.
    NoSuchPath,
    /// The method would write.
    Write,
    /// A body where none belongs, in a framing that another server could read differently (RFC 9112, 6.1).
    Framing,
    /// The name, tag or digest does not parse.
    Name(NameError),
    /// The repository cannot be told.
    Route(RouteError),
    /// The page size is no number, or larger than this.
    PageSize(Option<usize>),
    /// No byte of the body is in the range; the body's length.
    Range(u64),
    /// The repository holds no tag.
    NoTags,
    /// The cache has nothing to serve.
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
    /// Status, code and message. Clients of a mirror fall back to the origin on every one of these, so none may
    /// say "does not exist" when nobody knows, and none may challenge.
    fn meaning(&self, kind: RequestKind, gateway: bool) -> (StatusCode, Code, String) {
        let unknown = match kind {
            RequestKind::Blob => Code::BLOB_UNKNOWN,
            RequestKind::ManifestTag | RequestKind::ManifestDigest => Code::MANIFEST_UNKNOWN,
            _ => Code::NAME_UNKNOWN,
        };
        let not_found = StatusCode::NOT_FOUND;
        match self {
            Self::NoSuchPath => {
                (not_found, Code::UNSUPPORTED, "no such path; the registry API is under /v2/".into())
            }
            Self::Write => (
                StatusCode::METHOD_NOT_ALLOWED,
                Code::UNSUPPORTED,
                "this is a read-only cache; push to the registry itself".into(),
            ),
            Self::Framing => {
                (StatusCode::BAD_REQUEST, Code::UNSUPPORTED, "a request to read takes no body".into())
            }
            // The conformance suite asks for 404 where a tag does not parse.
            Self::Name(error @ NameError::Tag(_)) => (not_found, Code::MANIFEST_UNKNOWN, error.to_string()),
            Self::Name(error @ NameError::Digest(_)) => {
                (StatusCode::BAD_REQUEST, Code::DIGEST_INVALID, error.to_string())
            }
            Self::Name(error @ NameError::Name(_)) | Self::Route(RouteError::Name(error)) => {
                (StatusCode::BAD_REQUEST, Code::NAME_INVALID, error.to_string())
            }
            Self::Route(error) => (not_found, Code::NAME_UNKNOWN, error.to_string()),
            Self::PageSize(most) => {
                let message = most.map_or_else(
                    || "`n` must be a number that is not negative".to_owned(),
                    |most| format!("`n` must not be larger than {most}"),
                );
                (StatusCode::BAD_REQUEST, Code::PAGINATION_NUMBER_INVALID, message)
            }
            Self::Range(length) => (
                StatusCode::RANGE_NOT_SATISFIABLE,
                Code::RANGE_INVALID,
                format!("the blob has {length} bytes, none of them in the range"),
            ),
            Self::NoTags => (not_found, Code::NAME_UNKNOWN, "no tag of this repository is held".into()),
            Self::Cache(error) => {
                let message = error.to_string();
                match (error.kind(), gateway) {
                    // A 404 to a question about referrers reads as "none".
                    (CacheErrorKind::Denied, false) if kind == RequestKind::Referrers => {
                        (StatusCode::FORBIDDEN, Code::DENIED, message)
                    }
                    (CacheErrorKind::NoReferrers, _) => (not_found, Code::UNSUPPORTED, message),
                    (CacheErrorKind::NotFound, _) | (CacheErrorKind::Denied, false) => {
                        (not_found, unknown, message)
                    }
                    (CacheErrorKind::Denied, true) => (StatusCode::FORBIDDEN, Code::DENIED, message),
                    (CacheErrorKind::RateLimited, true) => {
                        (StatusCode::TOO_MANY_REQUESTS, Code::TOOMANYREQUESTS, message)
                    }
                    // podman and containerd retry a mirror's 429 for long before they fall back.
                    (CacheErrorKind::RateLimited, false)
                    | (CacheErrorKind::Overloaded | CacheErrorKind::Interrupted, _) => {
                        (StatusCode::SERVICE_UNAVAILABLE, Code::UNAVAILABLE, message)
                    }
                    (CacheErrorKind::Timeout, _) => (StatusCode::GATEWAY_TIMEOUT, Code::UNAVAILABLE, message),
                    (CacheErrorKind::Unreachable | CacheErrorKind::Invalid | CacheErrorKind::Mismatch, _) => {
                        (StatusCode::BAD_GATEWAY, Code::UNAVAILABLE, message)
                    }
                    (CacheErrorKind::Corrupt | CacheErrorKind::Store, _) => {
                        (StatusCode::INTERNAL_SERVER_ERROR, Code::UNKNOWN, message)
                    }
                }
            }
        }
    }

    /// The answer, and its message for the log.
    pub(super) fn answer(&self, kind: RequestKind, gateway: bool) -> (Response<Body>, String) {
        let (status, code, message) = self.meaning(kind, gateway);
        let body = document(code, &message);
        let mut answer = Response::new(Body::Empty);
        *answer.status_mut() = status;
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, JSON);
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        match self {
            Self::Framing => {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Self::Write => {
                headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            }
            Self::Range(length) => {
                insert_text(headers, http::header::CONTENT_RANGE, &format!("bytes */{length}"));
            }
            Self::Cache(error) => {
                if let Some(pause) = error.retry_after() {
                    headers.insert(RETRY_AFTER, HeaderValue::from(pause.as_secs().max(1)));
                }
            }
            _ => {}
        }
        *answer.body_mut() = Body::Whole(body.into());
        (answer, message)
    }
}

/// Inserts a text that is known to be printable; one that is not is left out rather than sent wrong.
pub(super) fn insert_text(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}

/// Says what the cache did (RFC 9211).
pub(super) fn insert_outcome(headers: &mut HeaderMap, outcome: Outcome) {
    let value = match outcome {
        Outcome::Hit => "larder; hit",
        Outcome::Miss => "larder; fwd=uri-miss; stored; detail=miss",
        Outcome::Join => "larder; fwd=uri-miss; collapsed; detail=join",
        Outcome::Revalidated => "larder; hit; detail=revalidated",
        Outcome::Stale => "larder; hit; detail=stale",
        Outcome::Bypass => "larder; fwd=bypass; detail=bypass",
        Outcome::None => return,
    };
    headers.insert(CACHE_STATUS, HeaderValue::from_static(value));
}

/// Digest, entity tag and lifetime of content that never changes.
pub(super) fn insert_content(headers: &mut HeaderMap, digest: &Digest) {
    let mut quoted = String::with_capacity(160);
    quoted.push('"');
    std::fmt::Write::write_fmt(&mut quoted, format_args!("{digest}")).ok();
    insert_text(headers, CONTENT_DIGEST, &quoted[1..]);
    quoted.push('"');
    insert_text(headers, ETAG, &quoted);
    headers.insert(CACHE_CONTROL, IMMUTABLE);
}

/// The headers of a manifest.
pub(super) fn insert_manifest(headers: &mut HeaderMap, found: &ManifestAnswer) {
    insert_content(headers, &found.manifest.digest);
    insert_media_type(headers, &found.manifest.media_type);
    if found.age.is_some() {
        headers.insert(CACHE_CONTROL, NO_CACHE);
    }
    insert_age(headers, found.age, found.stale.as_ref());
    insert_outcome(headers, found.outcome);
}

/// The headers of a list, beside those of its document.
pub(super) fn insert_listing<T>(headers: &mut HeaderMap, listing: &ListResult<T>) {
    headers.insert(CACHE_CONTROL, NO_CACHE);
    insert_age(headers, listing.age, listing.stale.as_ref());
    insert_outcome(headers, listing.outcome);
}

/// How old an answer is, and why it is no newer.
fn insert_age(headers: &mut HeaderMap, age: Option<Duration>, stale: Option<&CacheError>) {
    if let Some(age) = age {
        headers.insert(AGE, HeaderValue::from(age.as_secs()));
    }
    if let Some(reason) = stale {
        insert_text(headers, WARNING, &warning(&reason.to_string()));
    }
}

fn insert_media_type(headers: &mut HeaderMap, media_type: &MediaType) {
    insert_text(headers, CONTENT_TYPE, media_type.as_str());
}

/// distribution-spec, "Warnings": code 299, agent `-`, no date, quotes and backslashes escaped.
fn warning(reason: &str) -> String {
    let mut text = String::from("299 - \"served from cache: ");
    for c in reason.chars().take(300) {
        match c {
            '"' | '\\' => {
                text.push('\\');
                text.push(c);
            }
            ' '..='~' => text.push(c),
            _ => text.push('?'),
        }
    }
    text.push('"');
    text
}

/// Whether an If-None-Match header names this digest. Quotes and the weak mark do not matter here.
pub(super) fn is_match(headers: &HeaderMap, name: HeaderName, digest: &Digest) -> Option<bool> {
    let mut given = None;
    let own = digest.to_string();
    for line in headers.get_all(name) {
        let Ok(line) = line.to_str() else { continue };
        for tag in line.split(',') {
            let tag = tag.trim();
            let tag = tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"');
            if tag == "*" || tag == own {
                return Some(true);
            }
            given = Some(false);
        }
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;
    use http::header::IF_NONE_MATCH;

    fn status(error: CacheError, gateway: bool) -> u16 {
        Refusal::Cache(error).answer(RequestKind::ManifestTag, gateway).0.status().as_u16()
    }

    #[test]
    fn mirrors_and_gateways_word_it_differently() {
        let limited = || CacheError::RateLimited { retry_after: None };
        assert_eq!(status(limited(), false), 503);
        assert_eq!(status(limited(), true), 429);
        assert_eq!(status(CacheError::Denied, false), 404);
        assert_eq!(status(CacheError::Denied, true), 403);
        assert_eq!(status(CacheError::timeout(""), false), 504);
        assert_eq!(status(CacheError::unreachable(""), false), 502);
        assert_eq!(status(CacheError::invalid(""), false), 502);
        assert_eq!(status(CacheError::NotFound, false), 404);
    }

    #[test]
    fn a_warning_has_exactly_the_form_that_clients_log() {
        assert_eq!(warning("a \"b\"\r\n"), "299 - \"served from cache: a \\\"b\\\"??\"");
    }

    #[test]
    fn entity_tags_match_quoted_or_not() {
        let digest = Digest::of(Algorithm::Sha256, b"");
        let ask = |value: &str| {
            let headers =
                HeaderMap::from_iter([(IF_NONE_MATCH, HeaderValue::from_str(value).expect("a value"))]);
            is_match(&headers, IF_NONE_MATCH, &digest)
        };
        assert_eq!(ask(&format!("\"{digest}\"")), Some(true));
        assert_eq!(ask(&digest.to_string()), Some(true));
        assert_eq!(ask(&format!("\"x\", W/\"{digest}\"")), Some(true));
        assert_eq!(ask("\"x\""), Some(false));
        assert_eq!(ask("*"), Some(true));
        assert_eq!(is_match(&HeaderMap::new(), IF_NONE_MATCH, &digest), None);
    }
}
