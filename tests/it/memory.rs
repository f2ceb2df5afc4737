//! Memory of the server under load: bounded, whatever arrives.

use crate::support;

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use support::content::{OCI_INDEX, OCI_MANIFEST, sha256};
use support::fixture::MIB;
use support::{Blob, Fault, Gate, Image, Registry, Setup, TIME_LIMIT, When};

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

#[test]
fn large_lists_of_referrers_share_a_bounded_memory() {
    const LISTS: usize = 8;
    const ENTRIES: usize = 24_000;
    let registry = Registry::start();
    let entry = |number: usize| {
        let digest = sha256(&number.to_be_bytes());
        format!(r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{digest}","size":1}}"#)
    };
    let entries: Vec<_> = (0..ENTRIES).map(entry).collect();
    let list =
        format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{}]}}"#, entries.join(","));
    assert!((3 * MIB..4 * MIB).contains(&list.len()), "{}", list.len());
    registry.add_image("library/app", "v1", &Image::small(1));
    registry.offer_referrers(true);
    registry.script(When::any().path("/referrers/"), Fault::ReplaceBody(Arc::new(list.into_bytes())));
    let larder = Setup::with(&registry).set("log.requests", false).start();
    let before = larder.rss();
    std::thread::scope(|scope| {
        let answers: Vec<_> = (0..LISTS)
            .map(|number| {
                let larder = &larder;
                let path = format!("/v2/library/app/referrers/{}", sha256(&[number as u8]));
                scope.spawn(move || larder.get(&path))
            })
            .collect();
        for answer in answers {
            let answer = answer.join().unwrap();
            match answer.status() {
                200 => assert_eq!(answer.json()["manifests"].as_array().map(Vec::len), Some(ENTRIES)),
                503 => assert!(answer.header("retry-after").is_some()),
                // A slow machine does not read all lists in time.
                504 => {}
                status => panic!("{status}: {}", answer.text()),
            }
        }
    });
    let growth = larder.peak_rss() - before;
    println!("lists: {} MiB", growth >> 20);
    assert!(growth < 220 * MIB as u64, "{growth} bytes");
}

/// Pulls 1,000 cold blobs by as many clients at once, which all wait for the registry first. Returns the largest number of
/// threads of the server.
fn threads_of_a_thousand_clients(kind: &str) -> usize {
    const CLIENTS: u64 = 1000;
    let registry = Registry::start();
    let blobs: Vec<_> = (0..CLIENTS).map(|seed| Blob::random(seed, 20_000)).collect();
    for blob in &blobs {
        registry.add_blob("library/app", blob);
    }
    let gate = Gate::new();
    registry.script(When::blobs(), Fault::HoldBody(1000, gate.clone()));
    let larder = Setup::with(&registry).set("store.blobs", kind).set("log.requests", false).start();
    let mut clients: Vec<_> = blobs
        .iter()
        .map(|blob| {
            let mut client = larder.api().connect().unwrap();
            let path = format!("/v2/library/app/blobs/{}", blob.digest);
            write!(client, "GET {path} HTTP/1.1\r\nHost: larder\r\nConnection: close\r\n\r\n").unwrap();
            client
        })
        .collect();
    // The connections of an upstream that one client address may use.
    gate.wait_reached(16);
    let mut threads = larder.threads();
    gate.open();
    for client in &mut clients {
        client.set_read_timeout(Some(TIME_LIMIT)).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        threads = threads.max(larder.threads());
        let head = String::from_utf8_lossy(&answer[..answer.len().min(12)]).into_owned();
        // A slow machine does not fetch all of them in time.
        assert!(matches!(&head[..], "HTTP/1.1 200" | "HTTP/1.1 503" | "HTTP/1.1 504"), "{head}");
    }
    threads
}

#[test]
fn thousand_cold_clients_need_few_threads() {
    for kind in ["sled", "files"] {
        let threads = threads_of_a_thousand_clients(kind);
        println!("{kind}: {threads} threads");
        assert!(threads <= 150, "{kind}: {threads} threads");
    }
}
