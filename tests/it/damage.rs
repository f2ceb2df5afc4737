//! Files that are changed, truncated or deleted while the server runs: clients get no wrong byte, and the store repairs
//! itself.

use crate::support;

use std::fs;
use std::path::Path;
use std::time::Duration;

use support::fixture::{Fixture, MIB, TAG};
use support::folder::files_below;
use support::{Answer, Blob, Fault, Gate, Image, When, eventually};

const KINDS: [&str; 2] = ["sled", "files"];

fn fixture(kind: &str) -> Fixture {
    Fixture::with(|setup| setup.set("store.blobs", kind))
}

/// Calls `test` for both kinds of blob store at the same time, because the tests mostly wait.
fn for_each_kind(test: impl Fn(&str) + Sync) {
    let test = &test;
    std::thread::scope(|scope| {
        for kind in KINDS {
            scope.spawn(move || test(kind));
        }
    });
}

/// Requests a path. A client that reads from the database while the database is replaced is disconnected, and retries
/// as every client does.
#[track_caller]
fn get(fixture: &Fixture, path: &str) -> Answer {
    fixture.larder.api().try_send("GET", path, &[]).unwrap_or_else(|_| fixture.larder.get(path))
}

/// Asserts that all content of the image is served correctly.
#[track_caller]
fn pull(fixture: &Fixture, image: &Image, tag: &str) {
    get(fixture, &format!("/v2/library/app/manifests/{tag}")).assert_body(&image.manifest.bytes);
    for blob in image.blobs() {
        get(fixture, &path(blob)).assert_body(&blob.bytes);
    }
}

fn path(blob: &Blob) -> String {
    format!("/v2/library/app/blobs/{}", blob.digest)
}

/// Returns true if all content of the image is cached.
fn is_cached(fixture: &Fixture, image: &Image) -> bool {
    image.blobs().all(|blob| get(fixture, &path(blob)).head.outcome() == "larder; hit")
}

/// Waits until pulled content is cached again.
#[track_caller]
fn wait_recovered(fixture: &Fixture, image: &Image, tag: &str) {
    eventually("the store has recovered", || {
        pull(fixture, image, tag);
        fixture.larder.wait_idle();
        is_cached(fixture, image)
    });
}

/// Returns a new image that is not cached.
fn another(fixture: &Fixture, seed: u64) -> Image {
    let image = Image::oci(seed, "linux/amd64", vec![Blob::random(seed * 100, 2 * MIB + 5)]);
    fixture.registry.add_image("library/app", &format!("v{seed}"), &image);
    image
}

type Change = fn(&Path);

const WIPES: [(&str, Change); 6] = [
    ("drafts", |data| fs::remove_dir_all(data.join("drafts")).unwrap()),
    ("blobs", |data| drop(fs::remove_dir_all(data.join("blobs")))),
    ("blobs and drafts", |data| {
        drop(fs::remove_dir_all(data.join("blobs")));
        fs::remove_dir_all(data.join("drafts")).unwrap();
    }),
    ("the database", |data| fs::remove_dir_all(data.join("tree")).unwrap()),
    ("all of it", |data| fs::remove_dir_all(data).unwrap()),
    ("what is in it", |data| {
        for entry in fs::read_dir(data).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
        }
    }),
];

#[test]
fn wiped_folders_cost_downloads_but_no_failures() {
    for_each_kind(|kind| {
        for (what, wipe) in WIPES {
            let mut fixture = fixture(kind);
            pull(&fixture, &fixture.image, "v1");
            fixture.larder.wait_idle();
            wipe(&fixture.larder.setup().data());
            let new = another(&fixture, 2);
            for _ in 0..3 {
                pull(&fixture, &fixture.image, "v1");
                pull(&fixture, &new, "v2");
            }
            wait_recovered(&fixture, &fixture.image, "v1");
            wait_recovered(&fixture, &new, "v2");
            // Not only the memory has recovered: after the store was closed and opened, all content is on disk.
            if ["the database", "all of it", "what is in it"].contains(&what) {
                fixture.larder.wait_for_line("error about the store", |line| {
                    line["level"] == "ERROR"
                        && line["message"]
                            .as_str()
                            .unwrap_or_default()
                            .contains("directly from the upstreams")
                });
                fixture.larder.wait_for_line("message about the recovery", |line| {
                    line["message"].as_str().unwrap_or_default().contains("the store works again")
                });
                wait_recovered(&fixture, &fixture.image, "v1");
                wait_recovered(&fixture, &new, "v2");
                fixture.larder.get(TAG).assert_body(&fixture.image.manifest.bytes);
            }
            fixture.larder.terminate();
            assert!(fixture.larder.wait_exit().success(), "{kind}, {what}: {}", fixture.larder.log_text());
            fixture.registry.down();
            fixture.larder.restart();
            let held = is_cached(&fixture, &fixture.image) && is_cached(&fixture, &new);
            assert!(held, "{kind}, {what}: {}", fixture.larder.log_text());
            assert_eq!(fixture.larder.counter("larder_store_set_aside", &[]), 0, "{kind}, {what}");
        }
    });
}

