//! Style sheet, script and icon. Their paths contain a hash of the content, so that browsers can cache them for ever.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use crate::api::body::Body;

use super::response::{POLICY, respond};

const STYLE: &str = include_str!("assets/larder.css");
const SCRIPT: &str = include_str!("assets/larder.js");
const ICON: &str = include_str!("assets/larder.svg");

const STYLE_HASH: u64 = hash(STYLE.as_bytes());
const SCRIPT_HASH: u64 = hash(SCRIPT.as_bytes());
const ICON_HASH: u64 = hash(ICON.as_bytes());

/// Hash for the path of a file (FNV-1a). A cryptographic hash is not needed for own files.
const fn hash(bytes: &[u8]) -> u64 {
    let mut value = 0xcbf2_9ce4_8422_2325_u64;
    let mut at = 0;
    while at < bytes.len() {
        value = (value ^ bytes[at] as u64).wrapping_mul(0x0100_0000_01b3);
        at += 1;
    }
    value
}

/// Returns the path of the style sheet.
pub(super) fn style_path() -> String {
    format!("/assets/larder.{STYLE_HASH:016x}.css")
}

/// Returns the path of the script.
pub(super) fn script_path() -> String {
    format!("/assets/larder.{SCRIPT_HASH:016x}.js")
}

/// Returns the response for a file; `None` for other paths.
pub(super) fn response(path: &str, headers: &HeaderMap) -> Option<Response<Body>> {
    const FOR_EVER: &str = "private, max-age=31536000, immutable";
    let (text, hash, media_type, cache_control) = if path == style_path() {
        (STYLE, STYLE_HASH, "text/css; charset=utf-8", FOR_EVER)
    } else if path == script_path() {
        (SCRIPT, SCRIPT_HASH, "text/javascript; charset=utf-8", FOR_EVER)
    } else if path == "/favicon.svg" {
        (ICON, ICON_HASH, "image/svg+xml", "no-cache")
    } else {
        return None;
    };
    let tag = format!("\"{hash:016x}\"");
    let known = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let known = known.flat_map(|list| list.split(',')).any(|one| one.trim().trim_start_matches("W/") == tag);
    let mut response =
        respond(StatusCode::OK, media_type, cache_control, POLICY, Bytes::from_static(text.as_bytes()));
    if let Ok(tag) = HeaderValue::try_from(tag) {
        response.headers_mut().insert(ETAG, tag);
    }
    if known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        *response.body_mut() = Body::Empty;
        response.headers_mut().remove(CONTENT_LENGTH);
    }
    Some(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_is_cached_by_path_and_revalidated_by_etag() {
        let answer = |path: &str, headers| response(path, &headers);
        let first = answer(&style_path(), HeaderMap::new()).expect("the style sheet");
        assert_eq!(first.status(), StatusCode::OK);
        let mut headers = HeaderMap::new();
        headers.insert(IF_NONE_MATCH, first.headers()[ETAG].clone());
        assert_eq!(answer(&style_path(), headers).expect("the same").status(), StatusCode::NOT_MODIFIED);
        assert!(answer("/assets/larder.0000000000000000.css", HeaderMap::new()).is_none());
        assert_ne!(hash(b"a"), hash(b"b"));
    }
}
