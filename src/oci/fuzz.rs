//! Fuzz targets of the OCI vocabulary.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use bolero::check;
use http::HeaderMap;
use http::header::ACCEPT;
use serde_json::Value;

use super::content::accept::Accept;
use super::content::media::{self, CANONICAL_ACCEPT, MediaType};
use super::content::range::{ByteRange, RangeRequest};
use super::digest::{Algorithm, Digest};
use super::index_walk::{BYTES_MAX, COUNT_MAX, IndexWalk, WalkStep};
use super::json;
use super::manifest::{Descriptor, Manifest};
use super::name::{Name, Reference, Tag, UpstreamName};
use super::pattern::NamePattern;
use super::referrers::{Referrer, Referrers};
use crate::fuzz::{Input, TEST_TIME, inputs};

const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const NAMES: &[&str] = &[
    "library",
    "busybox",
    "a",
    "0",
    "/",
    ".",
    "..",
    "_",
    "__",
    "___",
    "-",
    "--",
    ":",
    "@",
    "A",
    "~",
    "%2f",
    "sha256:",
    "sha512:",
    "sha256+b64:",
    "md5:",
    EMPTY,
    "latest",
    "docker.io",
    "[::1]",
    "localhost:5000",
    "*",
    "**",
    "?",
    "[ab]",
    "[!a]",
];
const KEYS: &[&str] = &[
    "schemaVersion",
    "mediaType",
    "MediaType",
    "manifests",
    "manifest\u{17f}",
    "config",
    "layers",
    "blobs",
    "fsLayers",
    "signatures",
    "subject",
    "artifactType",
    "digest",
    "Digest",
    "size",
    "platform",
    "os",
    "architecture",
    "variant",
    "os.version",
    "urls",
    "annotations",
    "digest",
    "mediaType",
    "size",
    "\\ud83d",
];
const TEXTS: &[&str] = &[
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    "sha256:E3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "blake3:abc",
    "linux",
    "amd64",
    "v8",
    "10.0.1",
    "application/json",
    "text/html",
    "",
    "\\u0061",
    media::OCI_INDEX,
    media::OCI_MANIFEST,
    media::DOCKER_LIST,
    media::DOCKER_MANIFEST,
    media::DOCKER_SCHEMA1,
    media::DOCKER_CONFIG,
    "application/vnd.example.artifact",
];

#[test]
fn names_are_written_as_they_were_read() {
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let text = Input::new(bytes).text_of(NAMES);
        if let Ok(name) = text.parse::<Name>() {
            assert_eq!(name.as_str(), text);
            assert!(text.len() <= 255 && !text.contains("//") && !text.contains(".."));
            assert!(text.split('/').all(|part| part.parse::<Name>().is_ok()));
            let longer = format!("{text}/{text}");
            assert_eq!(longer.parse::<Name>().is_ok(), longer.len() <= 255);
        }
        if let Ok(tag) = text.parse::<Tag>() {
            assert_eq!(tag.as_str(), text);
            assert_eq!(text.parse(), Ok(Reference::Tag(tag)));
            assert!(text.len() <= 128 && !text.contains(['/', ':', '@', '%']));
        }
        if let Ok(name) = text.parse::<UpstreamName>() {
            assert_eq!(name.as_str(), text);
            assert!(!text.contains('/') && text.is_ascii());
        }
        match text.parse::<Reference>() {
            Ok(reference) => assert_eq!(reference.to_string(), text),
            Err(error) => assert!(error.to_string().len() < 1000),
        }
    });
}

