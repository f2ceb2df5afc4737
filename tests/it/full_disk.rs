//! Full disks: content is passed through to clients, the failure is logged once, and caching resumes without a restart.

use crate::support;

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use support::{Blob, Fault, Gate, Image, Larder, Registry, Setup, When, eventually};

const MIB: usize = 1 << 20;
const KINDS: [&str; 2] = ["sled", "files"];

/// Starts a server that cannot write beyond `mib` MiB of a file. A larger write is an error instead of a signal.
pub(crate) fn limited(setup: Setup, mib: usize) -> Larder {
    let serve = setup.command();
    let mut command = Command::new("sh");
    // The unit is 512 bytes.
    let script = format!("trap '' XFSZ; ulimit -S -f {}; exec \"$@\"", mib * 2048);
    // The server refuses variables that it does not know.
    command.env_remove("LARDER_BLESS");
    command.args(["-c", &script, "sh"]).arg(serve.get_program()).args(serve.get_args());
    for (name, _) in serve.get_envs().filter(|(_, value)| value.is_none()) {
        command.env_remove(name);
    }
    command.current_dir(setup.folder()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    setup.start_by(&mut command)
}

/// Changes the limit of a running server, in bytes.
pub(crate) fn limit(larder: &Larder, current: Option<u64>) {
    let pid = Pid::from_raw(i32::try_from(larder.pid()).unwrap());
    prlimit(pid, Resource::Fsize, Rlimit { current, maximum: None }).unwrap();
}

/// Removes the limit of a running server.
pub(crate) fn lift(larder: &Larder) {
    limit(larder, None);
}

fn path(blob: &Blob) -> String {
    format!("/v2/library/app/blobs/{}", blob.digest)
}

fn lines(larder: &Larder, message: &str) -> usize {
    larder
        .log_lines()
        .iter()
        .filter(|line| line["message"].as_str().unwrap_or_default().contains(message))
        .count()
}

fn degraded(larder: &Larder) -> bool {
    let metric = || larder.counter("larder_store_degraded", &[]) == 1;
    loop {
        let degraded = metric();
        let report = larder.admin().get("/api/v1/status").json();
        let page = larder.admin().get("/").text();
        // The state may change between two of the answers.
        if metric() == degraded {
            assert_eq!(report["store"]["degraded_at"].is_u64(), degraded, "{report}");
            assert_eq!(page.contains("The store has been failing for"), degraded, "{page}");
            return degraded;
        }
    }
}

#[test]
fn blob_that_cannot_be_written_is_served() {
    for kind in KINDS {
        let registry = Registry::start();
        let (large, small) = (Blob::random(1, 40 * MIB), Blob::random(2, 3 * MIB));
        registry.add_blob("library/app", &large);
        registry.add_blob("library/app", &small);
        let larder = limited(Setup::with(&registry).set("store.blobs", kind), 24);
        let gate = Gate::new();
        registry.script(When::blobs().times(1), Fault::HoldBody(30 * MIB, gate.clone()));
        // Both readers are beyond the limit when the upstream continues. A third one has stopped at the beginning.
        std::thread::scope(|scope| {
            let pulls: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        let mut transfer = larder.api().open("GET", &path(&large), &[]).unwrap();
                        let start = transfer.read_exactly(29 * MIB).unwrap();
                        (start, transfer)
                    })
                })
                .collect();
            let mut third = larder.api().open("GET", &path(&large), &[]).unwrap();
            third.read_exactly(1000).unwrap();
            third.hang_up();
            let pulls: Vec<_> = pulls.into_iter().map(|pull| pull.join().unwrap()).collect();
            gate.open();
            for (start, transfer) in pulls {
                let large = &large;
                scope.spawn(move || {
                    assert!(start == large.bytes[..29 * MIB], "{kind}");
                    assert!(transfer.finish().unwrap().body == large.bytes[29 * MIB..], "{kind}");
                });
            }
        });
        assert_eq!(registry.count("GET", "/blobs/"), 1, "{kind}");
        eventually("degraded mode is reported", || degraded(&larder));
        larder.wait_for_line("error about the store", |line| {
            line["level"] == "ERROR"
                && line["message"].as_str().unwrap_or_default().contains("directly from the upstreams")
        });
        assert!(larder.counter("larder_store_errors_total", &[]) > 0);
        assert_eq!(larder.admin().get("/readyz").status(), 200);
        larder.wait_idle();
        // Without a disk, each new request is served from the first byte by one download.
        registry.forget_requests();
        std::thread::scope(|scope| {
            let pulls: Vec<_> = (0..4).map(|_| scope.spawn(|| larder.get(&path(&small)))).collect();
            for pull in pulls {
                pull.join().unwrap().assert_body(&small.bytes);
            }
        });
        assert!(registry.count("GET", "/blobs/") >= 1);
        for round in 0..3 {
            larder.get(&path(&large)).assert_body(&large.bytes);
            assert_eq!(lines(&larder, "directly from the upstreams"), 1, "round {round}");
        }
        lift(&larder);
        eventually("the blob is cached again", || {
            larder.get(&path(&small)).assert_body(&small.bytes);
            larder.wait_idle();
            larder.get(&path(&small)).head.outcome() == "larder; hit"
        });
        assert!(!degraded(&larder));
        assert_eq!(lines(&larder, "the store works again"), 1);
        larder.get(&path(&large)).assert_body(&large.bytes);
        eventually("the large blob is cached", || larder.get(&path(&large)).head.outcome() == "larder; hit");
    }
}

