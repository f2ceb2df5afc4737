//! Blobs in sled and in files: equal for clients, converted without loss, and protected against changed files.

use crate::support;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use support::folder::files_below;
use support::larder::run_to_exit;
use support::{Blob, Fault, Image, Index, Larder, Random, Registry, Setup, When, eventually};

const MIB: usize = 1 << 20;
const KINDS: [&str; 2] = ["sled", "files"];

/// A registry with images whose layers are small, large and empty, and the paths of all content.
struct World {
    registry: Registry,
    entries: Vec<(String, std::sync::Arc<Vec<u8>>)>,
}

impl World {
    fn new() -> Self {
        let mut world = Self { registry: Registry::start(), entries: Vec::new() };
        world.add(0);
        world
    }

    /// Adds an image with its own blobs. Returns the paths of all its content.
    fn add(&mut self, seed: u64) {
        let lengths = [0, 1, 70_000, 256 << 10, 3 * MIB + 17];
        let layers = (0..).zip(lengths).map(|(n, length)| match length {
            // There is only one empty blob.
            0 => Blob::new(Vec::new()),
            length => Blob::random(seed * 10 + n, length),
        });
        let image = Image::oci(seed, "linux/amd64", layers.collect());
        let long = Blob::sha512(Random::new(seed + 999).bytes(100_000));
        let index = Index::over(support::content::OCI_INDEX, vec![image.clone()], Vec::new());
        self.registry.add_index("library/app", &format!("v{seed}"), &index);
        self.registry.add_blob("library/app", &long);
        let manifest = |reference: &str| format!("/v2/library/app/manifests/{reference}");
        self.entries.push((manifest(&format!("v{seed}")), index.document.bytes.clone()));
        self.entries.push((manifest(&image.manifest.digest), image.manifest.bytes.clone()));
        for blob in image.blobs().chain([&long]) {
            self.entries.push((format!("/v2/library/app/blobs/{}", blob.digest), blob.bytes.clone()));
        }
    }

    fn larder(&self, kind: &str) -> Larder {
        Setup::with(&self.registry).set("store.blobs", kind).start()
    }

    #[track_caller]
    fn pull(&self, larder: &Larder) {
        for (path, bytes) in &self.entries {
            larder.get(path).assert_body(bytes);
        }
        larder.wait_idle();
    }

    /// Asserts that all content is cached and served without the registry.
    #[track_caller]
    fn assert_cached(&self, larder: &Larder) {
        self.registry.down();
        for (path, bytes) in &self.entries {
            let answer = larder.get(path);
            answer.assert_body(bytes);
            if path.contains("/blobs/") {
                answer.assert_outcome("larder; hit");
            }
        }
        self.registry.up();
    }
}

fn stop(mut larder: Larder) -> Setup {
    larder.stop();
    larder.into_setup()
}

fn convert_command(setup: &Setup, to: &str) -> Command {
    let mut command = setup.bare_command();
    command.args(["store", "convert", "--to", to, "--data"]).arg(setup.data());
    command
}

#[track_caller]
fn convert(setup: &Setup, to: &str) {
    let exit = run_to_exit(&mut convert_command(setup, to));
    assert!(exit.status.success(), "{exit:?}");
    assert!(!exit.stderr.contains("panicked"), "{exit:?}");
}

#[test]
fn both_kinds_serve_the_same() {
    for kind in KINDS {
        let world = World::new();
        let mut larder = world.larder(kind);
        world.pull(&larder);
        world.assert_cached(&larder);
        let path = &world.entries.last().unwrap().0;
        let part = larder.api().send("GET", path, &[("Range", "bytes=99000-")]);
        assert_eq!((part.status(), &part.body[..]), (206, &world.entries.last().unwrap().1[99_000..]));
        larder.stop();
        larder.restart();
        world.assert_cached(&larder);
        let content: usize = world.entries.iter().skip(1).map(|(_, bytes)| bytes.len()).sum();
        let gauge = |what| usize::try_from(larder.counter("larder_store_bytes", &[("what", what)])).unwrap();
        eventually("the store is measured", || gauge("content") >= content && gauge("disk") >= content);
    }
}

