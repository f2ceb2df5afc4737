//! Upstreams that encode what nobody asked them to encode, or say that they did.

use crate::support;

use std::sync::Arc;

use support::content::{OCI_MANIFEST, sha256};
use support::house::{House, MIB, TAG, is_trouble};
use support::script::gzip;
use support::{Blob, Fault, Image, Larder, Registry, When};

/// Content that is worth encoding.
fn text(length: usize) -> Blob {
    Blob::new((0..).flat_map(|n: u32| format!("line {n}\n").into_bytes()).take(length).collect::<Vec<u8>>())
}

fn label(coding: &str) -> Fault {
    Fault::Header("Content-Encoding", coding.to_owned())
}

/// A registry with an image around this layer, and a larder that knows its manifest if it is to know sizes.
fn with_layer(layer: &Blob, known: bool) -> (Registry, Larder, String) {
    let registry = Registry::start();
    let image = Image::oci(1, "linux/amd64", vec![layer.clone()]);
    registry.add_image("library/app", "v1", &image);
    let larder = Larder::before(&registry);
    if known {
        larder.get(TAG).is_ok_with(&image.manifest.bytes);
        larder.settle();
    }
    (registry, larder, format!("/v2/library/app/blobs/{}", layer.digest))
}

#[test]
fn encoded_manifest_is_decoded_before_verification() {
    for fault in [Fault::Gzip, label("gzip"), label("x-gzip")] {
        let house = House::impatient();
        house.registry.script(When::manifests(), fault);
        for path in [TAG, &format!("/v2/library/app/manifests/{}", house.image.manifest.digest), TAG] {
            let answer = house.larder.get(path);
            answer.is_ok_with(&house.image.manifest.bytes);
            assert_eq!(answer.header("content-type"), Some(OCI_MANIFEST));
            assert_eq!(answer.header("content-encoding"), None);
            assert_eq!(answer.head.content_length(), Some(house.image.manifest.bytes.len()));
        }
        house.registry.down();
        house.larder.get(TAG).is_ok_with(&house.image.manifest.bytes);
    }
}

#[test]
fn encoded_manifest_has_the_same_size_limit() {
    let house = House::new();
    let bomb = Arc::new(vec![b' '; 64 * MIB]);
    house.registry.script(When::manifests(), Fault::Other(bomb));
    house.registry.script(When::manifests(), Fault::Gzip);
    let before = house.larder.rss();
    let answer = house.larder.get(TAG);
    answer.is_error(502, "UNAVAILABLE");
    assert!(answer.text().contains("larger"), "{}", answer.text());
    assert!(house.larder.rss() < before + 48 * MIB as u64);
}

#[test]
fn encoded_blob_is_decoded() {
    for known in [true, false] {
        let layer = text(3 * MIB);
        let (registry, larder, path) = with_layer(&layer, known);
        registry.script(When::blobs(), Fault::Gzip);
        let answer = larder.get(&path);
        answer.is_ok_with(&layer.bytes);
        assert_eq!(answer.header("content-encoding"), None);
        assert_eq!(answer.head.content_length(), known.then_some(layer.len()));
        larder.settle();
        let gets = registry.seen("GET", "/blobs/");
        assert_eq!(gets.len(), 1);
        assert!(gets[0].sent() < layer.len() as u64 / 2, "it was not encoded");
        registry.down();
        let answer = larder.api().send("GET", &path, &[("Range", "bytes=100-199")]);
        assert!(answer.status() == 206 && answer.body == layer.bytes[100..200]);
    }
}

#[test]
fn encoded_length_is_not_the_blob_size() {
    for known in [true, false] {
        let layer = text(100_000);
        let (registry, larder, path) = with_layer(&layer, known);
        registry.script(When::blobs(), Fault::Gzip);
        let head = larder.head(&path);
        assert_eq!((head.status(), head.head.content_length()), (200, known.then_some(layer.len())));
    }
}

#[test]
fn gzip_layer_labelled_as_encoded_is_stored_unchanged() {
    let layer = Blob::new(gzip(&text(3 * MIB).bytes));
    let (registry, larder, path) = with_layer(&layer, true);
    registry.script(When::blobs(), label("gzip"));
    registry.script(When::blobs().method("GET").times(1), Fault::Cut(layer.len() / 2));
    // Its length is the one that its descriptor promised: nothing needs to be tried, and ranges are the blob's own.
    larder.get(&path).is_ok_with(&layer.bytes);
    larder.settle();
    let starts: Vec<_> = registry.seen("GET", "/blobs/").iter().map(support::Seen::range_start).collect();
    assert_eq!(starts, [None, Some(layer.len() as u64 / 2)]);
}

