//! Ranges of blobs that are not cached, as requested by containerd, lazy-pulling snapshotters and podman.

use crate::support;

use support::fixture::{ColdBlob, MIB};
use support::{Answer, Blob, Fault, Gate, Larder, Registry, Seen, When, eventually};

/// Upper limit of the bytes in sockets and queues for one answer that is not read to its end, plus one piece of a range
/// that is requested meanwhile.
const ON_THE_WAY: u64 = 12 << 20;

impl ColdBlob {
    fn range(&self, range: &str) -> Answer {
        self.larder.api().send("GET", &self.path, &[("Range", range)])
    }

    #[track_caller]
    fn assert_part(&self, range: &str, from: usize, to: usize) -> Answer {
        let answer = self.range(range);
        assert_eq!(answer.status(), 206, "{range}: {:?}", answer.head);
        let content_range = format!("bytes {from}-{}/{}", to - 1, self.blob.len());
        assert_eq!(answer.header("content-range"), Some(content_range.as_str()));
        assert_eq!(answer.head.content_length(), Some(to - from));
        assert!(answer.body == self.blob.bytes[from..to], "{range}: wrong bytes");
        answer
    }

    fn sent(&self) -> u64 {
        self.gets().iter().map(Seen::sent).sum()
    }
}

/// Requests as containerd 2.1 and later does: each chunk on its own connection, with an open range, and closed when the
/// chunk is complete. All chunks are requested at the same time.
fn in_chunks(cold: &ColdBlob, chunk: usize) {
    std::thread::scope(|scope| {
        for from in (0..cold.blob.len()).step_by(chunk) {
            scope.spawn(move || {
                let range = format!("bytes={from}-");
                let client = cold.larder.api().small_receive_buffer();
                let mut transfer = client.open("GET", &cold.path, &[("Range", &range)]).unwrap();
                assert_eq!(transfer.head.status, 206);
                let length = chunk.min(cold.blob.len() - from);
                assert!(transfer.read_exactly(length).unwrap() == cold.blob.bytes[from..from + length]);
                transfer.hang_up();
            });
        }
    });
}

#[test]
fn aborted_open_ranges_cost_little_extra() {
    const CHUNK: usize = 8 * MIB;
    let cold = ColdBlob::new(80 * MIB);
    // The throttle is slow enough that the last chunks are far ahead of the fill.
    cold.registry.script(When::blobs().method("GET").times(1), Fault::Throttle(48 * MIB));
    in_chunks(&cold, CHUNK);
    cold.wait_filled();
    // At most eight requests bypass the fill. Each one costs its chunk, one more piece, and the bytes in sockets.
    let beside = cold.sent() - cold.blob.len() as u64;
    assert!(beside > 0, "nothing went past the fill");
    assert!(beside <= 8 * (CHUNK as u64 + ON_THE_WAY), "{} MiB beside the blob", beside >> 20);
    // Cached content causes no transfer.
    cold.registry.down();
    in_chunks(&cold, CHUNK);
}

#[test]
fn tail_first_then_chunks() {
    for tail in [format!("bytes=-{}", 50_000), format!("bytes={}-", 24 * MIB - 50_000)] {
        let cold = ColdBlob::new(24 * MIB);
        let gate = cold.hold_first_get(MIB);
        let answer = cold.assert_part(&tail, 24 * MIB - 50_000, 24 * MIB);
        answer.assert_outcome("larder; fwd=bypass; detail=bypass");
        let between = format!("bytes={}-{}", 20 * MIB, 20 * MIB + 99_999);
        cold.assert_part(&between, 20 * MIB, 20 * MIB + 100_000);
        cold.assert_part("bytes=1000-1999", 1000, 2000);
        assert!(cold.sent() <= (MIB + 150_000) as u64, "{} bytes sent", cold.sent());
        gate.open();
        cold.larder.get(&cold.path).assert_body(&cold.blob.bytes);
        cold.wait_filled();
        assert_eq!(cold.gets().len(), 3);
        assert_eq!(cold.sent(), (24 * MIB + 150_000) as u64);
        cold.registry.down();
        cold.assert_part(&tail, 24 * MIB - 50_000, 24 * MIB).assert_outcome("larder; hit");
    }
}

