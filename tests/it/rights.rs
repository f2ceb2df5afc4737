//! Bytes are shared between repositories, access is not: each repository is authorised by its own upstream.

use crate::support;

use std::sync::Barrier;

use serde_json::{Value, json};
use support::client::TransferError;
use support::content::{OCI_INDEX, OCI_MANIFEST};
use support::{Answer, Blob, Document, Fault, Gate, Image, Larder, Registry, Setup, When, eventually};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// `library/app:v1` is private, `evil/x` has no access to it, and all its content is cached.
struct Neighbours {
    registry: Registry,
    larder: Larder,
    image: Image,
}

impl Neighbours {
    fn new() -> Self {
        let registry = Registry::start();
        let image = Image::small(1);
        registry.add_image("library/app", "v1", &image);
        // Nothing is remembered, so every answer here is an answer of the upstream.
        let larder = Setup::with(&registry).set("cache.negative_ttl", "0s").start();
        larder.get("/v2/library/app/manifests/v1").assert_body(&image.manifest.bytes);
        for blob in image.blobs() {
            larder.get(&blob_path("library/app", &blob.digest)).assert_body(&blob.bytes);
        }
        larder.wait_idle();
        Self { registry, larder, image }
    }

    /// Returns all cached content of `library/app`.
    fn held(&self) -> Vec<(String, usize)> {
        let manifest = (self.image.manifest.digest.clone(), self.image.manifest.bytes.len());
        let blobs = self.image.blobs().map(|blob| (blob.digest.clone(), blob.len()));
        std::iter::once(manifest).chain(blobs).collect()
    }

    /// Makes the server download a manifest of `evil/x`.
    fn fetch_manifest(&self, document: &Document) {
        self.registry.add_manifest("evil/x", document);
        self.registry.tag("evil/x", "v1", &document.digest);
        let path = manifest_path("evil/x", &document.digest);
        self.larder.get(&path).assert_body(&document.bytes);
        self.larder.wait_idle();
    }

    /// Asserts that `evil/x` has no access: its upstream is asked and denies it.
    fn assert_denied(&self, digest: &str) {
        for path in [manifest_path("evil/x", digest), blob_path("evil/x", digest)] {
            for method in ["GET", "HEAD"] {
                self.registry.forget_requests();
                let answer = self.larder.api().send(method, &path, &[]);
                assert_eq!(answer.status(), 404, "{method} {path}: {:?}", answer.head);
                assert!(!answer.head.outcome().contains("; hit"), "{method} {path}: {:?}", answer.head);
                let asked = self.registry.requests();
                assert!(asked.iter().any(|seen| seen.path == path), "{method} {path} was not asked for");
            }
        }
    }
}

fn blob_path(repository: &str, digest: &str) -> String {
    format!("/v2/{repository}/blobs/{digest}")
}

fn manifest_path(repository: &str, digest: &str) -> String {
    format!("/v2/{repository}/manifests/{digest}")
}

/// Returns a manifest with one layer of the given descriptor. The config does not exist.
fn manifest_over(layer: &Value) -> Document {
    let config = Blob::new("{}");
    let config_type = "application/vnd.oci.image.config.v1+json";
    let value = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": { "mediaType": config_type, "digest": config.digest, "size": config.len() },
        "layers": [layer],
    });
    Document::json(OCI_MANIFEST, &value)
}

fn layer(blob: &Blob, size: usize) -> Value {
    json!({ "mediaType": LAYER, "digest": blob.digest, "size": size })
}

#[test]
fn subject_grants_no_access() {
    let neighbours = Neighbours::new();
    for (digest, size) in neighbours.held() {
        let subject = json!({ "mediaType": OCI_MANIFEST, "digest": digest, "size": size });
        let own = Blob::new(format!("about {digest}"));
        let mut manifest: Value =
            serde_json::from_slice(&manifest_over(&layer(&own, own.len())).bytes).unwrap();
        manifest["artifactType"] = json!("application/vnd.example.statement");
        manifest["subject"] = subject.clone();
        let index =
            json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "subject": subject });
        for document in [Document::json(OCI_MANIFEST, &manifest), Document::json(OCI_INDEX, &index)] {
            neighbours.fetch_manifest(&document);
            neighbours.assert_denied(&digest);
        }
    }
}

