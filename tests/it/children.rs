//! Prefetch: the child manifests of an index are downloaded in the background, within limits.

use crate::support;

use serde_json::json;
use support::content::{OCI_INDEX, OCI_MANIFEST};
use support::{Blob, Document, Fault, Gate, Image, Index, Larder, Registry, Setup, When, eventually};

const TAG: &str = "/v2/library/app/manifests/v1";

#[test]
fn index_tree_is_complete_in_an_outage() {
    let registry = Registry::start();
    let nested = Index::over(OCI_INDEX, vec![Image::small(90)], vec![Index::nested(30), Index::docker(60)]);
    let artifact = Image::artifact(5, &nested.document);
    let trees = [
        ("oci", Index::oci(1)),
        ("docker", Index::docker(10)),
        ("nested", Index::nested(20)),
        ("deep", nested),
    ];
    for (tag, index) in &trees {
        registry.add_index("library/app", tag, index);
    }
    registry.add_image("library/app", "artifact", &artifact);
    let larder = Setup::with(&registry).set("cache.tag_ttl", "1h").start();
    for (tag, index) in &trees {
        let answer = larder.get(&format!("/v2/library/app/manifests/{tag}"));
        answer.assert_body(&index.document.bytes);
    }
    larder.get("/v2/library/app/manifests/artifact").assert_body(&artifact.manifest.bytes);
    // Every child is downloaded without a request of a client.
    for (_, index) in &trees {
        for document in index.documents().into_iter().skip(1) {
            registry.wait_for(1, "GET", &document.digest);
        }
    }
    larder.wait_idle();
    registry.down();
    for (_, index) in &trees {
        for document in index.documents() {
            let answer = larder.get(&format!("/v2/library/app/manifests/{}", document.digest));
            answer.assert_body(&document.bytes);
            answer.assert_outcome("larder; hit");
            assert_eq!(answer.header("content-type"), Some(document.media_type.as_str()));
            assert_eq!(answer.header("docker-content-digest"), Some(document.digest.as_str()));
        }
    }
}

#[test]
fn children_are_served_after_a_restart() {
    let registry = Registry::start();
    let index = Index::nested(1);
    registry.add_index("library/app", "v1", &index);
    let mut larder = Larder::in_front_of(&registry);
    larder.get(TAG).assert_body(&index.document.bytes);
    for document in &index.documents()[1..] {
        registry.wait_for(1, "GET", &document.digest);
    }
    larder.wait_idle();
    larder.stop();
    registry.down();
    larder.restart();
    for document in index.documents() {
        larder.get(&format!("/v2/library/app/manifests/{}", document.digest)).assert_body(&document.bytes);
    }
    larder.get(TAG).assert_body(&index.document.bytes);
}

#[test]
fn children_prefetch_can_be_disabled() {
    let registry = Registry::start();
    let index = Index::oci(1);
    registry.add_index("library/app", "v1", &index);
    let larder = Setup::with(&registry).set("prefetch.children", false).start();
    larder.get(TAG).assert_body(&index.document.bytes);
    larder.wait_idle();
    assert_eq!(registry.count("GET", "/manifests/sha256:"), 0);
    let child = &index.images[1].manifest;
    larder.get(&format!("/v2/library/app/manifests/{}", child.digest)).assert_body(&child.bytes);
}

#[test]
fn missing_child_does_not_affect_the_others() {
    let registry = Registry::start();
    let index = Index::oci(1);
    registry.add_index("library/app", "v1", &index);
    registry.script(When::manifests().path(&index.images[0].manifest.digest), Fault::Status(404));
    let larder = Larder::in_front_of(&registry);
    larder.get(TAG).assert_body(&index.document.bytes);
    let other = &index.images[1].manifest;
    registry.wait_for(1, "GET", &other.digest);
    larder.wait_idle();
    registry.down();
    larder.get(TAG).assert_body(&index.document.bytes);
    larder.get(&format!("/v2/library/app/manifests/{}", other.digest)).assert_body(&other.bytes);
}

