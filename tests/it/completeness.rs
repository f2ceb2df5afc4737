//! Completeness of unusual images: `warm`, `check`, `ls` and the pulls of clients agree.

use crate::support;

use serde_json::{Value, json};
use support::content::{DOCKER_LIST, OCI_INDEX, OCI_MANIFEST};
use support::{Blob, Document, Image, Index, Larder, Puller, Registry, Setup, verb};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

fn start() -> (Registry, Larder) {
    let registry = Registry::start();
    let larder = Setup::with(&registry).set("cache.tag_ttl", "1h").start();
    (registry, larder)
}

fn descriptor(media_type: &str, digest: &str, size: usize) -> Value {
    json!({ "mediaType": media_type, "digest": digest, "size": size })
}

fn of_document(document: &Document) -> Value {
    descriptor(&document.media_type, &document.digest, document.bytes.len())
}

/// Returns the descriptor of an image with these members of `platform`.
fn entry(image: &Image, platform: &[(&str, &str)]) -> Value {
    let mut entry = of_document(&image.manifest);
    for (key, value) in platform {
        entry["platform"][key] = json!(value);
    }
    entry
}

/// Adds an index with a tag.
fn add_index(registry: &Registry, tag: &str, media_type: &str, entries: &[Value]) -> Document {
    let value = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": entries });
    let document = Document::json(media_type, &value);
    registry.add_manifest("org/app", &document);
    registry.tag("org/app", tag, &document.digest);
    document
}

fn add_images(registry: &Registry, images: &[&Image]) {
    for image in images {
        registry.add_manifest("org/app", &image.manifest);
        for blob in image.blobs() {
            registry.add_blob("org/app", blob);
        }
    }
}

fn image(seed: u64, platform: &str) -> Image {
    Image::oci(seed, platform, vec![Blob::random(seed, 2000)])
}

/// Runs `warm` and then `check` for a tag, and asserts that both succeed or both fail. Returns the report of `check`.
#[track_caller]
fn warm_and_check(larder: &Larder, tag: &str, platform: &[&str], code: i32) -> Value {
    let reference = format!("org/app:{tag}");
    let warmed = verb::online(larder, &[&["warm", &reference, "--json"], platform].concat());
    let checked = verb::online(larder, &[&["check", "--offline", &reference, "--json"], platform].concat());
    assert_eq!((warmed.code, checked.code), (code, code), "{warmed:?}\n{checked:?}");
    checked.json()["images"][0].clone()
}

/// Returns the row of `ls` for a tag.
fn row(larder: &Larder, tag: &str) -> Value {
    let rows = larder.admin().get("/api/v1/images").json()["images"].clone();
    rows.as_array().unwrap().iter().find(|row| row["tag"] == tag).unwrap().clone()
}

#[test]
fn build_cache_is_an_index_of_blobs() {
    let (registry, larder) = start();
    let layers: Vec<Blob> = (0..4).map(|seed| Blob::random(seed, 1000)).collect();
    let config = Blob::new(r#"{"layers":[],"records":[]}"#);
    let mut entries: Vec<Value> =
        layers.iter().map(|layer| descriptor(LAYER, &layer.digest, layer.len())).collect();
    entries.push(descriptor("application/vnd.buildkit.cacheconfig.v0", &config.digest, config.len()));
    let index = add_index(&registry, "cache", OCI_INDEX, &entries);
    for blob in layers.iter().chain([&config]) {
        registry.add_blob("org/app", blob);
    }
    larder.get("/v2/org/app/manifests/cache").assert_body(&index.bytes);
    larder.wait_idle();
    assert_eq!(row(&larder, "cache")["complete"], "none");
    for platform in [&["--platform", "linux/amd64"][..], &["--all-platforms"]] {
        warm_and_check(&larder, "cache", platform, 0);
    }
    assert_eq!(row(&larder, "cache")["complete"], "all");
    assert_eq!(
        registry.count("GET", "/manifests/sha256"),
        0,
        "a layer is no manifest, and a cache has no referrers"
    );
    registry.down();
    for blob in layers.iter().chain([&config]) {
        larder.get(&format!("/v2/org/app/blobs/{}", blob.digest)).assert_body(&blob.bytes);
    }
}

#[test]
fn platform_is_read_from_the_config_if_the_index_states_none() {
    let (registry, larder) = start();
    let images = [image(1, "linux/amd64"), image(2, "linux/arm64")];
    add_images(&registry, &[&images[0], &images[1]]);
    add_index(&registry, "plain", OCI_INDEX, &[entry(&images[0], &[]), entry(&images[1], &[])]);
    let verdict = warm_and_check(&larder, "plain", &["--platform", "linux/arm64"], 0);
    assert_eq!(verdict["platforms"], json!(["linux/arm64"]));
    assert_eq!(registry.count("GET", &images[0].layers[0].digest), 0, "a layer of another platform");
    let again = ["warm", "org/app:plain", "--platform", "linux/amd64", "--json"];
    let report = verb::online(&larder, &again).exited_with(0).json()["images"][0].clone();
    assert_eq!((&report["blobs"], &report["fetched"]), (&json!(2), &json!(1)), "{report}");
    warm_and_check(&larder, "plain", &["--platform", "linux/s390x"], 4);
    let archive = larder.setup().folder().join("app.tar").display().to_string();
    let exported = ["export", "org/app:plain", &archive, "--platform", "linux/amd64", "--json"];
    let exported = verb::online(&larder, &exported).exited_with(0).json();
    assert_eq!(exported["digest"], images[0].manifest.digest.as_str(), "{exported}");
}

#[test]
fn platform_is_inherited_from_the_entry_of_a_nested_index() {
    let (registry, larder) = start();
    let images = [image(1, "linux/amd64"), image(2, "linux/arm64")];
    add_images(&registry, &[&images[0], &images[1]]);
    let nested = ["amd64", "arm64"].iter().zip(&images).map(|(architecture, image)| {
        let value = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry(image, &[])] });
        let inner = Document::json(OCI_INDEX, &value);
        registry.add_manifest("org/app", &inner);
        let mut outer = of_document(&inner);
        outer["platform"] = json!({ "os": "linux", "architecture": architecture });
        outer
    });
    let nested: Vec<Value> = nested.collect();
    add_index(&registry, "nested", OCI_INDEX, &nested);
    warm_and_check(&larder, "nested", &["--platform", "linux/arm64"], 0);
    registry.down();
    for blob in images[1].blobs() {
        larder.get(&format!("/v2/org/app/blobs/{}", blob.digest)).assert_body(&blob.bytes);
    }
}