#[test]
fn layer_cached_elsewhere_grants_no_access() {
    let neighbours = Neighbours::new();
    let types = [
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        LAYER,
    ];
    for media_type in types {
        for (digest, size) in neighbours.held() {
            let urls = ["https://mirror.example/layer"];
            let foreign = json!({ "mediaType": media_type, "digest": digest, "size": size, "urls": urls });
            neighbours.fetch_manifest(&manifest_over(&foreign));
            neighbours.assert_denied(&digest);
        }
    }
}

#[test]
fn fill_of_another_repository_grants_no_access() {
    let registry = Registry::start();
    let blob = Blob::random(1, 2 << 20);
    registry.add_blob("library/app", &blob);
    let larder = Setup::with(&registry).set("cache.negative_ttl", "0s").start();
    let (here, there) = (blob_path("library/app", &blob.digest), blob_path("evil/x", &blob.digest));
    let refused = || {
        for method in ["GET", "HEAD", "GET"] {
            let answer = larder.api().send(method, &there, &[]);
            assert_eq!(answer.status(), 404, "{method}: {:?}", answer.head);
        }
    };
    // Before its first byte, in the middle, and when it is complete.
    let (head, body) = (Gate::new(), Gate::new());
    registry.script(When::blobs().method("GET").path("library/app"), Fault::HoldHead(head.clone()));
    registry.script(When::blobs().method("GET").path("library/app"), Fault::HoldBody(1 << 20, body.clone()));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| larder.get(&here));
        head.wait_reached(1);
        refused();
        head.open();
        body.wait_reached(1);
        refused();
        body.open();
        first.join().unwrap().assert_body(&blob.bytes);
    });
    larder.wait_idle();
    registry.forget_requests();
    refused();
    // Each HEAD is answered with 404, which only a GET confirms.
    assert_eq!(registry.requests().iter().filter(|seen| seen.path == there).count(), 6);
    larder.get(&here).assert_outcome("larder; hit");
}

#[test]
fn concurrent_requests_have_their_own_access() {
    const ROUNDS: u64 = 60;
    let registry = Registry::start();
    let blobs: Vec<_> = (0..ROUNDS).map(|n| Blob::random(n, 40_000)).collect();
    for blob in &blobs {
        registry.add_blob("library/app", blob);
    }
    let larder = Larder::in_front_of(&registry);
    let start = Barrier::new(4);
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let (client, blobs, start) = (larder.api(), &blobs, &start);
            scope.spawn(move || {
                let mut wrong = Vec::new();
                for (round, blob) in blobs.iter().enumerate() {
                    start.wait();
                    let own = worker % 2 == 0;
                    let repository = if own { "library/app" } else { "evil/x" };
                    match client.try_send("GET", &blob_path(repository, &blob.digest), &[]) {
                        Ok(answer) if own && answer.status() == 200 && answer.body == *blob.bytes => {}
                        Ok(answer) if !own && answer.status() == 404 => {}
                        other => wrong.push((round, repository, other.map(|answer| answer.status()))),
                    }
                }
                assert!(wrong.is_empty(), "{wrong:?}");
            });
        }
    });
}

/// A fill for `evil/x` is held when `library/alpine` requests the same layer. The fill fails, the other request does
/// not.
fn failed_fill_affects_one_repository(
    size: Option<usize>,
    faults: Vec<Fault>,
) -> Result<Answer, TransferError> {
    let registry = Registry::start();
    let blob = Blob::random(7, 300_000);
    let image = Image::oci(7, "linux/amd64", vec![blob.clone()]);
    registry.add_image("library/alpine", "v1", &image);
    let larder = Larder::in_front_of(&registry);
    larder.get("/v2/library/alpine/manifests/v1").assert_body(&image.manifest.bytes);
    if let Some(size) = size {
        registry.add_blob("evil/x", &blob);
        let document = manifest_over(&layer(&blob, size));
        registry.add_manifest("evil/x", &document);
        larder.get(&manifest_path("evil/x", &document.digest)).assert_body(&document.bytes);
    }
    let gate = Gate::new();
    let evil = When::blobs().path("/evil/x/");
    for fault in faults {
        registry.script(evil.clone(), fault);
    }
    registry.script(evil.method("GET"), Fault::HoldHead(gate.clone()));
    let (client, at) = (larder.api(), |repository| blob_path(repository, &blob.digest));
    let failed = std::thread::scope(|scope| {
        let failing = scope.spawn(|| client.try_send("GET", &at("evil/x"), &[]));
        gate.wait_reached(1);
        let good = scope.spawn(|| client.try_send("GET", &at("library/alpine"), &[]));
        eventually("the second request has joined or has its own request", || {
            larder.counter("larder_fills_joined_total", &[]) > 0
                || registry.requests().iter().any(|seen| seen.path == at("library/alpine"))
        });
        gate.open();
        let failed = failing.join().unwrap();
        good.join().unwrap().expect("a whole answer").assert_body(&blob.bytes);
        failed
    });
    larder.wait_idle();
    registry.down();
    let again = larder.get(&at("library/alpine"));
    again.assert_body(&blob.bytes);
    again.assert_outcome("larder; hit");
    failed
}

