//! Measures the store: write and read speed, memory and disk usage, for several page and segment sizes, and for files.
//! `cargo bench --bench store` prints the table. Each row is a separate process, so that its memory can be measured.
//!
//! Argument: `LIVE_MIB`, the live data of each row (default 2048).
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::cast_precision_loss)]

mod process;

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::process::Command;
use std::time::Instant;

use larder::clock::Timestamp;
use larder::config::schema::{self, BlobStoreKind};
use larder::oci::{Algorithm, Digest, Repository};
use larder::store::{DraftEnd, DraftKey, Geometry, Store, StoreError, StoreSession};
use process::{bytes, resident, written};
use tokio::runtime::Runtime;

const MIB: usize = 1 << 20;
const BLOB: usize = 128 * MIB;
/// (page KiB, segment KiB, sled cache MiB)
const ROWS: [(usize, usize, usize); 6] =
    [(8, 512, 32), (16, 2048, 32), (32, 4096, 32), (64, 4096, 32), (64, 8192, 64), (128, 8192, 32)];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    if let [row, kind, page, segment, cache, live] = arguments.as_slice()
        && row == "row"
    {
        let [page, segment, cache, live] = [page, segment, cache, live].map(|text| text.parse().unwrap());
        if kind == "files" {
            measure(BlobStoreKind::Files, "files | |", page, segment, cache, live);
        } else {
            let title = format!("{page} KiB | {segment} KiB | {cache} MiB");
            measure(BlobStoreKind::Sled, &title, page, segment, cache, live);
        }
        return;
    }
    let live = arguments.first().map_or(2048, |text| text.parse().unwrap());
    println!(
        "| page | segment | sled cache | write MB/s | read GB/s, 1 stream | read GB/s, 2 streams | resident after half / all / reads, MiB | written per byte | disk per live byte | reopen s |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    plain_file(live);
    let files = ("files", Geometry::CHOSEN.page_size >> 10, Geometry::CHOSEN.segment_size >> 10, 32);
    let sled = ROWS.into_iter().map(|(page, segment, cache)| ("sled", page, segment, cache));
    for (kind, page, segment, cache) in std::iter::once(files).chain(sled) {
        let me = std::env::current_exe().unwrap();
        let numbers = [page, segment, cache, live].map(|number| number.to_string());
        assert!(Command::new(me).args(["row", kind]).args(numbers).status().unwrap().success());
    }
}

/// Measures the machine without a store: reads the same amount from one file in the page cache, in steps of 512 KiB.
fn plain_file(live: usize) {
    let mut file = tempfile::tempfile().unwrap();
    let bytes = bytes(1, BLOB as u64);
    for _ in 0..live * MIB / BLOB {
        file.write_all(&bytes).unwrap();
    }
    let mut step = vec![0; 512 << 10];
    let begin = Instant::now();
    file.seek(SeekFrom::Start(0)).unwrap();
    while file.read(&mut step).unwrap() > 0 {}
    let read = (live * MIB) as f64 / begin.elapsed().as_secs_f64() / 1e9;
    println!("| plain file | | | | {read:.1} | | | | | |");
}

fn measure(kind: BlobStoreKind, title: &str, page: usize, segment: usize, cache: usize, live: usize) {
    let folder = tempfile::tempdir().unwrap();
    let geometry = Geometry { page_size: page << 10, segment_size: segment << 10 };
    let options = schema::Store {
        path: folder.path().to_owned(),
        blobs: kind,
        cache_memory: bytesize::ByteSize::mib(cache as u64),
        ..schema::Store::default()
    };
    let runtime = Runtime::new().unwrap();
    let store = runtime.block_on(Store::open(&options, Some(geometry))).unwrap();
    let repository = Repository { upstream: "bench".parse().unwrap(), name: "a".parse().unwrap() };
    let count = live * MIB / BLOB;
    let mut digests = Vec::new();
    let mut writing = 0.0;
    let mut halfway = 0;
    for seed in 0..count {
        let bytes = bytes(seed as u64 + 1, BLOB as u64);
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        let begin = Instant::now();
        let mut writer = run(&runtime, &store, move |store| store.open_draft(&DraftKey::unowned(&digest)));
        writer.draft().announce(BLOB as u64);
        for part in 0..BLOB / (64 << 10) {
            let part = bytes.slice(part * (64 << 10)..(part + 1) * (64 << 10));
            writer.draft().receive(part.clone());
            writer.append(part).unwrap();
        }
        assert_eq!(writer.finish(&repository, None, Timestamp::default()).unwrap(), DraftEnd::Verified);
        writing += begin.elapsed().as_secs_f64();
        drop(bytes);
        digests.push(digest);
        if seed + 1 == count / 2 {
            halfway = resident();
        }
    }
    runtime.block_on(store.flush()).unwrap();
    let all = resident();
    let written = written() as f64 / (count * BLOB) as f64;
    let read = |digests: &[Digest]| {
        for &digest in digests {
            let entry = run(&runtime, &store, move |store| store.blob(&digest)).unwrap();
            let blob = entry.open().unwrap();
            let size = blob.entry().size();
            let mut at = 0;
            while at < size {
                at += match blob.read_now(at..size) {
                    Some(piece) => piece.len() as u64,
                    None => blob.read(at..size, 512 << 10).unwrap().iter().map(|p| p.len() as u64).sum(),
                };
            }
        }
    };
    let begin = Instant::now();
    read(&digests);
    let one = (count * BLOB) as f64 / begin.elapsed().as_secs_f64() / 1e9;
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let (left, right) = digests.split_at(count / 2);
        scope.spawn(|| read(left));
        scope.spawn(|| read(right));
    });
    let two = (count * BLOB) as f64 / begin.elapsed().as_secs_f64() / 1e9;
    let reads = resident();
    let disk = run(&runtime, &store, StoreSession::usage).total as f64 / (count * BLOB) as f64;
    drop(store);
    let begin = Instant::now();
    drop(runtime.block_on(Store::open(&options, None)).unwrap());
    let reopen = begin.elapsed().as_secs_f64();
    let write = (count * BLOB) as f64 / writing / 1e6;
    println!(
        "| {title} | {write:.0} | {one:.1} | {two:.1} | {halfway} / {all} / {reads} | {written:.2} | {disk:.2} | {reopen:.2} |"
    );
}

/// Runs an asynchronous operation of the store.
fn run<T, F>(runtime: &Runtime, store: &Store, work: F) -> T
where
    T: Send + 'static,
    F: FnOnce(&StoreSession) -> Result<T, StoreError> + Send + 'static,
{
    runtime.block_on(store.run(work)).unwrap()
}
