//! Eviction: the store stays within its limits, the order is sensible, and served images are complete.

use crate::support;

use std::time::Duration;

use support::folder::on_disk;
use support::in_process::InProcessLarder;
use support::larder::sum_of;
use support::{Blob, Document, Fault, Gate, Image, Larder, Random, Registry, Setup, When, eventually};

const MIB: u64 = 1 << 20;
/// Each kind of blob store, a size for some but not all images, and the length of each image's own layers.
const KINDS: [(&str, u64, u64); 2] = [("files", 24 * MIB, MIB), ("sled", 256 * MIB, 5 * MIB)];
const REPOSITORY: &str = "library/app";

/// A registry with images that share a layer.
struct World {
    registry: Registry,
    base: Blob,
    images: Vec<Image>,
}

impl World {
    fn new(images: u64, layer: u64) -> Self {
        let layer = usize::try_from(layer).unwrap();
        let (registry, base) = (Registry::start(), Blob::random(1, 2 << 20));
        let images = (0..images).map(|n| {
            let layers = vec![base.clone(), Blob::random(100 + n, layer), Blob::random(1000 + n, layer)];
            Image::oci(n, "linux/amd64", layers)
        });
        let images: Vec<Image> = images.collect();
        for (n, image) in images.iter().enumerate() {
            registry.add_image(REPOSITORY, &tag(n), image);
        }
        Self { registry, base, images }
    }

    fn setup(&self, kind: &str, max_size: u64) -> Setup {
        Setup::with(&self.registry)
            .set("store.blobs", kind)
            .set("store.max_size", format!("{max_size}B"))
            .set("store.min_free", "0B")
            .set("cache.tag_ttl", "1h")
    }

    /// Pulls an image as a client without any layer does.
    #[track_caller]
    fn pull(&self, larder: &Larder, n: usize) {
        let image = &self.images[n];
        for reference in [&tag(n), &image.manifest.digest] {
            larder.get(&manifest(reference)).assert_body(&image.manifest.bytes);
        }
        for blob in image.blobs() {
            larder.get(&blob_path(blob)).assert_body(&blob.bytes);
        }
    }

    /// Returns the numbers of the images whose tags are cached.
    fn held(larder: &Larder) -> Vec<usize> {
        let listed = larder.get(&format!("/v2/{REPOSITORY}/tags/list"));
        if listed.status() == 404 {
            return Vec::new();
        }
        let listed = listed.json();
        let tags = listed["tags"].as_array().unwrap();
        tags.iter().map(|tag| tag.as_str().unwrap()[1..].parse().unwrap()).collect()
    }
}

/// Tags in the order of their numbers.
fn tag(n: usize) -> String {
    format!("v{n:03}")
}

fn manifest(reference: &str) -> String {
    format!("/v2/{REPOSITORY}/manifests/{reference}")
}

fn blob_path(blob: &Blob) -> String {
    format!("/v2/{REPOSITORY}/blobs/{}", blob.digest)
}

fn evicted(metrics: &str, reason: &str) -> f64 {
    sum_of(metrics, "larder_evictions_total", &[("reason", reason)])
}

#[test]
fn store_stays_within_max_size_and_keeps_shared_layers() {
    for (kind, max_size, layer) in KINDS {
        let world = World::new(30, layer);
        let larder = world.setup(kind, max_size).start();
        let mut most = 0;
        for n in 0..world.images.len() {
            world.pull(&larder, n);
            larder.wait_idle();
            most = most.max(on_disk(&larder.setup().data()));
        }
        // The limit is exceeded only by the downloads in flight.
        assert!(most <= max_size + layer, "{kind}: {most} of {max_size}");
        eventually("content is evicted", || evicted(&larder.metrics_text(), "max_size") > 0.0);
        let held = World::held(&larder);
        assert!((2..20).contains(&held.len()), "{kind}: {held:?}");
        // The newest images are cached, and the shared layer was never downloaded again.
        assert!(held.ends_with(&[28, 29]), "{kind}: {held:?}");
        assert_eq!(world.registry.count("GET", &world.base.digest), 1, "{kind}");
        // Every image with a cached manifest is complete.
        world.registry.down();
        for n in held {
            world.pull(&larder, n);
        }
    }
}

