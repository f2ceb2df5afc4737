//! Stores that cannot be opened: they are moved to quarantine with all content, an error is logged, and the server uses
//! an empty store.

use crate::support;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use support::fixture::{Fixture, TAG};
use support::{Larder, Setup, eventually};

const KINDS: [&str; 2] = ["sled", "files"];

/// Damage of a store while the server is stopped.
type Damage = fn(&Path);

/// All kinds of damage that prevent the store from opening. Damage to the files of sled does not depend on the kind of
/// blob store.
const DAMAGES: [(&str, Damage); 11] = [
    ("a header of garbage", |data| fs::write(data.join("header.toml"), [0xff; 100]).unwrap()),
    ("half a header", |data| {
        let text = fs::read(data.join("header.toml")).unwrap();
        fs::write(data.join("header.toml"), &text[..text.len() / 2]).unwrap();
    }),
    ("an empty header", |data| fs::write(data.join("header.toml"), "").unwrap()),
    ("the header of a newer larder", |data| {
        let text = fs::read_to_string(data.join("header.toml")).unwrap();
        fs::write(data.join("header.toml"), text.replace("format = 2", "format = 3")).unwrap();
    }),
    ("no header", |data| fs::remove_file(data.join("header.toml")).unwrap()),
    ("a database whose settings are garbage", |data| fs::write(data.join("tree/conf"), [7; 60]).unwrap()),
    ("a database whose settings are cut off", |data| cut(&data.join("tree/conf"), 40)),
    // sled treats these files as a new database, or panics, if there is no snapshot.
    ("a database of nothing", |data| {
        remove_snapshots(data);
        cut(&data.join("tree/db"), 0);
    }),
    ("a database with wrong bytes", |data| {
        remove_snapshots(data);
        let db = OpenOptions::new().write(true).open(data.join("tree/db")).unwrap();
        db.write_all_at(&[7; 4000], 20).unwrap();
    }),
    ("a snapshot of garbage", |data| fs::write(data.join("tree/snap.FFFFFFFFFFFFFFFF"), [1; 100]).unwrap()),
    ("a file where the database should be", |data| {
        fs::remove_dir_all(data.join("tree")).unwrap();
        fs::write(data.join("tree"), "no folder").unwrap();
    }),
];

fn cut(path: &Path, length: u64) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(length).unwrap();
}

