//! Media types: of served documents, rejected documents, and `Accept` of requests to the upstream.

use crate::support;

use serde_json::json;
use support::content::{DOCKER_LIST, DOCKER_MANIFEST, DOCKER_SCHEMA1, OCI_INDEX, OCI_MANIFEST};
use support::{Document, Fault, Image, Index, Larder, Registry, Setup, When};

const TAG: &str = "/v2/library/app/manifests/v1";

fn with_image() -> (Registry, Image) {
    let registry = Registry::start();
    let image = Image::small(1);
    registry.add_image("library/app", "v1", &image);
    (registry, image)
}

#[test]
fn upstream_receives_our_accept_header() {
    let (registry, image) = with_image();
    let larder = Larder::in_front_of(&registry);
    let headers =
        [("Accept", OCI_MANIFEST), ("Accept", "application/json;q=0.5, */*"), ("User-Agent", "x/1")];
    larder.api().send("GET", TAG, &headers).assert_body(&image.manifest.bytes);
    let seen = registry.seen("GET", "/manifests/");
    let accept = seen[0].header("accept").unwrap();
    for wanted in [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST] {
        assert!(accept.contains(wanted), "{accept}");
    }
    assert!(!accept.contains("*/*") && !accept.contains("docker.distribution.manifest.v1+"), "{accept}");
    assert!(seen[0].header("user-agent").is_some_and(|agent| agent.starts_with("larder/")), "{seen:?}");
}

/// A registry that sends the linux/amd64 child to a client that accepts no index, as Docker Hub does.
fn converting() -> (Registry, Index) {
    let registry = Registry::start();
    let index = Index::docker(1);
    registry.add_index("library/app", "v1", &index);
    let child = index.images[0].manifest.clone();
    registry.script(
        When::manifests().path("/v1"),
        Fault::rewrite(move |seen, plan| {
            if !seen.header("accept").unwrap_or_default().contains(DOCKER_LIST) {
                plan.set("Content-Type", &child.media_type);
                plan.set("Docker-Content-Digest", &child.digest);
                plan.to = child.bytes.len();
                plan.content = child.bytes.clone();
            }
        }),
    );
    (registry, index)
}

#[test]
fn client_without_index_support_gets_the_variant() {
    let (registry, index) = converting();
    let larder = Larder::in_front_of(&registry);
    let old = || larder.api().send("GET", TAG, &[("Accept", DOCKER_MANIFEST)]);
    let child = &index.images[0].manifest;
    larder.get(TAG).assert_body(&index.document.bytes);
    let answer = old();
    answer.assert_body(&child.bytes);
    assert_eq!(answer.header("content-type"), Some(DOCKER_MANIFEST));
    assert_eq!(answer.header("docker-content-digest"), Some(child.digest.as_str()));
    larder.get(TAG).assert_body(&index.document.bytes);
    registry.forget_requests();
    old().assert_body(&child.bytes);
    assert_eq!(registry.count("GET", "/v1"), 0, "the variant is kept");
    let by_digest = format!("/v2/library/app/manifests/{}", index.document.digest);
    larder.api().send("GET", &by_digest, &[("Accept", OCI_MANIFEST)]).assert_body(&index.document.bytes);
}

#[test]
fn variant_may_be_requested_before_the_index() {
    let (registry, index) = converting();
    let larder = Larder::in_front_of(&registry);
    let answer = larder.api().send("GET", TAG, &[("Accept", DOCKER_MANIFEST)]);
    answer.assert_body(&index.images[0].manifest.bytes);
    larder.get(TAG).assert_body(&index.document.bytes);
}