#[test]
fn absence_belongs_to_one_repository() {
    let failed = failed_fill_affects_one_repository(None, Vec::new()).unwrap();
    failed.assert_error(404, "BLOB_UNKNOWN");
}

#[test]
fn refusal_belongs_to_one_repository() {
    for status in [401, 403] {
        let failed = failed_fill_affects_one_repository(None, vec![Fault::Status(status)]).unwrap();
        assert!([403, 404].contains(&failed.status()), "{failed:?}");
    }
}

#[test]
fn wrong_size_harms_no_repository() {
    for size in [299_999, 300_001] {
        for faults in [Vec::new(), vec![Fault::Chunked]] {
            let own = failed_fill_affects_one_repository(Some(size), faults).unwrap();
            assert_eq!((own.status(), own.body.len()), (200, 300_000), "{:?}", own.head);
        }
    }
}

#[test]
fn wrong_answer_belongs_to_one_repository() {
    // The length is announced before the mismatch can be known, so the body is interrupted.
    if let Ok(failed) = failed_fill_affects_one_repository(Some(300_000), vec![Fault::RemoveLastByte]) {
        assert_eq!(failed.status(), 502, "{failed:?}");
    }
}

#[test]
fn absence_belongs_to_one_kind_of_request() {
    let registry = Registry::start();
    let image = Image::small(1);
    registry.add_image("library/app", "v1", &image);
    let (manifest, config, layer) = (&image.manifest, &image.config, &image.layers[0]);
    // Some clients request blobs first.
    for method in ["GET", "HEAD"] {
        let larder = Setup::with(&registry).set("cache.negative_ttl", "1h").start();
        let as_blob = blob_path("library/app", &manifest.digest);
        for _ in 0..3 {
            assert_eq!(larder.api().send(method, &as_blob, &[]).status(), 404);
        }
        larder.get(&manifest_path("library/app", &manifest.digest)).assert_body(&manifest.bytes);
        for (blob, first) in [(config, "GET"), (layer, "HEAD")] {
            let as_manifest = manifest_path("library/app", &blob.digest);
            assert_eq!(larder.api().send(method, &as_manifest, &[]).status(), 404);
            let path = blob_path("library/app", &blob.digest);
            assert_eq!(larder.api().send(first, &path, &[]).status(), 200);
            larder.get(&path).assert_body(&blob.bytes);
        }
        // The answer is remembered for this kind of request.
        assert_eq!(registry.requests().iter().filter(|seen| seen.path == as_blob).count(), 1);
        registry.forget_requests();
    }
}

#[test]
fn time_out_belongs_to_one_repository() {
    let registry = Registry::start();
    let blob = Blob::random(7, 300_000);
    let image = Image::oci(7, "linux/amd64", vec![blob.clone()]);
    registry.add_image("library/alpine", "v1", &image);
    let larder = Larder::in_front_of(&registry);
    larder.get("/v2/library/alpine/manifests/v1").assert_body(&image.manifest.bytes);
    let never = Gate::new();
    registry.script(When::blobs().path("/evil/x/"), Fault::HoldHead(never.clone()));
    let (client, at) = (larder.api(), |repository| blob_path(repository, &blob.digest));
    std::thread::scope(|scope| {
        scope.spawn(|| client.try_send("GET", &at("evil/x"), &[]));
        never.wait_reached(1);
        client.get(&at("library/alpine")).assert_body(&blob.bytes);
        never.open();
    });
}

/// `library/app:v1` is private content of one upstream, and cached. `evil.test` is another upstream.
struct Upstreams {
    evil: Registry,
    larder: Larder,
    image: Image,
    registry: Registry,
}