#[test]
fn every_version_of_windows_is_fetched() {
    let (registry, larder) = start();
    let images = [image(1, "windows/amd64"), image(2, "windows/amd64")];
    add_images(&registry, &[&images[0], &images[1]]);
    let platform = |version| [("os", "windows"), ("architecture", "amd64"), ("os.version", version)];
    let entries =
        [entry(&images[0], &platform("10.0.17763.1")), entry(&images[1], &platform("10.0.20348.1"))];
    add_index(&registry, "win", DOCKER_LIST, &entries);
    warm_and_check(&larder, "win", &["--platform", "windows/amd64"], 0);
    registry.down();
    for image in &images {
        let layer = &image.layers[0];
        larder.get(&format!("/v2/org/app/blobs/{}", layer.digest)).assert_body(&layer.bytes);
    }
}

/// Adds an image with one layer that has addresses outside the registry.
fn add_foreign(registry: &Registry, tag: &str, layer: &Blob) {
    let config = Blob::new(r#"{"os":"windows","architecture":"amd64"}"#);
    registry.add_blob("org/app", &config);
    let mut foreign =
        descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", &layer.digest, layer.len());
    foreign["urls"] = json!(["http://127.0.0.1:9/layer"]);
    let value = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": descriptor(CONFIG, &config.digest, config.len()), "layers": [foreign],
    });
    let document = Document::json(OCI_MANIFEST, &value);
    registry.add_manifest("org/app", &document);
    registry.tag("org/app", tag, &document.digest);
}

#[test]
fn foreign_layer_is_fetched_if_the_registry_has_it() {
    let (registry, larder) = start();
    let (present, absent) = (Blob::random(1, 1000), Blob::random(2, 1000));
    registry.add_blob("org/app", &present);
    add_foreign(&registry, "present", &present);
    add_foreign(&registry, "absent", &absent);
    warm_and_check(&larder, "present", &[], 0);
    let verdict = warm_and_check(&larder, "absent", &[], 4);
    assert_eq!(verdict["missing"][0]["foreign"], true, "{verdict}");
    let warmed = verb::online(&larder, &["warm", "org/app:absent"]).exited_with(4);
    assert!(warmed.stdout.contains("outside the registry"), "{warmed:?}");
    assert_eq!(
        (row(&larder, "present")["complete"].clone(), row(&larder, "absent")["complete"].clone()),
        (json!("all"), json!("none"))
    );
}

#[test]
fn digest_of_an_unknown_algorithm_is_reported() {
    let (registry, larder) = start();
    let config = Blob::new(r#"{"os":"linux","architecture":"amd64"}"#);
    registry.add_blob("org/app", &config);
    let unknown = format!("blake3:{}", "ab".repeat(32));
    let value = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": descriptor(CONFIG, &config.digest, config.len()), "layers": [descriptor(LAYER, &unknown, 9)],
    });
    let document = Document::json(OCI_MANIFEST, &value);
    registry.add_manifest("org/app", &document);
    registry.tag("org/app", "b3", &document.digest);
    let verdict = warm_and_check(&larder, "b3", &[], 4);
    assert!(verdict["reason"].as_str().unwrap().contains(&unknown), "{verdict}");
    assert_eq!(row(&larder, "b3")["complete"], "none");
    let shown = verb::online(&larder, &["inspect", "org/app:b3"]);
    assert!(shown.stdout.contains(&unknown), "{shown:?}");
}