#[test]
fn modified_draft_never_becomes_content() {
    let changes: [(&str, Change); 4] = [
        ("removed", |file| fs::remove_file(file).unwrap()),
        ("cut off", |file| fs::File::options().write(true).open(file).unwrap().set_len(1000).unwrap()),
        ("written to", |file| {
            let open = fs::File::options().write(true).open(file).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&open, b"wrong", 700_000).unwrap();
        }),
        ("grown", |file| {
            let open = fs::File::options().write(true).open(file).unwrap();
            let length = open.metadata().unwrap().len();
            std::os::unix::fs::FileExt::write_all_at(&open, &vec![7; 100_000], length).unwrap();
        }),
    ];
    for kind in KINDS {
        for (what, change) in changes {
            let fixture = fixture(kind);
            let blob = Blob::random(77, 8 * MIB);
            fixture.registry.add_blob("library/app", &blob);
            let gate = Gate::new();
            fixture.registry.script(When::blobs().times(1), Fault::HoldBody(5 * MIB, gate.clone()));
            let mut transfer = fixture.larder.api().open("GET", &path(&blob), &[]).unwrap();
            let start = transfer.read_exactly(4 * MIB).unwrap();
            assert!(start == blob.bytes[..4 * MIB]);
            let drafts = fixture.larder.setup().data().join("drafts");
            let draft =
                files_below(&drafts).into_iter().find(|path| path.ends_with(&blob.digest[7..])).unwrap();
            // The time stamp of a file advances in steps of some milliseconds.
            eventually("the last write has a later time stamp", || {
                let written = fs::metadata(&draft).unwrap().modified().unwrap();
                written.elapsed().is_ok_and(|since| since > Duration::from_millis(50))
            });
            change(&draft);
            gate.open();
            // A reader that is close to the end of the fill may get all bytes from memory, which are correct.
            if let Ok(rest) = transfer.finish() {
                assert!(rest.body == blob.bytes[4 * MIB..], "{kind}, {what}");
            }
            fixture.larder.wait_idle();
            eventually("the store has recovered", || {
                // An interrupted body does not look complete to the client.
                match fixture.larder.api().try_send("GET", &path(&blob), &[]) {
                    Ok(answer) => {
                        assert!(answer.body == *blob.bytes, "{kind}, {what}");
                        fixture.larder.wait_idle();
                        answer.head.outcome() == "larder; hit"
                    }
                    Err(_) => false,
                }
            });
        }
    }
}

#[test]
fn modified_database_bytes_are_never_served() {
    for kind in KINDS {
        for seed in 0..6_u64 {
            let mut fixture = fixture(kind);
            let more: Vec<_> = (2..5).map(|seed| another(&fixture, seed)).collect();
            let images: Vec<_> = more.iter().chain([&fixture.image]).cloned().collect();
            let all = |fixture: &Fixture| {
                for (n, image) in [2, 3, 4, 1].into_iter().zip(&images) {
                    fixture
                        .larder
                        .get(&format!("/v2/library/app/manifests/v{n}"))
                        .assert_body(&image.manifest.bytes);
                    for blob in image.blobs() {
                        // A reader is disconnected at a damaged page, and retries.
                        eventually("the blob is served completely", || {
                            match fixture.larder.api().try_send("GET", &path(blob), &[]) {
                                Ok(answer) => {
                                    answer.assert_body(&blob.bytes);
                                    true
                                }
                                Err(_) => false,
                            }
                        });
                    }
                }
                fixture.larder.wait_idle();
            };
            all(&fixture);
            for round in 0..2 {
                fixture.larder.stop();
                let db = fixture.larder.setup().data().join("tree/db");
                let length = fs::metadata(&db).unwrap().len();
                let open = fs::File::options().write(true).open(&db).unwrap();
                let mut random = support::Random::new(seed * 2 + round);
                for _ in 0..3 {
                    let at = random.below(length);
                    std::os::unix::fs::FileExt::write_all_at(&open, &random.bytes(40), at).unwrap();
                }
                fixture.larder.restart();
                all(&fixture);
                all(&fixture);
            }
        }
    }
}

/// Returns the number of bytes that the store can release, from a gauge that is updated every ten seconds.
fn reclaimable(fixture: &Fixture) -> u64 {
    fixture.larder.counter("larder_store_bytes", &[("what", "reclaimable")])
}

#[test]
fn wiped_content_is_no_longer_counted() {
    for_each_kind(|kind| {
        let fixture = fixture(kind);
        let blob = Blob::random(9, 3 * MIB);
        fixture.registry.add_blob("library/app", &blob);
        fixture.larder.get(&path(&blob)).assert_body(&blob.bytes);
        eventually("the bytes are counted", || reclaimable(&fixture) >= 3 * 1024 * 1024);
        fs::remove_dir_all(fixture.larder.setup().data()).unwrap();
        eventually("the bytes are released", || reclaimable(&fixture) == 0);
    });
}