impl Upstreams {
    fn new(blobs: &str) -> Self {
        let (registry, evil) = (Registry::start(), Registry::start());
        let image = Image::small(1);
        registry.add_image("library/app", "v1", &image);
        let larder = Setup::with(&registry)
            .upstream("evil.test", &evil)
            .set("store.blobs", blobs)
            .set("cache.negative_ttl", "0s")
            .start();
        larder.get("/v2/library/app/manifests/v1").assert_body(&image.manifest.bytes);
        for blob in image.blobs() {
            larder.get(&blob_path("library/app", &blob.digest)).assert_body(&blob.bytes);
        }
        larder.wait_idle();
        Self { evil, larder, image, registry }
    }

    /// Makes the server store documents of `evil.test` that name the content.
    fn name_content(&self) {
        let manifest = &self.image.manifest;
        let child =
            json!({ "mediaType": OCI_MANIFEST, "digest": manifest.digest, "size": manifest.bytes.len() });
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child] });
        let blobs = self.image.blobs().map(|blob| manifest_over(&layer(blob, blob.len())));
        for document in blobs.chain([Document::json(OCI_INDEX, &index)]) {
            self.evil.add_manifest("x/y", &document);
            let path = manifest_path("evil.test/x/y", &document.digest);
            self.larder.get(&path).assert_body(&document.bytes);
        }
        self.larder.wait_idle();
    }

    /// Returns the paths of the content in the repository of `evil.test`.
    fn paths(&self) -> Vec<String> {
        let blobs = self.image.blobs().map(|blob| blob_path("evil.test/x/y", &blob.digest));
        std::iter::once(manifest_path("evil.test/x/y", &self.image.manifest.digest)).chain(blobs).collect()
    }
}

#[test]
fn content_does_not_cross_to_an_upstream_that_names_it() {
    for blobs in ["sled", "files"] {
        let mut upstreams = Upstreams::new(blobs);
        upstreams.name_content();
        for path in upstreams.paths() {
            assert_eq!(upstreams.larder.get(&path).status(), 404, "{path}");
        }
        // An answer to HEAD proves nothing.
        upstreams.evil.script(When::any().method("HEAD"), Fault::Answer(200, Vec::new(), Vec::new()));
        for path in upstreams.paths() {
            upstreams.larder.head(&path);
            assert_eq!(upstreams.larder.get(&path).status(), 404, "{path}");
        }
        upstreams.larder.restart();
        for path in upstreams.paths() {
            assert_eq!(upstreams.larder.get(&path).status(), 404, "{path}");
        }
        let reference = format!("evil.test/x/y@{}", upstreams.image.manifest.digest);
        support::verb::online(&upstreams.larder, &["check", "--offline", &reference]).exited_with(4);
        // The upstream of the content still serves it.
        upstreams.registry.down();
        let path = blob_path("library/app", &upstreams.image.layers[0].digest);
        upstreams.larder.get(&path).assert_outcome("larder; hit");
    }
}

#[test]
fn content_crosses_to_an_upstream_that_delivers_it() {
    for blobs in ["sled", "files"] {
        let mut upstreams = Upstreams::new(blobs);
        upstreams.name_content();
        upstreams.evil.add_image("x/y", "v1", &upstreams.image);
        let bodies = std::iter::once(&upstreams.image.manifest.bytes)
            .chain(upstreams.image.blobs().map(|blob| &blob.bytes));
        let content_of: Vec<_> = upstreams.paths().into_iter().zip(bodies).collect();
        for (path, body) in &content_of {
            upstreams.evil.forget_requests();
            upstreams.larder.get(path).assert_body(body);
            upstreams.larder.wait_idle();
            assert_eq!(upstreams.evil.count("GET", "/x/y/"), 1, "{path}");
        }
        // The bytes were proven once, and are served without the upstream, also after a restart.
        upstreams.evil.down();
        for _ in 0..2 {
            for (path, body) in &content_of {
                let answer = upstreams.larder.get(path);
                answer.assert_body(body);
                answer.assert_outcome("larder; hit");
            }
            upstreams.larder.restart();
        }
    }
}

#[test]
fn warm_proves_content_of_another_upstream() {
    let upstreams = Upstreams::new("files");
    upstreams.evil.add_image("x/y", "v1", &upstreams.image);
    support::verb::online(&upstreams.larder, &["warm", "evil.test/x/y:v1"]).exited_with(0);
    support::verb::online(&upstreams.larder, &["check", "--offline", "evil.test/x/y:v1"]).exited_with(0);
    assert_eq!(upstreams.evil.count("GET", "/blobs/"), 2);
}

