//! Manifests: freshness of tags, children of indexes, media types, variants, links, and what is remembered of a 404.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use serde_json::json;
use support::content::{DOCKER_LIST, DOCKER_MANIFEST, DOCKER_SCHEMA1, OCI_INDEX, OCI_MANIFEST};
use support::{Blob, Document, Fault, Gate, Image, Index, Larder, Registry, Setup, When, eventually};

const TAG: &str = "/v2/library/app/manifests/v1";
const REVALIDATED: &str = "larder; hit; detail=revalidated";
const MISS: &str = "larder; fwd=uri-miss; stored; detail=miss";

fn with_image() -> (Registry, Image) {
    let registry = Registry::start();
    let image = Image::small(1);
    registry.add_image("library/app", "v1", &image);
    (registry, image)
}

/// What the upstream was asked for manifests, such as `["HEAD v1", "GET v1"]`.
fn asked(registry: &Registry) -> Vec<String> {
    let manifests = registry.requests().into_iter().filter(|seen| seen.path.contains("/manifests/"));
    manifests.map(|seen| format!("{} {}", seen.method, seen.path.rsplit('/').next().unwrap())).collect()
}

#[test]
fn a_fresh_tag_asks_nobody() {
    let (registry, image) = with_image();
    let larder = Setup::with(&registry).set("cache.tag_ttl", "1h").start();
    larder.get(TAG).is_ok_with(&image.manifest.bytes);
    larder.settle();
    registry.forget_requests();
    for _ in 0..3 {
        larder.get(TAG).is_outcome("larder; hit");
        larder.head(TAG).is_outcome("larder; hit");
    }
    assert_eq!(asked(&registry), Vec::<String>::new());
}

#[test]
fn an_unchanged_tag_costs_one_head() {
    let (registry, image) = with_image();
    let larder = Setup::with(&registry).set("cache.tag_ttl", "0s").start();
    larder.get(TAG).is_ok_with(&image.manifest.bytes);
    for n in 1..=3 {
        registry.forget_requests();
        let answer = if n == 2 { larder.head(TAG) } else { larder.get(TAG) };
        answer.is_outcome(REVALIDATED);
        assert_eq!(asked(&registry), ["HEAD v1"], "round {n}");
    }
}

#[test]
fn a_moved_tag_is_fetched_and_the_old_content_stays() {
    let (registry, old) = with_image();
    let larder = Setup::with(&registry).set("cache.tag_ttl", "0s").start();
    larder.get(TAG).is_ok_with(&old.manifest.bytes);
    let new = Image::docker(2, "linux/amd64", vec![Blob::random(2, 100)]);
    registry.add_image("library/app", "v1", &new);
    registry.forget_requests();
    let answer = larder.get(TAG);
    answer.is_ok_with(&new.manifest.bytes);
    answer.is_outcome(MISS);
    assert_eq!(answer.header("content-type"), Some(DOCKER_MANIFEST));
    assert_eq!(asked(&registry)[0], "HEAD v1");
    assert_eq!(registry.count("GET", "/manifests/"), 1);
    registry.down();
    let digest = &old.manifest.digest;
    larder.get(&format!("/v2/library/app/manifests/{digest}")).is_ok_with(&old.manifest.bytes);
}

#[test]
fn a_tag_that_moves_to_known_content_is_believed_when_it_says_so() {
    let (registry, one) = with_image();
    let two = Image::small(2);
    registry.add_image("library/app", "v2", &two);
    let larder = Setup::with(&registry).set("cache.tag_ttl", "0s").start();
    larder.get(TAG).is_ok_with(&one.manifest.bytes);
    larder.get("/v2/library/app/manifests/v2").is_ok_with(&two.manifest.bytes);
    registry.tag("library/app", "v1", &two.manifest.digest);
    larder.get(TAG).is_ok_with(&two.manifest.bytes);
    registry.tag("library/app", "v1", &one.manifest.digest);
    larder.get(TAG).is_ok_with(&one.manifest.bytes);
}

#[test]
fn an_upstream_without_head_or_digest_is_asked_by_get() {
    for fault in [Fault::Status(405), Fault::Without("Docker-Content-Digest")] {
        let (registry, image) = with_image();
        registry.script(When::manifests().method("HEAD"), fault);
        let larder = Setup::with(&registry).set("cache.tag_ttl", "0s").start();
        for _ in 0..2 {
            larder.get(TAG).is_ok_with(&image.manifest.bytes);
        }
        let new = Image::small(2);
        registry.add_image("library/app", "v1", &new);
        larder.get(TAG).is_ok_with(&new.manifest.bytes);
    }
}

