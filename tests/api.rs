//! The registry API as any client meets it: paths, methods, headers, ranges, pages, and what is no request at all.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;

use support::{Answer, Blob, Document, Image, Index, Larder, Registry, Setup};

const SILENCE: Duration = Duration::from_secs(5);

/// A registry with one image and one index, and a larder that has pulled nothing yet.
fn cold() -> (Registry, Larder, Image) {
    let registry = Registry::start();
    let image = Image::small(1);
    registry.add_image("library/app", "v1", &image);
    registry.add_index("library/multi", "v1", &Index::oci(7));
    let larder = Larder::before(&registry);
    (registry, larder, image)
}

#[test]
fn the_base_answers_without_the_upstream() {
    let (registry, larder, _) = cold();
    for path in ["/v2/", "/v2"] {
        let answer = larder.get(path);
        answer.is_ok_with(b"{}");
        assert_eq!(answer.header("docker-distribution-api-version"), Some("registry/2.0"));
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.header("www-authenticate"), None);
        let head = larder.head(path);
        assert_eq!((head.status(), head.head.content_length()), (200, Some(2)));
    }
    assert_eq!(registry.requests().len(), 0);
}

#[test]
fn writes_are_refused_with_what_is_allowed() {
    let (registry, larder, image) = cold();
    let manifest = "/v2/library/app/manifests/v1";
    let blob = format!("/v2/library/app/blobs/{}", image.config.digest);
    for (method, path) in [
        ("PUT", manifest),
        ("DELETE", manifest),
        ("PATCH", manifest),
        ("DELETE", blob.as_str()),
        ("POST", "/v2/library/app/blobs/uploads/"),
        ("PUT", "/v2/library/app/blobs/uploads/1234"),
        ("POST", "/v2/"),
    ] {
        let answer = larder.api().send(method, path, &[("Content-Length", "0")]);
        answer.is_error(405, "UNSUPPORTED");
        assert_eq!(answer.header("allow"), Some("GET, HEAD"), "{method} {path}");
    }
    assert_eq!(registry.requests().len(), 0);
}

#[test]
fn a_manifest_carries_all_that_clients_need() {
    let (_registry, larder, image) = cold();
    let digest = &image.manifest.digest;
    let by_digest = format!("/v2/library/app/manifests/{digest}");
    for path in ["/v2/library/app/manifests/v1", &by_digest, "/v2/library/app/manifests/v1", &by_digest] {
        let answer = larder.get(path);
        answer.is_ok_with(&image.manifest.bytes);
        assert_eq!(answer.header("content-type"), Some(image.manifest.media_type.as_str()));
        assert_eq!(answer.head.content_length(), Some(image.manifest.bytes.len()));
        assert_eq!(answer.header("docker-content-digest"), Some(digest.as_str()));
        assert_eq!(answer.header("etag"), Some(format!("\"{digest}\"").as_str()));
        assert_eq!(answer.header("www-authenticate"), None);
        assert_eq!(answer.header("content-encoding"), None);
    }
}

#[test]
fn the_outcome_is_told() {
    let (_registry, larder, image) = cold();
    let blob = format!("/v2/library/app/blobs/{}", image.layers[0].digest);
    for path in ["/v2/library/app/manifests/v1", &blob] {
        larder.get(path).is_outcome("larder; fwd=uri-miss; stored; detail=miss");
        larder.settle();
        larder.get(path).is_outcome("larder; hit");
        larder.head(path).is_outcome("larder; hit");
    }
    let answer = larder.get("/v2/library/app/manifests/v1");
    assert!(answer.header("age").is_some_and(|age| age.parse::<u64>().is_ok()), "{answer:?}");
}

/// All headers but those that tell of this one answer.
fn lasting(answer: &Answer) -> Vec<(String, String)> {
    let mut headers: Vec<_> = answer
        .head
        .headers
        .iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
        .filter(|(name, _)| !["date", "age", "cache-status", "connection"].contains(&name.as_str()))
        .collect();
    headers.sort();
    headers
}