#[test]
fn digest_decides_if_the_length_is_unknown() {
    let layer = Blob::new(gzip(&text(3 * MIB).bytes));
    let (registry, larder, path) = with_layer(&layer, false);
    registry.script(When::blobs(), label("gzip"));
    // Who was shown the wrong reading must not take it for whole.
    if let Ok(answer) = larder.api().try_send("GET", &path, &[]) {
        assert!(answer.status() != 200 || answer.body == *layer.bytes, "{:?} completed", answer.head);
    }
    larder.get(&path).is_ok_with(&layer.bytes);
    larder.settle();
    assert_eq!(registry.count("GET", "/blobs/"), 2, "one for each reading");
    assert_eq!(larder.counter("larder_fills_total", &[("result", "ok")]), 1);
    assert_eq!(larder.counter("larder_verify_failures_total", &[]), 0);
}

#[test]
fn body_without_gzip_header_is_taken_unchanged() {
    for layer in [text(100_000), Blob::new(*b"\x1f"), Blob::new(*b"")] {
        let (registry, larder, path) = with_layer(&layer, false);
        registry.script(When::blobs(), label("gzip"));
        larder.get(&path).is_ok_with(&layer.bytes);
        assert_eq!(registry.count("GET", "/blobs/"), 1);
    }
}

#[test]
fn body_with_only_a_gzip_header_is_taken_unchanged() {
    let layer = Blob::new([&b"\x1f\x8b"[..], &[7; 5_000]].concat());
    let (registry, larder, path) = with_layer(&layer, false);
    registry.script(When::blobs(), label("gzip"));
    drop(larder.api().try_send("GET", &path, &[]));
    larder.get(&path).is_ok_with(&layer.bytes);
}

#[test]
fn encoded_body_is_never_resumed_by_range() {
    for known in [true, false] {
        let layer = text(3 * MIB);
        let (registry, larder, path) = with_layer(&layer, known);
        registry.script(When::blobs(), Fault::Gzip);
        registry.script(When::blobs().method("GET").times(2), Fault::Cut(300_000));
        larder.get(&path).is_ok_with(&layer.bytes);
        larder.settle();
        let starts: Vec<_> = registry.seen("GET", "/blobs/").iter().map(support::Seen::range_start).collect();
        assert_eq!(starts, [None, None, None]);
    }
}

#[test]
fn cut_body_may_resume_encoded() {
    // The first half came as it is; the answer to the Range is a part of something else.
    let layer = text(3 * MIB);
    let (registry, larder, path) = with_layer(&layer, true);
    registry.script(When::blobs().method("GET").times(1), Fault::Cut(2 * MIB));
    registry.script(When::blobs().method("GET").after(1), Fault::Gzip);
    larder.get(&path).is_ok_with(&layer.bytes);
    let starts: Vec<_> = registry.seen("GET", "/blobs/").iter().map(support::Seen::range_start).collect();
    assert_eq!(starts, [None, Some(2 * MIB as u64), None]);
}

#[test]
fn encoded_wrong_bytes_fail_verification() {
    for known in [true, false] {
        let layer = text(MIB);
        let (registry, larder, path) = with_layer(&layer, known);
        for fault in [Fault::Flip(MIB / 2), Fault::OneLess, Fault::OneMore] {
            registry.script(When::blobs(), fault);
            registry.script(When::blobs(), Fault::Gzip);
            for _ in 0..2 {
                if let Ok(answer) = larder.api().try_send("GET", &path, &[]) {
                    assert!(is_trouble(answer.status()), "{:?} completed", answer.head);
                }
                larder.settle();
            }
            registry.behave();
        }
        larder.get(&path).is_ok_with(&layer.bytes);
        assert!(larder.counter("larder_verify_failures_total", &[("kind", "blob")]) > 0);
    }
}

#[test]
fn range_ahead_of_an_encoded_fill_has_decoded_bytes() {
    let layer = Blob::random(1, 12 * MIB);
    let (registry, larder, path) = with_layer(&layer, true);
    registry.script(When::blobs(), Fault::Gzip);
    let answer = larder.api().send("GET", &path, &[("Range", "bytes=-1000")]);
    assert_eq!(answer.status(), 206);
    assert_eq!(sha256(&answer.body), sha256(&layer.bytes[12 * MIB - 1000..]));
}

#[test]
fn unsupported_encoding_is_refused_by_name() {
    for coding in ["br", "zstd", "deflate", "gzip, gzip", "br, gzip"] {
        let house = House::new();
        house.registry.script(When::any(), label(coding));
        for path in [TAG, &house.path] {
            let answer = house.larder.get(path);
            answer.is_error(502, "UNAVAILABLE");
            assert!(answer.text().contains(coding), "{}", answer.text());
        }
        assert_eq!(house.larder.head(&house.path).status(), 502);
        house.registry.behave();
        house.larder.get(TAG).is_ok_with(&house.image.manifest.bytes);
        house.larder.get(&house.path).is_ok_with(&house.layer.bytes);
    }
}
