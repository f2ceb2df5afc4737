//! Several endpoints of one upstream: they are tried in order, only authoritative ones are asked for tags, and the next
//! one resumes a blob.

use crate::support;

use support::content::{OCI_INDEX, OCI_MANIFEST};
use support::fixture::{MIB, TAG, image, is_gateway_error};
use support::{Fault, Gate, Image, Larder, Registry, Setup, When, eventually};

/// Two registries with the same image, and a server that uses the first before the second.
fn pair(change: impl FnOnce(Setup) -> Setup) -> (Registry, Registry, Larder, Image) {
    let (first, second, image) = (Registry::start(), Registry::start(), image());
    first.add_image("library/app", "v1", &image);
    second.add_image("library/app", "v1", &image);
    let endpoints = vec![first.url(), second.url()];
    let setup = Setup::with(&first).upstream_set("docker.io", "endpoints", endpoints);
    let larder = change(setup).start();
    (first, second, larder, image)
}

fn mirror(registry: &Registry) -> toml::Value {
    let mut table = toml::Table::new();
    table.insert("url".into(), registry.url().into());
    table.insert("authoritative".into(), false.into());
    table.into()
}

fn layer_path(image: &Image) -> String {
    format!("/v2/library/app/blobs/{}", image.layers[0].digest)
}

#[test]
fn first_healthy_endpoint_is_asked() {
    let (first, second, larder, image) = pair(|setup| setup);
    larder.get(TAG).assert_body(&image.manifest.bytes);
    larder.get(&layer_path(&image)).assert_body(&image.layers[0].bytes);
    assert!(second.requests().is_empty() && !first.requests().is_empty());
}

#[test]
fn endpoint_may_be_another_larder_server() {
    let (hub, quay, image) = (Registry::start(), Registry::start(), image());
    hub.add_image("library/app", "v1", &image);
    quay.add_image("org/tool", "v1", &image);
    let central = Setup::with(&hub).upstream("quay.io", &quay).start();
    let central_url = format!("http://{}", central.api_addr());
    let near = Setup::empty()
        .upstream_set("docker.io", "endpoints", vec![central_url.clone()])
        .upstream_set("docker.io", "default", true)
        .upstream_set("quay.io", "endpoints", vec![format!("{central_url}/quay.io")])
        .start();
    near.get(TAG).assert_body(&image.manifest.bytes);
    near.get(&layer_path(&image)).assert_body(&image.layers[0].bytes);
    near.get("/v2/org/tool/manifests/v1?ns=quay.io").assert_body(&image.manifest.bytes);
    assert_eq!(quay.count("GET", "/v2/org/tool/manifests/"), 1);
}

#[test]
fn next_endpoint_answers_for_every_kind_of_failure() {
    let faults = [
        None,
        Some(Fault::CloseConnection),
        Some(Fault::Status(500)),
        Some(Fault::Status(503)),
        Some(Fault::Status(429)),
        Some(Fault::Status(401)),
        Some(Fault::Status(403)),
        Some(Fault::Status(404)),
        Some(Fault::Answer(200, vec![("Content-Encoding".into(), "br".into())], b"x".to_vec())),
    ];
    for fault in faults {
        let (first, second, larder, image) = pair(|setup| setup);
        match fault {
            Some(fault) => first.script(When::any(), fault),
            None => first.down(),
        }
        let digest = format!("/v2/library/app/manifests/{}", image.manifest.digest);
        larder.get(TAG).assert_body(&image.manifest.bytes);
        larder.get(&digest).assert_body(&image.manifest.bytes);
        larder.get(&layer_path(&image)).assert_body(&image.layers[0].bytes);
        assert!(second.requests().len() >= 2);
    }
}

#[test]
fn hanging_endpoint_leaves_time_for_the_next() {
    let (first, _second, larder, image) = pair(|setup| setup);
    first.script(When::any(), Fault::HoldHead(Gate::new()));
    larder.get(TAG).assert_body(&image.manifest.bytes);
}

#[test]
fn absence_is_definite_only_if_all_endpoints_agree() {
    let (first, second, larder, _) = pair(|setup| setup.set("cache.negative_ttl", "0s"));
    let path = "/v2/library/app/manifests/none";
    assert_eq!(larder.get(path).status(), 404);
    assert_eq!((first.count("GET", "/none"), second.count("GET", "/none")), (1, 1));
    first.down();
    let answer = larder.get(path);
    assert!(is_gateway_error(answer.status()), "{answer:?}");
    first.up();
    second.script(When::any(), Fault::Status(500));
    let answer = larder.get(path);
    assert!(is_gateway_error(answer.status()), "{answer:?}");
}