#[test]
fn digests_are_written_as_they_were_read() {
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let text = input.text_of(NAMES);
        match text.parse::<Digest>() {
            Ok(digest) => {
                assert_eq!(digest.to_string(), text);
                assert_eq!(Digest::from_bytes(digest.algorithm(), digest.as_bytes()), Some(digest));
            }
            Err(error) => assert!(error.to_string().len() < 1000),
        }
        for algorithm in Algorithm::ALL {
            let digest = Digest::of(*algorithm, bytes);
            assert_eq!(digest.to_string().parse(), Ok(digest));
            assert_eq!(serde_json::from_value(serde_json::json!(digest)).ok(), Some(digest));
            assert!(Tag::of_referrers(&digest).as_str().parse::<Tag>().is_ok());
        }
        if let Some(algorithm) = Algorithm::from_code(input.byte()) {
            assert!(
                Digest::from_bytes(algorithm, input.bytes(64)).is_none_or(|it| it.algorithm() == algorithm)
            );
        }
    });
}

#[test]
fn pattern_without_special_characters_matches_itself_only() {
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let (pattern, name) = (input.text_of(NAMES), input.text_of(NAMES));
        // Patterns are from the operator. Their cost is exponential in the number of stars.
        if pattern.matches('*').count() > 4 {
            return;
        }
        let (Ok(parsed), Ok(name)) = (pattern.parse::<NamePattern>(), name.parse::<Name>()) else { return };
        let matches = parsed.matches(&name);
        if !pattern.contains(['*', '?', '[', ']']) {
            assert_eq!(matches, pattern == name.as_str());
        }
    });
}

/// Asserts that the parts have the bytes of the ranges, each byte once, and are in the order of the ranges.
fn assert_parts(ranges: &[ByteRange], length: u64) {
    let parts = ByteRange::select(ranges, length);
    let wanted: Vec<_> = ranges.iter().filter_map(|range| range.within(length)).collect();
    assert!(parts.iter().all(|part| part.start < part.end && part.end <= length));
    for (n, part) in parts.iter().enumerate() {
        assert!(parts[n + 1..].iter().all(|other| other.end <= part.start || part.end <= other.start));
        // Both ends of a part are ends of ranges.
        assert!(wanted.iter().any(|range| range.start == part.start));
        assert!(wanted.iter().any(|range| range.end == part.end));
    }
    let place = |range: &Range<u64>| {
        parts.iter().position(|part| part.start <= range.start && range.end <= part.end).expect("a part")
    };
    let mut places: Vec<_> = wanted.iter().map(place).collect();
    let mut seen = HashSet::new();
    places.retain(|place| seen.insert(*place));
    assert!(places.iter().copied().eq(0..parts.len()), "{ranges:?} of {length}: {parts:?}");
}

#[test]
fn ranges_agree_with_exact_arithmetic() {
    const WORDS: &[&str] = &["bytes=", "bytes", "=", "-", ",", " ", "0", "1-", "-5", "pages=", "+"];
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let (first, last, length) = (input.number(), input.number(), input.number());
        for (range, text) in [
            (ByteRange::Between(first, last), format!("bytes={first}-{last}")),
            (ByteRange::From(first), format!("bytes={first}-")),
            (ByteRange::Last(last), format!("bytes=-{last}")),
        ] {
            assert_eq!(RangeRequest::parse(Some(&text)), RangeRequest::One(range));
            let (from, end) = match range {
                ByteRange::Between(first, last) => (u128::from(first), u128::from(last) + 1),
                ByteRange::From(first) => (u128::from(first), u128::from(length)),
                ByteRange::Last(n) => (u128::from(length.saturating_sub(n)), u128::from(length)),
            };
            let end = end.min(u128::from(length));
            let found = range.within(length).map(|range| (u128::from(range.start), u128::from(range.end)));
            assert_eq!(found, (from < end).then_some((from, end)), "{text} of {length}");
        }
        let text = input.text_of(WORDS);
        match RangeRequest::parse(Some(&text)) {
            RangeRequest::Whole => {}
            RangeRequest::One(range) => {
                assert!(
                    range.within(length).is_none_or(|range| range.start < range.end && range.end <= length)
                );
            }
            RangeRequest::Several(ranges) => assert_parts(&ranges, length),
        }
        let several: Vec<_> = (0..2 + input.below(30))
            .map(|_| match input.below(3) {
                0 => ByteRange::Between(input.number(), input.number()),
                1 => ByteRange::From(input.number()),
                _ => ByteRange::Last(input.number()),
            })
            .collect();
        let texts: Vec<_> = several
            .iter()
            .map(|range| match range {
                ByteRange::Between(first, last) => format!("{first}-{last}"),
                ByteRange::From(first) => format!("{first}-"),
                ByteRange::Last(last) => format!("-{last}"),
            })
            .collect();
        let text = format!("bytes={}", texts.join(input.pick(&[",", ", ", ",,"])));
        assert_eq!(RangeRequest::parse(Some(&text)), RangeRequest::Several(several.clone()), "{text}");
        assert_parts(&several, length);
    });
}

