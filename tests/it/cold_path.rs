//! Blobs that are not cached: one download serves any number of readers, each at its own pace.

use crate::support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use support::fixture::{ColdBlob, MIB};
use support::{Blob, Fault, Gate, Image, Larder, Registry, When, eventually};

#[test]
fn first_byte_does_not_wait_for_the_last() {
    let cold = ColdBlob::new(10 * MIB);
    let gate = cold.hold_every_get(MIB / 2);
    let mut transfer = cold.larder.api().open("GET", &cold.path, &[]).unwrap();
    assert_eq!(transfer.head.status, 200);
    assert_eq!(transfer.head.content_length(), Some(cold.blob.len()));
    let start = transfer.read_exactly(1000).unwrap();
    assert!(start == cold.blob.bytes[..1000]);
    assert!(cold.registry.seen("GET", "/blobs/")[0].sent() <= (MIB / 2) as u64);
    gate.open();
    let rest = transfer.finish().unwrap();
    assert!(rest.body == cold.blob.bytes[1000..]);
}

#[test]
fn last_byte_waits_for_verification() {
    // The upstream holds only the end of its answer. Until then, no client has a complete body.
    let cold = ColdBlob::new(MIB);
    let gate = cold.hold_every_get(MIB - 1);
    let mut transfer = cold.larder.api().open("GET", &cold.path, &[]).unwrap();
    gate.wait_reached(1);
    assert!(transfer.read_exactly(MIB / 2).unwrap() == cold.blob.bytes[..MIB / 2]);
    gate.open();
    assert!(transfer.finish().unwrap().body == cold.blob.bytes[MIB / 2..]);
    cold.wait_filled();
    assert_eq!(cold.larder.get(&cold.path).head.outcome(), "larder; hit");
}

#[test]
fn many_clients_share_one_download_despite_disconnects() {
    many_clients(64 * MIB, |_| ());
}

/// The same with the size of a real layer, and a limit on memory.
#[test]
#[ignore = "half a gibibyte for each of 32 clients; for a release build"]
fn memory_is_bounded_for_many_clients_of_a_large_blob() {
    let idle = AtomicU64::new(0);
    let most = AtomicU64::new(0);
    many_clients(512 * MIB, |larder| {
        let now = larder.rss();
        let _ = idle.compare_exchange(0, now, Ordering::SeqCst, Ordering::SeqCst);
        most.fetch_max(now, Ordering::SeqCst);
    });
    let above = most.into_inner().saturating_sub(idle.into_inner());
    assert!(above < 256 * MIB as u64, "{} MiB above idle", above / MIB as u64);
}

fn many_clients(length: usize, watch: impl Fn(&Larder) + Sync) {
    const CLIENTS: usize = 32;
    let cold = ColdBlob::new(length);
    watch(&cold.larder);
    let gate = cold.hold_every_get(length / 2);
    let early = Gate::new();
    // The upstream's answer is held until all clients have connected, so all of them join one flight.
    cold.registry.script(When::blobs(), Fault::HoldHead(early.clone()));
    let (done, started) = (AtomicBool::new(false), AtomicU64::new(0));
    let (blob, client, path) = (&cold.blob, cold.larder.api(), &cold.path);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                watch(&cold.larder);
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let clients: Vec<_> = (0..CLIENTS)
            .map(|n| {
                let started = &started;
                scope.spawn(move || {
                    let mut transfer = client.open("GET", path, &[]).unwrap();
                    let outcome = transfer.head.outcome().to_owned();
                    let start = transfer.read_exactly(MIB).unwrap();
                    assert!(start == blob.bytes[..MIB], "client {n} began with wrong bytes");
                    started.fetch_add(1, Ordering::SeqCst);
                    if n % 2 == 1 {
                        transfer.hang_up();
                        return outcome;
                    }
                    assert_eq!(transfer.compare(&blob.bytes[MIB..]).unwrap(), blob.len() - MIB, "client {n}");
                    outcome
                })
            })
            .collect();
        early.wait_reached(1);
        eventually("all clients are connected", || {
            cold.larder.counter("larder_connections", &[]) >= CLIENTS as u64
        });
        early.open();
        eventually("all clients have begun to read", || started.load(Ordering::SeqCst) == CLIENTS as u64);
        gate.open();
        let outcomes: Vec<_> = clients.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::SeqCst);
        let outcomes: Vec<String> = outcomes.into_iter().map(Result::unwrap).collect();
        let count = |word: &str| outcomes.iter().filter(|outcome| outcome.contains(word)).count();
        assert_eq!((count("detail=miss"), count("detail=join")), (1, CLIENTS - 1), "{outcomes:?}");
    });
    cold.wait_filled();
    let gets = cold.registry.seen("GET", "/blobs/");
    assert_eq!((gets.len(), gets[0].sent()), (1, blob.len() as u64));
    assert_eq!(cold.larder.counter("larder_fills_joined_total", &[]), CLIENTS as u64 - 1);
    cold.registry.down();
    let warm = cold.larder.api().open("GET", &cold.path, &[]).unwrap();
    assert_eq!(warm.head.outcome(), "larder; hit");
    assert_eq!(warm.compare(&blob.bytes).unwrap(), blob.len());
}

