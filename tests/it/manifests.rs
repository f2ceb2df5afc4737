//! Manifests: freshness of tags, children of indexes, media types, variants, links, and the negative cache.

use crate::support;

use std::sync::Arc;
use std::time::Duration;

use support::content::DOCKER_MANIFEST;
use support::{
    Blob, Fault, Gate, Image, InProcessLarder, Index, Larder, Random, Registry, Setup, When, eventually,
};

const TAG: &str = "/v2/library/app/manifests/v1";
const REVALIDATED: &str = "larder; hit; detail=revalidated";
const MISS: &str = "larder; fwd=uri-miss; stored; detail=miss";

fn with_image() -> (Registry, Image) {
    let registry = Registry::start();
    let image = Image::small(1);
    registry.add_image("library/app", "v1", &image);
    (registry, image)
}

/// Returns the requests for manifests at the upstream, such as `["HEAD v1", "GET v1"]`.
fn asked(registry: &Registry) -> Vec<String> {
    let manifests = registry.requests().into_iter().filter(|seen| seen.path.contains("/manifests/"));
    manifests.map(|seen| format!("{} {}", seen.method, seen.path.rsplit('/').next().unwrap())).collect()
}

#[test]
fn fresh_tag_needs_no_upstream_request() {
    let (registry, image) = with_image();
    let larder = Setup::with(&registry).set("cache.tag_ttl", "1h").start();
    larder.get(TAG).assert_body(&image.manifest.bytes);
    larder.wait_idle();
    registry.forget_requests();
    for _ in 0..3 {
        larder.get(TAG).assert_outcome("larder; hit");
        larder.head(TAG).assert_outcome("larder; hit");
    }
    assert_eq!(asked(&registry), Vec::<String>::new());
}

#[test]
fn unchanged_tag_costs_one_head() {
    let (registry, image) = with_image();
    let larder = Setup::with(&registry).set("cache.tag_ttl", "0s").start();
    larder.get(TAG).assert_body(&image.manifest.bytes);
    for n in 1..=3 {
        registry.forget_requests();
        let answer = if n == 2 { larder.head(TAG) } else { larder.get(TAG) };
        answer.assert_outcome(REVALIDATED);
        assert_eq!(asked(&registry), ["HEAD v1"], "round {n}");
    }
}

#[test]
fn moved_tag_is_fetched_and_old_content_stays() {
    let (registry, old) = with_image();
    let larder = Setup::with(&registry).set("cache.tag_ttl", "0s").start();
    larder.get(TAG).assert_body(&old.manifest.bytes);
    let new = Image::docker(2, "linux/amd64", vec![Blob::random(2, 100)]);
    registry.add_image("library/app", "v1", &new);
    registry.forget_requests();
    let answer = larder.get(TAG);
    answer.assert_body(&new.manifest.bytes);
    answer.assert_outcome(MISS);
    assert_eq!(answer.header("content-type"), Some(DOCKER_MANIFEST));
    assert_eq!(asked(&registry)[0], "HEAD v1");
    assert_eq!(registry.count("GET", "/manifests/"), 1);
    registry.down();
    let digest = &old.manifest.digest;
    larder.get(&format!("/v2/library/app/manifests/{digest}")).assert_body(&old.manifest.bytes);
}

#[test]
fn tag_moved_to_cached_content_needs_no_get() {
    let (registry, one) = with_image();
    let two = Image::small(2);
    registry.add_image("library/app", "v2", &two);
    let larder = Setup::with(&registry).set("cache.tag_ttl", "0s").start();
    larder.get(TAG).assert_body(&one.manifest.bytes);
    larder.get("/v2/library/app/manifests/v2").assert_body(&two.manifest.bytes);
    registry.tag("library/app", "v1", &two.manifest.digest);
    larder.get(TAG).assert_body(&two.manifest.bytes);
    registry.tag("library/app", "v1", &one.manifest.digest);
    larder.get(TAG).assert_body(&one.manifest.bytes);
}

#[test]
fn upstream_without_head_or_digest_is_asked_by_get() {
    for fault in [Fault::Status(405), Fault::RemoveHeader("Docker-Content-Digest")] {
        let (registry, image) = with_image();
        registry.script(When::manifests().method("HEAD"), fault);
        let larder = Setup::with(&registry).set("cache.tag_ttl", "0s").start();
        for _ in 0..2 {
            larder.get(TAG).assert_body(&image.manifest.bytes);
        }
        let new = Image::small(2);
        registry.add_image("library/app", "v1", &new);
        larder.get(TAG).assert_body(&new.manifest.bytes);
    }
}

