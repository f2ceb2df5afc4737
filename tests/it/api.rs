//! The registry API: paths, methods, headers, ranges, pages, and invalid requests.

use crate::support;

use support::fixture::cold;
use support::{Answer, Blob, Document, Image, Larder, Registry};

#[test]
fn base_endpoint_answers_without_the_upstream() {
    let (registry, larder, _) = cold();
    for path in ["/v2/", "/v2"] {
        let answer = larder.get(path);
        answer.assert_body(b"{}");
        assert_eq!(answer.header("docker-distribution-api-version"), Some("registry/2.0"));
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.header("www-authenticate"), None);
        let head = larder.head(path);
        assert_eq!((head.status(), head.head.content_length()), (200, Some(2)));
    }
    assert_eq!(registry.requests().len(), 0);
}

#[test]
fn writes_answer_405_with_allow() {
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
        answer.assert_error(405, "UNSUPPORTED");
        assert_eq!(answer.header("allow"), Some("GET, HEAD"), "{method} {path}");
    }
    assert_eq!(registry.requests().len(), 0);
}

#[test]
fn manifest_answer_has_all_required_headers() {
    let (_registry, larder, image) = cold();
    let digest = &image.manifest.digest;
    let by_digest = format!("/v2/library/app/manifests/{digest}");
    for path in ["/v2/library/app/manifests/v1", &by_digest, "/v2/library/app/manifests/v1", &by_digest] {
        let answer = larder.get(path);
        answer.assert_body(&image.manifest.bytes);
        assert_eq!(answer.header("content-type"), Some(image.manifest.media_type.as_str()));
        assert_eq!(answer.head.content_length(), Some(image.manifest.bytes.len()));
        assert_eq!(answer.header("docker-content-digest"), Some(digest.as_str()));
        assert_eq!(answer.header("etag"), Some(format!("\"{digest}\"").as_str()));
        assert_eq!(answer.header("www-authenticate"), None);
        assert_eq!(answer.header("content-encoding"), None);
    }
}

#[test]
fn answers_carry_the_outcome() {
    let (_registry, larder, image) = cold();
    let blob = format!("/v2/library/app/blobs/{}", image.layers[0].digest);
    for path in ["/v2/library/app/manifests/v1", &blob] {
        larder.get(path).assert_outcome("larder; fwd=uri-miss; stored; detail=miss");
        larder.wait_idle();
        larder.get(path).assert_outcome("larder; hit");
        larder.head(path).assert_outcome("larder; hit");
    }
    let answer = larder.get("/v2/library/app/manifests/v1");
    assert!(answer.header("age").is_some_and(|age| age.parse::<u64>().is_ok()), "{answer:?}");
}

/// Returns all headers except those that differ between two answers.
fn lasting(answer: &Answer) -> Vec<(String, String)> {
    let mut headers: Vec<_> = answer
        .head
        .headers
        .iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
        .filter(|(name, _)| {
            !["date", "age", "cache-status", "connection", "x-request-id"].contains(&name.as_str())
        })
        .collect();
    headers.sort();
    headers
}

#[test]
fn head_equals_get_without_body() {
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
        // The first answer may have bytes that are not verified yet, which must not be cached.
        larder.get(&path);
        larder.wait_idle();
        let get = larder.get(&path);
        let head = larder.head(&path);
        assert!(head.body.is_empty());
        assert_eq!(head.status(), get.status(), "{path}");
        assert_eq!(lasting(&head), lasting(&get), "{path}");
    }
}

#[test]
fn head_of_uncached_content_has_correct_headers() {
    let (registry, larder, image) = cold();
    let head = larder.head("/v2/library/app/manifests/v1");
    assert_eq!((head.status(), head.head.content_length()), (200, Some(image.manifest.bytes.len())));
    assert_eq!(head.header("docker-content-digest"), Some(image.manifest.digest.as_str()));
    assert_eq!(head.header("content-type"), Some(image.manifest.media_type.as_str()));
    let layer = &image.layers[0];
    let head = larder.head(&format!("/v2/library/app/blobs/{}", layer.digest));
    assert_eq!((head.status(), head.head.content_length()), (200, Some(layer.len())));
    assert_eq!(head.header("docker-content-digest"), Some(layer.digest.as_str()));
    // The HEAD request has also cached the manifest, so it is available without the upstream.
    larder.wait_idle();
    registry.down();
    larder.get("/v2/library/app/manifests/v1").assert_body(&image.manifest.bytes);
}

