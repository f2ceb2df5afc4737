//! Slow downloads: a download that no client reads must have a minimum rate, and no repository uses all connections.

use crate::support;

use support::{Blob, Fault, Gate, Image, Larder, Registry, Setup, When, eventually, verb};

const REPOSITORY: &str = "library/slow";

fn path(repository: &str, blob: &Blob) -> String {
    format!("/v2/{repository}/blobs/{}", blob.digest)
}

/// A registry with blobs whose bodies stop after the first half until the gate opens.
struct World {
    registry: Registry,
    slow: Vec<Blob>,
    honest: Blob,
    gate: Gate,
}

impl World {
    fn new(count: u64) -> Self {
        let (registry, gate) = (Registry::start(), Gate::new());
        let slow: Vec<_> = (0..count).map(|seed| Blob::random(seed, 100_000)).collect();
        for blob in &slow {
            registry.add_blob(REPOSITORY, blob);
            registry.script(When::blobs().path(&blob.digest), Fault::HoldBody(50_000, gate.clone()));
        }
        let honest = Blob::random(1000, 100_000);
        registry.add_blob("library/app", &honest);
        Self { registry, slow, honest, gate }
    }

    /// Starts a server with this minimum rate, averaged over a short time.
    fn start(&self, min_rate: &str) -> Larder {
        Setup::with(&self.registry)
            .upstream_set("docker.io", "min_rate", min_rate)
            .upstream_set("docker.io", "min_rate_time", "200ms")
            .start()
    }
}

#[test]
fn slow_download_is_given_up_when_its_client_has_left() {
    let world = World::new(2);
    let larder = world.start("1MiB");
    let [left, read] = [0, 1].map(|n| {
        let mut transfer = larder.api().open("GET", &path(REPOSITORY, &world.slow[n]), &[]).unwrap();
        assert!(transfer.read_exactly(40_000).unwrap() == world.slow[n].bytes[..40_000]);
        transfer
    });
    left.hang_up();
    larder.wait_counter("larder_fills_total", &[("result", "slow")], 1);
    larder.wait_for_line("warning about the slow download", |line| {
        line["level"] == "WARN"
            && line["message"].as_str().unwrap_or_default().contains("download given up")
            && line["upstream"] == "docker.io"
            && line["repository"] == REPOSITORY
    });
    // The download with a client goes on, and the next request resumes the other one.
    world.gate.open();
    assert!(read.finish().unwrap().body == world.slow[1].bytes[40_000..]);
    larder.get(&path(REPOSITORY, &world.slow[0])).assert_body(&world.slow[0].bytes);
    let resumed = world.registry.seen("GET", &world.slow[0].digest);
    assert!(resumed.last().unwrap().range_start().is_some_and(|start| start >= 40_000), "{resumed:?}");
}

#[test]
fn slow_downloads_of_one_repository_leave_connections_for_others() {
    // Two of the eight connections are for manifests, and four of the other six for one repository.
    let world = World::new(8);
    let setup = Setup::with(&world.registry).upstream_set("docker.io", "max_connections", 8);
    let larder = setup.upstream_set("docker.io", "min_rate", "0B").start();
    std::thread::scope(|scope| {
        for blob in &world.slow {
            let (larder, path) = (&larder, path(REPOSITORY, blob));
            scope.spawn(move || larder.get(&path).assert_body(&blob.bytes));
        }
        world.gate.wait_reached(4);
        eventually("all downloads have started or wait", || {
            larder.counter("larder_fills_running", &[]) == world.slow.len() as u64
        });
        larder.get(&path("library/app", &world.honest)).assert_body(&world.honest.bytes);
        assert_eq!(world.registry.count("GET", REPOSITORY), 4);
        world.gate.open();
    });
    larder.wait_idle();
    assert_eq!(larder.counter("larder_fills_total", &[("result", "ok")]), 9);
}

#[test]
fn slow_downloads_that_nobody_reads_return_their_connections() {
    let world = World::new(3);
    let larder = Setup::with(&world.registry)
        .upstream_set("docker.io", "max_connections", 2)
        .upstream_set("docker.io", "min_rate", "1MiB")
        .upstream_set("docker.io", "min_rate_time", "200ms")
        .start();
    // The only connection for blobs.
    let mut transfer = larder.api().open("GET", &path(REPOSITORY, &world.slow[0]), &[]).unwrap();
    transfer.read_exactly(40_000).unwrap();
    transfer.hang_up();
    larder.get(&path("library/app", &world.honest)).assert_body(&world.honest.bytes);
}

#[test]
fn slow_download_for_a_job_is_given_up_if_another_upstream_has_the_blob() {
    let (registry, other, gate) = (Registry::start(), Registry::start(), Gate::new());
    let image = Image::oci(1, "linux/amd64", vec![Blob::random(1, 100_000)]);
    for registry in [&registry, &other] {
        registry.add_image("library/app", "v1", &image);
    }
    let layer = &image.layers[0];
    other.script(When::blobs().path(&layer.digest), Fault::HoldBody(50_000, gate.clone()));
    let larder = Setup::with(&registry)
        .upstream("other.test", &other)
        .upstream_set("other.test", "min_rate", "1MiB")
        .upstream_set("other.test", "min_rate_time", "200ms")
        .start();
    larder.get(&path("library/app", layer)).assert_body(&layer.bytes);
    larder.wait_idle();
    let warm = ["warm", "other.test/library/app:v1"];
    let ran = verb::online(&larder, &warm);
    assert_ne!(ran.code, 0, "{ran:?}");
    assert!(larder.counter("larder_fills_total", &[("result", "slow")]) >= 1);
    gate.open();
    verb::online(&larder, &warm).exited_with(0);
}