#[test]
fn accept_names_known_types_only() {
    const WORDS: &[&str] = &[
        media::OCI_INDEX,
        media::OCI_MANIFEST,
        media::DOCKER_LIST,
        media::DOCKER_MANIFEST,
        "*/*",
        "application/*",
        ",",
        ", ",
        ";q=0",
        "; q=0.5",
        "text/html",
        "APPLICATION/",
        "\t",
    ];
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let mut headers = HeaderMap::new();
        for _ in 0..input.below(4) {
            if let Ok(value) = http::HeaderValue::from_bytes(&input.bytes_of(WORDS)) {
                headers.append(ACCEPT, value);
            }
        }
        let accept = Accept::from_headers(&headers);
        let canonical = accept.canonical();
        let all: Vec<&str> = CANONICAL_ACCEPT.split(", ").collect();
        let in_order: Vec<&str> = all.iter().copied().filter(|it| canonical.contains(it)).collect();
        assert_eq!(canonical, in_order);
        for named in canonical {
            assert!(accept.allows(&MediaType::new(named).expect("a type")));
        }
        let text = input.text_of(WORDS);
        if let Some(found) = MediaType::from_header(&text) {
            assert_eq!(MediaType::new(found.as_str()).as_ref(), Some(&found));
            assert!(http::HeaderValue::from_str(found.as_str()).is_ok());
        }
    });
}

/// Returns a document as the reader of `serde_json` sees it; `None` if it cannot read the document.
fn model(document: &[u8]) -> Option<Value> {
    serde_json::from_slice(document).ok()
}

#[test]
fn members_agree_with_serde_json() {
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let document = Input::new(bytes).json_of(KEYS, TEXTS);
        let text = json::text(&document);
        assert!(text.len() <= document.len() * 3);
        let mut found = Value::Object(serde_json::Map::new());
        let mut length = 0;
        let read = json::members(&text, |key, value| {
            length += value.get().len();
            found[key] = model(value.get().as_bytes()).unwrap_or_default();
        });
        // Values are parts of the text.
        assert!(length <= text.len());
        if let Some(model @ Value::Object(_)) = model(text.as_bytes()) {
            read.expect("an object");
            assert_eq!(found, model);
        }
    });
}

/// Returns the digests and sizes of the descriptors in a value, as `serde_json` sees them.
fn descriptors(list: Option<&Value>) -> Vec<(Digest, Option<u64>)> {
    let elements = match list {
        Some(Value::Array(elements)) => elements.as_slice(),
        Some(one @ Value::Object(_)) => std::slice::from_ref(one),
        _ => return Vec::new(),
    };
    let read = |it: &Value| {
        Some((it.get("digest")?.as_str()?.parse().ok()?, it.get("size").and_then(Value::as_u64)))
    };
    elements.iter().filter_map(read).collect()
}

fn found(descriptors: &[Descriptor]) -> Vec<(Digest, Option<u64>)> {
    descriptors.iter().map(|it| (it.digest, it.size)).collect()
}

