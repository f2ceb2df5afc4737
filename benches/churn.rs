//! Measures a store with constant replacement of content, as in a full cache: disk usage per live byte, and its growth.
//!
//! Arguments: kind (`sled` or `files`), live MiB (64), written MiB (4096), number of concurrent writers (2).
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]

mod process;

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use larder::clock::Timestamp;
use larder::config::schema::{self, BlobStoreKind};
use larder::oci::{Algorithm, Digest, Repository};
use larder::store::{DraftEnd, DraftKey, Removal, Store, StoreError, StoreSession};
use process::{bytes, resident, written};
use tokio::runtime::Runtime;

const MIB: u64 = 1 << 20;
/// Size of the largest blobs in bytes.
const LARGEST: u64 = 3 * MIB;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let number = |n: usize, default: u64| arguments.get(n).map_or(default, |text| text.parse().unwrap());
    let kind = match arguments.first().map(String::as_str) {
        Some("files") => BlobStoreKind::Files,
        Some("sled") | None => BlobStoreKind::Sled,
        Some(other) => panic!("{other}: the kinds are sled and files"),
    };
    let (live, all, writers) = (number(1, 64) * MIB, number(2, 4096) * MIB, number(3, 2));
    let folder = tempfile::tempdir().unwrap();
    let options = schema::Store { path: folder.path().to_owned(), blobs: kind, ..schema::Store::default() };
    let runtime = Runtime::new().unwrap();
    let store = runtime.block_on(Store::open(&options, None)).unwrap();
    let repository = Repository { upstream: "bench".parse().unwrap(), name: "a".parse().unwrap() };
    let held = Mutex::new((VecDeque::new(), 0_u64));
    let come = AtomicU64::new(0);
    let pool: Bytes = bytes(7, 64 * MIB);
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for writer in 0..writers {
            let (store, held, come, pool, repository) = (&store, &held, &come, &pool, &repository);
            let runtime = &runtime;
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(writer);
                let mut next = |below: u64| random.u64(..below);
                while come.load(Ordering::Relaxed) < all {
                    // A quarter of all blobs are configs.
                    let size = if next(4) == 0 { 500 + next(3500) } else { LARGEST / 10 + next(LARGEST) };
                    let at = next(pool.len() as u64 - size) as usize;
                    let body = pool.slice(at..at + size as usize);
                    let digest = Digest::of(Algorithm::Sha256, &body);
                    if run(runtime, store, move |store| store.blob(&digest)).is_some() {
                        continue;
                    }
                    let mut draft = run(runtime, store, move |store| store.open_draft(&DraftKey::unowned(&digest)));
                    draft.draft().announce(size);
                    for piece in 0..size.div_ceil(65536) {
                        let end = (piece + 1) * 65536;
                        let part = body.slice(piece as usize * 65536..end.min(size) as usize);
                        draft.draft().receive(part.clone());
                        draft.append(part).unwrap();
                    }
                    assert_eq!(draft.finish(repository, None, Timestamp::default()).unwrap(), DraftEnd::Verified);
                    let before = come.fetch_add(size, Ordering::Relaxed);
                    let mut go = Vec::new();
                    {
                        let mut held = held.lock().unwrap();
                        held.0.push_back((digest, size));
                        held.1 += size;
                        while held.1 > live {
                            let (digest, size) = held.0.pop_front().unwrap();
                            held.1 -= size;
                            go.push(digest);
                        }
                    }
                    for digest in go {
                        run(runtime, store, move |store| store.remove(Removal::Blob(&digest)));
                    }
                    if before / (all / 16) != (before + size) / (all / 16) {
                        let disk = run(runtime, store, StoreSession::usage).total;
                        println!(
                            "{:5} MiB came in {:5.1} s: {:5} MiB on disk, {:.2} per live byte, {:.1} written per byte, {} MiB resident",
                            before / MIB, begin.elapsed().as_secs_f64(), disk / MIB, disk as f64 / live as f64,
                            written() as f64 / before as f64, resident(),
                        );
                    }
                }
            });
        }
    });
}

/// Runs an asynchronous operation of the store.
fn run<T, F>(runtime: &Runtime, store: &Store, work: F) -> T
where
    T: Send + 'static,
    F: FnOnce(&StoreSession) -> Result<T, StoreError> + Send + 'static,
{
    runtime.block_on(store.run(work)).unwrap()
}