#[test]
fn media_types_follow_the_rules() {
    let image = |media_type: Option<&str>| {
        let mut value = json!({ "schemaVersion": 2, "config": {}, "layers": [] });
        if let Some(media_type) = media_type {
            value["mediaType"] = json!(media_type);
        }
        value
    };
    let docker = json!({ "schemaVersion": 2, "layers": [],
        "config": { "mediaType": "application/vnd.docker.container.image.v1+json" } });
    let index = json!({ "schemaVersion": 2, "manifests": [] });
    let parameterised = format!("{OCI_INDEX}; charset=utf-8");
    let cases = [
        (OCI_MANIFEST, image(None), OCI_MANIFEST),
        (DOCKER_MANIFEST, image(None), DOCKER_MANIFEST),
        (&parameterised, index.clone(), OCI_INDEX),
        ("application/json", image(None), OCI_MANIFEST),
        ("application/octet-stream", docker, DOCKER_MANIFEST),
        ("text/plain", index.clone(), OCI_INDEX),
        ("application/json; charset=utf-8", image(Some(DOCKER_MANIFEST)), DOCKER_MANIFEST),
        (DOCKER_MANIFEST, index.clone(), OCI_INDEX),
        (DOCKER_LIST, index, DOCKER_LIST),
    ];
    let registry = Registry::start();
    for (n, (media_type, value, _)) in cases.iter().enumerate() {
        let document = Document::json(media_type, value);
        registry.add_manifest("library/app", &document);
        registry.add_manifest(&format!("library/app{n}"), &document);
        registry.tag(&format!("library/app{n}"), "v1", &document.digest);
    }
    for (n, (media_type, value, wanted)) in cases.iter().enumerate() {
        // Each case has its own server, because the media type of cached bytes never changes.
        let larder = Larder::in_front_of(&registry);
        for _ in 0..2 {
            let answer = larder.get(&format!("/v2/library/app{n}/manifests/v1"));
            answer.assert_body(&Document::json(media_type, value).bytes);
            assert_eq!(answer.header("content-type"), Some(*wanted), "{media_type}: {value}");
        }
    }
}

#[test]
fn missing_media_type_is_detected() {
    let (registry, image) = with_image();
    registry.script(When::manifests(), Fault::RemoveHeader("Content-Type"));
    let larder = Larder::in_front_of(&registry);
    let answer = larder.get(TAG);
    answer.assert_body(&image.manifest.bytes);
    assert_eq!(answer.header("content-type"), Some(OCI_MANIFEST));
}