#[test]
fn recently_used_content_stays_across_restarts_and_smaller_sizes() {
    let world = World::new(4, 8 * MIB);
    let larder = InProcessLarder::start(world.setup("files", 1 << 30));
    let pull = |larder: &InProcessLarder, n: usize| {
        for blob in world.images[n].blobs() {
            larder.get(&blob_path(blob)).assert_body(&blob.bytes);
        }
        larder.get(&manifest(&tag(n))).assert_body(&world.images[n].manifest.bytes);
    };
    for n in 0..4 {
        pull(&larder, n);
        larder.advance(Duration::from_hours(1));
    }
    // Only the manifest: a client with all layers requests nothing else.
    larder.get(&manifest(&tag(0))).assert_body(&world.images[0].manifest.bytes);
    // Enough for two images and the layer that they share.
    let room = 50 * MIB;
    let larder = larder.restart_with(world.setup("files", room), Duration::from_hours(5));
    eventually("content is evicted", || on_disk(&larder.data().join("blobs")) < room);
    world.registry.down();
    for n in [0, 3] {
        pull(&larder, n);
    }
    let metrics = larder.metrics_text();
    // The manifests, configs and layers of two images.
    assert_eq!(evicted(&metrics, "max_size"), 8.0);
    assert!(sum_of(&metrics, "larder_store_oldest_access_timestamp_seconds", &[]) > 1e9);
    assert_eq!(sum_of(&metrics, "larder_store_limit_bytes", &[]), room as f64);
}

#[test]
fn blob_in_use_is_not_evicted() {
    for (kind, max_size, layer) in KINDS {
        let world = World::new(24, layer);
        let slow = Blob::random(7, 5 << 20);
        world.registry.add_blob(REPOSITORY, &slow);
        let larder = world.setup(kind, max_size).start();
        larder.get(&blob_path(&slow)).assert_body(&slow.bytes);
        larder.wait_idle();
        // With small buffers, so that most of the body is still unread after the evictions.
        let mut reading = larder.api().small_receive_buffer().open("GET", &blob_path(&slow), &[]).unwrap();
        let head = reading.read_exactly(1000).unwrap();
        // On a slow disk, only a part of the new content is cached.
        eventually("content is evicted", || {
            for n in 0..world.images.len() {
                world.pull(&larder, n);
            }
            evicted(&larder.metrics_text(), "max_size") > 0.0
        });
        let loose = || sum_of(&larder.metrics_text(), "larder_store_bytes", &[("what", "reclaimable")]);
        assert!(loose() >= slow.len() as f64);
        world.registry.down();
        let rest = reading.finish().unwrap();
        assert!([head, rest.body].concat() == *slow.bytes, "{kind}");
        // Without readers and without a manifest that needs it, the blob is evicted next.
        world.registry.up();
        eventually("the blob is evicted", || {
            for n in 12..24 {
                world.pull(&larder, n);
            }
            loose() == 0.0
        });
    }
}

#[test]
fn disk_filled_by_others_stops_storing() {
    for (kind, max_size, layer) in KINDS {
        let world = World::new(2, layer);
        let setup = world.setup(kind, max_size).set("store.min_free", "1PiB");
        let larder = setup.start();
        for n in [0, 1] {
            world.pull(&larder, n);
        }
        larder.wait_idle();
        eventually("all content is evicted", || {
            let metrics = larder.metrics_text();
            evicted(&metrics, "min_free") > 0.0
                && sum_of(&metrics, "larder_store_bytes", &[("what", "content")]) == 0.0
        });
        // The cache stores nothing and still serves content.
        world.pull(&larder, 0);
        eventually("no evicted content is listed", || World::held(&larder).is_empty());
    }
}

#[test]
fn clients_do_not_notice_eviction() {
    for (kind, max_size, layer) in KINDS {
        let world = World::new(24, layer);
        let larder = world.setup(kind, max_size).start();
        // On a slow disk, only a part of the new content is cached, so more content is needed for the same evictions.
        let enough = || evicted(&larder.metrics_text(), "max_size") > 20.0;
        std::thread::scope(|scope| {
            for seed in 0..4 {
                let (world, larder, enough) = (&world, &larder, &enough);
                scope.spawn(move || {
                    let mut random = Random::new(seed);
                    let mut pull = || world.pull(larder, usize::try_from(random.below(24)).unwrap());
                    (0..25).for_each(|_| pull());
                    eventually("enough content is evicted", || {
                        pull();
                        enough()
                    });
                });
            }
        });
        let errors = sum_of(&larder.metrics_text(), "larder_store_errors_total", &[]);
        assert!(errors == 0.0 && !larder.log_text().contains("damaged"), "{kind}: {}", larder.log_text());
    }
}