#[test]
fn range_just_ahead_of_the_fill_waits() {
    let cold = ColdBlob::new(24 * MIB);
    let gate = cold.hold_first_get(4 * MIB);
    std::thread::scope(|scope| {
        let (from, to) = (6 * MIB, 7 * MIB);
        let cold = &cold;
        let waiting = scope.spawn(move || cold.assert_part(&format!("bytes={from}-{}", to - 1), from, to));
        gate.wait_reached(1);
        eventually("the request waits", || cold.larder.counter("larder_connections", &[]) >= 1);
        gate.open();
        waiting.join().unwrap();
    });
    cold.wait_filled();
    assert_eq!((cold.gets().len(), cold.sent()), (1, 24 * MIB as u64));
}

#[test]
fn bypass_ranges_are_limited() {
    let cold = ColdBlob::new(40 * MIB);
    let gate = cold.hold_first_get(MIB);
    let all_but_one = Gate::new();
    // The transfers that bypass the fill are held, so none of them frees a slot.
    cold.registry.script(When::blobs().method("GET").after(1), Fault::HoldHead(all_but_one.clone()));
    std::thread::scope(|scope| {
        for n in 0..12 {
            let (cold, from) = (&cold, (20 + n) * MIB);
            scope.spawn(move || cold.assert_part(&format!("bytes={from}-{}", from + 999), from, from + 1000));
        }
        all_but_one.wait_reached(5);
        gate.open();
        cold.wait_filled();
        all_but_one.open();
    });
    // Three of the eight slots stay for other repositories.
    assert_eq!(cold.gets().len(), 6, "the blob, and five ranges past it");
}

#[test]
fn bypass_range_continues_from_the_draft() {
    let cold = ColdBlob::new(48 * MIB);
    let gate = cold.hold_first_get(MIB);
    let (from, client) = (16 * MIB, cold.larder.api().small_receive_buffer());
    let mut transfer = client.open("GET", &cold.path, &[("Range", "bytes=16777216-")]).unwrap();
    assert_eq!(transfer.head.outcome(), "larder; fwd=bypass; detail=bypass");
    assert!(transfer.read_exactly(MIB).unwrap() == cold.blob.bytes[from..from + MIB]);
    gate.open();
    cold.wait_filled();
    assert!(transfer.finish().unwrap().body == cold.blob.bytes[from + MIB..]);
    let beside = cold.sent() - cold.blob.len() as u64;
    assert!(beside <= MIB as u64 + ON_THE_WAY, "{} MiB beside the blob", beside >> 20);
}

#[test]
fn broken_bypass_range_waits_for_the_fill() {
    for fault in [Fault::Status(503), Fault::IgnoreRange, Fault::Cut(MIB)] {
        let cold = ColdBlob::new(24 * MIB);
        let gate = cold.hold_first_get(MIB);
        // The first piece arrives, later ones do not.
        cold.registry.script(When::blobs().method("GET").after(2), fault);
        std::thread::scope(|scope| {
            let (cold, from) = (&cold, 12 * MIB);
            let waiting = scope.spawn(move || cold.assert_part(&format!("bytes={from}-"), from, 24 * MIB));
            cold.registry.wait_for(3, "GET", "/blobs/");
            gate.open();
            waiting.join().unwrap();
        });
    }
}

#[test]
fn invalid_ranges_send_everything() {
    let cold = ColdBlob::new(3 * MIB);
    for range in ["bytes=0-0,x", "lines=1-2", "bytes=x-y"] {
        cold.range(range).assert_body(&cold.blob.bytes);
    }
    assert_eq!(cold.gets().len(), 1);
}