#[test]
fn ambiguous_document_is_refused() {
    let texts = [
        (OCI_MANIFEST, r#"{"schemaVersion":2,"mediaType":"IMG","config":{},"layers":[],"manifests":[{}]}"#),
        (OCI_INDEX, r#"{"schemaVersion":2,"mediaType":"IDX","manifests":[],"layers":[{}]}"#),
        (OCI_INDEX, r#"{"schemaVersion":2,"mediaType":"IDX","manifests":[],"config":{}}"#),
        (OCI_MANIFEST, r#"{"schemaVersion":2,"config":{},"layers":[],"manifests":[{}]}"#),
        (OCI_MANIFEST, r#"{"schemaVersion":2,"mediaType":"IMG","mediaType":"IDX","config":{},"layers":[]}"#),
        (OCI_MANIFEST, r#"{"schemaVersion":2,"MediaType":"IDX","mediaType":"IMG","config":{},"layers":[]}"#),
        (OCI_MANIFEST, r#"{"schemaVersion":2}"#),
        (OCI_MANIFEST, "not a document at all"),
        (OCI_MANIFEST, "[]"),
        ("text/html", "<html>please log in</html>"),
        (OCI_MANIFEST, ""),
    ];
    let registry = Registry::start();
    let larder = Larder::in_front_of(&registry);
    for (n, (media_type, text)) in texts.iter().enumerate() {
        let text = text.replace("IMG", OCI_MANIFEST).replace("IDX", OCI_INDEX);
        let document = Document::new(media_type, text.clone());
        registry.add_manifest("library/app", &document);
        registry.tag("library/app", &format!("t{n}"), &document.digest);
        let tag = format!("/v2/library/app/manifests/t{n}");
        registry.forget_requests();
        for path in [tag, format!("/v2/library/app/manifests/{}", document.digest)] {
            for _ in 0..2 {
                let answer = larder.get(&path);
                assert_eq!(answer.status(), 502, "{text}: {}", answer.text());
                assert!(answer.json()["errors"][0]["message"].as_str().is_some());
            }
        }
        // Nothing was cached: the upstream got each request.
        assert_eq!(registry.count("GET", "/manifests/"), 4, "{text}");
    }
}

#[test]
fn schema1_is_refused_with_a_clear_error() {
    let registry = Registry::start();
    let signed =
        r#"{"schemaVersion":1,"name":"library/app","tag":"v1","fsLayers":[],"history":[],"signatures":[{}]}"#;
    let document = Document::new(DOCKER_SCHEMA1, signed);
    registry.add_manifest("library/app", &document);
    registry.tag("library/app", "v1", &document.digest);
    let larder = Larder::in_front_of(&registry);
    let answer = larder.get(TAG);
    assert!([404, 502].contains(&answer.status()), "{answer:?}");
    assert!(answer.text().contains("schema 1"), "{}", answer.text());
}

#[test]
fn manifest_over_the_limit_is_refused() {
    let registry = Registry::start();
    let padding = "x".repeat(9 << 20);
    let text = json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": {}, "layers": [],
        "annotations": { "padding": padding } });
    let document = Document::new(OCI_MANIFEST, text.to_string());
    registry.add_manifest("library/app", &document);
    registry.tag("library/app", "v1", &document.digest);
    let larder = Larder::in_front_of(&registry);
    assert_eq!(larder.get(TAG).status(), 502);
    registry.script(When::manifests(), Fault::Chunked);
    assert_eq!(larder.get(TAG).status(), 502);
}

/// A registry with a manifest of this size and a tag.
fn with_large_manifest(size: usize) -> (Registry, Document) {
    let registry = Registry::start();
    let padding = "x".repeat(size - 1000);
    let text = json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": {}, "layers": [],
        "annotations": { "padding": padding } });
    let document = Document::new(OCI_MANIFEST, text.to_string());
    registry.add_manifest("library/app", &document);
    registry.tag("library/app", "v1", &document.digest);
    (registry, document)
}

#[test]
fn manifest_of_4_mib_is_served() {
    for size in [4 << 20, 4_393_216] {
        let (registry, document) = with_large_manifest(size);
        let larder = Larder::in_front_of(&registry);
        for _ in 0..2 {
            larder.get(TAG).assert_body(&document.bytes);
        }
    }
}

#[test]
fn largest_manifest_is_configurable() {
    let (registry, document) = with_large_manifest(15 << 20);
    let with =
        |size: &str| Setup::with(&registry).upstream_set("docker.io", "manifest_max_size", size).start();
    let larder = with("16MiB");
    for _ in 0..2 {
        larder.get(TAG).assert_body(&document.bytes);
    }
    let answer = with("14MiB").get(TAG);
    assert_eq!(answer.status(), 502);
    assert!(answer.text().contains("larger than"), "{}", answer.text());
}

#[test]
fn documents_with_odd_members_are_served() {
    let registry = Registry::start();
    let image = Image::small(1);
    registry.add_image("library/app", "v1", &image);
    let text = String::from_utf8(image.manifest.bytes.to_vec()).unwrap();
    let open = text.trim_end().strip_suffix('}').unwrap().as_bytes();
    let deep = format!("\"x\":{}{}", "[".repeat(130), "]".repeat(130));
    let odd: [&[u8]; 4] = [
        b"\"annotations\":{\"a\":\"M\xfcller\"}",
        br#""annotations":{"a":"\ud83d"}"#,
        b"\"x\":1e999",
        deep.as_bytes(),
    ];
    let mut documents: Vec<Document> =
        odd.iter().map(|odd| Document::new(OCI_MANIFEST, [open, b",", odd, b"}"].concat())).collect();
    documents.push(Document::new(OCI_INDEX, r#"{"schemaVersion":2,"manifests":null}"#));
    let larder = Larder::in_front_of(&registry);
    for (n, document) in documents.iter().enumerate() {
        registry.add_manifest("library/app", document);
        registry.tag("library/app", &format!("odd{n}"), &document.digest);
        let answer = larder.get(&format!("/v2/library/app/manifests/odd{n}"));
        answer.assert_body(&document.bytes);
        assert_eq!(answer.header("content-type"), Some(document.media_type.as_str()));
        // The content is linked: no request for the layer asks the upstream for access.
        if n < odd.len() {
            larder.get(&format!("/v2/library/app/blobs/{}", image.layers[0].digest));
        }
    }
    larder.wait_idle();
    registry.down();
    for document in &documents {
        let path = format!("/v2/library/app/manifests/{}", document.digest);
        larder.get(&path).assert_body(&document.bytes);
    }
}
