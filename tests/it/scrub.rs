//! Scrub: damage is found before a client reads it, and orphaned data is deleted.

use crate::support;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use support::in_process::InProcessLarder;
use support::larder::{Exit, run_to_exit, sum_of};
use support::{Blob, Image, Larder, Registry, Setup, eventually};

const KINDS: [&str; 2] = ["files", "sled"];

struct World {
    registry: Registry,
    image: Image,
}

impl World {
    fn new() -> Self {
        let registry = Registry::start();
        let image = Image::oci(1, "linux/amd64", vec![Blob::random(1, 3 << 20), Blob::random(2, 100_000)]);
        registry.add_image("library/app", "v1", &image);
        Self { registry, image }
    }

    fn setup(&self, kind: &str) -> Setup {
        Setup::with(&self.registry).set("store.blobs", kind)
    }

    /// A closed store that contains the image.
    fn closed_store(&self, kind: &str) -> Setup {
        let larder = self.setup(kind).start();
        larder.get("/v2/library/app/manifests/v1").assert_body(&self.image.manifest.bytes);
        for blob in self.image.blobs() {
            larder.get(&path(blob)).assert_body(&blob.bytes);
        }
        stop(larder)
    }
}

fn path(blob: &Blob) -> String {
    format!("/v2/library/app/blobs/{}", blob.digest)
}

fn stop(mut larder: Larder) -> Setup {
    larder.wait_idle();
    larder.stop();
    larder.into_setup()
}

fn file_of(setup: &Setup, blob: &Blob) -> PathBuf {
    let hex = blob.digest.strip_prefix("sha256:").unwrap();
    setup.data().join("blobs/sha256").join(&hex[..2]).join(hex)
}

/// Changes a byte of a blob's file. Size and time stamps stay the same.
fn damage(setup: &Setup, blob: &Blob) {
    let file = OpenOptions::new().write(true).open(file_of(setup, blob)).unwrap();
    let time = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(&[!blob.bytes[50_000]], 50_000).unwrap();
    file.set_modified(time).unwrap();
}

/// Runs a verb offline, with JSON as its output.
fn verb(setup: &Setup, arguments: &[&str]) -> (Exit, Value) {
    let out = setup.folder().join("out.json");
    let file = setup.config_file();
    let mut command: Command = setup.bare_command();
    command.args(arguments).args(["--json", "--config"]).arg(file).stdout(File::create(&out).unwrap());
    let exit = run_to_exit(&mut command);
    (exit, serde_json::from_str(&fs::read_to_string(out).unwrap()).unwrap_or_default())
}

#[test]
fn intact_store_has_no_findings() {
    for kind in KINDS {
        let world = World::new();
        let setup = world.closed_store(kind);
        let (exit, report) = verb(&setup, &["verify"]);
        assert_eq!(exit.status.code(), Some(0), "{exit:?}");
        let bytes: usize =
            world.image.blobs().map(Blob::len).sum::<usize>() + world.image.manifest.bytes.len();
        assert_eq!(
            (&report["manifests"], &report["blobs"], &report["bytes"]),
            (&1.into(), &3.into(), &bytes.into())
        );
        assert_eq!(report["damaged"], Value::Array(Vec::new()));
        let (exit, report) = verb(&setup, &["gc"]);
        assert_eq!(exit.status.code(), Some(0), "{exit:?}");
        assert_eq!(report["reached"]["reachable"]["blobs"], 3, "{report}");
        assert_eq!(report["reached"]["unreachable"]["bytes"], 0, "{report}");
        assert!(report["collected"].as_object().unwrap().values().all(|count| *count == 0), "{report}");
    }
}