#[test]
fn blob_of_unknown_length_is_sent_completely() {
    let cold = ColdBlob::new(3 * MIB);
    cold.registry.script(When::blobs(), Fault::Chunked);
    let gate = cold.hold_first_get(MIB);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| cold.range("bytes=1000-1999"));
        gate.wait_reached(1);
        // The upstream announces the length only in its answer to a range.
        let head = cold.larder.head(&cold.path);
        assert_eq!((head.status(), head.head.content_length()), (200, Some(3 * MIB)));
        gate.open();
        let answer = waiting.join().unwrap();
        answer.assert_body(&cold.blob.bytes);
        assert_eq!((answer.head.content_length(), answer.header("content-range")), (None, None));
    });
    cold.wait_filled();
    cold.assert_part("bytes=1000-1999", 1000, 2000);
    assert_eq!(cold.larder.head(&cold.path).head.content_length(), Some(3 * MIB));
    let ranges: Vec<_> = cold.gets().iter().map(|get| get.range_start().is_some()).collect();
    assert_eq!(ranges, [false, true], "one download, and one first byte for HEAD");
}

#[test]
fn descriptor_size_suffices_for_ranges() {
    let cold = ColdBlob::new(3 * MIB);
    cold.larder.get("/v2/library/app/manifests/v1");
    cold.larder.wait_idle();
    cold.registry.script(When::blobs(), Fault::Chunked);
    assert_eq!(cold.larder.head(&cold.path).head.content_length(), Some(3 * MIB));
    cold.assert_part("bytes=-1000", 3 * MIB - 1000, 3 * MIB);
    cold.assert_part("bytes=1000-", 1000, 3 * MIB);
}

#[test]
fn upstream_without_ranges_is_supported() {
    let cold = ColdBlob::new(24 * MIB);
    cold.registry.script(When::blobs(), Fault::IgnoreRange);
    let gate = cold.hold_first_get(MIB);
    std::thread::scope(|scope| {
        let (cold, from) = (&cold, 20 * MIB);
        let waiting = scope.spawn(move || cold.assert_part(&format!("bytes={from}-"), from, 24 * MIB));
        // The upstream was asked for the range. Its answer with the complete blob was discarded.
        cold.registry.wait_for(2, "GET", "/blobs/");
        gate.open();
        waiting.join().unwrap();
    });
    cold.wait_filled();
    assert!(cold.sent() <= 24 * MIB as u64 + ON_THE_WAY);
}

#[test]
fn range_past_the_end_is_416_with_the_length() {
    let cold = ColdBlob::new(100_000);
    cold.larder.get(&cold.path).assert_body(&cold.blob.bytes);
    cold.wait_filled();
    for range in ["bytes=100000-", "bytes=500000-500001", "bytes=500-0", "bytes=-0"] {
        let answer = cold.range(range);
        answer.assert_error(416, "RANGE_INVALID");
        assert_eq!(answer.header("content-range"), Some("bytes */100000"), "{range}");
    }
    cold.assert_part("bytes=99999-200000", 99_999, 100_000);
    cold.assert_part("bytes=-200000", 0, 100_000);
    assert_eq!(cold.gets().len(), 1);
}

/// Status 416 would state a length that the upstream has announced and that may be wrong.
#[test]
fn range_past_an_unverified_end_sends_everything() {
    let cold = ColdBlob::new(100_000);
    let gate = Gate::new();
    let held = gate.clone();
    let short = Fault::rewrite(move |_, plan| {
        plan.to = 1000;
        plan.holds.push((500, held.clone()));
    });
    cold.registry.script(When::blobs().method("GET").times(1), short);
    let range = [("Range", "bytes=50000-50999")];
    let transfer = cold.larder.api().open("GET", &cold.path, &range).unwrap();
    assert_eq!((transfer.head.status, transfer.head.header("content-range")), (200, None));
    gate.open();
    assert!(transfer.finish().is_err(), "the upstream's bytes are not the blob");
    cold.larder.get(&cold.path).assert_body(&cold.blob.bytes);
    cold.assert_part("bytes=50000-50999", 50_000, 51_000);
}

/// containerd requests `bytes=0-` of every blob. Empty content has no such range (RFC 9110, 14.1.2), and containerd
/// does not accept status 416.
#[test]
fn range_of_an_empty_blob_sends_everything() {
    let registry = Registry::start();
    let nothing = Blob::new("");
    registry.add_blob("library/app", &nothing);
    let larder = Larder::in_front_of(&registry);
    let path = format!("/v2/library/app/blobs/{}", nothing.digest);
    for _ in 0..2 {
        let answer = larder.api().send("GET", &path, &[("Range", "bytes=0-")]);
        answer.assert_body(b"");
        assert_eq!(answer.head.content_length(), Some(0));
    }
}

