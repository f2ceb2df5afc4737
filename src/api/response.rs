//! Headers of the responses of the registry API.

use std::time::Duration;

use http::header::{AGE, CACHE_CONTROL, CONTENT_TYPE, ETAG, WARNING};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::cache::{CacheError, ListResult, ManifestAnswer};
use crate::oci::{Digest, MediaType};
use crate::telemetry::Outcome;

/// Version of the registry API (required by Docker's v2 API, allowed by OCI).
pub(super) const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
/// Digest of the content, always computed by larder.
pub(super) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// Namespace of the request (distribution-spec, "Registry Proxying").
pub(super) const NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");
/// Filters that were applied to a list of referrers (distribution-spec, "Listing Referrers").
pub(super) const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
/// Outcome of a request (RFC 9211).
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

const IMMUTABLE: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable, no-transform");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store, no-transform");
const NO_CACHE: HeaderValue = HeaderValue::from_static("no-cache, no-transform");

/// Inserts a header with a text. A text that is not valid in a header is left out.
pub(super) fn insert_text(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}

/// Inserts the outcome (RFC 9211).
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

/// Inserts digest, entity tag and lifetime of content that never changes.
pub(super) fn insert_content(headers: &mut HeaderMap, digest: &Digest) {
    let mut quoted = String::with_capacity(160);
    quoted.push('"');
    std::fmt::Write::write_fmt(&mut quoted, format_args!("{digest}")).ok();
    insert_text(headers, CONTENT_DIGEST, &quoted[1..]);
    quoted.push('"');
    insert_text(headers, ETAG, &quoted);
    headers.insert(CACHE_CONTROL, IMMUTABLE);
}

/// Inserts the digest of content that is not verified yet. Caches must not store such bytes, and must not combine them with
/// others: without an entity tag, neither a client nor a cache takes a later range for the rest of the same bytes.
pub(super) fn insert_unverified(headers: &mut HeaderMap, digest: &impl std::fmt::Display) {
    insert_text(headers, CONTENT_DIGEST, &digest.to_string());
    headers.insert(CACHE_CONTROL, NO_STORE);
}

/// Inserts the media type of a blob.
pub(super) fn insert_blob_type(headers: &mut HeaderMap) {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
}

/// Inserts the headers of a manifest.
pub(super) fn insert_manifest(headers: &mut HeaderMap, found: &ManifestAnswer) {
    insert_content(headers, &found.manifest.digest);
    insert_media_type(headers, &found.manifest.media_type);
    if found.age.is_some() {
        headers.insert(CACHE_CONTROL, NO_CACHE);
    }
    insert_age(headers, found.age, found.stale.as_ref());
    insert_outcome(headers, found.outcome);
}

/// Inserts the headers of a list, in addition to those of its document.
pub(super) fn insert_listing<T>(headers: &mut HeaderMap, listing: &ListResult<T>) {
    headers.insert(CACHE_CONTROL, NO_CACHE);
    insert_age(headers, listing.age, listing.stale.as_ref());
    insert_outcome(headers, listing.outcome);
}

/// Inserts the age of stale content and the reason for which it could not be revalidated.
pub(super) fn insert_age(headers: &mut HeaderMap, age: Option<Duration>, stale: Option<&CacheError>) {
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

/// Formats a warning (distribution-spec, "Warnings"): code 299, agent `-`, no date, quotes and backslashes escaped.
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

/// Returns true if an `If-None-Match` header names this digest, with or without quotes and weak mark.
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

    #[test]
    fn warning_has_the_form_that_clients_log() {
        assert_eq!(warning("a \"b\"\r\n"), "299 - \"served from cache: a \\\"b\\\"??\"");
    }

    #[test]
    fn is_match_ignores_quotes() {
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
