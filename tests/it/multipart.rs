//! Several ranges of a blob in one request (`multipart/byteranges`), as stargz-snapshotter and podman send them.

use std::ops::Range;

use crate::support;

use support::fixture::{ColdBlob, MIB};
use support::{Answer, Blob, Fault, Image, Larder, Registry, Setup, When};

/// Formats a Range header.
fn header(parts: &[Range<usize>]) -> String {
    let texts: Vec<_> = parts.iter().map(|part| format!("{}-{}", part.start, part.end - 1)).collect();
    format!("bytes={}", texts.join(","))
}

/// Returns the parts of a body, with the headers of each. Reads the body as RFC 2046 describes it.
pub(crate) fn parts(answer: &Answer) -> Vec<(String, Vec<u8>)> {
    let content_type = answer.header("content-type").unwrap();
    let boundary = content_type.strip_prefix("multipart/byteranges; boundary=").expect(content_type);
    let delimiter = format!("\r\n--{boundary}").into_bytes();
    let mut found = Vec::new();
    let mut rest = answer.body.strip_prefix(&delimiter[2..]).expect("a delimiter");
    while let Some(part) = rest.strip_prefix(b"\r\n") {
        let head = part.windows(4).position(|four| four == b"\r\n\r\n").expect("the end of a head");
        let body = &part[head + 4..];
        let end = body.windows(delimiter.len()).position(|bytes| bytes == delimiter).expect("a delimiter");
        found.push((String::from_utf8(part[..head].to_vec()).unwrap(), body[..end].to_vec()));
        rest = &body[end + delimiter.len()..];
    }
    assert_eq!(rest, b"--\r\n", "the body ends with the last delimiter");
    found
}

/// Asserts that an answer has these parts of a blob.
#[track_caller]
fn assert_parts(answer: &Answer, blob: &Blob, wanted: &[Range<usize>]) {
    assert_eq!(answer.status(), 206, "{:?} {}", answer.head, answer.text());
    assert_eq!(answer.head.content_length(), Some(answer.body.len()));
    assert_eq!(answer.header("content-range"), None);
    let found = parts(answer);
    assert_eq!(found.len(), wanted.len());
    for ((head, body), range) in found.iter().zip(wanted) {
        let content_range = format!("bytes {}-{}/{}", range.start, range.end - 1, blob.len());
        assert_eq!(
            *head,
            format!("Content-Type: application/octet-stream\r\nContent-Range: {content_range}")
        );
        assert!(*body == blob.bytes[range.clone()], "wrong bytes in {content_range}");
    }
}

fn ask(larder: &Larder, path: &str, range: &str) -> Answer {
    larder.api().send("GET", path, &[("Range", range)])
}

/// A server whose cache contains one blob.
fn cached(kind: &str, length: usize) -> (Larder, Blob, String) {
    let registry = Registry::start();
    let blob = Blob::random(1, length);
    registry.add_image("library/app", "v1", &Image::oci(1, "linux/amd64", vec![blob.clone()]));
    let larder = Setup::with(&registry).set("store.blobs", kind).start();
    let path = format!("/v2/library/app/blobs/{}", blob.digest);
    larder.get(&path).assert_body(&blob.bytes);
    larder.wait_idle();
    (larder, blob, path)
}

#[test]
fn cached_parts_are_sent_in_one_body() {
    for kind in ["sled", "files"] {
        let (larder, blob, path) = cached(kind, 3 * MIB);
        let validator = format!("\"{}\"", blob.digest);
        // Ascending, adjacent, descending, and large parts.
        for wanted in [
            vec![0..1, 5..6, MIB..2 * MIB],
            vec![0..100, 100..200, 200..201],
            vec![3 * MIB - 1..3 * MIB, MIB..MIB + 70_000, 0..MIB - 1],
        ] {
            let answer = ask(&larder, &path, &header(&wanted));
            assert_parts(&answer, &blob, &wanted);
            answer.assert_outcome("larder; hit");
            assert_eq!(answer.header("etag"), Some(validator.as_str()));
            assert!(answer.header("cache-control").unwrap().contains("immutable"));
        }
        let end = 3 * MIB;
        // Overlapping ranges are one part; unsatisfiable ranges are left out.
        let answer = ask(&larder, &path, "bytes=10-19,5000-5999,15-29,99999999-,-5");
        assert_parts(&answer, &blob, &[10..30, 5000..6000, end - 5..end]);
        let one = ask(&larder, &path, "bytes=10-19,15-29");
        assert_eq!((one.status(), one.header("content-range")), (206, Some("bytes 10-29/3145728")));
        assert!(one.body == blob.bytes[10..30]);
        let none = ask(&larder, &path, "bytes=99999999-,3145728-3145729");
        none.assert_error(416, "RANGE_INVALID");
        assert_eq!(none.header("content-range"), Some("bytes */3145728"));
        // Several ranges have a validator like a single one.
        for (given, status) in [(validator.as_str(), 206), ("\"sha256:0\"", 200)] {
            let headers = [("Range", "bytes=0-0,9-9"), ("If-Range", given)];
            assert_eq!(larder.api().send("GET", &path, &headers).status(), status);
        }
        let head = larder.api().send("HEAD", &path, &[("Range", "bytes=0-0,9-9")]);
        assert_eq!((head.status(), head.head.content_length()), (200, Some(end)));
    }
}

