//! Blobs whose digest has an algorithm that cannot be verified.

use crate::support;

use support::content::OCI_MANIFEST;
use support::fixture::MIB;
use support::{Blob, Document, Fault, Image, Larder, Registry, Setup, When, verb};

use serde_json::json;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A registry with an image whose second layer has an unverifiable digest.
struct Foreign {
    registry: Registry,
    blob: Blob,
    path: String,
}

impl Foreign {
    fn start() -> Self {
        let registry = Registry::start();
        let mut blob = Blob::random(3, 3 * MIB);
        blob.digest = format!("blake3:{}", "ab".repeat(32));
        let image = Image::small(1);
        let mut value: serde_json::Value = serde_json::from_slice(&image.manifest.bytes).unwrap();
        value["layers"]
            .as_array_mut()
            .unwrap()
            .push(json!({ "mediaType": LAYER, "digest": blob.digest, "size": blob.len() }));
        registry.add_image("library/app", "v1", &image);
        let manifest = Document::json(OCI_MANIFEST, &value);
        registry.add_manifest("library/app", &manifest);
        registry.tag("library/app", "b3", &manifest.digest);
        registry.add_blob("library/app", &blob);
        let path = format!("/v2/library/app/blobs/{}", blob.digest);
        Self { registry, blob, path }
    }

    fn passing(&self) -> Larder {
        Setup::with(&self.registry).upstream_set("docker.io", "unverifiable", "pass").start()
    }
}

#[test]
fn unverifiable_blob_is_refused_by_default() {
    let foreign = Foreign::start();
    let larder = Larder::in_front_of(&foreign.registry);
    for _ in 0..2 {
        let answer = larder.get(&foreign.path);
        answer.assert_error(400, "DIGEST_INVALID");
        let message = answer.text();
        for part in ["blake3", "unverifiable", "docker.io"] {
            assert!(message.contains(part), "{message}");
        }
    }
    assert_eq!(larder.head(&foreign.path).status(), 400);
    assert_eq!(foreign.registry.count("GET", "/blobs/"), 0);
}

#[test]
fn permitted_blob_is_passed_through_and_not_stored() {
    let foreign = Foreign::start();
    let larder = foreign.passing();
    for n in 1..=2 {
        let answer = larder.api().send("GET", &foreign.path, &[("Range", "bytes=5-9")]);
        answer.assert_body(&foreign.blob.bytes);
        answer.assert_outcome("larder; fwd=bypass; detail=bypass");
        assert_eq!(answer.header("etag"), None);
        assert!(answer.header("cache-control").unwrap().contains("no-store"));
        assert_eq!(answer.header("docker-content-digest"), Some(foreign.blob.digest.as_str()));
        assert_eq!(answer.head.content_length(), Some(foreign.blob.len()));
        assert_eq!(foreign.registry.count("GET", "/blobs/"), n);
    }
    let head = larder.head(&foreign.path);
    assert_eq!((head.status(), head.head.content_length()), (200, Some(foreign.blob.len())));
    // Another repository does not have it.
    let other = foreign.path.replace("library/app", "library/other");
    larder.get(&other).assert_error(404, "BLOB_UNKNOWN");
    // The image is not complete.
    let warmed = verb::online(&larder, &["warm", "app:b3"]);
    let all = format!("{}{}", warmed.stdout, warmed.stderr);
    assert!(all.contains(&foreign.blob.digest), "{warmed:?}");
    let checked = verb::online(&larder, &["check", "--offline", "app:b3", "--json"]);
    assert!(checked.stdout.contains(&foreign.blob.digest), "{checked:?}");
    foreign.registry.down();
    assert!([502, 504].contains(&larder.get(&foreign.path).status()));
}

#[test]
fn interrupted_unverifiable_blob_is_cut_off() {
    for chunked in [false, true] {
        let foreign = Foreign::start();
        if chunked {
            foreign.registry.script(When::blobs(), Fault::Chunked);
        }
        foreign.registry.script(When::blobs(), Fault::Cut(MIB));
        let larder = foreign.passing();
        larder.api().try_send("GET", &foreign.path, &[]).expect_err("a complete body");
        foreign.registry.clear_faults();
        larder.get(&foreign.path).assert_body(&foreign.blob.bytes);
    }
}