#[test]
fn slow_client_does_not_slow_others() {
    let cold = ColdBlob::new(24 * MIB);
    let mut slow = cold.larder.api().open("GET", &cold.path, &[]).unwrap();
    assert!(slow.read_exactly(10).unwrap() == cold.blob.bytes[..10]);
    // The blob is larger than all buffers on the way to the slow client, which reads nothing meanwhile.
    cold.larder.get(&cold.path).assert_body(&cold.blob.bytes);
    cold.wait_filled();
    assert_eq!(cold.gets().len(), 1);
    assert!(slow.finish().unwrap().body == cold.blob.bytes[10..]);
}

#[test]
fn fill_continues_when_the_last_client_has_left() {
    let cold = ColdBlob::new(4 * MIB);
    let gate = cold.hold_every_get(MIB);
    let mut transfer = cold.larder.api().open("GET", &cold.path, &[]).unwrap();
    transfer.read_exactly(1000).unwrap();
    transfer.hang_up();
    eventually("the server has closed the client's connection", || {
        cold.larder.counter("larder_connections", &[]) == 0
    });
    gate.open();
    cold.wait_filled();
    cold.registry.down();
    let answer = cold.larder.get(&cold.path);
    answer.assert_body(&cold.blob.bytes);
    answer.assert_outcome("larder; hit");
}

#[test]
fn fill_continues_when_the_client_leaves_before_the_answer() {
    let cold = ColdBlob::new(MIB);
    let gate = Gate::new();
    cold.registry.script(When::blobs(), Fault::HoldHead(gate.clone()));
    let connection = cold.larder.api().connect().unwrap();
    let request = format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", cold.path);
    std::io::Write::write_all(&mut &connection, request.as_bytes()).unwrap();
    gate.wait_reached(1);
    drop(connection);
    eventually("the server has closed the client's connection", || {
        cold.larder.counter("larder_connections", &[]) == 0
    });
    gate.open();
    cold.wait_filled();
    cold.larder.get(&cold.path).assert_outcome("larder; hit");
    assert_eq!(cold.gets().len(), 1);
}

#[test]
fn range_that_has_arrived_is_served_from_the_draft() {
    let cold = ColdBlob::new(16 * MIB);
    let gate = cold.hold_every_get(2 * MIB);
    let mut first = cold.larder.api().open("GET", &cold.path, &[]).unwrap();
    first.read_exactly(MIB).unwrap();
    let part = cold.larder.api().send("GET", &cold.path, &[("Range", "bytes=1000-1999")]);
    assert_eq!(part.status(), 206);
    assert!(part.body == cold.blob.bytes[1000..2000]);
    let head = cold.larder.head(&cold.path);
    assert_eq!((head.status(), head.head.content_length()), (200, Some(cold.blob.len())));
    assert_eq!(cold.gets().len(), 1);
    gate.open();
    assert!(first.finish().unwrap().body == cold.blob.bytes[MIB..]);
}