#[test]
fn index_chain_depth_is_bounded() {
    let registry = Registry::start();
    let mut index = Index::oci(1);
    for _ in 0..30 {
        index = Index::over(OCI_INDEX, Vec::new(), vec![index]);
    }
    registry.add_index("library/app", "v1", &index);
    let larder = Larder::in_front_of(&registry);
    larder.get(TAG).assert_body(&index.document.bytes);
    registry.wait_for(3, "GET", "/manifests/");
    larder.wait_idle();
    let ahead = registry.count("GET", "/manifests/sha256:");
    assert!((2..30).contains(&ahead), "{ahead} fetched ahead");
    // Deeper levels are downloaded on request.
    for document in index.documents() {
        larder.get(&format!("/v2/library/app/manifests/{}", document.digest)).assert_body(&document.bytes);
    }
}

#[test]
fn prefetch_of_a_wide_index_is_bounded() {
    let registry = Registry::start();
    let last = Image::small(1);
    registry.add_image("library/app", "last", &last);
    let digests = (0..499).map(|n| Blob::new(format!("{n}")).digest).chain([last.manifest.digest.clone()]);
    let manifests: Vec<_> =
        digests.map(|digest| json!({ "mediaType": OCI_MANIFEST, "size": 10, "digest": digest })).collect();
    let value = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
    let document = Document::json(OCI_INDEX, &value);
    registry.add_manifest("library/app", &document);
    registry.tag("library/app", "v1", &document.digest);
    let larder = Larder::in_front_of(&registry);
    larder.get(TAG).assert_body(&document.bytes);
    larder.get(TAG).assert_body(&document.bytes);
    larder.wait_idle();
    assert_eq!(registry.count("GET", "/manifests/sha256:"), 256);
    assert_eq!(larder.counter("larder_children_skipped_total", &[]), 244);
    larder.wait_for_line("warning about the children", |line| {
        line["level"] == "WARN" && line["skipped"] == 244 && line["repository"] == "docker.io/library/app"
    });
    // The rest is fetched on request.
    larder.get(&child_path(&last.manifest)).assert_body(&last.manifest.bytes);
}

/// Pulls indexes of one repository whose children the registry does not send until the gate opens.
fn hold_prefetch(larder: &Larder, registry: &Registry, prefix: &str, count: u64) -> Gate {
    let gate = Gate::new();
    registry.script(
        When::manifests().method("GET").path("/library/slow/manifests/sha256:"),
        Fault::HoldHead(gate.clone()),
    );
    for n in 0..count {
        let index = Index::oci(1000 + 10 * n);
        registry.add_index("library/slow", &format!("v{n}"), &index);
        let path = format!("/v2/{prefix}library/slow/manifests/v{n}");
        larder.get(&path).assert_body(&index.document.bytes);
    }
    gate
}

#[test]
fn slow_prefetch_of_one_repository_leaves_the_others() {
    let registry = Registry::start();
    let index = Index::oci(1);
    registry.add_index("library/app", "v1", &index);
    let larder = Larder::in_front_of(&registry);
    let gate = hold_prefetch(&larder, &registry, "", 20);
    gate.wait_reached(2);
    larder.get(TAG).assert_body(&index.document.bytes);
    for document in &index.documents()[1..] {
        registry.wait_for(1, "GET", &document.digest);
    }
    gate.open();
}

#[test]
fn slow_prefetch_of_one_upstream_leaves_the_others() {
    let (registry, other) = (Registry::start(), Registry::start());
    let index = Index::oci(1);
    registry.add_index("library/app", "v1", &index);
    let larder = Setup::with(&registry).upstream("other.test", &other).start();
    let gate = hold_prefetch(&larder, &other, "other.test/", 20);
    gate.wait_reached(2);
    larder.get(TAG).assert_body(&index.document.bytes);
    for document in &index.documents()[1..] {
        registry.wait_for(1, "GET", &document.digest);
    }
    gate.open();
}