#[test]
fn blob_resumes_from_the_next_endpoint() {
    let (first, second, larder, image) = pair(|setup| setup);
    let layer = &image.layers[0];
    let gate = Gate::new();
    first.script(When::blobs(), Fault::HoldBody(MIB, gate.clone()));
    let mut transfer = larder.api().open("GET", &layer_path(&image), &[]).unwrap();
    transfer.read_exactly(MIB - 1).unwrap();
    first.down();
    gate.open();
    transfer.finish().unwrap();
    let seen = second.seen("GET", "/blobs/");
    assert_eq!(seen.len(), 1);
    let from = seen[0].range_start().unwrap();
    assert!((1..=MIB as u64).contains(&from), "{from}");
    second.down();
    larder.wait_idle();
    larder.get(&layer_path(&image)).assert_body(&layer.bytes);
}

#[test]
fn mirror_is_asked_by_digest_but_not_for_tags() {
    let (origin, other, image) = (Registry::start(), Registry::start(), image());
    origin.add_image("library/app", "v1", &image);
    other.add_image("library/app", "v1", &image);
    let elsewhere = Image::small(9);
    other.add_image("library/app", "only-here", &elsewhere);
    let endpoints = vec![mirror(&other), origin.url().into()];
    let larder = Setup::with(&origin).upstream_set("docker.io", "endpoints", endpoints).start();
    larder.get(TAG).assert_body(&image.manifest.bytes);
    assert!(other.requests().is_empty(), "a tag is no matter for a mirror");
    larder.get(&layer_path(&image)).assert_body(&image.layers[0].bytes);
    assert_eq!((origin.count("GET", "/blobs/"), other.count("GET", "/blobs/")), (0, 1));
    assert_eq!(larder.get("/v2/library/app/manifests/only-here").status(), 404);
    origin.down();
    let answer = larder.get("/v2/library/app/manifests/only-here-too");
    assert!(is_gateway_error(answer.status()), "{answer:?}");
}

#[test]
fn lying_mirror_is_harmless() {
    let (origin, other, image) = (Registry::start(), Registry::start(), image());
    origin.add_image("library/app", "v1", &image);
    other.add_image("library/app", "v1", &image);
    other.script(When::blobs(), Fault::FlipBit(MIB));
    other.script(When::manifests(), Fault::FlipBit(5));
    let endpoints = vec![mirror(&other), origin.url().into()];
    let larder = Setup::with(&origin).upstream_set("docker.io", "endpoints", endpoints).start();
    let digest = format!("/v2/library/app/manifests/{}", image.manifest.digest);
    larder.get(&digest).assert_body(&image.manifest.bytes);
    // Some bytes were already sent, so this answer is interrupted. The next one comes from the origin.
    assert!(larder.api().try_send("GET", &layer_path(&image), &[]).is_err());
    larder.wait_idle();
    larder.get(&layer_path(&image)).assert_body(&image.layers[0].bytes);
    assert_eq!(origin.count("GET", "/blobs/"), 1);
}

#[test]
fn mirror_never_receives_the_password() {
    let (origin, other, image) = (Registry::start(), Registry::start(), image());
    origin.add_image("library/app", "v1", &image);
    for registry in [&origin, &other] {
        registry.require_auth(support::Auth::Basic("somebody".into(), "hush".into()));
    }
    let endpoints = vec![mirror(&other), origin.url().into()];
    let setup = Setup::with(&origin).upstream_set("docker.io", "endpoints", endpoints);
    let password = setup.write("password", "hush");
    let larder = setup
        .upstream_set("docker.io", "username", "somebody")
        .upstream_set("docker.io", "password_file", password.to_str().unwrap())
        .start();
    let digest = format!("/v2/library/app/manifests/{}", image.manifest.digest);
    larder.get(&digest).assert_body(&image.manifest.bytes);
    larder.get(TAG).assert_body(&image.manifest.bytes);
    assert!(!other.requests().is_empty());
    assert!(other.requests().iter().all(|seen| seen.header("authorization").is_none()));
}

