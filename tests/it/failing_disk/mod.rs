//! Disks with errors of their own: clients are served, it is said once, and caching resumes by itself; what lies on a spot
//! that cannot be read is fetched again.

#![cfg(all(target_os = "linux", target_env = "gnu"))]
use crate::support;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Advice, fadvise};
use support::folder::files_below;
use support::{Image, Larder, Registry, Setup, eventually};

const KINDS: [&str; 2] = ["sled", "files"];

/// A larder on a disk that fails when it is told to.
struct House {
    registry: Registry,
    image: Image,
    larder: Larder,
    library: PathBuf,
    /// While this is there, nothing can be written.
    writes: PathBuf,
    /// While this is there, nothing can be read.
    reads: PathBuf,
}

fn house(kind: &str) -> House {
    let registry = Registry::start();
    let image = Image::oci(1, "linux/amd64", vec![support::Blob::random(2, 1 << 20)]);
    registry.add_image("library/app", "v1", &image);
    let setup = Setup::with(&registry).set("store.blobs", kind);
    let library = setup.folder().join("errors.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/failing_disk/errors.c");
    let made =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).arg("-ldl").status();
    assert!(made.unwrap().success());
    let (writes, reads) = (setup.folder().join("no-writes"), setup.folder().join("no-reads"));
    House { registry, image, larder: setup.start(), library, writes, reads }
}

impl House {
    /// Starts larder anew on the disk that fails.
    fn restart(&mut self) {
        let data = self.larder.setup().data();
        self.larder.restart_by(|command| {
            command.env("LD_PRELOAD", &self.library).env("FAIL_BELOW", data);
            command.env("FAIL_WRITES", &self.writes).env("FAIL_READS", &self.reads);
        });
    }

    /// All of the image, answered right. Tells whether all of its blobs are held.
    #[track_caller]
    fn pull(&self) -> bool {
        self.larder.get("/v2/library/app/manifests/v1").is_ok_with(&self.image.manifest.bytes);
        let held = self.image.blobs().map(|blob| {
            let answer = self.larder.get(&format!("/v2/library/app/blobs/{}", blob.digest));
            answer.is_ok_with(&blob.bytes);
            answer.head.outcome() == "larder; hit"
        });
        held.fold(true, |all, one| all & one)
    }

    #[track_caller]
    fn is_held_in_the_end(&self) {
        eventually("all of it is held", || {
            let held = self.pull();
            self.larder.settle();
            held && self.larder.counter("larder_store_degraded", &[]) == 0
        });
    }

    fn lines(&self, message: &str) -> usize {
        let has =
            |line: &serde_json::Value| line["message"].as_str().is_some_and(|told| told.contains(message));
        self.larder.log_lines().iter().filter(|line| has(line)).count()
    }
}

#[test]
fn write_errors_do_not_fail_pulls() {
    for kind in KINDS {
        let mut house = house(kind);
        house.restart();
        File::create(&house.writes).unwrap();
        eventually("it is noticed", || {
            house.pull();
            house.larder.counter("larder_store_degraded", &[]) == 1
        });
        for _ in 0..3 {
            house.pull();
        }
        assert_eq!(house.lines("directly from the upstreams"), 1, "{kind}: {}", house.larder.log_text());
        assert!(house.larder.counter("larder_store_errors_total", &[]) > 0);
        assert_eq!(house.larder.admin().get("/readyz").status(), 200);
        fs::remove_file(&house.writes).unwrap();
        house.is_held_in_the_end();
        assert_eq!(house.lines("the store works again"), 1, "{kind}: {}", house.larder.log_text());
        house.larder.terminate();
        assert!(house.larder.wait_exit().success(), "{kind}: {}", house.larder.log_text());
        house.registry.down();
        house.larder.restart();
        assert!(house.pull(), "{kind}: {}", house.larder.log_text());
    }
}

#[test]
fn unreadable_content_is_a_miss_and_fetched_again() {
    for kind in KINDS {
        let mut house = house(kind);
        house.is_held_in_the_end();
        house.larder.terminate();
        house.larder.wait_exit();
        // Neither sled nor the system has the blobs in memory; what is known of them is read by the first question.
        house.restart();
        for blob in house.image.blobs() {
            let path = format!("/v2/library/app/blobs/{}", blob.digest);
            assert_eq!(house.larder.api().send("HEAD", &path, &[]).status(), 200);
        }
        for file in files_below(&house.larder.setup().data().join("blobs")) {
            let file = File::open(file).unwrap();
            // The system drops only pages that are on the disk.
            file.sync_all().unwrap();
            fadvise(file, 0, None, Advice::DontNeed).unwrap();
        }
        File::create(&house.reads).unwrap();
        house.pull();
        assert!(house.lines("cannot read a") > 0, "{kind}: {}", house.larder.log_text());
        fs::remove_file(&house.reads).unwrap();
        house.is_held_in_the_end();
    }
}