#[test]
fn unfinished_head_confirms_nothing() {
    for status in [405, 501] {
        let (registry, image) = with_image();
        registry.add_image("library/granted", "v1", &image);
        registry.add_image("library/other", "v1", &Image::small(2));
        registry.script(When::manifests().method("HEAD"), Fault::Status(status));
        let larder = Larder::in_front_of(&registry);
        larder.get(TAG).assert_body(&image.manifest.bytes);
        larder.wait_idle();
        let ask = |name: &str| larder.get(&format!("/v2/library/{name}/manifests/{}", image.manifest.digest));
        ask("other").assert_error(404, "MANIFEST_UNKNOWN");
        ask("granted").assert_body(&image.manifest.bytes);

        let lie = Arc::new(b"something else".to_vec());
        registry.add_image("library/lied", "v1", &image);
        registry.script(When::manifests().method("GET"), Fault::ReplaceBody(lie));
        ask("lied").assert_error(502, "UNAVAILABLE");
    }
}

#[test]
fn digest_is_never_revalidated() {
    let (registry, image) = with_image();
    let larder = Setup::with(&registry).set("cache.tag_ttl", "0s").start();
    let path = format!("/v2/library/app/manifests/{}", image.manifest.digest);
    larder.get(&path).assert_body(&image.manifest.bytes);
    larder.wait_idle();
    registry.forget_requests();
    for _ in 0..3 {
        larder.get(&path).assert_outcome("larder; hit");
    }
    assert_eq!(registry.requests().len(), 0);
}

#[test]
fn revalidation_is_shared_by_waiting_clients() {
    let (registry, image) = with_image();
    let larder = Setup::with(&registry).set("cache.tag_ttl", "0s").start();
    larder.get(TAG);
    registry.forget_requests();
    let gate = Gate::new();
    registry.script(When::manifests().method("HEAD").times(1), Fault::HoldHead(gate.clone()));
    let (client, bytes) = (larder.api(), &image.manifest.bytes);
    std::thread::scope(|scope| {
        let first = scope.spawn(move || client.get(TAG));
        gate.wait_reached(1);
        let others: Vec<_> = (0..8).map(|_| scope.spawn(move || client.get(TAG))).collect();
        eventually("all nine clients are connected", || larder.counter("larder_connections", &[]) >= 9);
        gate.open();
        first.join().unwrap().assert_body(bytes);
        for other in others {
            other.join().unwrap().assert_body(bytes);
        }
    });
    let heads = registry.count("HEAD", "/manifests/v1");
    // A request that arrives after the answer starts its own revalidation. Nine requests would mean that none was
    // coalesced.
    assert!((1..=3).contains(&heads), "{heads} HEADs");
    assert_eq!(registry.count("GET", "/manifests/"), 0);
}

#[test]
fn uncached_tag_costs_one_get_for_many_clients() {
    let (registry, image) = with_image();
    let gate = Gate::new();
    registry.script(When::manifests(), Fault::HoldHead(gate.clone()));
    let larder = Larder::in_front_of(&registry);
    let client = larder.api();
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..16).map(|_| scope.spawn(move || client.get(TAG))).collect();
        gate.wait_reached(1);
        eventually("all clients are connected", || larder.counter("larder_connections", &[]) >= 16);
        gate.open();
        for one in all {
            one.join().unwrap().assert_body(&image.manifest.bytes);
        }
    });
    assert_eq!(registry.count("GET", "/manifests/v1"), 1);
}

#[test]
fn absence_is_cached() {
    let (registry, image) = with_image();
    let larder = Setup::with(&registry).set("cache.negative_ttl", "1h").start();
    let blob = format!("/v2/library/app/blobs/{}", Blob::new("never there").digest);
    for (path, code) in [
        ("/v2/library/app/manifests/none".to_owned(), "MANIFEST_UNKNOWN"),
        (format!("/v2/library/app/manifests/{}", Blob::new("none").digest), "MANIFEST_UNKNOWN"),
        (blob, "BLOB_UNKNOWN"),
    ] {
        registry.forget_requests();
        larder.get(&path).assert_error(404, code);
        let first = registry.requests().len();
        assert!(first >= 1);
        for _ in 0..3 {
            larder.get(&path).assert_error(404, code);
            assert_eq!(larder.head(&path).status(), 404);
        }
        assert_eq!(registry.requests().len(), first, "{path}");
    }
    // The existing tag is not affected.
    larder.get(TAG).assert_body(&image.manifest.bytes);
}

#[test]
fn absence_expires() {
    let (registry, image) = with_image();
    let larder = Setup::with(&registry).set("cache.negative_ttl", "0s").start();
    let path = "/v2/library/app/manifests/soon";
    larder.get(path).assert_error(404, "MANIFEST_UNKNOWN");
    registry.tag("library/app", "soon", &image.manifest.digest);
    larder.get(path).assert_body(&image.manifest.bytes);
}

