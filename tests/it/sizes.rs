//! Sizes that descriptors state: hints that decide nothing. The digest decides what is served, and a wrong size is reported.

use crate::support;

use serde_json::{Value, json};
use support::content::{OCI_INDEX, OCI_MANIFEST};
use support::script::gzip;
use support::{Blob, Document, Fault, Image, Larder, Registry, When, verb};

/// Returns the manifest of `image` with another size for its only layer.
fn with_layer_size(image: &Image, size: u64) -> Document {
    let mut value: Value = serde_json::from_slice(&image.manifest.bytes).unwrap();
    value["layers"][0]["size"] = json!(size);
    value["annotations"] = json!({ "size": size.to_string() });
    Document::json(OCI_MANIFEST, &value)
}

/// An image `good` and an image `bad` that share a layer, in one repository. `bad` states a wrong size for the layer.
struct Shared {
    registry: Registry,
    larder: Larder,
    layer: Blob,
    bad: Document,
    path: String,
}

impl Shared {
    fn new(layer: Blob, stated: u64) -> Self {
        let registry = Registry::start();
        let good = Image::oci(1, "linux/amd64", vec![layer.clone()]);
        registry.add_image("library/app", "good", &good);
        let bad = with_layer_size(&good, stated);
        registry.add_manifest("library/app", &bad);
        registry.tag("library/app", "bad", &bad.digest);
        let path = format!("/v2/library/app/blobs/{}", layer.digest);
        Self { larder: Larder::in_front_of(&registry), registry, layer, bad, path }
    }

    /// Requests both manifests. The later one leaves its size in the link of the layer.
    fn resolve(&self, tags: [&str; 2]) {
        for tag in tags {
            assert_eq!(self.larder.get(&format!("/v2/library/app/manifests/{tag}")).status(), 200);
        }
    }
}

/// Wrong sizes for a layer of 100,000 bytes.
const WRONG: [u64; 4] = [0, 99_999, 100_001, 1 << 62];

fn layer() -> Blob {
    Blob::random(5, 100_000)
}

#[test]
fn wrong_size_in_one_manifest_harms_no_layer() {
    for stated in WRONG {
        for tags in [["good", "bad"], ["bad", "good"]] {
            let shared = Shared::new(layer(), stated);
            shared.resolve(tags);
            for _ in 0..2 {
                shared.larder.get(&shared.path).assert_body(&shared.layer.bytes);
            }
            assert_eq!(shared.registry.count("GET", "/blobs/"), 1, "{stated} {tags:?}");
            assert_eq!(shared.larder.counter("larder_verify_failures_total", &[]), 0);
        }
    }
}

#[test]
fn wrong_size_is_harmless_without_a_length() {
    for stated in WRONG {
        for fault in [Fault::Chunked, Fault::Gzip] {
            let shared = Shared::new(Blob::new("text ".repeat(20_000)), stated);
            shared.registry.script(When::blobs().method("GET"), fault);
            shared.resolve(["good", "bad"]);
            shared.larder.get(&shared.path).assert_body(&shared.layer.bytes);
            shared.larder.wait_idle();
            let answer = shared.larder.get(&shared.path);
            answer.assert_body(&shared.layer.bytes);
            assert_eq!(answer.head.content_length(), Some(shared.layer.len()), "{stated}");
        }
    }
}

#[test]
fn stated_length_of_an_encoding_is_not_the_blob() {
    // The body is labelled correctly, but the size suggests that the blob is the encoding itself.
    let layer = Blob::new("text ".repeat(20_000));
    let shared = Shared::new(layer.clone(), gzip(&layer.bytes).len() as u64);
    shared.registry.script(When::blobs().method("GET"), Fault::Gzip);
    shared.resolve(["good", "bad"]);
    // The first client may get wrong bytes, and then no complete body.
    if let Ok(answer) = shared.larder.api().try_send("GET", &shared.path, &[]) {
        assert!(answer.status() != 200 || answer.body == *layer.bytes, "{:?} completed", answer.head);
    }
    shared.larder.get(&shared.path).assert_body(&layer.bytes);
}

#[test]
fn wrong_size_of_a_child_harms_no_manifest() {
    for change in [-150, 1] {
        let registry = Registry::start();
        let image = Image::small(1);
        registry.add_image("library/app", "v1", &image);
        let child = json!({
            "mediaType": OCI_MANIFEST, "digest": image.manifest.digest,
            "size": image.manifest.bytes.len().checked_add_signed(change),
            "platform": { "os": "linux", "architecture": "amd64" },
        });
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child] });
        let index = Document::json(OCI_INDEX, &index);
        registry.add_manifest("library/app", &index);
        registry.tag("library/app", "multi", &index.digest);
        let larder = Larder::in_front_of(&registry);
        larder.get("/v2/library/app/manifests/multi").assert_body(&index.bytes);
        let path = format!("/v2/library/app/manifests/{}", image.manifest.digest);
        larder.get(&path).assert_body(&image.manifest.bytes);
    }
}

#[test]
fn truncated_body_without_a_length_is_resumed() {
    let shared = Shared::new(layer(), 100_000);
    shared.resolve(["good", "bad"]);
    let half = shared.layer.bytes[..50_000].to_vec();
    shared.registry.script(When::blobs().method("GET").times(1), Fault::ReplaceBody(half.into()));
    shared.registry.script(When::blobs().method("GET").times(1), Fault::Chunked);
    shared.larder.get(&shared.path).assert_body(&shared.layer.bytes);
}

#[test]
fn wrong_size_is_reported_to_operators() {
    let shared = Shared::new(layer(), 100_005);
    let reference = format!("library/app@{}", shared.bad.digest);
    let digest = &shared.layer.digest;
    let expected = json!([{ "digest": digest, "stated": 100_005, "size": 100_000 }]);
    let said = format!("{digest} has 100000 bytes, its descriptor states 100005");

    let warmed = verb::online(&shared.larder, &["warm", &reference]).exited_with(0);
    assert!(warmed.stdout.contains(&said), "{warmed:?}");
    let warmed = verb::online(&shared.larder, &["warm", "--json", &reference]).exited_with(0).json();
    assert_eq!(warmed["images"][0]["wrong_sizes"], expected);

    shared.larder.wait_idle();
    let checked = verb::online(&shared.larder, &["check", "--offline", &reference]).exited_with(0);
    assert!(checked.stdout.contains(&said), "{checked:?}");
    let checked = verb::online(&shared.larder, &["check", "--offline", "--json", &reference]).json();
    assert_eq!(checked["images"][0]["wrong_sizes"], expected);

    let inspected = verb::online(&shared.larder, &["inspect", &reference]).exited_with(0);
    assert!(inspected.stdout.contains(&said), "{inspected:?}");

    let archive = shared.larder.setup().folder().join("bad.tar");
    let exported = verb::online(&shared.larder, &["export", &reference, archive.to_str().unwrap()]);
    assert!((exported.stdout.clone() + &exported.stderr).contains(&said), "{exported:?}");
    assert!(archive.exists());

    // An image without a contradiction has no such row.
    let checked = verb::online(&shared.larder, &["warm", "--json", "library/app:good"]).exited_with(0).json();
    assert_eq!(checked["images"][0].get("wrong_sizes"), None);
}