#[test]
fn files_are_named_by_digest_and_measured_on_disk() {
    let world = World::new();
    let larder = world.larder("files");
    world.pull(&larder);
    let files = files_below(&larder.setup().data().join("blobs"));
    assert_eq!(files.len(), world.entries.len() - 2);
    for (path, bytes) in world.entries.iter().filter(|(path, _)| path.contains("/blobs/")) {
        let (algorithm, hex) = path.rsplit('/').next().unwrap().split_once(':').unwrap();
        let file = larder.setup().data().join("blobs").join(algorithm).join(&hex[..2]).join(hex);
        assert!(fs::read(&file).unwrap() == **bytes, "{}", file.display());
    }
    assert_eq!(files_below(&larder.setup().data().join("drafts")), Vec::<PathBuf>::new());
    let larder = stop(larder).start();
    let blocks: u64 = files.iter().map(|file| fs::metadata(file).unwrap().blocks() * 512).sum();
    let sled: u64 =
        files_below(&larder.setup().data().join("tree")).iter().map(|f| fs::metadata(f).unwrap().len()).sum();
    let disk = || larder.counter("larder_store_bytes", &[("what", "disk")]);
    eventually("the store is measured", || disk() > 0);
    let all = blocks..=blocks + sled;
    assert!(all.contains(&disk()), "{} is not {blocks} and sled's at most {sled}", disk());
}

#[test]
fn store_is_not_opened_as_the_other_kind() {
    for (kind, other) in [("sled", "files"), ("files", "sled")] {
        let world = World::new();
        let larder = world.larder(kind);
        world.pull(&larder);
        let setup = stop(larder).set("store.blobs", other);
        let exit = setup.run_to_exit();
        exit.assert_error(&[&format!("larder store convert --to {other}"), &format!("\"{kind}\"")]);
        world.assert_cached(&setup.set("store.blobs", kind).start());
    }
}

#[test]
fn blobs_are_converted_both_ways() {
    let mut world = World::new();
    let larder = world.larder("sled");
    world.pull(&larder);
    let busy = run_to_exit(&mut convert_command(larder.setup(), "files"));
    busy.assert_error(&["in use by another process"]);
    let mut setup = stop(larder);
    for (round, to) in ["files", "sled", "files", "files"].into_iter().enumerate() {
        convert(&setup, to);
        let blobs = files_below(&setup.data().join("blobs")).len();
        assert_eq!(blobs > 0, to == "files", "round {round}: {blobs} files");
        let larder = setup.set("store.blobs", to).start();
        world.assert_cached(&larder);
        world.add(round as u64 + 1);
        world.pull(&larder);
        setup = stop(larder);
    }
    // sled itself never returns disk space.
    let left: u64 =
        files_below(&setup.data().join("tree")).iter().map(|f| fs::metadata(f).unwrap().blocks() * 512).sum();
    assert!(left < 8 * MIB as u64, "{left} bytes of sled are left");
    assert!(!setup.data().join("tree.old").exists() && !setup.data().join("tree.new").exists());
}

#[test]
fn folder_without_a_store_is_not_converted() {
    let setup = Setup::empty();
    let exit = run_to_exit(&mut convert_command(&setup, "files"));
    exit.assert_error(&[&setup.data().display().to_string(), "--data"]);
    assert!(!setup.data().exists());
}

#[test]
fn killed_conversion_is_resumed() {
    let seed = u64::from(std::process::id());
    let mut random = Random::new(seed);
    let mut world = World::new();
    (1..6).for_each(|seed| world.add(seed));
    let larder = world.larder("sled");
    world.pull(&larder);
    let mut setup = stop(larder);
    let mut kills = 0;
    for round in 0..6 {
        let to = KINDS[(round + 1) % 2];
        // Sometimes the operator changes the kind again.
        for attempt in 0..4 {
            let to = if attempt % 3 == 2 { KINDS[round % 2] } else { to };
            let mut child = convert_command(&setup, to).spawn().unwrap();
            // This is the random time of the kill, not a wait for an event.
            std::thread::sleep(Duration::from_micros(500 + random.below(300_000)));
            let ended = child.try_wait().unwrap();
            child.kill().unwrap();
            let _ = child.wait().unwrap();
            if ended.is_some() {
                continue;
            }
            kills += 1;
            // Any content that exists now is complete, or does not look complete.
            setup = setup.set("store.blobs", to);
            let header = fs::read_to_string(setup.data().join("header.toml")).unwrap();
            if header.contains("moving_from") {
                setup.run_to_exit().assert_error(&["larder store convert --to"]);
            }
        }
        convert(&setup, to);
        let larder = setup.set("store.blobs", to).start();
        world.assert_cached(&larder);
        setup = stop(larder);
    }
    assert!(kills > 4, "seed {seed}: only {kills} conversions were killed");
}

