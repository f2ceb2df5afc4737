//! Memory of the server under load: bounded, whatever arrives.

use crate::support;

use std::sync::atomic::{AtomicUsize, Ordering};

use support::fixture::MIB;
use support::{Blob, Registry, Setup};

/// Pulls `number` cold blobs of 1 MiB by 16 clients, and returns the growth of the server's memory at its peak.
fn growth_of_a_cold_start(kind: &str, number: u64) -> u64 {
    let registry = Registry::start();
    let blobs: Vec<_> = (0..number).map(|seed| Blob::random(seed, MIB)).collect();
    for blob in &blobs {
        registry.add_blob("library/app", blob);
    }
    let larder = Setup::with(&registry).set("store.blobs", kind).set("log.requests", false).start();
    let before = larder.rss();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                while let Some(blob) = blobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    larder.get(&format!("/v2/library/app/blobs/{}", blob.digest)).assert_body(&blob.bytes);
                }
            });
        }
    });
    larder.peak_rss() - before
}

#[test]
fn cold_start_with_blobs_in_sled_needs_little_memory() {
    let growth = growth_of_a_cold_start("sled", 160);
    println!("sled: {} MiB", growth >> 20);
    assert!(growth < 150 * MIB as u64, "{growth} bytes");
}

#[test]
fn cold_start_with_blobs_in_files_needs_little_memory() {
    let growth = growth_of_a_cold_start("files", 160);
    println!("files: {} MiB", growth >> 20);
    assert!(growth < 80 * MIB as u64, "{growth} bytes");
}