#[test]
fn by_digest_nobody_is_asked_again() {
    let (registry, image) = with_image();
    let larder = Setup::with(&registry).set("cache.tag_ttl", "0s").start();
    let path = format!("/v2/library/app/manifests/{}", image.manifest.digest);
    larder.get(&path).is_ok_with(&image.manifest.bytes);
    larder.settle();
    registry.forget_requests();
    for _ in 0..3 {
        larder.get(&path).is_outcome("larder; hit");
    }
    assert_eq!(registry.requests().len(), 0);
}

#[test]
fn one_revalidation_serves_all_who_wait() {
    let (registry, image) = with_image();
    let larder = Setup::with(&registry).set("cache.tag_ttl", "0s").start();
    larder.get(TAG);
    registry.forget_requests();
    let gate = Gate::new();
    registry.script(When::manifests().method("HEAD").times(1), Fault::HoldHead(gate.clone()));
    let (client, bytes) = (larder.api(), &image.manifest.bytes);
    std::thread::scope(|scope| {
        let first = scope.spawn(move || client.get(TAG));
        gate.wait_reached(1);
        let others: Vec<_> = (0..8).map(|_| scope.spawn(move || client.get(TAG))).collect();
        eventually("all nine are connected", || larder.counter("larder_connections", &[]) >= 9);
        gate.open();
        first.join().unwrap().is_ok_with(bytes);
        for other in others {
            other.join().unwrap().is_ok_with(bytes);
        }
    });
    let heads = registry.count("HEAD", "/manifests/v1");
    // Who came after the answer asks for himself; nine questions would mean that nobody waited.
    assert!((1..=3).contains(&heads), "{heads} HEADs");
    assert_eq!(registry.count("GET", "/manifests/"), 0);
}

#[test]
fn many_clients_one_cold_tag_one_get() {
    let (registry, image) = with_image();
    let gate = Gate::new();
    registry.script(When::manifests(), Fault::HoldHead(gate.clone()));
    let larder = Larder::before(&registry);
    let client = larder.api();
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..16).map(|_| scope.spawn(move || client.get(TAG))).collect();
        gate.wait_reached(1);
        eventually("all are connected", || larder.counter("larder_connections", &[]) >= 16);
        gate.open();
        for one in all {
            one.join().unwrap().is_ok_with(&image.manifest.bytes);
        }
    });
    assert_eq!(registry.count("GET", "/manifests/v1"), 1);
}

#[test]
fn the_whole_tree_is_there_when_the_upstream_is_gone() {
    let registry = Registry::start();
    let nested = Index::over(OCI_INDEX, vec![Image::small(90)], vec![Index::nested(30), Index::docker(60)]);
    let artifact = Image::artifact(5, &nested.document);
    let trees = [
        ("oci", Index::oci(1)),
        ("docker", Index::docker(10)),
        ("nested", Index::nested(20)),
        ("deep", nested),
    ];
    for (tag, index) in &trees {
        registry.add_index("library/app", tag, index);
    }
    registry.add_image("library/app", "artifact", &artifact);
    let larder = Setup::with(&registry).set("cache.tag_ttl", "1h").start();
    for (tag, index) in &trees {
        let answer = larder.get(&format!("/v2/library/app/manifests/{tag}"));
        answer.is_ok_with(&index.document.bytes);
    }
    larder.get("/v2/library/app/manifests/artifact").is_ok_with(&artifact.manifest.bytes);
    // Every child arrives without any client asking.
    for (_, index) in &trees {
        for document in index.documents().into_iter().skip(1) {
            registry.wait_for(1, "GET", &document.digest);
        }
    }
    larder.settle();
    registry.down();
    for (_, index) in &trees {
        for document in index.documents() {
            let answer = larder.get(&format!("/v2/library/app/manifests/{}", document.digest));
            answer.is_ok_with(&document.bytes);
            answer.is_outcome("larder; hit");
            assert_eq!(answer.header("content-type"), Some(document.media_type.as_str()));
            assert_eq!(answer.header("docker-content-digest"), Some(document.digest.as_str()));
        }
    }
}

#[test]
fn children_survive_a_restart() {
    let registry = Registry::start();
    let index = Index::nested(1);
    registry.add_index("library/app", "v1", &index);
    let mut larder = Larder::before(&registry);
    larder.get(TAG).is_ok_with(&index.document.bytes);
    for document in &index.documents()[1..] {
        registry.wait_for(1, "GET", &document.digest);
    }
    larder.settle();
    larder.terminate();
    assert!(larder.wait_exit().success());
    registry.down();
    larder.restart();
    for document in index.documents() {
        larder.get(&format!("/v2/library/app/manifests/{}", document.digest)).is_ok_with(&document.bytes);
    }
    larder.get(TAG).is_ok_with(&index.document.bytes);
}