#[test]
fn conversion_drops_damaged_blobs() {
    let world = World::new();
    let larder = world.larder("files");
    world.pull(&larder);
    let setup = stop(larder);
    let largest = files_below(&setup.data().join("blobs"))
        .into_iter()
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap();
    OpenOptions::new().write(true).open(&largest).unwrap().write_all_at(b"x", 77).unwrap();
    convert(&setup, "sled");
    world.registry.forget_requests();
    let larder = setup.set("store.blobs", "sled").start();
    world.pull(&larder);
    assert_eq!(world.registry.count("GET", "/blobs/"), 1);
    world.assert_cached(&larder);
}

/// Starts a server with one blob in a file.
struct OneBlob {
    registry: Registry,
    larder: Larder,
    blob: Blob,
    path: String,
    file: PathBuf,
}

fn with_one_blob() -> OneBlob {
    let registry = Registry::start();
    let blob = Blob::random(4, 24 * MIB);
    registry.add_blob("library/app", &blob);
    let larder = Setup::with(&registry).set("store.blobs", "files").start();
    let path = format!("/v2/library/app/blobs/{}", blob.digest);
    larder.get(&path).assert_body(&blob.bytes);
    larder.wait_idle();
    let file = files_below(&larder.setup().data().join("blobs")).remove(0);
    OneBlob { registry, larder, blob, path, file }
}

fn write(file: &Path) -> fs::File {
    OpenOptions::new().write(true).open(file).unwrap()
}

type Change = fn(&Path);

#[test]
fn modified_files_are_a_miss() {
    let changes: [Change; 4] = [
        |file| fs::remove_file(file).unwrap(),
        |file| write(file).set_len(5).unwrap(),
        |file| write(file).write_all_at(b"wrong", 20_000_000).unwrap(),
        |file| fs::write(file, "other").unwrap(),
    ];
    let with_one_blob = with_one_blob();
    for (n, change) in changes.into_iter().enumerate() {
        with_one_blob.larder.get(&with_one_blob.path).assert_outcome("larder; hit");
        change(&with_one_blob.file);
        with_one_blob.registry.forget_requests();
        // The client notices nothing, except that the registry got another request.
        let answer = with_one_blob.larder.get(&with_one_blob.path);
        answer.assert_body(&with_one_blob.blob.bytes);
        assert!(answer.head.outcome().contains("detail=miss"), "change {n}: {:?}", answer.head);
        assert_eq!(with_one_blob.registry.count("GET", "/blobs/"), 1, "change {n}");
        with_one_blob.larder.wait_idle();
        assert!(fs::read(&with_one_blob.file).unwrap() == *with_one_blob.blob.bytes, "change {n}");
    }
    assert_eq!(with_one_blob.larder.counter("larder_store_errors_total", &[]), 4);
}

#[test]
fn file_changed_under_a_reader_cuts_the_connection() {
    let changes: [Change; 2] = [
        |file| write(file).set_len(23 << 20).unwrap(),
        |file| write(file).write_all_at(b"wrong", 24_000_000).unwrap(),
    ];
    for (n, change) in changes.into_iter().enumerate() {
        let with_one_blob = with_one_blob();
        let mut transfer = with_one_blob.larder.api().open("GET", &with_one_blob.path, &[]).unwrap();
        transfer.read_exactly(1000).unwrap();
        change(&with_one_blob.file);
        transfer.finish().expect_err("a body that was cut must not look whole");
        with_one_blob.larder.wait_idle();
        with_one_blob.larder.get(&with_one_blob.path).assert_body(&with_one_blob.blob.bytes);
        with_one_blob.larder.wait_idle();
        with_one_blob.larder.get(&with_one_blob.path).assert_outcome("larder; hit");
        assert_eq!(with_one_blob.registry.count("GET", "/blobs/"), 2, "change {n}");
    }
}