#[test]
fn unstored_content_is_stored_on_the_next_request() {
    for kind in KINDS {
        let registry = Registry::start();
        let image = Image::oci(1, "linux/amd64", vec![Blob::random(2, MIB)]);
        registry.add_image("library/app", "v1", &image);
        let mut larder = limited(Setup::with(&registry).set("store.blobs", kind), 1024);
        let pull = |larder: &Larder| {
            larder.get("/v2/library/app/manifests/v1").assert_body(&image.manifest.bytes);
            image.blobs().all(|blob| {
                let answer = larder.get(&path(blob));
                answer.assert_body(&blob.bytes);
                answer.head.outcome() == "larder; hit"
            })
        };
        limit(&larder, Some(0));
        // All writes fail, including those of sled, which writes in the background.
        eventually("the failure is reported", || {
            pull(&larder);
            degraded(&larder)
        });
        lift(&larder);
        eventually("all content is cached", || {
            let held = pull(&larder);
            larder.wait_idle();
            held && !degraded(&larder)
        });
        larder.terminate();
        assert!(larder.wait_exit().success(), "{kind}: {}", larder.log_text());
        registry.down();
        larder.restart();
        assert!(pull(&larder), "{kind}: {}", larder.log_text());
    }
}

#[test]
fn unstored_content_is_verified() {
    for kind in KINDS {
        let registry = Registry::start();
        let blob = Blob::random(1, 20 * MIB);
        registry.add_blob("library/app", &blob);
        let larder = limited(Setup::with(&registry).set("store.blobs", kind), 5);
        registry.script(When::blobs().times(1), Fault::FlipBit(19 * MIB));
        larder.api().try_send("GET", &path(&blob), &[]).expect_err("wrong bytes must not look whole");
        larder.wait_idle();
        larder.get(&path(&blob)).assert_body(&blob.bytes);
    }
}

/// Mounts a file system of `mib` MiB at the data folder. Only in the mount namespace of `.ci/stages/full-disk`, which
/// ends with this process.
fn small_disk(setup: &Setup, mib: usize) {
    std::fs::create_dir_all(setup.data()).unwrap();
    let size = format!("size={mib}m");
    let data = setup.data();
    let done = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&data).status().unwrap();
    assert!(done.success(), "root, and `unshare --mount`, are needed: run .ci/stages/full-disk");
}