#[test]
fn deleted_tag_is_404_after_its_ttl() {
    for (setting, status) in [("miss", 404), ("stale", 200)] {
        let (registry, image) = with_image();
        let setup = Setup::with(&registry).set("cache.tag_ttl", "0s").set("cache.negative_ttl", "0s");
        let larder = setup.set("cache.on_upstream_404", setting).start();
        larder.get(TAG).assert_body(&image.manifest.bytes);
        registry.untag("library/app", "v1");
        assert_eq!(larder.get(TAG).status(), status, "{setting}");
        // The content itself stays cached.
        let path = format!("/v2/library/app/manifests/{}", image.manifest.digest);
        larder.get(&path).assert_outcome("larder; hit");
    }
}

#[test]
fn content_is_served_only_to_linked_repositories() {
    let registry = Registry::start();
    let private = Index::oci(1);
    registry.add_index("team/private", "v1", &private);
    registry.add_image("library/public", "v1", &Image::small(3));
    let larder = Setup::with(&registry).set("cache.negative_ttl", "0s").start();
    larder.get("/v2/team/private/manifests/v1");
    let layer = &private.images[0].layers[0];
    let child = &private.images[0].manifest;
    larder.get(&format!("/v2/team/private/blobs/{}", layer.digest)).assert_body(&layer.bytes);
    larder.wait_idle();
    let blob = format!("/v2/library/public/blobs/{}", layer.digest);
    let manifest = format!("/v2/library/public/manifests/{}", child.digest);
    for method in ["GET", "HEAD"] {
        assert_eq!(larder.api().send(method, &blob, &[]).status(), 404);
        assert_eq!(larder.api().send(method, &manifest, &[]).status(), 404);
    }
    // The upstream is down, so the access is still denied.
    registry.down();
    for path in [&blob, &manifest] {
        let answer = larder.get(path);
        assert!([502, 503, 504].contains(&answer.status()), "{answer:?}");
    }
    // The upstream confirms that the repository contains the blob. No byte is downloaded again.
    registry.up();
    registry.add_blob("library/public", layer);
    registry.add_manifest("library/public", child);
    registry.forget_requests();
    eventually("the upstream is used again", || larder.get(&blob).status() == 200);
    larder.get(&blob).assert_body(&layer.bytes);
    larder.get(&manifest).assert_body(&child.bytes);
    assert_eq!(registry.count("HEAD", &layer.digest), 1);
    assert_eq!(registry.count("GET", &layer.digest), 0);
    registry.down();
    larder.get(&blob).assert_outcome("larder; hit");
}

#[test]
fn manifest_links_its_blobs_only() {
    let registry = Registry::start();
    let image = Image::small(1);
    registry.add_image("library/one", "v1", &image);
    registry.add_image("library/two", "v1", &image);
    let larder = Larder::in_front_of(&registry);
    let layer = &image.layers[0];
    larder.get("/v2/library/one/manifests/v1");
    larder.get(&format!("/v2/library/one/blobs/{}", layer.digest)).assert_body(&layer.bytes);
    larder.wait_idle();
    // The manifest of the repository lists the layer, so the upstream is not asked.
    larder.get("/v2/library/two/manifests/v1").assert_body(&image.manifest.bytes);
    larder.wait_idle();
    registry.forget_requests();
    larder.get(&format!("/v2/library/two/blobs/{}", layer.digest)).assert_body(&layer.bytes);
    assert_eq!(registry.count("GET", "/blobs/"), 0);
}

#[test]
fn expired_tag_is_revalidated_once() {
    const TAGS: usize = 80;
    let registry = Registry::start();
    let image = Image::small(1);
    registry.add_image("library/app", "v1", &image);
    let tags: Vec<_> = (0..TAGS).map(|n| format!("v{n:03}")).collect();
    for tag in &tags {
        registry.tag("library/app", tag, &image.manifest.digest);
    }
    let larder = InProcessLarder::start(Setup::with(&registry).set("cache.tag_ttl", "1h"));
    let path = |tag: &str| format!("/v2/library/app/manifests/{tag}");
    for tag in &tags {
        larder.get(&path(tag)).assert_body(&image.manifest.bytes);
    }
    larder.advance(Duration::from_hours(2));
    registry.forget_requests();
    registry.script(When::any().method("HEAD"), Fault::DelayHead(Duration::from_millis(10)));
    let seed = u64::from(std::process::id());
    let mut random = Random::new(seed);
    for tag in &tags {
        // Two requests at the same time, and others about the time of the upstream's answer.
        let delays: Vec<_> = (0..8).map(|n| if n < 2 { 0 } else { 9_000 + random.below(7_000) }).collect();
        std::thread::scope(|scope| {
            for delay in delays {
                let (client, path, bytes) = (larder.api(), path(tag), &image.manifest.bytes);
                scope.spawn(move || {
                    std::thread::sleep(Duration::from_micros(delay));
                    client.get(&path).assert_body(bytes);
                });
            }
        });
        assert_eq!((registry.count("HEAD", tag), registry.count("GET", tag)), (1, 0), "{tag}, seed {seed}");
    }
}