fn remove_snapshots(data: &Path) {
    for path in entries(&data.join("tree")) {
        if path.file_name().unwrap().to_string_lossy().starts_with("snap.") {
            fs::remove_file(path).unwrap();
        }
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

/// Returns all files below a folder with their content.
fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    if folder.is_file() {
        return vec![(PathBuf::new(), fs::read(folder).unwrap())];
    }
    let mut found = Vec::new();
    for path in entries(folder) {
        let name = path.file_name().unwrap().to_owned();
        found.extend(contents(&path).into_iter().map(|(below, bytes)| (Path::new(&name).join(below), bytes)));
    }
    found
}

fn quarantined(data: &Path) -> Vec<PathBuf> {
    let is_aside = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("set-aside-20");
    entries(data).into_iter().filter(is_aside).collect()
}

#[track_caller]
fn pull(fixture: &Fixture, larder: &Larder) {
    larder.get(TAG).assert_body(&fixture.image.manifest.bytes);
    for blob in fixture.image.blobs() {
        larder.get(&format!("/v2/library/app/blobs/{}", blob.digest)).assert_body(&blob.bytes);
    }
    larder.wait_idle();
}

/// Starts a server, pulls an image, and stops the server.
fn stopped_server(kind: &str) -> (Fixture, Setup) {
    let mut fixture = Fixture::with(|setup| setup.set("store.blobs", kind));
    pull(&fixture, &fixture.larder);
    fixture.larder.stop();
    let data = fixture.larder.setup().data();
    let mut setup = Setup::with(&fixture.registry).set("store.blobs", kind);
    setup = setup.set("store.path", data.display().to_string());
    fixture.registry.forget_requests();
    (fixture, setup)
}

#[test]
fn unreadable_store_is_quarantined_and_the_server_starts() {
    for kind in KINDS {
        for (what, damage) in DAMAGES {
            let (fixture, setup) = stopped_server(kind);
            let data = fixture.larder.setup().data();
            damage(&data);
            let inode = fs::metadata(&data).unwrap().ino();
            let (header, tree) = (data.join("header.toml"), contents(&data.join("tree")));
            let header = fs::read(header).ok();
            let larder = setup.start();
            let aside = quarantined(&data);
            assert_eq!(aside.len(), 1, "{kind}, {what}");
            let line =
                larder.wait_for_line("error about the quarantine", |line| line["moved_to"].is_string());
            assert_eq!(line["level"], "ERROR");
            assert_eq!(line["moved_to"], aside[0].display().to_string(), "{what}");
            assert_eq!(line["store"], data.display().to_string(), "{what}");
            assert!(!line["reason"].as_str().unwrap().is_empty(), "{what}");
            // All files are unchanged, except those that sled writes while it opens.
            assert_eq!(fs::read(aside[0].join("header.toml")).ok(), header, "{kind}, {what}");
            let names =
                |files: &[(PathBuf, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
            let remaining = contents(&aside[0].join("tree"));
            for name in names(&tree) {
                assert!(names(&remaining).contains(&name), "{kind}, {what}: {} is gone", name.display());
            }
            assert!(fs::read_to_string(aside[0].join("reason.txt")).unwrap().len() > 10);
            // The folder itself stays, because it may be a mount point.
            assert_eq!(fs::metadata(&data).unwrap().ino(), inode);
            eventually("the gauge reports the quarantine", || {
                larder.counter("larder_store_set_aside", &[]) == 1
            });
            pull(&fixture, &larder);
            // Nothing shows any more which upstream has delivered the files of blobs.
            assert_eq!(fixture.registry.count("GET", "/blobs/"), 2, "{kind}, {what}");
            fixture.registry.down();
            larder.get(TAG).assert_outcome("larder; hit");
            larder.get(&fixture.path).assert_outcome("larder; hit");
        }
    }
}

#[test]
fn quarantined_store_stays_quarantined() {
    let (fixture, setup) = stopped_server("sled");
    fs::write(fixture.larder.setup().data().join("header.toml"), "").unwrap();
    let mut larder = setup.start();
    pull(&fixture, &larder);
    larder.stop();
    larder.restart();
    larder.get(&fixture.path).assert_outcome("larder; hit");
    assert!(!larder.log_text().contains("moved into quarantine"), "{}", larder.log_text());
    assert_eq!(quarantined(&fixture.larder.setup().data()).len(), 1);
}

#[test]
fn unreadable_store_refuses_to_start_if_configured() {
    for (what, damage) in DAMAGES {
        let (fixture, setup) = stopped_server("sled");
        let data = fixture.larder.setup().data();
        damage(&data);
        let before = entries(&data);
        let exit = setup.set("store.on_corruption", "refuse").run_to_exit();
        exit.assert_error(&[&data.display().to_string(), "cannot be opened", "store.on_corruption"]);
        assert_eq!(entries(&data), before, "{what}");
    }
}

#[test]
fn store_in_use_is_never_quarantined() {
    let fixture = Fixture::new();
    pull(&fixture, &fixture.larder);
    let data = fixture.larder.setup().data();
    let second = || Setup::with(&fixture.registry).set("store.path", data.display().to_string());
    for (what, damage) in &DAMAGES[..7] {
        damage(&data);
        second().run_to_exit().assert_error(&["in use by another process"]);
        assert_eq!(quarantined(&data).len(), 0, "{what}");
        // Also after the operator has deleted the quarantine.
        fs::remove_file(data.join("lock")).unwrap();
        second().run_to_exit().assert_error(&["in use by another process"]);
        assert_eq!(quarantined(&data).len(), 0, "{what}");
        fs::write(data.join("header.toml"), "").unwrap();
        fs::write(data.join("tree/conf"), [0; 63]).unwrap();
    }
    fixture.larder.get(&fixture.path).assert_outcome("larder; hit");
}

#[test]
fn quarantine_keeps_at_most_three_stores() {
    let (fixture, mut setup) = stopped_server("files");
    let data = fixture.larder.setup().data();
    for round in 1..=3 {
        fs::write(data.join("header.toml"), "").unwrap();
        let mut larder = setup.start();
        assert_eq!(quarantined(&data).len(), round);
        larder.stop();
        setup = larder.into_setup();
    }
    fs::write(data.join("header.toml"), "").unwrap();
    let exit = setup.run_to_exit();
    let aside = quarantined(&data);
    assert_eq!(aside.len(), 3);
    exit.assert_error(&["remove them", &aside[0].display().to_string(), &aside[2].display().to_string()]);
    fs::remove_dir_all(&aside[0]).unwrap();
    pull(&fixture, &setup.start());
}

#[test]
fn removed_database_is_reported() {
    for kind in KINDS {
        let (fixture, setup) = stopped_server(kind);
        let data = fixture.larder.setup().data();
        fs::remove_dir_all(data.join("tree")).unwrap();
        let larder = setup.start();
        let line = larder.wait_for_line("error", |line| line["level"] == "ERROR");
        assert!(line["message"].as_str().unwrap().contains("database of the store is missing"), "{line}");
        assert_eq!(quarantined(&data).len(), 0);
        pull(&fixture, &larder);
    }
}

#[test]
fn store_of_format_1_is_migrated() {
    for kind in KINDS {
        let (fixture, setup) = stopped_server(kind);
        let header = fixture.larder.setup().data().join("header.toml");
        let text = fs::read_to_string(&header).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with("identity"));
        let earlier = lines.collect::<Vec<_>>().join("\n").replace("format = 2", "format = 1");
        fs::write(&header, earlier + "\n").unwrap();
        fixture.registry.down();
        let larder = setup.start();
        larder.get(&fixture.path).assert_outcome("larder; hit");
        let now = fs::read_to_string(&header).unwrap();
        assert!(now.contains("format = 2") && now.contains("identity"), "{now}");
    }
}
