//! Disks with I/O errors: clients are served, the failure is logged once, and caching resumes. Unreadable content is
//! downloaded again.

#![cfg(all(target_os = "linux", target_env = "gnu"))]
use crate::support;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Advice, fadvise};
use support::folder::files_below;
use support::{Image, Larder, Registry, Setup, eventually};

const KINDS: [&str; 2] = ["sled", "files"];

/// A server on a disk that fails on request.
struct Fixture {
    registry: Registry,
    image: Image,
    larder: Larder,
    library: PathBuf,
    /// All writes fail while this file exists.
    writes: PathBuf,
    /// All reads fail while this file exists.
    reads: PathBuf,
}

fn fixture(kind: &str) -> Fixture {
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
    Fixture { registry, image, larder: setup.start(), library, writes, reads }
}

impl Fixture {
    /// Restarts the server on the failing disk.
    fn restart(&mut self) {
        let data = self.larder.setup().data();
        self.larder.restart_by(|command| {
            command.env("LD_PRELOAD", &self.library).env("FAIL_BELOW", data);
            command.env("FAIL_WRITES", &self.writes).env("FAIL_READS", &self.reads);
        });
    }

    /// Asserts that all content of the image is served correctly. Returns true if all of it is cached.
    #[track_caller]
    fn pull(&self) -> bool {
        self.larder.get("/v2/library/app/manifests/v1").assert_body(&self.image.manifest.bytes);
        let held = self.image.blobs().map(|blob| {
            let answer = self.larder.get(&format!("/v2/library/app/blobs/{}", blob.digest));
            answer.assert_body(&blob.bytes);
            answer.head.outcome() == "larder; hit"
        });
        held.fold(true, |all, one| all & one)
    }

    #[track_caller]
    fn wait_cached(&self) {
        eventually("all content is cached", || {
            let held = self.pull();
            self.larder.wait_idle();
            held && self.larder.counter("larder_store_degraded", &[]) == 0
        });
    }

    fn lines(&self, message: &str) -> usize {
        let has =
            |line: &serde_json::Value| line["message"].as_str().is_some_and(|text| text.contains(message));
        self.larder.log_lines().iter().filter(|line| has(line)).count()
    }
}

#[test]
fn write_errors_do_not_fail_pulls() {
    for kind in KINDS {
        let mut fixture = fixture(kind);
        fixture.restart();
        File::create(&fixture.writes).unwrap();
        eventually("the failure is reported", || {
            fixture.pull();
            fixture.larder.counter("larder_store_degraded", &[]) == 1
        });
        for _ in 0..3 {
            fixture.pull();
        }
        assert_eq!(fixture.lines("directly from the upstreams"), 1, "{kind}: {}", fixture.larder.log_text());
        assert!(fixture.larder.counter("larder_store_errors_total", &[]) > 0);
        assert_eq!(fixture.larder.admin().get("/readyz").status(), 200);
        fs::remove_file(&fixture.writes).unwrap();
        fixture.wait_cached();
        assert_eq!(fixture.lines("the store works again"), 1, "{kind}: {}", fixture.larder.log_text());
        fixture.larder.terminate();
        assert!(fixture.larder.wait_exit().success(), "{kind}: {}", fixture.larder.log_text());
        fixture.registry.down();
        fixture.larder.restart();
        assert!(fixture.pull(), "{kind}: {}", fixture.larder.log_text());
    }
}

#[test]
fn unreadable_content_is_a_miss_and_fetched_again() {
    for kind in KINDS {
        let mut fixture = fixture(kind);
        fixture.wait_cached();
        fixture.larder.stop();
        // Neither sled nor the kernel has the blobs in memory. The first request has read their records.
        fixture.restart();
        for blob in fixture.image.blobs() {
            let path = format!("/v2/library/app/blobs/{}", blob.digest);
            assert_eq!(fixture.larder.api().send("HEAD", &path, &[]).status(), 200);
        }
        for file in files_below(&fixture.larder.setup().data().join("blobs")) {
            let file = File::open(file).unwrap();
            // The kernel drops only pages that are on disk.
            file.sync_all().unwrap();
            fadvise(file, 0, None, Advice::DontNeed).unwrap();
        }
        File::create(&fixture.reads).unwrap();
        fixture.pull();
        assert!(fixture.lines("cannot read a") > 0, "{kind}: {}", fixture.larder.log_text());
        fs::remove_file(&fixture.reads).unwrap();
        fixture.wait_cached();
    }
}