#[test]
fn head_is_get_without_the_body() {
    let (_registry, larder, image) = cold();
    let digest = &image.manifest.digest;
    for path in [
        "/v2/library/app/manifests/v1".to_owned(),
        format!("/v2/library/app/manifests/{digest}"),
        format!("/v2/library/app/blobs/{}", image.layers[0].digest),
        "/v2/library/app/tags/list".to_owned(),
        "/v2/_catalog".to_owned(),
        "/v2/library/app/manifests/missing".to_owned(),
        "/v2/library/app/manifests/sha256:bad".to_owned(),
        "/v2/".to_owned(),
    ] {
        let get = larder.get(&path);
        larder.settle();
        let head = larder.head(&path);
        assert!(head.body.is_empty());
        assert_eq!(head.status(), get.status(), "{path}");
        assert_eq!(lasting(&head), lasting(&get), "{path}");
    }
}

#[test]
fn a_cold_head_tells_the_truth_too() {
    let (registry, larder, image) = cold();
    let head = larder.head("/v2/library/app/manifests/v1");
    assert_eq!((head.status(), head.head.content_length()), (200, Some(image.manifest.bytes.len())));
    assert_eq!(head.header("docker-content-digest"), Some(image.manifest.digest.as_str()));
    assert_eq!(head.header("content-type"), Some(image.manifest.media_type.as_str()));
    let layer = &image.layers[0];
    let head = larder.head(&format!("/v2/library/app/blobs/{}", layer.digest));
    assert_eq!((head.status(), head.head.content_length()), (200, Some(layer.len())));
    assert_eq!(head.header("docker-content-digest"), Some(layer.digest.as_str()));
    // A HEAD that was answered implies that the manifest can be had, the upstream or no upstream.
    larder.settle();
    registry.down();
    larder.get("/v2/library/app/manifests/v1").is_ok_with(&image.manifest.bytes);
}

#[test]
fn what_the_client_has_is_not_sent_again() {
    let (_registry, larder, image) = cold();
    let layer = &image.layers[0];
    for (path, digest) in [
        ("/v2/library/app/manifests/v1".to_owned(), &image.manifest.digest),
        (format!("/v2/library/app/manifests/{}", image.manifest.digest), &image.manifest.digest),
        (format!("/v2/library/app/blobs/{}", layer.digest), &layer.digest),
    ] {
        larder.get(&path);
        larder.settle();
        for tag in
            [format!("\"{digest}\""), format!("W/\"{digest}\""), format!("\"x\", \"{digest}\""), "*".into()]
        {
            for method in ["GET", "HEAD"] {
                let answer = larder.api().send(method, &path, &[("If-None-Match", &tag)]);
                assert_eq!((answer.status(), answer.body.len()), (304, 0), "{method} {path}: {tag}");
                assert_eq!(answer.header("etag"), Some(format!("\"{digest}\"").as_str()));
            }
        }
        let other = format!("\"sha256:{}\"", "0".repeat(64));
        assert_eq!(larder.api().send("GET", &path, &[("If-None-Match", &other)]).status(), 200);
    }
}

fn range(larder: &Larder, path: &str, value: &str) -> Answer {
    larder.api().send("GET", path, &[("Range", value)])
}

#[track_caller]
fn is_part(answer: &Answer, blob: &Blob, from: usize, to: usize) {
    assert_eq!(answer.status(), 206, "{answer:?}");
    assert_eq!(
        answer.header("content-range"),
        Some(format!("bytes {from}-{}/{}", to - 1, blob.len()).as_str())
    );
    assert_eq!(answer.head.content_length(), Some(to - from));
    assert!(answer.body == blob.bytes[from..to]);
}

