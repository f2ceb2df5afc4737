//! Rows for faults of the disk. Each row has its own server, because a fault concerns all content.

use std::fmt::Write as _;

use crate::full_disk::{lift, limit, limited};
use crate::support;

use support::folder::files_below;
use support::{Blob, Image, Larder, Registry, Setup, eventually};

use super::outcome;

/// Fault of the disk.
struct DiskCase {
    fault: &'static str,
    kind: &'static str,
    settings: &'static [(&'static str, &'static str)],
    /// Causes the fault in a running server.
    inject: fn(&Larder),
    /// True if the content is cached before the fault.
    cached: bool,
    /// Degraded mode during the fault: `yes`, `no`, or another text if it depends on the time.
    degraded: &'static str,
}

const NO_WRITES: fn(&Larder) = |larder| limit(larder, Some(0));
const NOTHING: fn(&Larder) = |_| {};

fn cases() -> Vec<DiskCase> {
    let case =
        |fault, kind, inject, cached| DiskCase { fault, kind, settings: &[], inject, cached, degraded: "no" };
    let mut cases = Vec::new();
    for kind in ["sled", "files"] {
        let no_writes = case("no file can be written", kind, NO_WRITES, false);
        cases.push(DiskCase { degraded: "yes", ..no_writes });
        let cached = case("no file can be written", kind, NO_WRITES, true);
        cases.push(DiskCase { degraded: "after the next write", ..cached });
        let settings = &[("store.min_free", "1EiB")];
        cases.push(DiskCase { settings, ..case("less than `min_free` is free", kind, NOTHING, false) });
    }
    cases.push(case("the file of the blob is damaged", "files", |larder| change_blobs(larder, false), true));
    cases.push(case("the file of the blob is deleted", "files", |larder| change_blobs(larder, true), true));
    cases
}

/// Damages or deletes all files of blobs.
fn change_blobs(larder: &Larder, delete: bool) {
    for file in files_below(&larder.setup().data().join("blobs")) {
        if delete {
            std::fs::remove_file(file).unwrap();
        } else {
            let mut bytes = std::fs::read(&file).unwrap();
            bytes.iter_mut().take(1).for_each(|byte| *byte ^= 1);
            std::fs::write(file, bytes).unwrap();
        }
    }
}

/// Returns the lines of the table.
pub(super) fn rows() -> String {
    let text = String::from(
        "\n## Responses when the disk fails\n\n\
         The image has a blob of 90,000 bytes. The upstream answers, and is asked for what is not cached.\n\n\
         | fault of the disk | `store.blobs` | content | response for manifest and blob | degraded mode | cached again after the fault |\n\
         |---|---|---|---|---|---|\n",
    );
    let rows: Vec<String> = std::thread::scope(|scope| {
        let rows: Vec<_> = cases().into_iter().map(|case| scope.spawn(move || row(&case))).collect();
        rows.into_iter().map(|row| row.join().unwrap()).collect()
    });
    text + &rows.concat()
}

fn row(case: &DiskCase) -> String {
    let registry = Registry::start();
    let image = Image::oci(1, "linux/amd64", vec![Blob::random(1, 90_000)]);
    registry.add_image("library/app", "v1", &image);
    let manifest = format!("/v2/library/app/manifests/{}", image.manifest.digest);
    let blob = format!("/v2/library/app/blobs/{}", image.layers[0].digest);
    let mut setup = Setup::with(&registry).set("store.blobs", case.kind);
    for (key, value) in case.settings {
        setup = setup.set(key, *value);
    }
    let larder = limited(setup, 1024);
    let pull = || {
        let pulled =
            [(&manifest, &image.manifest.bytes), (&blob, &image.layers[0].bytes)].map(|(path, bytes)| {
                let answer = larder.get(path);
                answer.assert_body(bytes);
                outcome(answer.head.outcome()).to_owned()
            });
        larder.wait_idle();
        pulled
    };
    if case.cached {
        pull();
        eventually("the image is cached", || pull() == ["hit", "hit"]);
    }
    (case.inject)(&larder);
    let [of_manifest, mut of_blob] = pull();
    if case.degraded == "yes" && ["miss", "bypass"].contains(&of_blob.as_str()) {
        // The store may be degraded already after the manifest.
        of_blob = String::from("miss or bypass");
    }
    let is_degraded = || larder.counter("larder_store_degraded", &[]) == 1;
    match case.degraded {
        "yes" => eventually("degraded mode is reported", || {
            pull();
            is_degraded()
        }),
        "no" => assert!(!is_degraded(), "{}", case.fault),
        _ => {}
    }
    lift(&larder);
    let again = if case.settings.is_empty() {
        eventually("the image is cached again", || pull() == ["hit", "hit"]);
        "yes"
    } else {
        "no"
    };
    let content = if case.cached { "cached" } else { "new" };
    let mut row = String::new();
    let DiskCase { fault, kind, degraded, .. } = case;
    let _ = writeln!(
        row,
        "| {fault} | {kind} | {content} | 200 {of_manifest}; 200 {of_blob}, complete | {degraded} | {again} |"
    );
    row
}
