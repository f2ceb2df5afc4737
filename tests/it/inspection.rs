//! `ls`, `tags`, `inspect` and `check`: the same report from a running server and from a store without a server.

use crate::support;

use serde_json::{Value, json};
use support::content::{DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use support::fixture::PartlyCached;
use support::verb::{self, Output};
use support::{Document, Image, Larder, Registry, Setup};

impl PartlyCached {
    /// Runs a verb with the running server, then offline on its store, and asserts equal reports.
    #[track_caller]
    fn online_and_offline(self, arguments: &[&str]) -> Output {
        let online = verb::online(&self.larder, arguments);
        let mut larder = self.larder;
        larder.stop();
        let offline = verb::offline(larder.setup(), arguments);
        assert_eq!(online.code, offline.code, "{online:?} {offline:?}");
        if arguments.contains(&"--json") {
            assert_eq!(without_time(online.json()), without_time(offline.json()));
        }
        assert_eq!(self.registry.requests().len(), 0, "the upstream got no request");
        online
    }
}

/// Returns a report without its time stamps.
fn without_time(mut report: Value) -> Value {
    if let Some(table) = report.as_object_mut() {
        table.remove("now");
    }
    report
}

#[test]
fn cached_content_is_listed() {
    let world = PartlyCached::new();
    let digest = world.index.document.digest.clone();
    let report = world.online_and_offline(&["ls", "--json"]).exited_with(0).json();
    let images = report["images"].as_array().unwrap();
    assert_eq!(images.len(), 2, "{report}");
    let multi = &images[0];
    assert_eq!((&multi["repository"], &multi["tag"]), (&json!("docker.io/library/multi"), &json!("v1")));
    assert_eq!((&multi["digest"], &multi["media_type"]), (&json!(digest), &json!(OCI_INDEX)));
    assert_eq!((&multi["freshness"], &multi["complete"]), (&json!("fresh"), &json!("some")));
    let platforms: Vec<_> = multi["platforms"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| (it["platform"].clone(), it["complete"].clone()))
        .collect();
    assert_eq!(platforms, [(json!("linux/amd64"), json!(true)), (json!("linux/arm64"), json!(false))]);
    assert!(multi["size"].as_u64().unwrap() > 5000 && multi["last_pull"].is_u64(), "{multi}");
    let single = &images[1];
    assert_eq!((&single["media_type"], &single["complete"]), (&json!(DOCKER_MANIFEST), &json!("none")));
}

#[test]
fn tables_are_readable() {
    let world = PartlyCached::new();
    let text = verb::online(&world.larder, &["ls"]).exited_with(0).stdout;
    assert!(text.lines().next().unwrap().starts_with("REPOSITORY"), "{text}");
    assert!(text.contains("docker.io/library/multi") && text.contains("linux/amd64 (+1)"), "{text}");
    assert!(!text.contains('\u{1b}'), "no colour where it is no terminal: {text:?}");
    let text = verb::online(&world.larder, &["tags", "multi"]).exited_with(0).stdout;
    assert!(text.starts_with("TAG") && text.lines().count() == 2, "{text}");
    let none = verb::online(&world.larder, &["tags", "absent"]).exited_with(5);
    assert!(none.stderr.contains("nothing of docker.io/library/absent is cached"), "{none:?}");
}

#[test]
fn manifest_pulled_by_digest_has_its_own_row() {
    let registry = Registry::start();
    let image = Image::small(5);
    registry.add_image("org/app", "v1", &image);
    let larder = Larder::in_front_of(&registry);
    larder
        .get(&format!("/v2/org/app/manifests/{}", image.manifest.digest))
        .assert_body(&image.manifest.bytes);
    let report = verb::online(&larder, &["ls", "org/app", "--json"]).exited_with(0).json();
    let row = &report["images"][0];
    assert_eq!((&row["tag"], &row["freshness"]), (&Value::Null, &json!("immutable")));
    assert_eq!(row["digest"], image.manifest.digest);
    verb::online(&larder, &["tags", "org/app"]).exited_with(5);
}

#[test]
fn platform_without_blobs_is_reported() {
    let world = PartlyCached::new();
    let arm = world.index.images[1].clone();
    let ran = world
        .online_and_offline(&["inspect", "multi:v1", "--platform", "linux/arm64", "--json"])
        .exited_with(0);
    let report = ran.json();
    assert_eq!(report["digest"], arm.manifest.digest);
    assert_eq!(report["platform"], "linux/arm64");
    assert_eq!(report["complete"], false);
    let says = report["says"].as_str().unwrap();
    assert!(
        says.starts_with("linux/arm64: 2 of its 2 blobs (")
            && says.ends_with(") are not cached; complete: linux/amd64"),
        "{says}"
    );
    let missing: Vec<_> =
        report["missing"].as_array().unwrap().iter().map(|it| it["digest"].clone()).collect();
    assert_eq!(missing, arm.blobs().map(|blob| json!(blob.digest)).collect::<Vec<_>>());
    assert_eq!(report["raw"].as_str().unwrap().as_bytes(), &**arm.manifest.bytes);
}

#[test]
fn inspect_prints_documents_byte_for_byte() {
    let world = PartlyCached::new();
    let (larder, index) = (&world.larder, &world.index);
    let raw = |arguments: &[&str]| verb::online(larder, arguments).exited_with(0).stdout.into_bytes();
    assert_eq!(raw(&["inspect", "multi:v1", "--raw"]), **index.document.bytes);
    assert_eq!(raw(&["inspect", "docker.io/library/multi:v1", "--index", "--raw"]), **index.document.bytes);
    let amd = &index.images[0];
    assert_eq!(raw(&["inspect", "multi:v1", "--platform", "linux/x86_64", "--raw"]), **amd.manifest.bytes);
    let by_digest = format!("multi@{}", amd.manifest.digest);
    assert_eq!(raw(&["inspect", &by_digest, "--raw"]), **amd.manifest.bytes);
    assert_eq!(
        raw(&["inspect", "multi:v1", "--platform", "linux/amd64", "--config", "--raw"]),
        **amd.config.bytes
    );
    assert_eq!(raw(&["inspect", "multi:v1", "--media-type", OCI_INDEX, "--raw"]), **index.document.bytes);
    let oci = ["inspect", "multi:v1", "--oci", "--platform", "linux/amd64", "--raw"];
    assert_eq!(raw(&oci), **amd.manifest.bytes);
}

#[test]
fn missing_platform_error_lists_the_available_ones() {
    let world = PartlyCached::new();
    let larder = &world.larder;
    let output = |arguments: &[&str], code: i32| verb::online(larder, arguments).exited_with(code).stderr;
    let text = output(&["inspect", "multi:v1", "--platform", "linux/s390x"], 5);
    assert!(text.contains("no image for linux/s390x; available: linux/amd64, linux/arm64"), "{text}");
    let text = output(&["inspect", "org/single:2", "--oci"], 5);
    assert!(text.contains(DOCKER_MANIFEST) && text.contains("does not convert"), "{text}");
    let text =
        output(&["inspect", "multi:v1", "--platform", "linux/amd64", "--media-type", DOCKER_MANIFEST], 5);
    assert!(text.contains(OCI_MANIFEST), "{text}");
    assert!(output(&["inspect", "multi:v2"], 5).contains("docker.io/library/multi:v2 is not cached"));
    assert!(output(&["inspect", "org/single:2", "--index"], 1).contains("not an index"));
    assert!(output(&["inspect", "multi:v1", "--config"], 1).contains("linux/amd64, linux/arm64"));
    assert!(output(&["inspect", "multi:v1", "--platform", "arm64"], 1).contains("write os/arch"));
    assert!(output(&["inspect", "Multi:v1"], 1).contains("not a repository name"));
    assert!(output(&["inspect", "multi@sha256:12"], 1).contains("not a digest"));
}

#[test]
fn unknown_media_type_is_shown_unchanged() {
    let registry = Registry::start();
    let own = "application/vnd.example.experiment.v1+json";
    let document = Document::new(own, format!(r#"{{"target": {{"any":1, "also":2}}, "mediaType":"{own}"}}"#));
    registry.add_manifest("org/odd", &document);
    registry.tag("org/odd", "x", &document.digest);
    let larder = Larder::in_front_of(&registry);
    larder.get("/v2/org/odd/manifests/x").assert_body(&document.bytes);
    let report = verb::online(&larder, &["inspect", "org/odd:x", "--json"]).exited_with(0).json();
    assert_eq!(report["media_type"], own);
    assert_eq!(report["document"]["target"]["any"], 1);
    let text = verb::online(&larder, &["inspect", "org/odd:x"]).exited_with(0).stdout;
    let order = ["\"target\"", "\"any\"", "\"also\"", "\"mediaType\""].map(|key| text.find(key).unwrap());
    assert!(order.is_sorted(), "{text}");
    let text = verb::online(&larder, &["ls"]).exited_with(0).stdout;
    assert!(text.contains(own), "{text}");
}

#[test]
fn check_names_missing_content() {
    let world = PartlyCached::new();
    let arm = world.index.images[1].clone();
    let (larder, index) = (&world.larder, &world.index);
    let check =
        |arguments: &[&str]| verb::online(larder, &[&["check", "--offline", "--json"], arguments].concat());
    let good = check(&["multi:v1", "--platform", "linux/amd64"]).exited_with(0).json();
    assert_eq!(good["pullable"], true, "{good}");
    let bad = check(&["multi:v1", "--platform", "linux/arm64"]).exited_with(4).json();
    let missing = bad["images"][0]["missing"].as_array().unwrap();
    let digests: Vec<_> = missing.iter().map(|it| it["digest"].clone()).collect();
    assert_eq!(digests, arm.blobs().map(|blob| json!(blob.digest)).collect::<Vec<_>>());
    assert!(missing.iter().all(|it| it["kind"] == "blob" && it["platform"] == "linux/arm64"), "{bad}");
    let by_digest = format!("multi:any@{}", index.document.digest);
    check(&[&by_digest, "--platform", "linux/amd64"]).exited_with(0);
    let several = check(&["multi:v1", "gone:1", "--all-platforms"]).exited_with(4).json();
    assert_eq!(several["images"][1]["reason"], "the tag is not cached");
    let none = check(&["multi:v1", "--platform", "linux/s390x"]).exited_with(4).json();
    assert!(none["images"][0]["reason"].as_str().unwrap().contains("linux/amd64, linux/arm64"), "{none}");
}

#[test]
fn check_predicts_the_pull() {
    let world = PartlyCached::new();
    world.registry.down();
    let (larder, index) = (&world.larder, &world.index);
    for image in &index.images {
        let config: Value = serde_json::from_slice(&image.config.bytes).unwrap();
        let platform = format!("linux/{}", config["architecture"].as_str().unwrap());
        let pulled = image
            .blobs()
            .all(|blob| larder.get(&format!("/v2/library/multi/blobs/{}", blob.digest)).status() == 200);
        let ran = verb::online(larder, &["check", "--offline", "multi:v1", "--platform", &platform]);
        assert_eq!(ran.code == 0, pulled, "{platform}: {ran:?}");
    }
}

#[test]
fn check_fails_for_a_tag_past_stale_if_error() {
    let registry = Registry::start();
    let image = Image::small(5);
    registry.add_image("org/app", "v1", &image);
    let setup = Setup::with(&registry).set("cache.tag_ttl", "0s").set("cache.stale_if_error", "0s");
    let larder = setup.start();
    larder.get("/v2/org/app/manifests/v1").assert_body(&image.manifest.bytes);
    for blob in image.blobs() {
        larder.get(&format!("/v2/org/app/blobs/{}", blob.digest)).assert_body(&blob.bytes);
    }
    larder.wait_idle();
    let ran = verb::online(&larder, &["check", "--offline", "org/app:v1"]).exited_with(4);
    assert!(ran.stdout.contains("stale_if_error"), "{ran:?}");
    // A digest is never too old, but a list of referrers is.
    let by_digest = format!("org/app@{}", image.manifest.digest);
    let ran = verb::online(&larder, &["check", "--offline", &by_digest, "--json"]).exited_with(4).json();
    let missing = ran["images"][0]["missing"].as_array().unwrap().iter().map(|part| part["kind"].clone());
    assert_eq!(missing.collect::<Vec<_>>(), ["referrers"]);
}

#[test]
fn running_server_is_found_by_the_configuration() {
    let registry = Registry::start();
    let (setup, socket) = Setup::with(&registry).admin_socket();
    let mut larder = setup.start();
    let image = Image::small(5);
    registry.add_image("org/app", "v1", &image);
    larder.get("/v2/org/app/manifests/v1").assert_body(&image.manifest.bytes);
    let found = verb::offline(larder.setup(), &["ls", "--json"]).exited_with(0).json();
    assert_eq!(found["images"][0]["tag"], "v1");
    let named = verb::run(larder.setup(), larder.setup().bare_command().args(["ls", "--server", &socket]));
    assert!(named.exited_with(0).stdout.contains("org/app"));
    larder.stop();
    let alone = verb::offline(larder.setup(), &["ls", "--json"]).exited_with(0).json();
    assert_eq!(alone["images"][0]["tag"], "v1");
}

#[test]
fn empty_store_error_names_the_remedy() {
    let registry = Registry::start();
    let setup = Setup::with(&registry);
    let ran = verb::offline(&setup, &["ls"]).exited_with(1);
    assert!(ran.stderr.contains("there is no store in") && ran.stderr.contains("--server"), "{ran:?}");
    assert!(!setup.data().exists(), "a question makes no store");
    let larder = setup.start();
    let ran = verb::offline(larder.setup(), &["ls"]).exited_with(1);
    assert!(ran.stderr.contains("in use") && ran.stderr.contains("--server"), "{ran:?}");
    let ran =
        verb::run(larder.setup(), larder.setup().bare_command().args(["ls", "--server", "127.0.0.1:9"]));
    assert!(ran.exited_with(1).stderr.contains("no server answers at http://127.0.0.1:9"));
    let client = format!("http://{}", larder.api_addr());
    let ran = verb::run(larder.setup(), larder.setup().bare_command().args(["ls", "--server", &client]));
    assert!(ran.exited_with(1).stderr.contains("it is not the admin API of larder"));
}

#[test]
fn named_store_is_never_replaced_by_a_server() {
    let registry = Registry::start();
    registry.add_image("org/app", "v1", &Image::small(1));
    // An address that the configuration names, as that of a server on the same machine.
    let (setup, _) = Setup::with(&registry).admin_socket();
    let larder = setup.start();
    let before = larder.get("/v2/org/app/manifests/v1");
    let missing = larder.setup().folder().join("missing");
    for verb in [&["rm", "org/app:v1"][..], &["ls"], &["warm", "org/app:v1"]] {
        let arguments = [verb, &["--data", missing.to_str().unwrap()]].concat();
        let ran = verb::offline(larder.setup(), &arguments).exited_with(1);
        assert!(ran.stderr.contains("there is no store in"), "{ran:?}");
    }
    assert!(!missing.exists());
    let data = larder.setup().data();
    let ran = verb::offline(larder.setup(), &["ls", "--data", data.to_str().unwrap()]).exited_with(1);
    assert!(ran.stderr.contains("in use") && ran.stderr.contains("--server"), "{ran:?}");
    registry.down();
    larder.get("/v2/org/app/manifests/v1").assert_body(&before.body);
}