#[test]
fn ranges_of_a_warm_blob() {
    let registry = Registry::start();
    let blob = Blob::random(3, 300_000);
    registry.add_blob("library/app", &blob);
    let larder = Larder::before(&registry);
    let path = format!("/v2/library/app/blobs/{}", blob.digest);
    let whole = larder.get(&path);
    whole.is_ok_with(&blob.bytes);
    assert_eq!(whole.header("accept-ranges"), Some("bytes"));
    larder.settle();
    registry.down();
    let end = blob.len();
    for (value, from, to) in [
        ("bytes=0-0", 0, 1),
        ("bytes=500-1499", 500, 1500),
        ("bytes=500-", 500, end),
        ("bytes=0-", 0, end),
        ("bytes=-500", end - 500, end),
        ("bytes=-999999999", 0, end),
        ("bytes=299999-299999", end - 1, end),
        ("bytes=200000-99999999", 200_000, end),
        // Across every plausible edge of a page.
        ("bytes=8191-8192", 8191, 8193),
        ("bytes=32767-131073", 32_767, 131_074),
    ] {
        is_part(&range(&larder, &path, value), &blob, from, to);
        let head = larder.api().send("HEAD", &path, &[("Range", value)]);
        assert!([200, 206].contains(&head.status()), "{head:?}");
    }
    for value in ["bytes=500-0", "bytes=300000-", "bytes=300000-300001", "bytes=-0"] {
        let answer = range(&larder, &path, value);
        assert_eq!(answer.status(), 416, "{value}");
        assert_eq!(answer.header("content-range"), Some("bytes */300000"), "{value}");
    }
    for value in ["bytes=0-1,5-6", "pages=1-2", "bytes=a-b", "bytes=-", "nonsense"] {
        range(&larder, &path, value).is_ok_with(&blob.bytes);
    }
}

#[test]
fn ranges_of_a_cold_blob() {
    for (value, from, to) in
        [("bytes=0-99", 0, 100), ("bytes=150000-", 150_000, 300_000), ("bytes=-7", 299_993, 300_000)]
    {
        let registry = Registry::start();
        let blob = Blob::random(4, 300_000);
        registry.add_blob("library/app", &blob);
        let larder = Larder::before(&registry);
        let path = format!("/v2/library/app/blobs/{}", blob.digest);
        is_part(&range(&larder, &path, value), &blob, from, to);
        larder.settle();
        larder.get(&path).is_ok_with(&blob.bytes);
    }
    let registry = Registry::start();
    let blob = Blob::random(5, 1000);
    registry.add_blob("library/app", &blob);
    let larder = Larder::before(&registry);
    let answer = range(&larder, &format!("/v2/library/app/blobs/{}", blob.digest), "bytes=1000-");
    assert_eq!((answer.status(), answer.header("content-range")), (416, Some("bytes */1000")));
}

#[test]
fn a_range_on_a_manifest_is_no_error() {
    let (_registry, larder, image) = cold();
    for _ in 0..2 {
        let answer = range(&larder, "/v2/library/app/manifests/v1", "bytes=0-");
        assert!([200, 206].contains(&answer.status()), "{answer:?}");
        assert!(answer.body == *image.manifest.bytes);
    }
}

#[test]
fn if_range_only_holds_for_the_same_content() {
    let (_registry, larder, image) = cold();
    let layer = &image.layers[0];
    let path = format!("/v2/library/app/blobs/{}", layer.digest);
    larder.get(&path);
    larder.settle();
    let same = format!("\"{}\"", layer.digest);
    let ask = |tag: &str| larder.api().send("GET", &path, &[("Range", "bytes=5-9"), ("If-Range", tag)]);
    is_part(&ask(&same), layer, 5, 10);
    ask("\"sha256:other\"").is_ok_with(&layer.bytes);
}