#[test]
fn manifest_agrees_with_serde_json() {
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let content_type = input.flag().then(|| input.pick(TEXTS));
        let document = input.json_of(KEYS, TEXTS);
        let Ok(manifest) = Manifest::read(&document, content_type) else { return };
        assert!(manifest.media_type.as_str().starts_with("application/"), "{}", manifest.media_type);
        assert_ne!(manifest.media_type.kind(), Some(media::ManifestKind::Schema1));
        let count = manifest.children.len() + manifest.blobs.len() + manifest.unsupported.len();
        assert!(count <= document.len() / 8, "{count} entries of {} bytes", document.len());
        let Some(value @ Value::Object(_)) = model(&document) else { return };
        let list = |key| value.get(key).filter(|it| it.is_array());
        let config = value.get("config").filter(|it| it.is_object());
        let blobs = [descriptors(config), descriptors(list("layers")), descriptors(list("blobs"))].concat();
        assert_eq!(found(&manifest.blobs), blobs);
        assert_eq!(found(&manifest.children), descriptors(list("manifests")));
        let subject = descriptors(value.get("subject").filter(|it| it.is_object()));
        assert_eq!(manifest.subject, subject.first().map(|(digest, _)| *digest));
    });
}

#[test]
fn list_of_referrers_is_read_as_it_is_written() {
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let document = input.json_of(KEYS, TEXTS);
        let mut list = Referrers::read(&document).unwrap_or_default();
        let entries: usize = list.iter().count();
        let digest = Digest::of(Algorithm::Sha256, &document);
        let media_type =
            MediaType::new(input.pick(&[media::OCI_MANIFEST, media::OCI_INDEX])).expect("a type");
        if let Some(referrer) = Referrer::describe(&digest, &media_type, &document) {
            assert_eq!(referrer.digest(), digest.to_string());
            list.extend([referrer]);
        }
        let whole = list.to_index();
        assert!(whole.len() <= 4 * document.len() + 2000, "{} of {}", whole.len(), document.len());
        let again = Referrers::read(&whole).expect("a list");
        assert_eq!(again, list, "{entries} entries were read");
        // Pages of any size are the whole list.
        let most = input.below(2000);
        let (mut merged, mut after) = (Referrers::default(), None::<String>);
        for _ in 0..=entries + 1 {
            let page = list.page(after.as_deref(), most);
            merged.extend(Referrers::read(&page.body).expect("a page"));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert!(after.is_none(), "the pages do not end");
        assert_eq!(merged, list);
    });
}

#[test]
fn index_walk_enters_each_manifest_once_and_ends() {
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let name = |n: usize| Digest::of(Algorithm::Sha256, &[u8::try_from(n).unwrap_or_default()]);
        let descriptor = |n: usize| Descriptor {
            digest: name(n),
            size: None,
            media_type: None,
            platform: None,
            os_version: None,
            foreign: false,
            attests: None,
        };
        let nodes = 1 + input.below(12);
        let mut indexes = HashMap::new();
        for node in 0..nodes {
            let children = (0..input.below(6)).map(|_| descriptor(input.below(nodes))).collect();
            let media_type = MediaType::oci_index();
            let manifest =
                Manifest { media_type, children, blobs: Vec::new(), subject: None, unsupported: Vec::new() };
            indexes.insert(name(node), (manifest, input.number()));
        }
        let mut walk = IndexWalk::new(descriptor(0));
        let (mut open, mut visited, mut read, mut steps) = (Vec::new(), HashSet::new(), 0_u128, 0);
        while let Some(step) = walk.step() {
            steps += 1;
            assert!(steps <= 2 * COUNT_MAX + 2);
            match step {
                WalkStep::Enter(item) if !item.repeated => {
                    let digest = item.descriptor.digest;
                    assert!(visited.insert(digest), "{digest} was entered twice");
                    let (manifest, size) = &indexes[&digest];
                    read += u128::from(*size);
                    walk.visit(manifest, *size);
                    if read <= u128::from(BYTES_MAX) {
                        open.push(digest);
                    }
                }
                WalkStep::Enter(item) => assert!(visited.contains(&item.descriptor.digest)),
                WalkStep::Leave(digest) => assert_eq!(open.pop(), Some(digest)),
            }
        }
        assert_eq!(walk.waiting(), 0);
        assert!(walk.limit().is_some() || open.is_empty());
    });
}