#[test]
fn conditional_get_answers_304() {
    let (_registry, larder, image) = cold();
    let layer = &image.layers[0];
    for (path, digest) in [
        ("/v2/library/app/manifests/v1".to_owned(), &image.manifest.digest),
        (format!("/v2/library/app/manifests/{}", image.manifest.digest), &image.manifest.digest),
        (format!("/v2/library/app/blobs/{}", layer.digest), &layer.digest),
    ] {
        larder.get(&path);
        larder.wait_idle();
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
fn assert_part(answer: &Answer, blob: &Blob, from: usize, to: usize) {
    assert_eq!(answer.status(), 206, "{answer:?}");
    assert_eq!(
        answer.header("content-range"),
        Some(format!("bytes {from}-{}/{}", to - 1, blob.len()).as_str())
    );
    assert_eq!(answer.head.content_length(), Some(to - from));
    assert!(answer.body == blob.bytes[from..to]);
}

#[test]
fn ranges_of_a_cached_blob() {
    let registry = Registry::start();
    let blob = Blob::random(3, 300_000);
    registry.add_blob("library/app", &blob);
    let larder = Larder::in_front_of(&registry);
    let path = format!("/v2/library/app/blobs/{}", blob.digest);
    let whole = larder.get(&path);
    whole.assert_body(&blob.bytes);
    assert_eq!(whole.header("accept-ranges"), Some("bytes"));
    larder.wait_idle();
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
        // Ranges across page boundaries of every page size.
        ("bytes=8191-8192", 8191, 8193),
        ("bytes=32767-131073", 32_767, 131_074),
    ] {
        assert_part(&range(&larder, &path, value), &blob, from, to);
        let head = larder.api().send("HEAD", &path, &[("Range", value)]);
        assert!([200, 206].contains(&head.status()), "{head:?}");
    }
    for value in ["bytes=500-0", "bytes=300000-", "bytes=300000-300001", "bytes=-0"] {
        let answer = range(&larder, &path, value);
        assert_eq!(answer.status(), 416, "{value}");
        assert_eq!(answer.header("content-range"), Some("bytes */300000"), "{value}");
    }
    for value in ["pages=1-2", "bytes=a-b", "bytes=-", "nonsense"] {
        range(&larder, &path, value).assert_body(&blob.bytes);
    }
}

#[test]
fn ranges_of_an_uncached_blob() {
    for (value, from, to) in
        [("bytes=0-99", 0, 100), ("bytes=150000-", 150_000, 300_000), ("bytes=-7", 299_993, 300_000)]
    {
        let registry = Registry::start();
        let blob = Blob::random(4, 300_000);
        registry.add_blob("library/app", &blob);
        let larder = Larder::in_front_of(&registry);
        let path = format!("/v2/library/app/blobs/{}", blob.digest);
        assert_part(&range(&larder, &path, value), &blob, from, to);
        larder.wait_idle();
        larder.get(&path).assert_body(&blob.bytes);
    }
}

#[test]
fn range_on_a_manifest_is_ignored() {
    let (_registry, larder, image) = cold();
    for _ in 0..2 {
        let answer = range(&larder, "/v2/library/app/manifests/v1", "bytes=0-");
        assert!([200, 206].contains(&answer.status()), "{answer:?}");
        assert!(answer.body == *image.manifest.bytes);
    }
}

#[test]
fn if_range_applies_only_to_the_same_content() {
    let (_registry, larder, image) = cold();
    let layer = &image.layers[0];
    let path = format!("/v2/library/app/blobs/{}", layer.digest);
    larder.get(&path);
    larder.wait_idle();
    let same = format!("\"{}\"", layer.digest);
    let ask = |tag: &str| larder.api().send("GET", &path, &[("Range", "bytes=5-9"), ("If-Range", tag)]);
    assert_part(&ask(&same), layer, 5, 10);
    ask("\"sha256:other\"").assert_body(&layer.bytes);
}

#[test]
fn sha512_and_empty_content_are_served() {
    let registry = Registry::start();
    let blob = Blob::sha512(vec![7; 100_000]);
    let empty = Blob::new(Vec::new());
    let manifest = Image::small(3).manifest.with_sha512();
    registry.add_blob("library/app", &blob);
    registry.add_blob("library/app", &empty);
    registry.add_manifest("library/app", &manifest);
    let larder = Larder::in_front_of(&registry);
    for _ in 0..2 {
        for blob in [&blob, &empty] {
            let answer = larder.get(&format!("/v2/library/app/blobs/{}", blob.digest));
            answer.assert_body(&blob.bytes);
            assert_eq!(answer.head.content_length(), Some(blob.len()));
            assert_eq!(answer.header("docker-content-digest"), Some(blob.digest.as_str()));
        }
        let answer = larder.get(&format!("/v2/library/app/manifests/{}", manifest.digest));
        answer.assert_body(&manifest.bytes);
        assert_eq!(answer.header("docker-content-digest"), Some(manifest.digest.as_str()));
        larder.wait_idle();
    }
    assert_eq!(registry.count("GET", "/blobs/"), 2);
}

#[test]
fn malformed_references_and_names_are_rejected() {
    let (registry, larder, image) = cold();
    for tag in [".INVALID", "-x", &"t".repeat(129), "a%20b", "a+b"] {
        larder.get(&format!("/v2/library/app/manifests/{tag}")).assert_error(404, "MANIFEST_UNKNOWN");
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
        larder.get(&format!("/v2/library/app/manifests/{digest}")).assert_error(400, "DIGEST_INVALID");
        larder.get(&format!("/v2/library/app/blobs/{digest}")).assert_error(400, "DIGEST_INVALID");
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
fn names_may_contain_path_keywords() {
    let registry = Registry::start();
    let image = Image::small(5);
    let names = ["blobs/blobs", "manifests/manifests", "a/blobs/b", "a/tags/list", "a/manifests/v1", "v2/v2"];
    for name in names {
        registry.add_image(name, "manifests", &image);
    }
    let larder = Larder::in_front_of(&registry);
    for name in names {
        larder.get(&format!("/v2/{name}/manifests/manifests")).assert_body(&image.manifest.bytes);
        let layer = &image.layers[0];
        larder.get(&format!("/v2/{name}/blobs/{}", layer.digest)).assert_body(&layer.bytes);
        let list = larder.get(&format!("/v2/{name}/tags/list")).json();
        assert_eq!(list, serde_json::json!({ "name": name, "tags": ["manifests"] }));
    }
}

#[test]
fn connection_serves_many_requests() {
    let (_registry, larder, image) = cold();
    let request = format!("GET /v2/library/app/manifests/v1 HTTP/1.1\r\nHost: {}\r\n", larder.api_addr());
    let last = format!("{request}Connection: close\r\n\r\n");
    let three = format!("{request}\r\n{request}\r\n{last}");
    let answer = larder.api().raw(three.as_bytes());
    let text = String::from_utf8_lossy(&answer);
    let body = String::from_utf8_lossy(&image.manifest.bytes);
    assert_eq!(text.matches("HTTP/1.1 200").count(), 3);
    assert_eq!(text.matches(&*body).count(), 3);
}

#[test]
fn documents_are_served_byte_for_byte() {
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
    let larder = Larder::in_front_of(&registry);
    for _ in 0..2 {
        for (n, (media_type, text)) in larder_side.iter().enumerate() {
            let answer = larder.get(&format!("/v2/library/odd/manifests/v{n}"));
            answer.assert_body(text.as_bytes());
            assert_eq!(answer.header("content-type"), Some(*media_type));
        }
    }
}