#[test]
fn index_beyond_the_limits_is_not_complete() {
    let (registry, larder) = start();
    let image = image(1, "linux/amd64");
    add_images(&registry, &[&image]);
    let mut inner = of_document(&image.manifest);
    for _ in 0..10 {
        let value = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [inner] });
        let index = Document::json(OCI_INDEX, &value);
        registry.add_manifest("org/app", &index);
        registry.tag("org/app", "deep", &index.digest);
        inner = of_document(&index);
    }
    let verdict = warm_and_check(&larder, "deep", &["--all-platforms"], 4);
    assert!(verdict["reason"].as_str().unwrap().contains("8 levels"), "{verdict}");
    let row = row(&larder, "deep");
    assert!(row["limit"].as_str().unwrap().contains("8 levels") && row["complete"] != "all", "{row}");
    let warmed = verb::online(&larder, &["warm", "org/app:deep", "--all-platforms"]).exited_with(4);
    assert!(warmed.stdout.contains("8 levels"), "{warmed:?}");
    let shown = verb::online(&larder, &["inspect", "org/app:deep"]);
    assert!(shown.stdout.contains("8 levels"), "{shown:?}");
}

#[test]
fn digest_of_a_reference_is_fetched_whatever_its_tag_names() {
    let (registry, larder) = start();
    let (old, new) = (image(1, "linux/amd64"), image(2, "linux/amd64"));
    registry.add_image("org/app", "1", &old);
    registry.add_image("org/app", "1", &new);
    let index = Index::oci(7);
    registry.add_index("org/app", "multi", &index);
    let pinned = |tag: &str, digest: &str| format!("org/app:{tag}@{digest}");
    let warm =
        |reference: &str| verb::online(&larder, &["warm", reference, "--all-platforms"]).exited_with(0);
    let check = |digest: &str| {
        let reference = format!("org/app@{digest}");
        verb::online(&larder, &["check", "--offline", &reference, "--all-platforms"]).exited_with(0)
    };
    let moved = warm(&pinned("1", &old.manifest.digest));
    assert!(moved.stdout.contains(&format!("another image: {}", new.manifest.digest)), "{moved:?}");
    check(&old.manifest.digest);
    // The digest of a platform, or of the tag itself, is no other image.
    let arm = &index.images[1].manifest.digest;
    for (tag, digest) in [("multi", arm), ("multi", &index.document.digest), ("gone", &new.manifest.digest)] {
        let warmed = warm(&pinned(tag, digest));
        assert!(!warmed.stdout.contains("another image"), "{warmed:?}");
        check(digest);
    }
    let archive = larder.setup().folder().join("old.tar").display().to_string();
    verb::online(&larder, &["export", &pinned("1", &old.manifest.digest), &archive]).exited_with(0);
    let unknown = pinned("1", &Blob::random(9, 9).digest);
    verb::online(&larder, &["warm", &unknown]).exited_with(4);
}

#[test]
fn attestations_of_a_platform_belong_to_its_image() {
    let registry = Registry::start();
    let index = Index::attested(7);
    registry.add_index("org/app", "1", &index);
    registry.offer_referrers(true);
    let setup = Setup::with(&registry).set("cache.tag_ttl", "1h");
    let larder = setup.set("prefetch.attestations", false).start();
    larder.get("/v2/org/app/manifests/1").assert_body(&index.document.bytes);
    larder.wait_idle();
    let [amd64, _, attestation, _] = index.images.as_slice() else { panic!("two images") };
    for blob in amd64.blobs() {
        larder.get(&format!("/v2/org/app/blobs/{}", blob.digest)).assert_body(&blob.bytes);
    }
    let check = ["check", "--offline", "org/app:1", "--platform", "linux/amd64", "--json"];
    let verdict = verb::online(&larder, &check).exited_with(4).json()["images"][0].clone();
    let missing = verdict["missing"].as_array().unwrap().iter().filter(|part| part["kind"] == "blob");
    let missing: Vec<&str> = missing.map(|part| part["digest"].as_str().unwrap()).collect();
    assert_eq!(missing, attestation.blobs().map(|blob| blob.digest.as_str()).collect::<Vec<_>>());
    assert_eq!(verdict["platforms"], json!(["linux/amd64"]));
    let shown =
        verb::online(&larder, &["inspect", "org/app:1", "--platform", "linux/amd64", "--json"]).json();
    assert_eq!(shown["complete"], false);
    assert!(shown["says"].as_str().unwrap().contains("attestations"), "{shown}");
    assert_eq!(row(&larder, "1")["platforms"][0]["complete"], false);
    warm_and_check(&larder, "1", &["--platform", "linux/amd64"], 0);
    assert_eq!(row(&larder, "1")["platforms"][0]["complete"], true);
    assert_eq!(row(&larder, "1")["complete"], "some");
    // The other platform and its attestation were not fetched.
    for image in [&index.images[1], &index.images[3]] {
        assert_eq!(registry.count("GET", &image.layers[0].digest), 0);
    }
    registry.down();
    for puller in [Puller::Containerd, Puller::Podman] {
        puller.pull(larder.api(), "org/app", "1", "linux/amd64").unwrap();
    }
}