#[test]
fn children_can_be_left_to_clients() {
    let registry = Registry::start();
    let index = Index::oci(1);
    registry.add_index("library/app", "v1", &index);
    let larder = Setup::with(&registry).set("prefetch.children", false).start();
    larder.get(TAG).is_ok_with(&index.document.bytes);
    larder.settle();
    assert_eq!(registry.count("GET", "/manifests/sha256:"), 0);
    let child = &index.images[1].manifest;
    larder.get(&format!("/v2/library/app/manifests/{}", child.digest)).is_ok_with(&child.bytes);
}

#[test]
fn a_missing_child_spoils_nothing() {
    let registry = Registry::start();
    let index = Index::oci(1);
    registry.add_index("library/app", "v1", &index);
    registry.script(When::manifests().path(&index.images[0].manifest.digest), Fault::Status(404));
    let larder = Larder::before(&registry);
    larder.get(TAG).is_ok_with(&index.document.bytes);
    let other = &index.images[1].manifest;
    registry.wait_for(1, "GET", &other.digest);
    larder.settle();
    registry.down();
    larder.get(TAG).is_ok_with(&index.document.bytes);
    larder.get(&format!("/v2/library/app/manifests/{}", other.digest)).is_ok_with(&other.bytes);
}

#[test]
fn a_chain_of_indexes_has_an_end_for_us() {
    let registry = Registry::start();
    let mut index = Index::oci(1);
    for _ in 0..30 {
        index = Index::over(OCI_INDEX, Vec::new(), vec![index]);
    }
    registry.add_index("library/app", "v1", &index);
    let larder = Larder::before(&registry);
    larder.get(TAG).is_ok_with(&index.document.bytes);
    registry.wait_for(3, "GET", "/manifests/");
    larder.settle();
    let ahead = registry.count("GET", "/manifests/sha256:");
    assert!((2..30).contains(&ahead), "{ahead} fetched ahead");
    // What lies deeper is fetched when somebody asks for it.
    for document in index.documents() {
        larder.get(&format!("/v2/library/app/manifests/{}", document.digest)).is_ok_with(&document.bytes);
    }
}

#[test]
fn a_wide_index_of_nothing_does_no_harm() {
    let registry = Registry::start();
    let manifests: Vec<_> = (0..500)
        .map(|n| json!({ "mediaType": OCI_MANIFEST, "size": 10, "digest": Blob::new(format!("{n}")).digest }))
        .collect();
    let value = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
    let document = Document::json(OCI_INDEX, &value);
    registry.add_manifest("library/app", &document);
    registry.tag("library/app", "v1", &document.digest);
    let larder = Larder::before(&registry);
    larder.get(TAG).is_ok_with(&document.bytes);
    larder.get(TAG).is_ok_with(&document.bytes);
    larder.settle();
}

#[test]
fn the_upstream_sees_our_accept_and_not_the_clients() {
    let (registry, image) = with_image();
    let larder = Larder::before(&registry);
    let headers =
        [("Accept", OCI_MANIFEST), ("Accept", "application/json;q=0.5, */*"), ("User-Agent", "x/1")];
    larder.api().send("GET", TAG, &headers).is_ok_with(&image.manifest.bytes);
    let seen = registry.seen("GET", "/manifests/");
    let accept = seen[0].header("accept").unwrap();
    for wanted in [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST] {
        assert!(accept.contains(wanted), "{accept}");
    }
    assert!(!accept.contains("*/*") && !accept.contains("docker.distribution.manifest.v1+"), "{accept}");
    assert!(seen[0].header("user-agent").is_some_and(|agent| agent.starts_with("larder/")), "{seen:?}");
}

/// A registry that gives the linux/amd64 child to a client that takes no index, as Docker Hub does.
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
fn a_client_that_takes_no_index_gets_the_upstreams_variant() {
    let (registry, index) = converting();
    let larder = Larder::before(&registry);
    let old = || larder.api().send("GET", TAG, &[("Accept", DOCKER_MANIFEST)]);
    let child = &index.images[0].manifest;
    larder.get(TAG).is_ok_with(&index.document.bytes);
    let answer = old();
    answer.is_ok_with(&child.bytes);
    assert_eq!(answer.header("content-type"), Some(DOCKER_MANIFEST));
    assert_eq!(answer.header("docker-content-digest"), Some(child.digest.as_str()));
    larder.get(TAG).is_ok_with(&index.document.bytes);
    registry.forget_requests();
    old().is_ok_with(&child.bytes);
    assert_eq!(registry.count("GET", "/v1"), 0, "the variant is kept");
    let by_digest = format!("/v2/library/app/manifests/{}", index.document.digest);
    larder.api().send("GET", &by_digest, &[("Accept", OCI_MANIFEST)]).is_ok_with(&index.document.bytes);
}