/// A body that announces `length` bytes and stops after the first ones.
fn hold_with_length(world: &World, blob: &Blob, length: u64, gate: &Gate) {
    let when = || When::blobs().path(&blob.digest);
    let length = usize::try_from(length).unwrap();
    world.registry.script(when(), Fault::rewrite(move |_, plan| plan.content_length = Some(length)));
    world.registry.script(when(), Fault::HoldBody(100, gate.clone()));
}

/// Returns true if the blob is served from the store.
fn is_stored(larder: &Larder, blob: &Blob) -> bool {
    let answer = larder.get(&blob_path(blob));
    answer.assert_body(&blob.bytes);
    answer.head.outcome() == "larder; hit"
}

/// A Content-Length and the size of a descriptor are hints: they evict nothing, and refuse no other content.
#[test]
fn announced_sizes_evict_nothing_and_reserve_nothing() {
    for (kind, max_size, layer) in KINDS {
        let world = World::new(2, layer);
        // The size of a descriptor that no blob has.
        let small = Blob::random(31, 3000);
        let image = Image::oci(30, "linux/amd64", vec![small.clone()]);
        let mut document = serde_json::from_slice::<serde_json::Value>(&image.manifest.bytes).unwrap();
        document["layers"][0]["size"] = (1_u64 << 62).into();
        let document = Document::json(&image.manifest.media_type, &document);
        world.registry.add_manifest(REPOSITORY, &document);
        world.registry.add_blob(REPOSITORY, &small);
        let larder = world.setup(kind, max_size).start();
        world.pull(&larder, 0);
        larder.wait_idle();
        larder.get(&manifest(&document.digest)).assert_body(&document.bytes);
        // The answer may be an error, because the size is wrong.
        larder.get(&blob_path(&small));
        for (n, length) in [i64::MAX as u64, max_size, 100 << 30].into_iter().enumerate() {
            let (gate, liar) = (Gate::new(), Blob::random(40 + n as u64, 5000));
            world.registry.add_blob(REPOSITORY, &liar);
            hold_with_length(&world, &liar, length, &gate);
            let mut lying = larder.api().open("GET", &blob_path(&liar), &[]).unwrap();
            assert!(lying.read_exactly(50).unwrap() == liar.bytes[..50]);
            let other = Blob::random(50 + n as u64, 200_000);
            world.registry.add_blob(REPOSITORY, &other);
            eventually("other content is stored meanwhile", || is_stored(&larder, &other));
            for blob in world.images[0].blobs() {
                assert!(is_stored(&larder, blob), "{kind}, {length}");
            }
            assert_eq!(evicted(&larder.metrics_text(), "max_size"), 0.0, "{kind}, {length}");
            gate.open();
        }
    }
}