#[test]
fn sha512_and_empty_content() {
    let registry = Registry::start();
    let blob = Blob::sha512(vec![7; 100_000]);
    let empty = Blob::new(Vec::new());
    let manifest = Image::small(3).manifest.with_sha512();
    registry.add_blob("library/app", &blob);
    registry.add_blob("library/app", &empty);
    registry.add_manifest("library/app", &manifest);
    let larder = Larder::before(&registry);
    for _ in 0..2 {
        for blob in [&blob, &empty] {
            let answer = larder.get(&format!("/v2/library/app/blobs/{}", blob.digest));
            answer.is_ok_with(&blob.bytes);
            assert_eq!(answer.head.content_length(), Some(blob.len()));
            assert_eq!(answer.header("docker-content-digest"), Some(blob.digest.as_str()));
        }
        let answer = larder.get(&format!("/v2/library/app/manifests/{}", manifest.digest));
        answer.is_ok_with(&manifest.bytes);
        assert_eq!(answer.header("docker-content-digest"), Some(manifest.digest.as_str()));
        larder.settle();
    }
    assert_eq!(registry.count("GET", "/blobs/"), 2);
}

#[test]
fn bad_references_and_names() {
    let (registry, larder, image) = cold();
    for tag in [".INVALID", "-x", &"t".repeat(129), "a%20b", "a+b"] {
        larder.get(&format!("/v2/library/app/manifests/{tag}")).is_error(404, "MANIFEST_UNKNOWN");
    }
    let hex = image.manifest.digest.strip_prefix("sha256:").unwrap();
    for digest in [
        "sha256:baddigeststring".to_owned(),
        format!("sha256:{}", hex.to_uppercase()),
        format!("sha256:{hex}0"),
        format!("sha256:{}", &hex[1..]),
        format!("sha512:{hex}"),
        ":".to_owned(),
        format!("SHA256:{hex}"),
    ] {
        larder.get(&format!("/v2/library/app/manifests/{digest}")).is_error(400, "DIGEST_INVALID");
        larder.get(&format!("/v2/library/app/blobs/{digest}")).is_error(400, "DIGEST_INVALID");
    }
    for name in ["UPPER/app", "a//b", "-a", "a/../b", "a/..%2f..%2fb", "a%00b", &"n/".repeat(200)] {
        let answer = larder.get(&format!("/v2/{name}/manifests/v1"));
        assert!([400, 404].contains(&answer.status()), "{name}: {answer:?}");
        assert!(answer.json()["errors"][0]["code"].is_string());
    }
    for path in ["/", "/v1/", "/v2/library/app", "/v2/library/app/nothing/x", "/v2//", "/v22/", "/metrics"] {
        assert_eq!(larder.get(path).status(), 404, "{path}");
    }
    let reached: Vec<_> = registry.requests().into_iter().map(|seen| seen.path).collect();
    assert!(reached.is_empty(), "nonsense must not reach the upstream: {reached:?}");
}

#[test]
fn keywords_are_allowed_in_names() {
    let registry = Registry::start();
    let image = Image::small(5);
    let names = ["blobs/blobs", "manifests/manifests", "a/blobs/b", "a/tags/list", "a/manifests/v1", "v2/v2"];
    for name in names {
        registry.add_image(name, "manifests", &image);
    }
    let larder = Larder::before(&registry);
    for name in names {
        larder.get(&format!("/v2/{name}/manifests/manifests")).is_ok_with(&image.manifest.bytes);
        let layer = &image.layers[0];
        larder.get(&format!("/v2/{name}/blobs/{}", layer.digest)).is_ok_with(&layer.bytes);
        let list = larder.get(&format!("/v2/{name}/tags/list")).json();
        assert_eq!(list, serde_json::json!({ "name": name, "tags": ["manifests"] }));
    }
}