#[test]
fn the_variant_comes_first_without_harm() {
    let (registry, index) = converting();
    let larder = Larder::before(&registry);
    let answer = larder.api().send("GET", TAG, &[("Accept", DOCKER_MANIFEST)]);
    answer.is_ok_with(&index.images[0].manifest.bytes);
    larder.get(TAG).is_ok_with(&index.document.bytes);
}

#[test]
fn types_are_stored_as_the_rules_say() {
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
    for (n, (told, value, _)) in cases.iter().enumerate() {
        let document = Document::json(told, value);
        registry.add_manifest("library/app", &document);
        registry.add_manifest(&format!("library/app{n}"), &document);
        registry.tag(&format!("library/app{n}"), "v1", &document.digest);
    }
    for (n, (told, value, wanted)) in cases.iter().enumerate() {
        // Each in a larder of its own: the same bytes have one type for ever.
        let larder = Larder::before(&registry);
        for _ in 0..2 {
            let answer = larder.get(&format!("/v2/library/app{n}/manifests/v1"));
            answer.is_ok_with(&Document::json(told, value).bytes);
            assert_eq!(answer.header("content-type"), Some(*wanted), "told {told}: {value}");
        }
    }
}

#[test]
fn a_type_that_is_not_told_is_detected() {
    let (registry, image) = with_image();
    registry.script(When::manifests(), Fault::Without("Content-Type"));
    let larder = Larder::before(&registry);
    let answer = larder.get(TAG);
    answer.is_ok_with(&image.manifest.bytes);
    assert_eq!(answer.header("content-type"), Some(OCI_MANIFEST));
}

#[test]
fn what_can_be_read_in_two_ways_is_refused() {
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
    let larder = Larder::before(&registry);
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
        // Nothing of it was kept: the upstream was asked each time.
        assert_eq!(registry.count("GET", "/manifests/"), 4, "{text}");
    }
}

#[test]
fn schema1_is_refused_in_plain_words() {
    let registry = Registry::start();
    let signed =
        r#"{"schemaVersion":1,"name":"library/app","tag":"v1","fsLayers":[],"history":[],"signatures":[{}]}"#;
    let document = Document::new(DOCKER_SCHEMA1, signed);
    registry.add_manifest("library/app", &document);
    registry.tag("library/app", "v1", &document.digest);
    let larder = Larder::before(&registry);
    let answer = larder.get(TAG);
    assert!([404, 502].contains(&answer.status()), "{answer:?}");
    assert!(answer.text().contains("schema 1"), "{}", answer.text());
}

#[test]
fn a_manifest_too_large_is_refused() {
    let registry = Registry::start();
    let padding = "x".repeat(9 << 20);
    let text = json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": {}, "layers": [],
        "annotations": { "padding": padding } });
    let document = Document::new(OCI_MANIFEST, text.to_string());
    registry.add_manifest("library/app", &document);
    registry.tag("library/app", "v1", &document.digest);
    let larder = Larder::before(&registry);
    assert_eq!(larder.get(TAG).status(), 502);
    registry.script(When::manifests(), Fault::Chunked);
    assert_eq!(larder.get(TAG).status(), 502);
}

#[test]
fn a_manifest_of_four_mebibytes_is_served() {
    let registry = Registry::start();
    let padding = "x".repeat((4 << 20) - 1000);
    let text = json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": {}, "layers": [],
        "annotations": { "padding": padding } });
    let document = Document::new(OCI_MANIFEST, text.to_string());
    registry.add_manifest("library/app", &document);
    registry.tag("library/app", "v1", &document.digest);
    let larder = Larder::before(&registry);
    for _ in 0..2 {
        larder.get(TAG).is_ok_with(&document.bytes);
    }
}