/// At its share of the store, a download is passed through: clients get it complete if it is right, and never if it is wrong.
#[test]
fn download_beyond_its_share_is_passed_through_and_verified() {
    let world = World::new(2, MIB);
    // More than 37 % of the store.
    let large = Blob::random(61, 12 << 20);
    world.registry.add_blob(REPOSITORY, &large);
    let larder = world.setup("files", 24 * MIB).start();
    world.pull(&larder, 0);
    larder.wait_idle();
    let (gate, first) = (Gate::new(), || When::blobs().path(&large.digest).times(1));
    world.registry.script(first(), Fault::HoldBody(11 << 20, gate.clone()));
    let mut transfer = larder.api().open("GET", &blob_path(&large), &[]).unwrap();
    let head = transfer.read_exactly(10 << 20).unwrap();
    eventually("the draft is removed", || on_disk(&larder.setup().data().join("drafts")) < MIB);
    gate.open();
    let rest = transfer.finish().unwrap();
    assert!([head, rest.body].concat() == *large.bytes);
    larder.wait_idle();
    world.registry.script(first(), Fault::Chunked);
    larder.get(&blob_path(&large)).assert_body(&large.bytes);
    larder.wait_idle();
    assert_eq!(larder.counter("larder_fills_total", &[("result", "unkept")]), 2);
    larder.wait_for_line("warning about the download", |line| {
        line["level"] == "WARN"
            && line["message"].as_str().unwrap_or_default().contains("passed through and not stored")
            && line["upstream"] == "docker.io"
            && line["repository"] == REPOSITORY
    });
    for at in [1 << 20, (12 << 20) - 1] {
        world.registry.script(first(), Fault::FlipBit(at));
        larder.api().try_send("GET", &blob_path(&large), &[]).expect_err("wrong bytes must not look whole");
        larder.wait_idle();
    }
    // All content is still cached, and the space is free again.
    for blob in world.images[0].blobs() {
        assert!(is_stored(&larder, blob));
    }
    assert_eq!(evicted(&larder.metrics_text(), "max_size"), 0.0);
    let small = Blob::random(62, 4 << 20);
    world.registry.add_blob(REPOSITORY, &small);
    larder.get(&blob_path(&small)).assert_body(&small.bytes);
    eventually("a smaller blob is stored", || is_stored(&larder, &small));
}

/// Downloads of one repository may use up their share. Others are stored meanwhile, and the cached content stays.
#[test]
fn endless_downloads_leave_room_for_other_repositories_and_upstreams() {
    let world = World::new(2, MIB);
    let (other, gate) = (Registry::start(), Gate::new());
    let hostile: Vec<_> = (70..74).map(|seed| Blob::random(seed, 12 << 20)).collect();
    let path = |blob: &Blob| format!("/v2/library/hostile/blobs/{}", blob.digest);
    for blob in &hostile {
        world.registry.add_blob("library/hostile", blob);
        world.registry.script(When::blobs().path(&blob.digest), Fault::HoldBody(11 << 20, gate.clone()));
    }
    let honest = [80, 81].map(|seed| Blob::random(seed, 300_000));
    world.registry.add_blob(REPOSITORY, &honest[0]);
    other.add_blob("team/app", &honest[1]);
    let larder = world.setup("files", 48 * MIB).upstream("other.test", &other).start();
    world.pull(&larder, 0);
    larder.wait_idle();
    let mut transfers: Vec<_> =
        hostile.iter().map(|blob| larder.api().open("GET", &path(blob), &[]).unwrap()).collect();
    for (transfer, blob) in transfers.iter_mut().zip(&hostile) {
        assert!(transfer.read_exactly(10 << 20).unwrap() == blob.bytes[..10 << 20]);
    }
    eventually("the same upstream's other repositories are stored", || is_stored(&larder, &honest[0]));
    let path = format!("/v2/other.test/team/app/blobs/{}", honest[1].digest);
    eventually("another upstream is stored", || {
        let answer = larder.get(&path);
        answer.assert_body(&honest[1].bytes);
        answer.head.outcome() == "larder; hit"
    });
    for blob in world.images[0].blobs() {
        assert!(is_stored(&larder, blob));
    }
    assert!(on_disk(&larder.setup().data()) <= 48 * MIB);
    gate.open();
    for (transfer, blob) in transfers.into_iter().zip(&hostile) {
        assert!(transfer.finish().unwrap().body == blob.bytes[10 << 20..]);
    }
}

/// A large layer of a full cache takes the place of the least recently used content.
#[test]
fn large_layer_is_stored_in_a_full_cache() {
    for (kind, max_size, layer) in KINDS {
        let world = World::new(24, layer);
        let large = Blob::random(90, usize::try_from(max_size / 4).unwrap());
        world.registry.add_blob(REPOSITORY, &large);
        let larder = world.setup(kind, max_size).start();
        eventually("the cache is full", || {
            (0..24).for_each(|n| world.pull(&larder, n));
            evicted(&larder.metrics_text(), "max_size") > 0.0
        });
        larder.wait_idle();
        larder.get(&blob_path(&large)).assert_body(&large.bytes);
        larder.wait_idle();
        assert!(is_stored(&larder, &large), "{kind}");
    }
}