fn child_path(document: &Document) -> String {
    format!("/v2/library/app/manifests/{}", document.digest)
}

/// Asserts that all content of an index is served without the upstream.
fn assert_complete(larder: &Larder, registry: &Registry, index: &Index) {
    larder.wait_idle();
    for document in index.documents() {
        eventually("the child is cached", || {
            larder.get(&child_path(document)).head.outcome() == "larder; hit"
        });
    }
    registry.down();
    for document in index.documents() {
        larder.get(&child_path(document)).assert_body(&document.bytes);
    }
}

#[test]
fn prefetch_continues_after_the_client_disconnects() {
    for by_tag in [false, true] {
        let registry = Registry::start();
        let index = Index::oci(1);
        registry.add_index("library/app", "v1", &index);
        let larder = Larder::in_front_of(&registry);
        let gate = Gate::new();
        let path = if by_tag { TAG.to_owned() } else { child_path(&index.document) };
        registry.script(When::manifests().method("GET").path(&path), Fault::HoldHead(gate.clone()));
        let connection = larder.api().connect().unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        std::io::Write::write_all(&mut &connection, request.as_bytes()).unwrap();
        gate.wait_reached(1);
        drop(connection);
        eventually("the server has closed the client's connection", || {
            larder.counter("larder_connections", &[]) == 0
        });
        gate.open();
        for document in &index.documents()[1..] {
            registry.wait_for(1, "GET", &document.digest);
        }
        assert_complete(&larder, &registry, &index);
    }
}

/// Requests the tag until each child has been requested from the upstream.
fn request_until_children_are_requested(larder: &Larder, registry: &Registry, index: &Index) {
    registry.forget_requests();
    registry.clear_faults();
    eventually("all children have been requested again", || {
        larder.get(TAG).assert_body(&index.document.bytes);
        index.documents()[1..].iter().all(|document| registry.count("GET", &document.digest) > 0)
    });
}

#[test]
fn children_are_retried_after_a_refusal() {
    let registry = Registry::start();
    let index = Index::oci(1);
    registry.add_index("library/app", "v1", &index);
    let larder = Setup::with(&registry).set("cache.tag_ttl", "0s").start();
    for image in &index.images {
        registry.script(When::manifests().path(&image.manifest.digest), Fault::Status(403));
    }
    larder.get(TAG).assert_body(&index.document.bytes);
    larder.wait_for_line("warning about a skipped child", |line| line["child"].is_string());
    request_until_children_are_requested(&larder, &registry, &index);
    assert_complete(&larder, &registry, &index);
}

#[test]
fn children_prefetch_resumes_after_a_restart() {
    let registry = Registry::start();
    let index = Index::oci(1);
    registry.add_index("library/app", "v1", &index);
    let mut larder = Setup::with(&registry).set("cache.tag_ttl", "0s").start();
    for image in &index.images {
        registry.script(When::manifests().path(&image.manifest.digest), Fault::Status(503));
    }
    larder.get(TAG).assert_body(&index.document.bytes);
    registry.wait_for(1, "GET", &index.images[0].manifest.digest);
    larder.stop();
    larder.restart();
    request_until_children_are_requested(&larder, &registry, &index);
    assert_complete(&larder, &registry, &index);
}

#[test]
#[ignore = "waits for larder's patience to end, half a minute"]
fn children_are_retried_after_giving_up() {
    let registry = Registry::start();
    let index = Index::oci(1);
    registry.add_index("library/app", "v1", &index);
    let larder = Setup::with(&registry).set("cache.tag_ttl", "0s").start();
    for image in &index.images {
        registry.script(When::manifests().path(&image.manifest.digest), Fault::Status(503));
    }
    larder.get(TAG).assert_body(&index.document.bytes);
    larder.wait_for_line("warning about a skipped child", |line| line["child"].is_string());
    request_until_children_are_requested(&larder, &registry, &index);
    assert_complete(&larder, &registry, &index);
}