#[test]
fn warm_shows_the_fill_of_another_upstream_that_it_waits_for() {
    let (registry, evil, image) = (Registry::start(), Registry::start(), Image::small(1));
    registry.add_image("library/app", "v1", &image);
    evil.add_image("x/y", "v1", &image);
    let larder = &Setup::with(&registry).upstream("evil.test", &evil).start();
    let layer = &image.layers[0];
    let gate = Gate::new();
    registry.script(When::blobs().path(&layer.digest), Fault::HoldBody(1, gate.clone()));
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| larder.get(&blob_path("library/app", &layer.digest)));
        gate.wait_reached(1);
        let warm = scope.spawn(|| support::verb::online(larder, &["warm", "evil.test/x/y:v1"]));
        // Its own upstream delivers the bytes meanwhile.
        eventually("warm shows what it waits for", || {
            let jobs = larder.admin().get("/api/v1/jobs").json();
            jobs[0]["progress"]["bars"][0]["waiting_for"][0] == "docker.io/library/app"
        });
        assert_eq!(evil.count("GET", &layer.digest), 1);
        assert!(!warm.is_finished());
        gate.open();
        slow.join().unwrap().assert_body(&layer.bytes);
        warm.join().unwrap().exited_with(0);
    });
    assert_eq!(evil.count("GET", &layer.digest), 1);
    support::verb::online(larder, &["check", "--offline", "evil.test/x/y:v1"]).exited_with(0);
}

#[test]
fn slow_fill_of_another_upstream_delays_nobody() {
    let (registry, evil) = (Registry::start(), Registry::start());
    let blob = Blob::random(9, 2 << 20);
    registry.add_blob("library/app", &blob);
    evil.add_blob("x/y", &blob);
    let larder = Setup::with(&registry).upstream("evil.test", &evil).start();
    let gate = Gate::new();
    evil.script(When::blobs().method("GET"), Fault::HoldBody(1 << 20, gate.clone()));
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| larder.get(&blob_path("evil.test/x/y", &blob.digest)));
        gate.wait_reached(1);
        larder.get(&blob_path("library/app", &blob.digest)).assert_body(&blob.bytes);
        gate.open();
        slow.join().unwrap().assert_body(&blob.bytes);
    });
    larder.wait_idle();
    larder.get(&blob_path("library/app", &blob.digest)).assert_outcome("larder; hit");
    larder.get(&blob_path("evil.test/x/y", &blob.digest)).assert_outcome("larder; hit");
}

#[test]
fn draft_of_another_upstream_is_not_resumed() {
    // The last store has no room for the blob, which is passed through.
    for (blobs, max_size) in [("sled", "20GiB"), ("files", "20GiB"), ("files", "24MiB")] {
        let (registry, evil) = (Registry::start(), Registry::start());
        let blob = Blob::random(8, 10 << 20);
        registry.add_blob("library/app", &blob);
        evil.add_blob("x/y", &blob);
        // The fill ends after a part of the blob, and its upstream sends nothing more.
        let limited = vec![("Retry-After".to_owned(), "3600".to_owned())];
        registry.script(When::blobs().method("GET").times(1), Fault::Cut(2 << 20));
        registry.script(When::blobs().method("GET").after(1), Fault::Answer(429, limited, Vec::new()));
        let setup = Setup::with(&registry).upstream("evil.test", &evil).set("store.blobs", blobs);
        let larder = setup.set("store.max_size", max_size).start();
        let (own, foreign) =
            (blob_path("library/app", &blob.digest), blob_path("evil.test/x/y", &blob.digest));
        larder.api().try_send("GET", &own, &[]).expect_err("a part must not look whole");
        larder.wait_idle();
        let hex = blob.digest.trim_start_matches("sha256:");
        let draft = larder.setup().data().join("drafts/upstreams/docker.io/sha256").join(hex);
        assert!(draft.exists(), "{blobs}: no draft");

        larder.get(&foreign).assert_body(&blob.bytes);
        let gets = evil.seen("GET", "/blobs/");
        let asked: Vec<_> = gets.iter().map(|get| (get.range_start(), get.sent())).collect();
        assert_eq!(asked, [(None, blob.len() as u64)], "{blobs}");
        larder.wait_idle();
        // The bytes of one upstream do not complete the draft of the other one.
        assert_ne!(larder.get(&own).status(), 200, "{blobs}");
        larder.get(&foreign).assert_body(&blob.bytes);
        let is_stored = max_size == "20GiB";
        assert_eq!(evil.count("GET", "/blobs/"), if is_stored { 1 } else { 2 }, "{blobs}, {max_size}");
    }
}