#[test]
fn if_range_mismatch_sends_everything() {
    let cold = ColdBlob::new(100_000);
    let ask = |validator: &str| {
        let headers = [("Range", "bytes=10-19"), ("If-Range", validator)];
        cold.larder.api().send("GET", &cold.path, &headers)
    };
    let own = format!("\"{}\"", cold.blob.digest);
    for is_filled in [false, true] {
        // Bytes that are not verified have no validator that could match.
        if is_filled {
            assert_eq!(ask(&own).status(), 206);
        }
        // A weak validator and a date never match for ranges, and `*` is not a validator (RFC 9110, 13.1.5).
        let weak = format!("W/{own}");
        for other in ["\"sha256:0\"", "Wed, 21 Oct 2015 07:28:00 GMT", weak.as_str(), "*"] {
            ask(other).assert_body(&cold.blob.bytes);
        }
        cold.wait_filled();
    }
    assert_eq!(cold.gets().len(), 1);
}

#[test]
fn range_of_a_manifest_is_ignored() {
    let cold = ColdBlob::new(1000);
    for _ in 0..2 {
        let answer = cold.larder.api().send("GET", "/v2/library/app/manifests/v1", &[("Range", "bytes=0-")]);
        assert_eq!((answer.status(), answer.header("content-range")), (200, None));
    }
}

#[test]
fn head_ignores_ranges() {
    let cold = ColdBlob::new(1000);
    cold.assert_part("bytes=1-2", 1, 3);
    cold.wait_filled();
    let head = cold.larder.api().send("HEAD", &cold.path, &[("Range", "bytes=1-2")]);
    assert_eq!((head.status(), head.head.content_length()), (200, Some(1000)));
    assert_eq!(head.header("accept-ranges"), Some("bytes"));
}

/// Asserts that an answer can be stored and combined with others only if its bytes are verified.
#[track_caller]
fn assert_validators(answer: &support::Answer, digest: &str, is_verified: bool) {
    let tag = format!("\"{digest}\"");
    assert_eq!(answer.header("etag"), is_verified.then_some(tag.as_str()), "{:?}", answer.head);
    let caching = answer.header("cache-control").unwrap();
    assert_eq!(caching.contains("immutable"), is_verified, "{caching}");
    assert_eq!(caching.contains("no-store"), !is_verified, "{caching}");
    assert_eq!(answer.header("docker-content-digest"), Some(digest));
}

#[test]
fn unverified_bytes_are_not_cacheable() {
    let cold = ColdBlob::new(24 * MIB);
    let gate = cold.hold_first_get(MIB);
    let (digest, tag) = (cold.blob.digest.clone(), format!("\"{}\"", cold.blob.digest));
    assert_validators(&cold.larder.head(&cold.path), &digest, false);
    // A part of the draft, and a part that is passed through.
    for (range, from) in [("bytes=0-999", 0), ("bytes=20971520-20972519", 20 * MIB)] {
        let answer = cold.range(range);
        assert!(answer.status() == 206 && answer.body == cold.blob.bytes[from..from + 1000]);
        assert_validators(&answer, &digest, false);
    }
    std::thread::scope(|scope| {
        let client = cold.larder.api();
        let path = &cold.path;
        // A client that has a part of earlier bytes must not get the rest of other bytes.
        let headers = [("Range", "bytes=1000-1999"), ("If-Range", tag.as_str())];
        let waiting = scope.spawn(move || client.send("GET", path, &headers));
        cold.larder.wait_counter("larder_fills_joined_total", &[], 2);
        gate.open();
        let answer = waiting.join().unwrap();
        answer.assert_body(&cold.blob.bytes);
        assert_validators(&answer, &digest, false);
    });
    cold.wait_filled();
    cold.larder.wait_idle();
    let headers = [("Range", "bytes=1000-1999"), ("If-Range", tag.as_str())];
    let answer = cold.larder.api().send("GET", &cold.path, &headers);
    assert!(answer.status() == 206 && answer.body == cold.blob.bytes[1000..2000]);
    assert_validators(&answer, &digest, true);
    assert_validators(&cold.larder.head(&cold.path), &digest, true);
}