#[test]
fn file_removed_under_a_reader_is_read_to_its_end() {
    let with_one_blob = with_one_blob();
    let mut transfer = with_one_blob.larder.api().open("GET", &with_one_blob.path, &[]).unwrap();
    let start = transfer.read_exactly(1000).unwrap();
    fs::remove_file(&with_one_blob.file).unwrap();
    assert!(start == with_one_blob.blob.bytes[..1000]);
    assert!(transfer.finish().unwrap().body == with_one_blob.blob.bytes[1000..]);
}

#[test]
fn files_with_lost_times_are_not_fetched_again() {
    let with_one_blob = with_one_blob();
    write(&with_one_blob.file).set_modified(std::time::SystemTime::now()).unwrap();
    with_one_blob.registry.forget_requests();
    with_one_blob.larder.get(&with_one_blob.path).assert_outcome("larder; hit");
    assert_eq!(with_one_blob.registry.count("GET", "/blobs/"), 0);
}

#[test]
fn draft_is_resumed_byte_for_byte_after_a_stop() {
    let registry = Registry::start();
    let blob = Blob::random(5, 8 * MIB);
    registry.add_blob("library/app", &blob);
    registry.script(When::blobs().method("GET").times(1), Fault::Cut(6 * MIB + 123));
    // A final answer ends the fill, which writes its bytes.
    registry.script(When::blobs().method("GET").after(1), Fault::Status(404));
    let mut larder = Setup::with(&registry).set("store.blobs", "files").start();
    let path = format!("/v2/library/app/blobs/{}", blob.digest);
    larder.api().try_send("GET", &path, &[]).unwrap_err();
    larder.wait_idle();
    registry.clear_faults();
    registry.forget_requests();
    larder.stop();
    larder.restart();
    larder.get(&path).assert_body(&blob.bytes);
    let starts: Vec<_> = registry.seen("GET", "/blobs/").iter().map(support::Seen::range_start).collect();
    assert_eq!(starts, [Some(6 * MIB as u64 + 123)]);
}

/// Starts a server with a cached manifest and a foreign draft of its layer, which has the length of the layer.
fn with_whole_draft(kind: &str, bytes: &[u8], blob: &Blob) -> (Registry, Larder, String) {
    let registry = Registry::start();
    let image = Image::oci(9, "linux/amd64", vec![blob.clone()]);
    registry.add_image("library/app", "v1", &image);
    let larder = Setup::with(&registry).set("store.blobs", kind).start();
    larder.get("/v2/library/app/manifests/v1").assert_body(&image.manifest.bytes);
    let setup = stop(larder);
    let (algorithm, hex) = blob.digest.split_once(':').unwrap();
    let folder = setup.data().join("drafts/upstreams/docker.io").join(algorithm);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(hex), bytes).unwrap();
    (registry, setup.start(), format!("/v2/library/app/blobs/{}", blob.digest))
}

#[test]
fn complete_draft_needs_no_upstream() {
    for kind in KINDS {
        let blob = Blob::random(8, 5 * MIB);
        let (registry, larder, path) = with_whole_draft(kind, &blob.bytes, &blob);
        registry.down();
        larder.get(&path).assert_body(&blob.bytes);
        larder.wait_idle();
        larder.get(&path).assert_outcome("larder; hit");
        assert_eq!(files_below(&larder.setup().data().join("drafts")), Vec::<PathBuf>::new());
    }
}

#[test]
fn draft_with_wrong_bytes_of_the_right_length_is_fetched_again() {
    for kind in KINDS {
        let blob = Blob::random(8, 5 * MIB);
        let (registry, larder, path) = with_whole_draft(kind, &vec![7; 5 * MIB], &blob);
        // A client that got wrong bytes is disconnected. A later client gets the correct blob.
        if let Ok(answer) = larder.api().try_send("GET", &path, &[]) {
            answer.assert_body(&blob.bytes);
        }
        larder.wait_idle();
        larder.get(&path).assert_body(&blob.bytes);
        larder.get(&path).assert_outcome("larder; hit");
        assert_eq!(registry.count("GET", "/blobs/"), 1);
    }
}