/// podman requires as many parts as it asked for, adjacent ones included; or the whole blob.
#[test]
fn adjacent_parts_stay_separate_and_too_many_are_the_whole_blob() {
    let (larder, blob, path) = cached("files", 3 * MIB);
    let wanted: Vec<_> = (0..1024).map(|n| n * 3000..n * 3000 + 1500 + n % 2 * 1500).collect();
    assert_parts(&ask(&larder, &path, &header(&wanted[..16])), &blob, &wanted[..16]);
    for several in [17, 1024] {
        ask(&larder, &path, &header(&wanted[..several])).assert_body(&blob.bytes);
    }
    // Ranges that overlap are one part, so these are two.
    let overlapping: Vec<_> =
        (0..40).map(|n| n * 5..n * 5 + 10).chain(std::iter::once(MIB..MIB + 1)).collect();
    assert_parts(&ask(&larder, &path, &header(&overlapping)), &blob, &[0..205, MIB..MIB + 1]);
}

#[test]
fn parts_of_a_draft_are_not_cacheable() {
    let cold = ColdBlob::new(24 * MIB);
    let gate = cold.hold_first_get(4 * MIB);
    // The end of the blob first, then a part that has arrived, and one that is passed through.
    let wanted = [24 * MIB - 1000..24 * MIB, 100..MIB, 20 * MIB..20 * MIB + 1000];
    let answer = ask(&cold.larder, &cold.path, &header(&wanted));
    assert_parts(&answer, &cold.blob, &wanted);
    assert_eq!(answer.header("etag"), None);
    assert!(answer.header("cache-control").unwrap().contains("no-store"));
    answer.assert_outcome("larder; fwd=bypass; detail=bypass");
    assert_eq!(cold.gets().len(), 3);
    // Each part may cost a request.
    let many: Vec<_> = (0..17).map(|n| n * 10..n * 10 + 5).collect();
    std::thread::scope(|scope| {
        let (larder, path) = (&cold.larder, &cold.path);
        let [sixteen, seventeen, none] =
            [header(&many[1..]), header(&many), "bytes=99999999-,99999998-".into()]
                .map(|range: String| scope.spawn(move || ask(larder, path, &range)));
        assert_parts(&sixteen.join().unwrap(), &cold.blob, &many[1..]);
        gate.open();
        seventeen.join().unwrap().assert_body(&cold.blob.bytes);
        // The length is not verified.
        none.join().unwrap().assert_body(&cold.blob.bytes);
    });
    cold.wait_filled();
    let answer = ask(&cold.larder, &cold.path, &header(&wanted));
    assert_parts(&answer, &cold.blob, &wanted);
    answer.assert_outcome("larder; hit");
}

#[test]
fn parts_of_a_draft_wait_for_the_fill() {
    let cold = ColdBlob::new(6 * MIB);
    let gate = cold.hold_first_get(MIB);
    let wanted = [5 * MIB..5 * MIB + 500, 0..500, 6 * MIB - 500..6 * MIB];
    std::thread::scope(|scope| {
        let cold = &cold;
        let waiting = scope.spawn(move || ask(&cold.larder, &cold.path, &header(&wanted)));
        gate.wait_reached(1);
        gate.open();
        assert_parts(
            &waiting.join().unwrap(),
            &cold.blob,
            &[5 * MIB..5 * MIB + 500, 0..500, 6 * MIB - 500..6 * MIB],
        );
    });
    assert_eq!(cold.gets().len(), 1);
}

#[test]
fn interrupted_parts_are_resumed_or_cut_off() {
    // The upstream interrupts the download once, and goes on.
    let cold = ColdBlob::new(6 * MIB);
    cold.registry.script(When::blobs().method("GET").times(1), Fault::Cut(3 * MIB));
    let wanted = [100..200, 4 * MIB..5 * MIB];
    assert_parts(&ask(&cold.larder, &cold.path, &header(&wanted)), &cold.blob, &wanted);
    // The bytes turn out to be wrong: the last byte is withheld.
    let cold = ColdBlob::new(6 * MIB);
    cold.registry.script(When::blobs().method("GET"), Fault::FlipBit(3 * MIB));
    let tail = [100..200, 5 * MIB..6 * MIB];
    let error = cold.larder.api().try_send("GET", &cold.path, &[("Range", &header(&tail))]);
    error.expect_err("a complete body of wrong content");
    // The upstream does not come back.
    let cold = ColdBlob::new(6 * MIB);
    cold.registry.script(When::blobs().method("GET").times(1), Fault::Cut(3 * MIB));
    cold.registry.script(When::blobs().method("GET").after(1), Fault::Status(404));
    let error = cold.larder.api().try_send("GET", &cold.path, &[("Range", &header(&wanted))]);
    error.expect_err("a complete body without the bytes");
}

#[test]
fn blob_of_unknown_length_is_sent_whole() {
    let cold = ColdBlob::new(3 * MIB);
    cold.registry.script(When::blobs(), Fault::Chunked);
    ask(&cold.larder, &cold.path, "bytes=0-1,5-6").assert_body(&cold.blob.bytes);
    cold.wait_filled();
    assert_parts(&ask(&cold.larder, &cold.path, "bytes=0-1,5-6"), &cold.blob, &[0..2, 5..7]);
}
