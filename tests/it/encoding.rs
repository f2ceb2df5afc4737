//! Upstreams that encode bodies without a request for it, or that declare a wrong encoding.

use crate::support;

use std::sync::Arc;

use support::content::{OCI_MANIFEST, sha256};
use support::fixture::{Fixture, MIB, TAG, is_gateway_error};
use support::script::gzip;
use support::{Blob, Fault, Image, Larder, Registry, When};

/// Content that compresses well.
fn text(length: usize) -> Blob {
    Blob::new((0..).flat_map(|n: u32| format!("line {n}\n").into_bytes()).take(length).collect::<Vec<u8>>())
}

fn label(coding: &str) -> Fault {
    Fault::SetHeader("Content-Encoding", coding.to_owned())
}

/// A registry with an image of this layer, and a server that has the manifest cached if it needs to know sizes.
fn with_layer(layer: &Blob, known: bool) -> (Registry, Larder, String) {
    let registry = Registry::start();
    let image = Image::oci(1, "linux/amd64", vec![layer.clone()]);
    registry.add_image("library/app", "v1", &image);
    let larder = Larder::in_front_of(&registry);
    if known {
        larder.get(TAG).assert_body(&image.manifest.bytes);
        larder.wait_idle();
    }
    (registry, larder, format!("/v2/library/app/blobs/{}", layer.digest))
}

#[test]
fn encoded_manifest_is_decoded_before_verification() {
    for fault in [Fault::Gzip, label("gzip"), label("x-gzip")] {
        let fixture = Fixture::with_zero_ttl();
        fixture.registry.script(When::manifests(), fault);
        for path in [TAG, &format!("/v2/library/app/manifests/{}", fixture.image.manifest.digest), TAG] {
            let answer = fixture.larder.get(path);
            answer.assert_body(&fixture.image.manifest.bytes);
            assert_eq!(answer.header("content-type"), Some(OCI_MANIFEST));
            assert_eq!(answer.header("content-encoding"), None);
            assert_eq!(answer.head.content_length(), Some(fixture.image.manifest.bytes.len()));
        }
        fixture.registry.down();
        fixture.larder.get(TAG).assert_body(&fixture.image.manifest.bytes);
    }
}

#[test]
fn encoded_manifest_has_the_same_size_limit() {
    let fixture = Fixture::new();
    let bomb = Arc::new(vec![b' '; 64 * MIB]);
    fixture.registry.script(When::manifests(), Fault::ReplaceBody(bomb));
    fixture.registry.script(When::manifests(), Fault::Gzip);
    let before = fixture.larder.rss();
    let answer = fixture.larder.get(TAG);
    answer.assert_error(502, "UNAVAILABLE");
    assert!(answer.text().contains("larger"), "{}", answer.text());
    assert!(fixture.larder.rss() < before + 48 * MIB as u64);
}

