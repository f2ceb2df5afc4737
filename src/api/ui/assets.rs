//! The style sheet, the script and the icon: each under a name that changes with it, so that browsers may keep it.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::{Body, POLICY, answered};

const STYLE: &str = include_str!("assets/larder.css");
const SCRIPT: &str = include_str!("assets/larder.js");
const ICON: &str = include_str!("assets/larder.svg");

const STYLE_MARK: u64 = mark(STYLE.as_bytes());
const SCRIPT_MARK: u64 = mark(SCRIPT.as_bytes());
const ICON_MARK: u64 = mark(ICON.as_bytes());

/// A name for bytes of our own (FNV-1a): nobody else chooses them, so it need not withstand anybody.
const fn mark(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0100_0000_01b3);
        at += 1;
    }
    hash
}

/// Where the style sheet is.
pub(super) fn style() -> String {
    format!("/assets/larder.{STYLE_MARK:016x}.css")
}

/// Where the script is.
pub(super) fn script() -> String {
    format!("/assets/larder.{SCRIPT_MARK:016x}.js")
}

/// Answers for a file; `None` if the path is none's.
pub(super) fn answer(path: &str, headers: &HeaderMap) -> Option<Response<Body>> {
    const FOR_EVER: &str = "private, max-age=31536000, immutable";
    let (text, mark, media_type, kept) = if path == style() {
        (STYLE, STYLE_MARK, "text/css; charset=utf-8", FOR_EVER)
    } else if path == script() {
        (SCRIPT, SCRIPT_MARK, "text/javascript; charset=utf-8", FOR_EVER)
    } else if path == "/favicon.svg" {
        (ICON, ICON_MARK, "image/svg+xml", "no-cache")
    } else {
        return None;
    };
    let tag = format!("\"{mark:016x}\"");
    let known = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let known = known.flat_map(|list| list.split(',')).any(|one| one.trim().trim_start_matches("W/") == tag);
    let mut answer = answered(StatusCode::OK, media_type, kept, POLICY, Bytes::from_static(text.as_bytes()));
    if let Ok(tag) = HeaderValue::try_from(tag) {
        answer.headers_mut().insert(ETAG, tag);
    }
    if known {
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
        *answer.body_mut() = Body::Empty;
        answer.headers_mut().remove(CONTENT_LENGTH);
    }
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_kept_under_its_name_and_known_by_its_tag() {
        let answer = |path: &str, headers| answer(path, &headers);
        let first = answer(&style(), HeaderMap::new()).expect("the style sheet");
        assert_eq!(first.status(), StatusCode::OK);
        let mut headers = HeaderMap::new();
        headers.insert(IF_NONE_MATCH, first.headers()[ETAG].clone());
        assert_eq!(answer(&style(), headers).expect("the same").status(), StatusCode::NOT_MODIFIED);
        assert!(answer("/assets/larder.0000000000000000.css", HeaderMap::new()).is_none());
        assert_ne!(mark(b"a"), mark(b"b"));
    }
}