/// Follows the Link headers from `path` on and returns the pages.
fn pages(larder: &Larder, path: &str, key: &str) -> Vec<Vec<String>> {
    let mut next = Some(path.to_owned());
    let mut pages = Vec::new();
    while let Some(path) = next {
        assert!(pages.len() < 50, "the pages have no end");
        let answer = larder.get(&path);
        assert_eq!(answer.status(), 200, "{path}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        let page = answer.json()[key].as_array().unwrap().clone();
        pages.push(page.iter().map(|item| item.as_str().unwrap().to_owned()).collect());
        next = answer.header("link").map(|link| {
            let (target, parameters) = link.split_once(';').unwrap();
            assert_eq!(parameters.trim(), "rel=\"next\"");
            target.strip_prefix('<').unwrap().strip_suffix('>').unwrap().to_owned()
        });
    }
    pages
}

#[test]
fn tags_come_in_pages_sorted_by_bytes() {
    let registry = Registry::start();
    let image = Image::small(6);
    // In the order of their bytes.
    let sorted = ["1.0", "1.0-rc", "1.0.1", "A", "B", "_x", "a", "a-b", "a.b"];
    for tag in sorted {
        registry.add_image("library/app", tag, &image);
    }
    let larder = Setup::with(&registry).start();
    for tag in ["a", "B", "1.0.1", "_x", "A", "a.b", "1.0", "a-b", "1.0-rc"] {
        assert_eq!(larder.get(&format!("/v2/library/app/manifests/{tag}")).status(), 200);
    }
    let list = "/v2/library/app/tags/list";
    assert_eq!(larder.get(list).json(), serde_json::json!({ "name": "library/app", "tags": sorted }));
    for n in 1..=10 {
        let found = pages(&larder, &format!("{list}?n={n}"), "tags");
        let wanted: Vec<Vec<String>> =
            sorted.chunks(n).map(|page| page.iter().map(|tag| (*tag).to_owned()).collect()).collect();
        assert_eq!(found, wanted, "n={n}");
    }
    assert_eq!(pages(&larder, &format!("{list}?last=A"), "tags")[0], sorted[4..]);
    // `last` need not exist, and its percent-encoding is undone once.
    assert_eq!(pages(&larder, &format!("{list}?last=AA"), "tags")[0], sorted[4..]);
    assert_eq!(pages(&larder, &format!("{list}?n=2&last=%5Fx"), "tags")[0], sorted[6..8]);
    assert_eq!(pages(&larder, &format!("{list}?last=zzz"), "tags"), vec![Vec::<String>::new()]);
    let nothing = larder.get(&format!("{list}?n=0"));
    assert_eq!(nothing.json()["tags"], serde_json::json!([]));
    assert_eq!(nothing.header("link"), None);
    for n in ["-1", "x", "1.5", ""] {
        larder.get(&format!("{list}?n={n}")).is_error(400, "PAGINATION_NUMBER_INVALID");
    }
    let huge = larder.get(&format!("{list}?n=99999999999999999999999999"));
    assert!([200, 400].contains(&huge.status()), "{huge:?}");
    // The next page is asked of the same upstream.
    let link = larder.get(&format!("{list}?ns=docker.io&n=2"));
    assert!(link.header("link").unwrap().contains("ns=docker.io"), "{link:?}");
}

#[test]
fn the_catalog_names_what_can_be_pulled() {
    let registry = Registry::start();
    let other = Registry::start();
    for name in ["library/c", "library/a", "org/b", "org-x/b"] {
        registry.add_image(name, "v1", &Image::small(7));
    }
    other.add_image("team/z", "v1", &Image::small(8));
    let larder = Setup::with(&registry).upstream("other.test", &other).start();
    assert_eq!(larder.get("/v2/_catalog").json(), serde_json::json!({ "repositories": [] }));
    for name in ["library/c", "library/a", "org/b", "org-x/b", "other.test/team/z"] {
        assert_eq!(larder.get(&format!("/v2/{name}/manifests/v1")).status(), 200);
    }
    let all = pages(&larder, "/v2/_catalog", "repositories").concat();
    assert_eq!(all.len(), 5, "{all:?}");
    assert!(all.is_sorted_by(|a, b| a.as_bytes() < b.as_bytes()), "{all:?}");
    for name in &all {
        assert_eq!(larder.get(&format!("/v2/{name}/manifests/v1")).status(), 200, "{name}");
    }
    for n in 1..=5 {
        let found = pages(&larder, &format!("/v2/_catalog?n={n}"), "repositories");
        assert_eq!(found, all.chunks(n).map(<[String]>::to_vec).collect::<Vec<_>>());
    }
    assert_eq!(larder.get("/v2/_catalog?n=0").json()["repositories"], serde_json::json!([]));
    larder.get("/v2/_catalog?n=x").is_error(400, "PAGINATION_NUMBER_INVALID");
}

#[test]
fn a_repository_that_nobody_pulled_has_no_empty_list() {
    let (_registry, larder, _) = cold();
    larder.get("/v2/library/never/tags/list").is_error(404, "NAME_UNKNOWN");
}

#[test]
fn a_tls_hello_on_the_plain_port_is_answered() {
    let (_registry, larder, _) = cold();
    // The start of a TLS 1.2 record with a ClientHello, as podman sends it before it falls back to HTTP.
    let mut hello = vec![0x16, 0x03, 0x01, 0x00, 0xc8, 0x01, 0x00, 0x00, 0xc4, 0x03, 0x03];
    hello.extend_from_slice(&[0x5a; 194]);
    let answer = larder.api().raw(&hello, SILENCE);
    assert!(answer.starts_with(b"HTTP/1.1 400"), "{:?}", String::from_utf8_lossy(&answer));
}

#[test]
fn garbage_disturbs_nobody() {
    let (_registry, larder, image) = cold();
    let host = larder.api_addr();
    let long_path = format!("GET /v2/{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(100_000));
    let many = "X-Many: y\r\n".repeat(2000);
    let many = format!("GET /v2/ HTTP/1.1\r\nHost: {host}\r\n{many}\r\n");
    let fat = format!("GET /v2/ HTTP/1.1\r\nHost: {host}\r\nX: {}\r\n\r\n", "y".repeat(2_000_000));
    for bytes in [
        b"\0\0\0\0\r\n\r\n".to_vec(),
        b"GET\r\n\r\n".to_vec(),
        b"GET /v2/ HTTP/9.9\r\n\r\n".to_vec(),
        b"GET /v2/ HTTP/1.1\r\nContent-Length: x\r\n\r\n".to_vec(),
        b"GET /v2/ HTTP/1.1\r\nHost : a\r\n\r\n".to_vec(),
        vec![0xff; 10_000],
        long_path.into_bytes(),
        many.into_bytes(),
        fat.into_bytes(),
    ] {
        let answer = larder.api().raw(&bytes, Duration::from_millis(300));
        let start = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
        let status = String::from_utf8_lossy(&answer[..answer.len().min(12)]).into_owned();
        // Hanging up is an answer too; a success is none that garbage may get.
        assert!(answer.is_empty() || status.starts_with("HTTP/1.1 4"), "{start:?} got {status:?}");
        larder.get("/v2/library/app/manifests/v1").is_ok_with(&image.manifest.bytes);
    }
    // Half a request, and away.
    drop(std::io::Write::write(&mut larder.api().connect().unwrap(), b"GET /v2/ HT"));
    larder.get("/v2/").is_ok_with(b"{}");
}

#[test]
fn two_ways_of_framing_are_one_too_many() {
    let (_registry, larder, _) = cold();
    let both =
        "GET /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let answer = larder.api().raw(both.as_bytes(), Duration::from_millis(300));
    assert!(answer.starts_with(b"HTTP/1.1 400"), "{:?}", String::from_utf8_lossy(&answer));
}

#[test]
fn strange_headers_do_no_harm() {
    let (_registry, larder, image) = cold();
    let path = "/v2/library/app/manifests/v1";
    for (name, value) in [
        ("Accept", "\u{fffd}\u{fffd}"),
        ("Accept", ""),
        ("Accept-Encoding", "zstd;q=1.0, gzip;q=0.8, deflate;q=0.5"),
        ("Authorization", "Basic Og=="),
        ("Range", "bytes=18446744073709551616-"),
        ("If-None-Match", "\"\", ,,W/"),
        ("OCI-Namespace", "evil"),
        ("X-Forwarded-For", "1.2.3.4"),
        ("Expect", "100-continue"),
    ] {
        let answer = larder.api().send("GET", path, &[(name, value)]);
        answer.is_ok_with(&image.manifest.bytes);
        assert_eq!(answer.header("content-encoding"), None);
    }
}

#[test]
fn clients_credentials_and_headers_stop_here() {
    let (registry, larder, _) = cold();
    let headers = [
        ("Authorization", "Bearer clients-own-secret"),
        ("Cookie", "clients=own"),
        ("X-Clients-Own", "1"),
        ("Accept-Encoding", "gzip"),
    ];
    let answer = larder.api().send("GET", "/v2/library/app/manifests/v1", &headers);
    assert_eq!(answer.status(), 200);
    for seen in registry.requests() {
        for (name, value) in &seen.headers {
            assert!(!value.contains("clients"), "{name}: {value} reached the upstream");
            assert!(!name.to_ascii_lowercase().contains("clients"), "{name} reached the upstream");
        }
        assert!([None, Some("identity")].contains(&seen.header("accept-encoding")), "{seen:?}");
    }
}

#[test]
fn one_connection_serves_many_requests() {
    let (_registry, larder, image) = cold();
    let request = format!("GET /v2/library/app/manifests/v1 HTTP/1.1\r\nHost: {}\r\n", larder.api_addr());
    let last = format!("{request}Connection: close\r\n\r\n");
    let three = format!("{request}\r\n{request}\r\n{last}");
    let answer = larder.api().raw(three.as_bytes(), SILENCE);
    let text = String::from_utf8_lossy(&answer);
    let body = String::from_utf8_lossy(&image.manifest.bytes);
    assert_eq!(text.matches("HTTP/1.1 200").count(), 3);
    assert_eq!(text.matches(&*body).count(), 3);
}

#[test]
fn documents_keep_their_bytes_whatever_they_are() {
    let registry = Registry::start();
    let larder_side = [
        (
            support::content::OCI_MANIFEST,
            "{\n\t\"schemaVersion\": 2,   \"config\":{}, \"layers\": [ ]\n}\n\n",
        ),
        (support::content::DOCKER_LIST, "  {\"schemaVersion\":2,\"manifests\":[],\"x\":\"\\u00e9\"}  "),
    ];
    for (n, (media_type, text)) in larder_side.iter().enumerate() {
        let document = Document::new(media_type, *text);
        registry.add_manifest("library/odd", &document);
        registry.tag("library/odd", &format!("v{n}"), &document.digest);
    }
    let larder = Larder::before(&registry);
    for _ in 0..2 {
        for (n, (media_type, text)) in larder_side.iter().enumerate() {
            let answer = larder.get(&format!("/v2/library/odd/manifests/v{n}"));
            answer.is_ok_with(text.as_bytes());
            assert_eq!(answer.header("content-type"), Some(*media_type));
        }
    }
}

#[test]
fn a_client_that_never_ends_its_head_is_let_go() {
    let registry = Registry::start();
    let larder = Setup::with(&registry).set("server.header_timeout", "500ms").start();
    for start in [&b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Slow: "[..], b""] {
        let began = std::time::Instant::now();
        let answer = larder.api().raw(start, Duration::from_secs(20));
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 408"), "{answer:?}");
    }
}

#[test]
fn connections_beyond_the_limit_wait_their_turn() {
    let registry = Registry::start();
    let larder = Setup::with(&registry).set("server.max_connections", 2).start();
    let held = [larder.api().connect().unwrap(), larder.api().connect().unwrap()];
    support::eventually("both are taken in", || larder.counter("larder_connections", &[]) == 2);
    let third = larder.api().patient_for(Duration::from_millis(300));
    third.try_send("GET", "/v2/", &[]).unwrap_err();
    drop(held);
    larder.get("/v2/").is_ok_with(b"{}");
}
