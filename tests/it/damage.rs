//! Files that somebody changes, cuts off or removes while larder runs: everybody is answered, nobody with a wrong byte,
//! and the store heals by itself.

use crate::support;

use std::fs;
use std::path::Path;
use std::time::Duration;

use support::folder::files_below;
use support::house::{House, MIB, TAG};
use support::{Answer, Blob, Fault, Gate, Image, When, eventually};

const KINDS: [&str; 2] = ["sled", "files"];

fn house(kind: &str) -> House {
    House::with(|setup| setup.set("store.blobs", kind))
}

/// An answer. Who reads from a database in the moment when another one takes its place is cut off, and comes again as
/// every client does.
#[track_caller]
fn get(house: &House, path: &str) -> Answer {
    house.larder.api().try_send("GET", path, &[]).unwrap_or_else(|_| house.larder.get(path))
}

/// All of the image, answered right.
#[track_caller]
fn pull(house: &House, image: &Image, tag: &str) {
    get(house, &format!("/v2/library/app/manifests/{tag}")).is_ok_with(&image.manifest.bytes);
    for blob in image.blobs() {
        get(house, &path(blob)).is_ok_with(&blob.bytes);
    }
}

fn path(blob: &Blob) -> String {
    format!("/v2/library/app/blobs/{}", blob.digest)
}

/// Whether all of the image is held.
fn is_held(house: &House, image: &Image) -> bool {
    image.blobs().all(|blob| get(house, &path(blob)).head.outcome() == "larder; hit")
}

/// Waits until what is pulled is kept again.
#[track_caller]
fn heals(house: &House, image: &Image, tag: &str) {
    eventually("it has healed", || {
        pull(house, image, tag);
        house.larder.settle();
        is_held(house, image)
    });
}

/// An image that nobody has pulled yet.
fn another(house: &House, seed: u64) -> Image {
    let image = Image::oci(seed, "linux/amd64", vec![Blob::random(seed * 100, 2 * MIB + 5)]);
    house.registry.add_image("library/app", &format!("v{seed}"), &image);
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
    for kind in KINDS {
        for (what, wipe) in WIPES {
            let mut house = house(kind);
            pull(&house, &house.image, "v1");
            house.larder.settle();
            wipe(&house.larder.setup().data());
            let new = another(&house, 2);
            for _ in 0..3 {
                pull(&house, &house.image, "v1");
                pull(&house, &new, "v2");
            }
            heals(&house, &house.image, "v1");
            heals(&house, &new, "v2");
            // It is not just memory that has healed: after the store was looked after, all of it is on the disk.
            if ["the database", "all of it", "what is in it"].contains(&what) {
                house.larder.wait_for_line("the line that says so", |line| {
                    line["level"] == "ERROR"
                        && line["message"]
                            .as_str()
                            .unwrap_or_default()
                            .contains("directly from the upstreams")
                });
                house.larder.wait_for_line("the line that says that it has passed", |line| {
                    line["message"].as_str().unwrap_or_default().contains("the store works again")
                });
                heals(&house, &house.image, "v1");
                heals(&house, &new, "v2");
                house.larder.get(TAG).is_ok_with(&house.image.manifest.bytes);
            }
            house.larder.terminate();
            assert!(house.larder.wait_exit().success(), "{kind}, {what}: {}", house.larder.log_text());
            house.registry.down();
            house.larder.restart();
            let held = is_held(&house, &house.image) && is_held(&house, &new);
            assert!(held, "{kind}, {what}: {}", house.larder.log_text());
            assert_eq!(house.larder.counter("larder_store_set_aside", &[]), 0, "{kind}, {what}");
        }
    }
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
            let house = house(kind);
            let blob = Blob::random(77, 8 * MIB);
            house.registry.add_blob("library/app", &blob);
            let gate = Gate::new();
            house.registry.script(When::blobs().times(1), Fault::HoldBody(5 * MIB, gate.clone()));
            let mut transfer = house.larder.api().open("GET", &path(&blob), &[]).unwrap();
            let start = transfer.read_exactly(4 * MIB).unwrap();
            assert!(start == blob.bytes[..4 * MIB]);
            let drafts = house.larder.setup().data().join("drafts");
            let draft =
                files_below(&drafts).into_iter().find(|path| path.ends_with(&blob.digest[7..])).unwrap();
            // A file's time moves on by a few milliseconds at once.
            eventually("the last write has its own time", || {
                let written = fs::metadata(&draft).unwrap().modified().unwrap();
                written.elapsed().is_ok_and(|since| since > Duration::from_millis(50))
            });
            change(&draft);
            gate.open();
            // Who reads close to the frontier may have all of it from memory, and right.
            if let Ok(rest) = transfer.finish() {
                assert!(rest.body == blob.bytes[4 * MIB..], "{kind}, {what}");
            }
            house.larder.settle();
            eventually("it has healed", || {
                // A body that is cut is one that nobody takes for whole.
                match house.larder.api().try_send("GET", &path(&blob), &[]) {
                    Ok(answer) => {
                        assert!(answer.body == *blob.bytes, "{kind}, {what}");
                        house.larder.settle();
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
            let mut house = house(kind);
            let more: Vec<_> = (2..5).map(|seed| another(&house, seed)).collect();
            let images: Vec<_> = more.iter().chain([&house.image]).cloned().collect();
            let all = |house: &House| {
                for (n, image) in [2, 3, 4, 1].into_iter().zip(&images) {
                    house
                        .larder
                        .get(&format!("/v2/library/app/manifests/v{n}"))
                        .is_ok_with(&image.manifest.bytes);
                    for blob in image.blobs() {
                        // Who is in the middle of it is cut off at a damaged page, and asks again.
                        eventually("it is served whole", || {
                            match house.larder.api().try_send("GET", &path(blob), &[]) {
                                Ok(answer) => {
                                    answer.is_ok_with(&blob.bytes);
                                    true
                                }
                                Err(_) => false,
                            }
                        });
                    }
                }
                house.larder.settle();
            };
            all(&house);
            for round in 0..2 {
                house.larder.terminate();
                house.larder.wait_exit();
                let db = house.larder.setup().data().join("tree/db");
                let length = fs::metadata(&db).unwrap().len();
                let open = fs::File::options().write(true).open(&db).unwrap();
                let mut random = support::Random::new(seed * 2 + round);
                for _ in 0..3 {
                    let at = random.below(length);
                    std::os::unix::fs::FileExt::write_all_at(&open, &random.bytes(40), at).unwrap();
                }
                house.larder.restart();
                all(&house);
                all(&house);
            }
        }
    }
}

/// Bytes that the store would give up first, as it tells every ten seconds.
fn reclaimable(house: &House) -> u64 {
    house.larder.counter("larder_store_bytes", &[("what", "reclaimable")])
}

#[test]
fn wiped_content_is_no_longer_counted() {
    for kind in KINDS {
        let house = house(kind);
        let blob = Blob::random(9, 3 * MIB);
        house.registry.add_blob("library/app", &blob);
        house.larder.get(&path(&blob)).is_ok_with(&blob.bytes);
        eventually("it is counted", || reclaimable(&house) >= 3 * 1024 * 1024);
        fs::remove_dir_all(house.larder.setup().data()).unwrap();
        eventually("it is counted no longer", || reclaimable(&house) == 0);
    }
}