#[test]
fn layout_can_precede_a_registry() {
    let (registry, image) = (Registry::start(), image());
    registry.add_image("library/app", "v1", &image);
    let other = Image::small(4);
    registry.add_image("library/app", "v2", &other);
    let setup = Setup::with(&registry);
    let folder = setup.folder().join("seeds/library/app");
    let blobs = folder.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let hex = |digest: &str| digest.strip_prefix("sha256:").unwrap().to_owned();
    std::fs::write(blobs.join(hex(&image.manifest.digest)), &*image.manifest.bytes).unwrap();
    for blob in image.blobs() {
        std::fs::write(blobs.join(hex(&blob.digest)), &*blob.bytes).unwrap();
    }
    let index = serde_json::json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [{
        "mediaType": OCI_MANIFEST, "digest": image.manifest.digest, "size": image.manifest.bytes.len(),
        "annotations": { "org.opencontainers.image.ref.name": "v1" },
    }]});
    std::fs::write(folder.join("index.json"), index.to_string()).unwrap();
    std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let seeds = format!("oci://{}", setup.folder().join("seeds").display());
    let larder = setup.upstream_set("docker.io", "endpoints", vec![seeds, registry.url()]).start();
    larder.get(TAG).assert_body(&image.manifest.bytes);
    larder.get(&layer_path(&image)).assert_body(&image.layers[0].bytes);
    assert!(registry.requests().is_empty(), "all of it is in the layout");
    larder.get("/v2/library/app/manifests/v2").assert_body(&other.manifest.bytes);
}

#[test]
fn recovered_endpoint_is_asked_again() {
    let (first, second, larder, image) = pair(|setup| setup.set("cache.tag_ttl", "0s"));
    first.down();
    for _ in 0..10 {
        larder.get(TAG).assert_body(&image.manifest.bytes);
    }
    assert_eq!(larder.counter("larder_upstream_endpoint_open", &[("endpoint", &first.url())]), 1);
    assert_eq!(larder.counter("larder_upstream_endpoint_open", &[("endpoint", &second.url())]), 0);
    first.up();
    first.forget_requests();
    eventually("the registry gets a request", || {
        larder.get(TAG).assert_body(&image.manifest.bytes);
        !first.requests().is_empty()
    });
}

#[test]
fn lists_come_from_authoritative_endpoints() {
    let (first, second, image) = (Registry::start(), Registry::start(), image());
    let (mirrored, statement) = (Registry::start(), Image::artifact(1, &image.manifest));
    for registry in [&mirrored, &first, &second] {
        registry.offer_referrers(true);
        registry.add_image("library/app", "v1", &image);
    }
    second.add_image("library/app", "v2", &statement);
    let endpoints = vec![mirror(&mirrored), first.url().into(), second.url().into()];
    let larder = Setup::with(&first)
        .upstream_set("docker.io", "endpoints", endpoints)
        .set("cache.tags_list", "upstream")
        .set("cache.tag_ttl", "0s")
        .set("cache.negative_ttl", "0s")
        .start();
    let referrers = format!("/v2/library/app/referrers/{}", image.manifest.digest);
    let listed = || {
        let tags = larder.get("/v2/library/app/tags/list").json()["tags"].clone();
        (tags, larder.get(&referrers).json()["manifests"].as_array().unwrap().len())
    };
    // The answer of an authoritative endpoint is final, also a 404.
    assert_eq!(listed(), (serde_json::json!(["v1"]), 0));
    assert!(second.requests().is_empty());
    // After an error, the next endpoint is tried.
    first.offer_referrers(false);
    first.script(When::any().path("/tags/list"), Fault::Status(500));
    assert_eq!(listed(), (serde_json::json!(["v1", "v2"]), 1));
    first.down();
    assert_eq!(listed(), (serde_json::json!(["v1", "v2"]), 1));
    assert!(mirrored.requests().is_empty());
}

#[test]
fn failed_list_does_not_affect_images() {
    let (first, second, larder, image) = pair(|setup| setup.set("cache.tags_list", "upstream"));
    for registry in [&first, &second] {
        registry.script(When::any().path("/tags/list"), Fault::Status(500));
        registry.script(When::any().path("/referrers/"), Fault::Status(504));
    }
    for n in 0..4 {
        assert!(is_gateway_error(larder.get("/v2/library/app/tags/list").status()));
        let referrers = format!("/v2/library/app/referrers/sha256:{}", n.to_string().repeat(64));
        assert!(is_gateway_error(larder.get(&referrers).status()));
    }
    first.forget_requests();
    second.forget_requests();
    larder.get(TAG).assert_body(&image.manifest.bytes);
    assert!(!first.requests().is_empty() && second.requests().is_empty());
}