#[test]
fn range_far_ahead_of_the_fill_bypasses_it() {
    let cold = ColdBlob::new(16 * MIB);
    let gate = cold.hold_every_get(2 * MIB);
    let mut first = cold.larder.api().open("GET", &cold.path, &[]).unwrap();
    first.read_exactly(MIB).unwrap();
    // The fill is held. Lazy pullers read the end of a blob first.
    let tail = cold.larder.api().send("GET", &cold.path, &[("Range", "bytes=-1000")]);
    assert_eq!(tail.status(), 206, "{:?}", tail.head);
    assert!(tail.body == cold.blob.bytes[16 * MIB - 1000..]);
    assert!(tail.head.outcome().contains("bypass"), "{:?}", tail.head);
    gate.open();
    assert!(first.finish().unwrap().body == cold.blob.bytes[MIB..]);
    cold.wait_filled();
}

#[test]
fn fill_is_joined_by_another_repository_only_with_its_own_link() {
    let cold = ColdBlob::new(4 * MIB);
    cold.registry.add_blob("library/also", &cold.blob);
    let gate = cold.hold_every_get(2 * MIB);
    let mut first = cold.larder.api().open("GET", &cold.path, &[]).unwrap();
    first.read_exactly(MIB).unwrap();
    let at = |name: &str| format!("/v2/library/{name}/blobs/{}", cold.blob.digest);
    cold.larder.get(&at("stranger")).assert_error(404, "BLOB_UNKNOWN");
    let mut second = cold.larder.api().open("GET", &at("also"), &[]).unwrap();
    assert!(second.read_exactly(MIB).unwrap() == cold.blob.bytes[..MIB]);
    gate.open();
    assert!(first.finish().unwrap().body == cold.blob.bytes[MIB..]);
    assert!(second.finish().unwrap().body == cold.blob.bytes[MIB..]);
    // The 404 to the HEAD for the other repository is confirmed with a GET there.
    assert_eq!(cold.gets().iter().filter(|seen| !seen.path.contains("stranger")).count(), 1);
    cold.larder.get(&at("stranger")).assert_error(404, "BLOB_UNKNOWN");
}

#[test]
fn body_of_unknown_length_is_served_and_stored() {
    let cold = ColdBlob::new(3 * MIB + 17);
    cold.registry.script(When::blobs(), Fault::Chunked);
    cold.larder.get(&cold.path).assert_body(&cold.blob.bytes);
    cold.wait_filled();
    cold.registry.down();
    let warm = cold.larder.get(&cold.path);
    warm.assert_body(&cold.blob.bytes);
    assert_eq!(warm.head.content_length(), Some(cold.blob.len()));
}

#[test]
fn slow_upstream_is_streamed_as_it_arrives() {
    let cold = ColdBlob::new(MIB);
    cold.registry.script(When::blobs(), Fault::Throttle(2 * MIB));
    cold.larder.get(&cold.path).assert_body(&cold.blob.bytes);
    assert_eq!(cold.gets().len(), 1);
}

#[test]
fn images_are_pulled_by_many_clients_at_once() {
    let registry = Registry::start();
    let layers = |n: u64| (0..4).map(|k| Blob::random(n * 10 + k, 200_000)).collect();
    let images: Vec<Image> = (0..4).map(|n| Image::oci(n, "linux/amd64", layers(n))).collect();
    for (n, image) in images.iter().enumerate() {
        registry.add_image(&format!("library/app{n}"), "v1", image);
    }
    let larder = Larder::in_front_of(&registry);
    std::thread::scope(|scope| {
        for worker in 0..16 {
            let (images, client) = (&images, larder.api());
            scope.spawn(move || {
                for n in 0..images.len() {
                    let n = (n + worker) % images.len();
                    let manifest = client.get(&format!("/v2/library/app{n}/manifests/v1"));
                    manifest.assert_body(&images[n].manifest.bytes);
                    for blob in images[n].blobs() {
                        let path = format!("/v2/library/app{n}/blobs/{}", blob.digest);
                        client.get(&path).assert_body(&blob.bytes);
                    }
                }
            });
        }
    });
    for image in &images {
        assert_eq!(registry.count("GET", &image.manifest.digest), 0);
        for blob in image.blobs() {
            assert_eq!(registry.count("GET", &blob.digest), 1);
        }
    }
    assert_eq!(registry.count("GET", "/manifests/v1"), images.len());
}

#[test]
fn refused_range_confirms_no_blob() {
    let cold = ColdBlob::new(1000);
    cold.registry.script(When::blobs(), Fault::Status(416));
    for _ in 0..2 {
        assert_eq!(cold.larder.head(&cold.path).status(), 502);
    }
}
