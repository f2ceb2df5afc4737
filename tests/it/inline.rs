//! Blobs that a manifest contains in its descriptors (`data`) and that the registry does not have.

use crate::support;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use support::content::OCI_MANIFEST;
use support::fixture::TAG;
use support::{Blob, Document, Larder, Registry, Setup, verb};

/// Empty config of artifacts.
const EMPTY: &[u8] = b"{}";

fn inline(blob: &Blob, data: &[u8]) -> Value {
    json!({
        "mediaType": "application/vnd.oci.empty.v1+json", "digest": blob.digest, "size": blob.len(),
        "data": BASE64_STANDARD.encode(data),
    })
}

/// A registry with an artifact whose config is only in its manifest. Its layer is a blob.
fn artifact(data: &[u8]) -> (Registry, Blob, Blob, Document) {
    let registry = Registry::start();
    let (config, layer) = (Blob::new(EMPTY.to_vec()), Blob::random(1, 5000));
    let value = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/vnd.example",
        "config": inline(&config, data), "layers": [layer.descriptor("application/octet-stream")],
    });
    let manifest = Document::json(OCI_MANIFEST, &value);
    registry.add_manifest("library/app", &manifest);
    registry.tag("library/app", "v1", &manifest.digest);
    registry.add_blob("library/app", &layer);
    (registry, config, layer, manifest)
}

fn path(blob: &Blob) -> String {
    format!("/v2/library/app/blobs/{}", blob.digest)
}

#[test]
fn blob_in_a_manifest_is_served_and_stored() {
    for kind in ["sled", "files"] {
        let (registry, config, layer, manifest) = artifact(EMPTY);
        let larder = Setup::with(&registry).set("store.blobs", kind).set("cache.tag_ttl", "1h").start();
        larder.get(&path(&config)).assert_error(404, "BLOB_UNKNOWN");
        larder.get(TAG).assert_body(&manifest.bytes);
        let answer = larder.get(&path(&config));
        answer.assert_body(EMPTY);
        answer.assert_outcome("larder; hit");
        let head = larder.head(&path(&config));
        assert_eq!((head.status(), head.head.content_length()), (200, Some(2)));
        larder.get(&path(&layer)).assert_body(&layer.bytes);
        larder.wait_idle();
        // Other repositories get no access.
        let other = path(&config).replace("library/app", "library/other");
        assert_eq!(larder.get(&other).status(), 404);
        registry.down();
        larder.get(&path(&config)).assert_body(EMPTY);
    }
}

#[test]
fn commands_count_a_blob_in_a_manifest_as_available() {
    let (registry, ..) = artifact(EMPTY);
    let larder = Setup::with(&registry).set("cache.tag_ttl", "1h").set("prefetch.referrers", true).start();
    verb::online(&larder, &["warm", "app:v1"]).exited_with(0);
    larder.wait_idle();
    let checked = verb::online(&larder, &["check", "--offline", "app:v1", "--json"]);
    assert!(checked.stdout.contains("app") && !checked.stdout.contains("44136fa3"), "{checked:?}");
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("out");
    verb::online(&larder, &["export", "app:v1", target.to_str().unwrap()]).exited_with(0);
    let digest = Blob::new(EMPTY.to_vec()).digest.replace(':', "/");
    assert_eq!(std::fs::read(target.join("blobs").join(digest)).unwrap(), EMPTY);
}

#[test]
fn wrong_data_is_ignored() {
    let (registry, config, _, manifest) = artifact(b"[]");
    let larder = Larder::in_front_of(&registry);
    larder.get(TAG).assert_body(&manifest.bytes);
    larder.wait_idle();
    larder.get(&path(&config)).assert_error(404, "BLOB_UNKNOWN");
}