#[test]
fn a_definite_404_is_remembered_for_a_while() {
    let (registry, image) = with_image();
    let larder = Setup::with(&registry).set("cache.negative_ttl", "1h").start();
    let blob = format!("/v2/library/app/blobs/{}", Blob::new("never there").digest);
    for (path, code) in [
        ("/v2/library/app/manifests/none".to_owned(), "MANIFEST_UNKNOWN"),
        (format!("/v2/library/app/manifests/{}", Blob::new("none").digest), "MANIFEST_UNKNOWN"),
        (blob, "BLOB_UNKNOWN"),
    ] {
        registry.forget_requests();
        larder.get(&path).is_error(404, code);
        let first = registry.requests().len();
        assert!(first >= 1);
        for _ in 0..3 {
            larder.get(&path).is_error(404, code);
            assert_eq!(larder.head(&path).status(), 404);
        }
        assert_eq!(registry.requests().len(), first, "{path}");
    }
    // The tag that exists is none of that.
    larder.get(TAG).is_ok_with(&image.manifest.bytes);
}

#[test]
fn a_404_is_forgotten_in_time() {
    let (registry, image) = with_image();
    let larder = Setup::with(&registry).set("cache.negative_ttl", "0s").start();
    let path = "/v2/library/app/manifests/soon";
    larder.get(path).is_error(404, "MANIFEST_UNKNOWN");
    registry.tag("library/app", "soon", &image.manifest.digest);
    larder.get(path).is_ok_with(&image.manifest.bytes);
}

#[test]
fn a_tag_that_is_gone_is_gone_after_its_time() {
    for (setting, status) in [("miss", 404), ("stale", 200)] {
        let (registry, image) = with_image();
        let setup = Setup::with(&registry).set("cache.tag_ttl", "0s").set("cache.negative_ttl", "0s");
        let larder = setup.set("cache.on_upstream_404", setting).start();
        larder.get(TAG).is_ok_with(&image.manifest.bytes);
        registry.untag("library/app", "v1");
        assert_eq!(larder.get(TAG).status(), status, "{setting}");
        // No content is lost with it.
        let path = format!("/v2/library/app/manifests/{}", image.manifest.digest);
        larder.get(&path).is_outcome("larder; hit");
    }
}

#[test]
fn content_is_served_only_where_it_belongs() {
    let registry = Registry::start();
    let private = Index::oci(1);
    registry.add_index("team/private", "v1", &private);
    registry.add_image("library/public", "v1", &Image::small(3));
    let larder = Setup::with(&registry).set("cache.negative_ttl", "0s").start();
    larder.get("/v2/team/private/manifests/v1");
    let layer = &private.images[0].layers[0];
    let child = &private.images[0].manifest;
    larder.get(&format!("/v2/team/private/blobs/{}", layer.digest)).is_ok_with(&layer.bytes);
    larder.settle();
    let blob = format!("/v2/library/public/blobs/{}", layer.digest);
    let manifest = format!("/v2/library/public/manifests/{}", child.digest);
    for method in ["GET", "HEAD"] {
        assert_eq!(larder.api().send(method, &blob, &[]).status(), 404);
        assert_eq!(larder.api().send(method, &manifest, &[]).status(), 404);
    }
    // The upstream cannot be asked: still not.
    registry.down();
    for path in [&blob, &manifest] {
        let answer = larder.get(path);
        assert!([502, 503, 504].contains(&answer.status()), "{answer:?}");
    }
    // The upstream says that it belongs there too: no byte of it is fetched again.
    registry.up();
    registry.add_blob("library/public", layer);
    registry.add_manifest("library/public", child);
    registry.forget_requests();
    eventually("the upstream is asked again", || larder.get(&blob).status() == 200);
    larder.get(&blob).is_ok_with(&layer.bytes);
    larder.get(&manifest).is_ok_with(&child.bytes);
    assert_eq!(registry.count("HEAD", &layer.digest), 1);
    assert_eq!(registry.count("GET", &layer.digest), 0);
    registry.down();
    larder.get(&blob).is_outcome("larder; hit");
}

#[test]
fn a_repositorys_manifests_open_its_blobs_and_no_others() {
    let registry = Registry::start();
    let image = Image::small(1);
    registry.add_image("library/one", "v1", &image);
    registry.add_image("library/two", "v1", &image);
    let larder = Larder::before(&registry);
    let layer = &image.layers[0];
    larder.get("/v2/library/one/manifests/v1");
    larder.get(&format!("/v2/library/one/blobs/{}", layer.digest)).is_ok_with(&layer.bytes);
    larder.settle();
    // Its own manifest says that the layer belongs to it: nobody need be asked.
    larder.get("/v2/library/two/manifests/v1").is_ok_with(&image.manifest.bytes);
    larder.settle();
    registry.forget_requests();
    larder.get(&format!("/v2/library/two/blobs/{}", layer.digest)).is_ok_with(&layer.bytes);
    assert_eq!(registry.count("GET", "/blobs/"), 0);
}
