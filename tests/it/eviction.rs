//! Room: the store stays within its limits, what goes goes in a sensible order, and nothing that is served lacks a part.

use crate::support;

use std::time::Duration;

use support::folder::on_disk;
use support::in_process::InProcessLarder;
use support::larder::sum_of;
use support::{Blob, Fault, Gate, Image, Larder, Random, Registry, Setup, When, eventually};

const MIB: u64 = 1 << 20;
/// Each kind of store, a size that holds some images and not all, and the length of an image's own layers.
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

    /// Pulls an image as a client that has nothing would.
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

    /// The numbers of the images whose tags are held.
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

/// Tags whose order is that of their numbers.
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
        // By no more than what was under way.
        assert!(most <= max_size + layer, "{kind}: {most} of {max_size}");
        eventually("room is made", || evicted(&larder.metrics_text(), "max_size") > 0.0);
        let held = World::held(&larder);
        assert!((2..20).contains(&held.len()), "{kind}: {held:?}");
        // The newest are there, and the layer that all of them share was never fetched again.
        assert!(held.ends_with(&[28, 29]), "{kind}: {held:?}");
        assert_eq!(world.registry.count("GET", &world.base.digest), 1, "{kind}");
        // Whatever can be served is whole.
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
    // Just the manifest: who has the layers asks for no more.
    larder.get(&manifest(&tag(0))).assert_body(&world.images[0].manifest.bytes);
    // Room for two images and the layer they share.
    let room = 50 * MIB;
    let larder = larder.restart_with(world.setup("files", room), Duration::from_hours(5));
    eventually("room is made", || on_disk(&larder.data().join("blobs")) < room);
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
        // In narrow buffers, so that most of it is still to be read when everything else has changed.
        let mut reading = larder.api().small_receive_buffer().open("GET", &blob_path(&slow), &[]).unwrap();
        let head = reading.read_exactly(1000).unwrap();
        // A slow disk keeps a part of what comes.
        eventually("something goes", || {
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
        // Nobody reads it now, and nothing needs it: it goes next.
        world.registry.up();
        eventually("it goes", || {
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
        eventually("all goes", || {
            let metrics = larder.metrics_text();
            evicted(&metrics, "min_free") > 0.0
                && sum_of(&metrics, "larder_store_bytes", &[("what", "content")]) == 0.0
        });
        // It is a cache that keeps nothing, and serves.
        world.pull(&larder, 0);
        eventually("nothing is listed that is not there", || World::held(&larder).is_empty());
    }
}

#[test]
fn clients_do_not_notice_eviction() {
    for (kind, max_size, layer) in KINDS {
        let world = World::new(24, layer);
        let larder = world.setup(kind, max_size).start();
        // A slow disk keeps a part of what comes, so that more has to come before as much goes.
        let enough = || evicted(&larder.metrics_text(), "max_size") > 20.0;
        std::thread::scope(|scope| {
            for seed in 0..4 {
                let (world, larder, enough) = (&world, &larder, &enough);
                scope.spawn(move || {
                    let mut random = Random::new(seed);
                    let mut pull = || world.pull(larder, usize::try_from(random.below(24)).unwrap());
                    (0..25).for_each(|_| pull());
                    eventually("enough goes", || {
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

/// Downloads that queue for the disk take a part of the store and no more: what comes beyond that is served, and not kept.
#[test]
fn content_arriving_too_fast_to_store_is_served() {
    let (registry, gate) = (Registry::start(), Gate::new());
    let blobs = [40, 10, 12].map(|length| Blob::random(length, usize::try_from(length << 20).unwrap()));
    for blob in &blobs {
        registry.add_blob(REPOSITORY, blob);
    }
    let larder = Setup::with(&registry).set("store.blobs", "sled").set("store.max_size", "256MiB").start();
    registry.script(When::blobs().path(&blobs[0].digest).times(1), Fault::HoldBody(10 << 20, gate.clone()));
    // An eighth of the store is 32 MiB, and more is on its way.
    let mut first = larder.api().open("GET", &blob_path(&blobs[0]), &[]).unwrap();
    let head = first.read_exactly(1000).unwrap();
    let passed = larder.get(&blob_path(&blobs[1]));
    passed.assert_body(&blobs[1].bytes);
    gate.open();
    let rest = first.finish().unwrap();
    assert!([head, rest.body].concat() == *blobs[0].bytes);
    larder.wait_idle();
    // Now there is room.
    larder.get(&blob_path(&blobs[2])).assert_body(&blobs[2].bytes);
    larder.wait_idle();
    registry.down();
    larder.get(&blob_path(&blobs[0])).assert_body(&blobs[0].bytes);
    larder.get(&blob_path(&blobs[2])).assert_body(&blobs[2].bytes);
    assert!(larder.get(&blob_path(&blobs[1])).status() >= 500);
}