#[test]
fn index_is_prefetched_once_at_a_time() {
    let registry = Registry::start();
    let index = Index::oci(1);
    registry.add_index("library/app", "v1", &index);
    let larder = Setup::with(&registry).set("cache.tag_ttl", "0s").start();
    let gate = Gate::new();
    for image in &index.images {
        registry.script(When::manifests().path(&image.manifest.digest), Fault::HoldHead(gate.clone()));
    }
    for _ in 0..50 {
        larder.get(TAG).assert_body(&index.document.bytes);
    }
    gate.wait_reached(1);
    let waiting = larder.counter("larder_children_queued", &[]);
    assert!((1..=2).contains(&waiting), "{waiting} children wait");
    gate.open();
    assert_complete(&larder, &registry, &index);
    assert_eq!(registry.count("GET", "/manifests/sha256:"), 2);
}

#[test]
fn damaged_child_is_fetched_again() {
    let registry = Registry::start();
    let index = Index::oci(1);
    registry.add_index("library/app", "v1", &index);
    let larder = Setup::with(&registry).set("cache.tag_ttl", "0s").start();
    for image in &index.images {
        registry.script(When::manifests().path(&image.manifest.digest).times(1), Fault::FlipBit(0));
    }
    larder.get(TAG).assert_body(&index.document.bytes);
    larder.wait_counter("larder_verify_failures_total", &[("kind", "manifest")], 2);
    request_until_children_are_requested(&larder, &registry, &index);
    assert_complete(&larder, &registry, &index);
}

#[test]
fn blobs_are_prefetched_for_configured_platforms() {
    let registry = Registry::start();
    let index = Index::oci(1);
    registry.add_index("library/app", "v1", &index);
    let larder = Setup::with(&registry).set("prefetch.platforms", vec!["linux/arm64".to_owned()]).start();
    larder.get(TAG).assert_body(&index.document.bytes);
    let [amd64, arm64] = index.images.as_slice() else { panic!("two platforms") };
    let held = |blob: &Blob| {
        let answer = larder.api().send("HEAD", &format!("/v2/library/app/blobs/{}", blob.digest), &[]);
        answer.header("cache-status") == Some("larder; hit")
    };
    eventually("the blobs of the requested platform are cached", || arm64.blobs().all(held));
    for blob in amd64.blobs() {
        let asked =
            registry.requests().iter().any(|seen| seen.method == "GET" && seen.path.ends_with(&blob.digest));
        assert!(!asked, "downloaded without a request: {}", blob.digest);
    }
}

#[test]
fn attestations_are_prefetched_with_their_blobs() {
    let registry = Registry::start();
    let index = Index::attested(7);
    registry.add_index("library/app", "v1", &index);
    let larder = Larder::in_front_of(&registry);
    larder.get(TAG).assert_body(&index.document.bytes);
    larder.wait_idle();
    registry.down();
    for attestation in &index.images[2..] {
        larder.get(&child_path(&attestation.manifest)).assert_body(&attestation.manifest.bytes);
        for blob in attestation.blobs() {
            larder.get(&format!("/v2/library/app/blobs/{}", blob.digest)).assert_body(&blob.bytes);
        }
    }
    for image in &index.images[..2] {
        assert_eq!(registry.count("GET", &image.layers[0].digest), 0, "a layer is downloaded on request");
    }
}

#[test]
fn attestations_are_prefetched_without_other_children() {
    let registry = Registry::start();
    let index = Index::attested(7);
    registry.add_index("library/app", "v1", &index);
    let larder = Setup::with(&registry).set("prefetch.children", false).start();
    larder.get(TAG).assert_body(&index.document.bytes);
    larder.wait_idle();
    for (position, image) in index.images.iter().enumerate() {
        let expected = usize::from(position >= 2);
        assert_eq!(registry.count("GET", &image.manifest.digest), expected, "child {position}");
    }
}