#[test]
fn damaged_content_is_removed_or_fetched_again() {
    let world = World::new();
    let layers: Vec<&Blob> = world.image.blobs().filter(|blob| blob.len() >= 100_000).collect();
    let setup = world.closed_store("files");
    for layer in &layers {
        damage(&setup, layer);
    }
    world.registry.forget_requests();
    // One blob is repaired while the registry does not have the other.
    let (exit, report) = verb(&setup, &["verify"]);
    assert_eq!(exit.status.code(), Some(3), "{exit:?}");
    assert!(exit.stderr.contains("2 damaged"), "{exit:?}");
    assert_eq!(report["damaged"].as_array().unwrap().len(), 2, "{report}");
    for layer in &layers {
        assert!(!file_of(&setup, layer).exists());
    }
    assert_eq!(world.registry.requests().len(), 0);
    // Removed content is downloaded again on request.
    let larder = setup.start();
    for layer in &layers {
        larder.get(&path(layer)).assert_body(&layer.bytes);
    }
    let setup = stop(larder);
    damage(&setup, layers[0]);
    let (exit, report) = verb(&setup, &["verify", "--repair"]);
    assert_eq!(exit.status.code(), Some(0), "{exit:?}");
    assert_eq!(report["repaired"], serde_json::json!([layers[0].digest]), "{report}");
    assert_eq!(fs::read(file_of(&setup, layers[0])).unwrap(), *layers[0].bytes);
    let (exit, _) = verb(&setup, &["verify"]);
    assert_eq!(exit.status.code(), Some(0), "{exit:?}");
}

#[test]
fn store_in_use_is_not_scrubbed_by_the_command() {
    let world = World::new();
    let larder = world.setup("files").start();
    let (exit, _) = verb(larder.setup(), &["gc"]);
    assert_eq!(exit.status.code(), Some(1));
    assert!(exit.stderr.contains("in use"), "{exit:?}");
}

#[test]
fn idle_content_is_verified_periodically() {
    let world = World::new();
    let setup = world.closed_store("files").set("scrub.every", "1s").set("scrub.rate", "0B");
    let spoiled = world.image.blobs().find(|blob| blob.len() == 100_000).unwrap();
    damage(&setup, spoiled);
    let larder = setup.start();
    let scrubbed = |result: &str| {
        sum_of(&larder.metrics_text(), "larder_scrubbed_total", &[("kind", "blob"), ("result", result)])
    };
    eventually("the damage is found", || scrubbed("damaged") == 1.0);
    // The other two are verified repeatedly, and the damage stays recorded.
    eventually("everything is verified more than once", || scrubbed("intact") >= 6.0);
    assert_eq!(scrubbed("damaged"), 1.0);
    assert!(sum_of(&larder.metrics_text(), "larder_scrub_end_timestamp_seconds", &[]) > 1e9);
    world.registry.forget_requests();
    larder.get(&path(spoiled)).assert_body(&spoiled.bytes);
    assert_eq!(world.registry.count("GET", &spoiled.digest), 1);
}

#[test]
fn orphans_of_moved_tags_and_cut_fills_are_found() {
    for kind in KINDS {
        let world = World::new();
        let moved = Image::oci(9, "linux/amd64", vec![Blob::random(90, 50_000)]);
        let larder = InProcessLarder::start(world.setup(kind));
        larder.get("/v2/library/app/manifests/v1").assert_body(&world.image.manifest.bytes);
        for blob in world.image.blobs() {
            larder.get(&path(blob)).assert_body(&blob.bytes);
        }
        world.registry.add_image("library/app", "v1", &moved);
        larder.advance(Duration::from_hours(1));
        larder.get("/v2/library/app/manifests/v1").assert_body(&moved.manifest.bytes);
        let setup = larder.stop();
        // A draft that is two days old, and a new one.
        let drafts = setup.data().join("drafts/sha256");
        let (old, new) = (drafts.join("a".repeat(64)), drafts.join("b".repeat(64)));
        for (draft, age) in [(&old, 48), (&new, 0)] {
            fs::write(draft, "a part").unwrap();
            let file = OpenOptions::new().write(true).open(draft).unwrap();
            file.set_modified(std::time::SystemTime::now() - Duration::from_hours(age)).unwrap();
        }
        let (exit, report) = verb(&setup, &["gc"]);
        assert_eq!(exit.status.code(), Some(0), "{exit:?}");
        assert_eq!(report["collected"]["drafts"], 1, "{kind}: {report}");
        assert!(!old.exists() && new.exists());
        assert_eq!(report["reached"]["reachable"]["manifests"], 1, "{report}");
        assert_eq!(report["reached"]["unreachable"]["blobs"], 3, "{report}");
        // Content without a tag is still served by digest.
        world.registry.down();
        let larder = setup.start();
        for blob in world.image.blobs() {
            larder.get(&path(blob)).assert_body(&blob.bytes);
        }
    }
}
