//! Fuzz targets of the responses of registries.

use bolero::check;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, LINK};
use http::{HeaderMap, HeaderValue};
use serde_json::Value;

use super::blob::ContentRange;
use super::encoding::is_gzip;
use super::link_header;
use super::lists::TagList;
use super::response::{content_length, manifest_head};
use crate::fuzz::{Input, TEST_TIME, inputs};
use crate::oci::Tag;
use crate::source::ByteRange;

/// Adds a header, unless its value is impossible in HTTP.
fn append(headers: &mut HeaderMap, name: http::HeaderName, value: &[u8]) {
    if let Ok(value) = HeaderValue::from_bytes(value) {
        headers.append(name, value);
    }
}

#[test]
fn content_range_agrees_with_exact_arithmetic() {
    const WORDS: &[&str] = &["bytes", " ", "-", "/", "*", "0", "5", "+", "items"];
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let (first, last) = (input.number(), input.number());
        let total = input.flag().then(|| input.number());
        let shown = total.map_or("*".to_owned(), |total| total.to_string());
        let part = ContentRange::parse(&format!("bytes {first}-{last}/{shown}"));
        let is_valid = first <= last && last < u64::MAX && total.is_none_or(|total| last < total);
        assert_eq!(part.is_some(), is_valid, "{first}-{last}/{shown}");
        if let Some(part) = part {
            assert_eq!(u128::from(part.length()), u128::from(last) - u128::from(first) + 1);
            assert_eq!(part.total, total);
            let (asked, limit) = (input.number(), input.flag().then(|| input.number()));
            let answers = part.answers(ByteRange { first: asked, last: limit });
            assert_eq!(answers, asked == first && limit.is_none_or(|limit| last <= limit));
        }
        let text = input.text_of(WORDS);
        if let Some(part) = ContentRange::parse(&text) {
            assert!(part.length() > 0 && part.total.is_none_or(|total| part.length() <= total));
        }
    });
}

#[test]
fn link_to_the_next_page_is_found() {
    const WORDS: &[&str] = &[
        "<",
        ">",
        ";",
        ",",
        "rel",
        "=",
        "\"",
        "next",
        "prev",
        " ",
        "</v2/a/tags/list?n=1&last=x>",
        "; rel=\"next\"",
        "; rel=\"prev\"",
        "REL",
        "title",
        "\\",
    ];
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let mut headers = HeaderMap::new();
        let mut length = 0;
        for _ in 0..input.below(4) {
            let line = input.bytes_of(WORDS);
            length += line.len();
            append(&mut headers, LINK, &line);
        }
        if let Some(target) = link_header::next(&headers) {
            assert!(target.len() < length && !target.contains('>'));
        }
        // The first link with the relation, in any order of lines and links.
        let (mut headers, mut wanted) = (HeaderMap::new(), None);
        for line in 0..input.below(4) {
            let links = (0..=input.below(3)).map(|link| {
                let target = format!("/v2/a/tags/list?last={line}.{link}");
                let relation =
                    input.pick(&["next", "prev", "first Next", "nextpage", "\"next\"", "\"last next\""]);
                let is_next = ["next", "\"next\"", "\"last next\""].contains(&relation);
                if is_next || relation == "first Next" {
                    wanted.get_or_insert(target.clone());
                }
                format!("<{target}>; title=\"a, <b>; c\"; rel={relation}")
            });
            let links: Vec<String> = links.collect();
            append(&mut headers, LINK, links.join(", ").as_bytes());
        }
        assert_eq!(link_header::next(&headers), wanted);
    });
}

#[test]
fn headers_of_a_manifest_are_read_without_trust() {
    const WORDS: &[&str] = &[
        "gzip",
        "x-gzip",
        "identity",
        "br",
        ",",
        " ",
        "sha256:",
        "0",
        "-1",
        "text/html",
        ";",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ];
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let mut headers = HeaderMap::new();
        for name in ["docker-content-digest", "content-type", "content-length", "content-encoding"] {
            for _ in 0..input.below(3) {
                append(&mut headers, http::HeaderName::from_static(name), &input.bytes_of(WORDS));
            }
        }
        let head = manifest_head(&headers);
        assert_eq!(head.size, content_length(&headers));
        if let Ok(gzip) = is_gzip(&headers) {
            let named = |value: &HeaderValue| {
                value.as_bytes().to_ascii_lowercase().windows(4).any(|it| it == b"gzip")
            };
            assert_eq!(gzip, headers.get_all(CONTENT_ENCODING).iter().any(named));
        }
        let number = input.number();
        let mut headers = HeaderMap::new();
        append(&mut headers, CONTENT_LENGTH, number.to_string().as_bytes());
        assert_eq!(content_length(&headers), Some(number));
    });
}

#[test]
fn list_of_tags_agrees_with_serde_json() {
    const KEYS: &[&str] = &["tags", "name", "tags", "errors", "Tags"];
    const TEXTS: &[&str] = &["latest", "1.0", "", "a b", "-x", "sha256:ab", "\\u0061", "../x"];
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let elements: Vec<String> = (0..input.below(6))
            .map(|_| match input.below(3) {
                0 => String::from_utf8_lossy(&input.json_of(KEYS, TEXTS)).into_owned(),
                1 => input.pick(&["null", "1e999", "7", "[\"a\"]", "\"\\ud83d\""]).to_owned(),
                _ => format!("\"{}\"", input.pick(TEXTS)),
            })
            .collect();
        let list = format!("{{\"name\":\"a\",\"tags\":[{}]}}", elements.join(","));
        for document in [list.into_bytes(), input.json_of(KEYS, TEXTS)] {
            let Ok(list) = serde_json::from_slice::<TagList>(&document) else { continue };
            let Ok(value) = serde_json::from_slice::<Value>(&document) else { continue };
            let elements = value.get("tags").and_then(Value::as_array).into_iter().flatten();
            let tags: Vec<Tag> = elements.filter_map(|it| it.as_str()?.parse().ok()).collect();
            assert_eq!(list.tags.0, tags);
        }
    });
}