#[test]
fn large_blob_of_an_attestation_is_not_prefetched() {
    let registry = Registry::start();
    let mut index = Index::attested(7);
    let large = Blob::new(vec![b' '; (16 << 20) + 1]);
    let mut attestation = index.images[2].clone();
    let mut value: serde_json::Value = serde_json::from_slice(&attestation.manifest.bytes).unwrap();
    value["layers"].as_array_mut().unwrap().push(
        json!({ "mediaType": "application/vnd.in-toto+json", "digest": large.digest, "size": large.len() }),
    );
    attestation.manifest = Document::json(OCI_MANIFEST, &value);
    let mut entries: serde_json::Value = serde_json::from_slice(&index.document.bytes).unwrap();
    entries["manifests"][2]["digest"] = json!(attestation.manifest.digest);
    entries["manifests"][2]["size"] = json!(attestation.manifest.bytes.len());
    index.document = Document::json(OCI_INDEX, &entries);
    index.images[2] = attestation;
    registry.add_index("library/app", "v1", &index);
    registry.add_blob("library/app", &large);
    let larder = Larder::in_front_of(&registry);
    larder.get(TAG).assert_body(&index.document.bytes);
    larder.wait_idle();
    assert_eq!(registry.count("GET", &index.images[2].layers[0].digest), 1);
    assert_eq!(registry.count("GET", &large.digest), 0);
    larder.get(&format!("/v2/library/app/blobs/{}", large.digest)).assert_body(&large.bytes);
}

#[test]
fn failing_attestation_does_not_delay_the_images() {
    let registry = Registry::start();
    let index = Index::attested(7);
    // The attestations are first in the index.
    let mut entries: serde_json::Value = serde_json::from_slice(&index.document.bytes).unwrap();
    entries["manifests"].as_array_mut().unwrap().rotate_left(2);
    let index = Index { document: Document::json(OCI_INDEX, &entries), ..index };
    registry.add_index("library/app", "v1", &index);
    for attestation in &index.images[2..] {
        let blob = &attestation.layers[0].digest;
        registry.script(When::blobs().path(blob), Fault::Status(403));
    }
    let larder = Larder::in_front_of(&registry);
    larder.get(TAG).assert_body(&index.document.bytes);
    larder.wait_idle();
    for image in &index.images[..2] {
        assert_eq!(registry.count("GET", &image.manifest.digest), 1);
    }
    assert_eq!(larder.counter("larder_children_deferred", &[]), 2);
}

#[test]
fn prefetch_repeats_no_download_that_cannot_be_stored() {
    let registry = Registry::start();
    let large = Image::oci(1, "linux/amd64", vec![Blob::random(1, 12 << 20)]);
    let layer = large.layers[0].digest.clone();
    let index = Index::over(OCI_INDEX, vec![large], Vec::new());
    registry.add_index("library/app", "v1", &index);
    let larder = Setup::with(&registry)
        .set("prefetch.platforms", vec!["linux/amd64".to_owned()])
        .set("store.blobs", "files")
        .set("store.max_size", "8MiB")
        .set("store.min_free", "0B")
        .set("cache.tag_ttl", "0s")
        .start();
    larder.get(TAG).assert_body(&index.document.bytes);
    larder.wait_for_line("warning about the layer", |line| line["level"] == "WARN" && line["blob"] == layer);
    larder.wait_idle();
    let before = registry.count("GET", &layer);
    for _ in 0..5 {
        larder.get(TAG).assert_body(&index.document.bytes);
        larder.wait_idle();
    }
    assert_eq!(registry.count("GET", &layer), before);
    assert!(before <= 2, "{before} downloads");
}