#[test]
fn encoded_blob_is_decoded() {
    for known in [true, false] {
        let layer = text(3 * MIB);
        let (registry, larder, path) = with_layer(&layer, known);
        registry.script(When::blobs(), Fault::Gzip);
        let answer = larder.get(&path);
        answer.assert_body(&layer.bytes);
        assert_eq!(answer.header("content-encoding"), None);
        // The size in a descriptor may be wrong.
        assert_eq!(answer.head.content_length(), None);
        larder.wait_idle();
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
    // The descriptor declares this length, so no decoding is tried, and ranges are those of the blob.
    larder.get(&path).assert_body(&layer.bytes);
    larder.wait_idle();
    let starts: Vec<_> = registry.seen("GET", "/blobs/").iter().map(support::Seen::range_start).collect();
    assert_eq!(starts, [None, Some(layer.len() as u64 / 2)]);
}

#[test]
fn digest_decides_if_the_length_is_unknown() {
    let layer = Blob::new(gzip(&text(3 * MIB).bytes));
    let (registry, larder, path) = with_layer(&layer, false);
    registry.script(When::blobs(), label("gzip"));
    // A client that got wrong bytes must not get a complete body.
    if let Ok(answer) = larder.api().try_send("GET", &path, &[]) {
        assert!(answer.status() != 200 || answer.body == *layer.bytes, "{:?} completed", answer.head);
    }
    larder.get(&path).assert_body(&layer.bytes);
    larder.wait_idle();
    assert_eq!(registry.count("GET", "/blobs/"), 2, "one for each reading");
    assert_eq!(larder.counter("larder_fills_total", &[("result", "ok")]), 1);
    assert_eq!(larder.counter("larder_verify_failures_total", &[]), 0);
}

#[test]
fn body_without_gzip_header_is_taken_unchanged() {
    for layer in [text(100_000), Blob::new(*b"\x1f"), Blob::new(*b"")] {
        let (registry, larder, path) = with_layer(&layer, false);
        registry.script(When::blobs(), label("gzip"));
        larder.get(&path).assert_body(&layer.bytes);
        assert_eq!(registry.count("GET", "/blobs/"), 1);
    }
}

#[test]
fn body_with_only_a_gzip_header_is_taken_unchanged() {
    let layer = Blob::new([&b"\x1f\x8b"[..], &[7; 5_000]].concat());
    let (registry, larder, path) = with_layer(&layer, false);
    registry.script(When::blobs(), label("gzip"));
    drop(larder.api().try_send("GET", &path, &[]));
    larder.get(&path).assert_body(&layer.bytes);
}

#[test]
fn encoded_body_is_never_resumed_by_range() {
    for known in [true, false] {
        let layer = text(3 * MIB);
        let (registry, larder, path) = with_layer(&layer, known);
        registry.script(When::blobs(), Fault::Gzip);
        registry.script(When::blobs().method("GET").times(2), Fault::Cut(300_000));
        larder.get(&path).assert_body(&layer.bytes);
        larder.wait_idle();
        let starts: Vec<_> = registry.seen("GET", "/blobs/").iter().map(support::Seen::range_start).collect();
        assert_eq!(starts, [None, None, None]);
    }
}

#[test]
fn cut_body_may_resume_encoded() {
    // The first half is not encoded. The answer to the Range request is a part of other content.
    let layer = text(3 * MIB);
    let (registry, larder, path) = with_layer(&layer, true);
    registry.script(When::blobs().method("GET").times(1), Fault::Cut(2 * MIB));
    registry.script(When::blobs().method("GET").after(1), Fault::Gzip);
    larder.get(&path).assert_body(&layer.bytes);
    let starts: Vec<_> = registry.seen("GET", "/blobs/").iter().map(support::Seen::range_start).collect();
    assert_eq!(starts, [None, Some(2 * MIB as u64), None]);
}

#[test]
fn encoded_wrong_bytes_fail_verification() {
    for known in [true, false] {
        let layer = text(MIB);
        let (registry, larder, path) = with_layer(&layer, known);
        for fault in [Fault::FlipBit(MIB / 2), Fault::RemoveLastByte, Fault::AppendByte] {
            registry.script(When::blobs(), fault);
            registry.script(When::blobs(), Fault::Gzip);
            for _ in 0..2 {
                if let Ok(answer) = larder.api().try_send("GET", &path, &[]) {
                    assert!(is_gateway_error(answer.status()), "{:?} completed", answer.head);
                }
                larder.wait_idle();
            }
            registry.clear_faults();
        }
        larder.get(&path).assert_body(&layer.bytes);
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
        let fixture = Fixture::new();
        fixture.registry.script(When::any(), label(coding));
        for path in [TAG, &fixture.path] {
            let answer = fixture.larder.get(path);
            answer.assert_error(502, "UNAVAILABLE");
            assert!(answer.text().contains(coding), "{}", answer.text());
        }
        assert_eq!(fixture.larder.head(&fixture.path).status(), 502);
        fixture.registry.clear_faults();
        fixture.larder.get(TAG).assert_body(&fixture.image.manifest.bytes);
        fixture.larder.get(&fixture.path).assert_body(&fixture.layer.bytes);
    }
}