#[test]
#[ignore = "mounts; .ci/stages/full-disk runs it"]
fn full_disk_recovers_when_space_returns() {
    for kind in KINDS {
        let registry = Registry::start();
        let images: Vec<_> = (1..5_u64)
            .map(|seed| support::Image::oci(seed, "linux/amd64", vec![Blob::random(seed * 7, 30 * MIB)]))
            .collect();
        for (n, image) in images.iter().enumerate() {
            registry.add_image("library/app", &format!("v{n}"), image);
        }
        let setup = Setup::with(&registry).set("store.blobs", kind).set("store.min_free", "0B");
        small_disk(&setup, 100);
        let larder = setup.start();
        let data = larder.setup().data();
        let ballast = data.join("ballast");
        let pull = |larder: &Larder| {
            for (n, image) in images.iter().enumerate() {
                larder.get(&format!("/v2/library/app/manifests/v{n}")).assert_body(&image.manifest.bytes);
                for blob in image.blobs() {
                    larder.get(&path(blob)).assert_body(&blob.bytes);
                }
            }
            larder.wait_idle();
        };
        // Another program fills the disk.
        let mut file = std::fs::File::create(&ballast).unwrap();
        let piece = vec![1; 65_536];
        while std::io::Write::write_all(&mut file, &piece).is_ok() {}
        drop(file);
        for _ in 0..2 {
            pull(&larder);
        }
        assert!(degraded(&larder), "{kind}");
        assert_eq!(lines(&larder, "directly from the upstreams"), 1, "{kind}");
        assert_eq!(larder.admin().get("/readyz").status(), 200);
        // A server that starts on a full disk also serves content.
        let mut larder = larder;
        larder.terminate();
        // It may be unable to flush its store, and then exits with an error.
        larder.wait_exit();
        larder.restart();
        pull(&larder);
        assert!(degraded(&larder), "{kind}");
        std::fs::remove_file(&ballast).unwrap();
        let image = &images[0];
        eventually("the blob is cached again", || {
            let layer = path(&image.layers[0]);
            larder.get("/v2/library/app/manifests/v0").assert_body(&image.manifest.bytes);
            larder.get(&layer).assert_body(&image.layers[0].bytes);
            larder.wait_idle();
            larder.get(&layer).head.outcome() == "larder; hit"
        });
        assert!(!degraded(&larder), "{kind}");
        assert_eq!(lines(&larder, "the store works again"), 1, "{kind}: {}", larder.log_text());
        larder.stop();
        registry.down();
        larder.restart();
        larder.get(&path(&image.layers[0])).assert_outcome("larder; hit");
        drop(larder);
        let _ = Command::new("umount").arg("--lazy").arg(&data).status();
    }
}

#[test]
#[ignore = "mounts; .ci/stages/full-disk runs it"]
fn min_free_holds_whatever_an_upstream_sends() {
    const MIN_FREE: u64 = 24 << 20;
    for kind in KINDS {
        for fault in [Fault::Chunked, Fault::NoLength, Fault::rewrite(|_, _| {})] {
            let registry = Registry::start();
            let image = Image::oci(1, "linux/amd64", vec![Blob::random(1, MIB)]);
            registry.add_image("library/app", "v1", &image);
            let large: Vec<_> = (2..5).map(|seed| Blob::random(seed, 90 * MIB)).collect();
            for blob in &large {
                registry.add_blob("library/app", blob);
            }
            let setup = Setup::with(&registry).set("store.blobs", kind).set("store.min_free", "24MiB");
            small_disk(&setup, 100);
            let larder = setup.start();
            let data = larder.setup().data();
            let layer = path(&image.layers[0]);
            larder.get(&layer).assert_body(&image.layers[0].bytes);
            larder.wait_idle();
            registry.script(When::blobs(), fault);
            let free = || {
                let space = rustix::fs::statvfs(&data).unwrap();
                space.f_bavail * space.f_frsize
            };
            let done = AtomicBool::new(false);
            let least = std::thread::scope(|scope| {
                let watch = scope.spawn(|| {
                    let mut least = free();
                    while !done.load(Ordering::SeqCst) {
                        least = least.min(free());
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    least
                });
                let pulls: Vec<_> = large
                    .iter()
                    .map(|blob| {
                        let larder = &larder;
                        scope.spawn(move || larder.get(&path(blob)).assert_body(&blob.bytes))
                    })
                    .collect();
                let pulled: Vec<_> = pulls.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
                larder.wait_idle();
                done.store(true, Ordering::SeqCst);
                for pulled in pulled {
                    pulled.unwrap();
                }
                watch.join().unwrap()
            });
            assert!(least >= MIN_FREE, "{kind}: {least} bytes were free");
            registry.down();
            larder.get(&layer).assert_outcome("larder; hit");
            assert!(!degraded(&larder), "{kind}");
            drop(larder);
            let _ = Command::new("umount").arg("--lazy").arg(&data).status();
        }
    }
}
