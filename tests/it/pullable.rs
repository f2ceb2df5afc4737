//! Cached images can be pulled in an outage by each client program, and `check --offline` predicts it.

use crate::support;

use serde_json::json;
use support::{Fault, Image, Index, Larder, Puller, Random, Registry, Setup, When, verb};

const PLATFORM: &str = "linux/amd64";

/// Registry with an index of two platforms, an attestation of each, and a signature of the index.
struct Signed {
    registry: Registry,
    index: Index,
    signature: Image,
}

impl Signed {
    fn new() -> Self {
        let (registry, index) = (Registry::start(), Index::attested(7));
        registry.offer_referrers(true);
        registry.add_index("org/app", "1", &index);
        let signature = Image::artifact(9, &index.document);
        registry.add_image("org/app", "signature", &signature);
        Self { registry, index, signature }
    }

    /// Returns the tag under which older versions of cosign store a signature of the index.
    fn signature_tag(&self) -> String {
        format!("{}.sig", self.index.document.digest.replacen(':', "-", 1))
    }

    /// Starts a server that revalidates at each request.
    fn start(&self) -> Larder {
        setup(&self.registry).set("prefetch.referrers", true).start()
    }
}

fn setup(registry: &Registry) -> Setup {
    Setup::with(registry).set("cache.tag_ttl", "0s").set("cache.negative_ttl", "0s")
}

#[track_caller]
fn assert_all_pull(larder: &Larder) {
    for puller in Puller::ALL {
        if let Err(error) = puller.pull(larder.api(), "org/app", "1", PLATFORM) {
            panic!("{puller:?}: {error}");
        }
    }
}

#[test]
fn pulled_image_is_pulled_again_in_an_outage() {
    for offered in [true, false] {
        let signed = Signed::new();
        signed.registry.offer_referrers(offered);
        let mut larder = signed.start();
        // podman asks neither for attestations nor for referrers.
        Puller::Podman.pull(larder.api(), "org/app", "1", PLATFORM).unwrap();
        larder.wait_idle();
        let check = ["check", "--offline", "org/app:1", "--platform", PLATFORM];
        verb::online(&larder, &check).exited_with(0);
        signed.registry.down();
        assert_all_pull(&larder);
        larder.stop();
        larder.restart();
        assert_all_pull(&larder);
    }
}

#[test]
fn lists_of_referrers_are_asked_for_once() {
    let signed = Signed::new();
    let larder = signed.start();
    for _ in 0..2 {
        Puller::Podman.pull(larder.api(), "org/app", "1", PLATFORM).unwrap();
        larder.wait_idle();
    }
    for document in signed.index.documents() {
        let path = format!("/referrers/{}", document.digest);
        assert_eq!(signed.registry.count("GET", &path), 1, "{path}");
    }
    assert_eq!(
        signed.registry.count("GET", &signed.signature.manifest.digest),
        0,
        "a referrer is not fetched"
    );
}

#[test]
fn failing_list_of_referrers_does_not_delay_the_image() {
    let signed = Signed::new();
    let refused = format!("/referrers/{}", signed.index.document.digest);
    signed.registry.script(When::any().path(&refused), Fault::Status(403));
    let larder = signed.start();
    Puller::Podman.pull(larder.api(), "org/app", "1", PLATFORM).unwrap();
    larder.wait_idle();
    for document in &signed.index.documents()[1..] {
        assert_eq!(signed.registry.count("GET", &format!("/referrers/{}", document.digest)), 1);
    }
    let asked = signed.registry.count("GET", &refused);
    Puller::Podman.pull(larder.api(), "org/app", "1", PLATFORM).unwrap();
    larder.wait_idle();
    assert_eq!(signed.registry.count("GET", &refused), asked, "the list is not asked for again at once");
}

#[test]
fn warmed_platform_is_pulled_in_an_outage() {
    let signed = Signed::new();
    // A signature as older versions of cosign store it.
    let tag = signed.signature_tag();
    let tagged = Image::small(10);
    signed.registry.add_image("org/app", &tag, &tagged);
    let larder = setup(&signed.registry).start();
    let warm = ["warm", "org/app:1", "--platform", PLATFORM, "--json"];
    verb::online(&larder, &warm).exited_with(0);
    let check = ["check", "--offline", "org/app:1", "--platform", PLATFORM, "--json"];
    let checked = verb::online(&larder, &check).exited_with(0).json();
    let signatures = &checked["images"][0]["signatures"];
    assert_eq!((&signatures["held"], &signatures["artifacts"]), (&json!(false), &json!(1)), "{checked}");
    assert_eq!(signatures["missing"][0]["digest"], signed.signature.manifest.digest.as_str());
    let text = verb::online(&larder, &check[..5]).exited_with(0).stdout;
    assert!(text.contains("warm --referrers"), "{text}");
    let warmed = verb::online(&larder, &[&warm[..], &["--referrers"]].concat()).exited_with(0).json();
    assert_eq!(warmed["images"][0]["artifacts"], 2, "{warmed}");
    let checked = verb::online(&larder, &check).exited_with(0).json();
    assert_eq!(checked["images"][0]["signatures"], json!({ "held": true, "artifacts": 2, "missing": [] }));
    // The other platform was not fetched.
    assert_eq!(signed.registry.count("GET", &signed.index.images[1].layers[0].digest), 0);
    signed.registry.down();
    assert_all_pull(&larder);
    let path = |kind: &str, digest: &str| format!("/v2/org/app/{kind}/{digest}");
    larder.get(&path("manifests", &tag)).assert_body(&tagged.manifest.bytes);
    let manifest = &signed.signature.manifest;
    larder.get(&path("manifests", &manifest.digest)).assert_body(&manifest.bytes);
    for blob in signed.signature.blobs().chain(tagged.blobs()) {
        larder.get(&path("blobs", &blob.digest)).assert_body(&blob.bytes);
    }
}

#[test]
fn warm_reports_a_list_that_is_not_known() {
    let signed = Signed::new();
    signed.registry.script(When::any().path("/referrers/"), Fault::Status(403));
    let larder = setup(&signed.registry).start();
    let warmed = verb::online(&larder, &["warm", "org/app:1", "--platform", PLATFORM]).exited_with(4);
    assert!(warmed.stdout.contains("referrers"), "{warmed:?}");
    signed.registry.down();
    for puller in [Puller::Containerd, Puller::Podman] {
        puller.pull(larder.api(), "org/app", "1", PLATFORM).unwrap();
    }
}

#[test]
fn exported_image_is_pulled_from_an_empty_server() {
    for referrers in [false, true] {
        let signed = Signed::new();
        // A signature as older versions of cosign store it.
        let (tag, tagged) = (signed.signature_tag(), Image::small(10));
        signed.registry.add_image("org/app", &tag, &tagged);
        let larder = setup(&signed.registry).start();
        let archive = larder.setup().folder().join("app.tar").display().to_string();
        let mut export = vec!["export", "org/app:1", &archive, "--json"];
        if referrers {
            export.push("--referrers");
        }
        verb::online(&larder, &export).exited_with(0);
        signed.registry.down();
        let empty = setup(&signed.registry).start();
        verb::online(&empty, &["import", &archive]).exited_with(0);
        let check = ["check", "--offline", "org/app:1", "--platform", PLATFORM, "--json"];
        let checked = verb::online(&empty, &check).exited_with(0).json();
        let signatures = &checked["images"][0]["signatures"];
        assert_eq!(
            (&signatures["held"], &signatures["artifacts"]),
            (&json!(referrers), &json!(1 + u8::from(referrers)))
        );
        assert_all_pull(&empty);
        let list = empty.get(&format!("/v2/org/app/referrers/{}", signed.index.document.digest)).json();
        assert_eq!(list["manifests"][0]["digest"], signed.signature.manifest.digest.as_str());
        let manifest = format!("/v2/org/app/manifests/{}", signed.signature.manifest.digest);
        assert_eq!(empty.get(&manifest).status() == 200, referrers);
        let signature = empty.get(&format!("/v2/org/app/manifests/{tag}"));
        assert_eq!(signature.status() == 200, referrers);
        for blob in tagged.blobs().filter(|_| referrers) {
            empty.get(&format!("/v2/org/app/blobs/{}", blob.digest)).assert_body(&blob.bytes);
        }
    }
}

/// Paths of all parts of a pull of one platform, as clients request them.
fn parts(index: &Index, signature: &Image) -> Vec<String> {
    let [image, _, attestation, _] = index.images.as_slice() else { panic!("two images") };
    let manifests = [&index.document, &image.manifest, &attestation.manifest];
    let mut parts = vec!["manifests/1".to_owned()];
    parts.extend(manifests.iter().flat_map(|document| {
        [format!("manifests/{}", document.digest), format!("referrers/{}", document.digest)]
    }));
    let blobs = image.blobs().chain(attestation.blobs());
    parts.extend(blobs.map(|blob| format!("blobs/{}", blob.digest)));
    // A cached referrer answers a request for the list.
    parts.push(format!("manifests/{}", signature.manifest.digest));
    parts
}

#[test]
fn check_predicts_pulls_of_any_cached_part() {
    let registry = Registry::start();
    registry.offer_referrers(true);
    let larder = setup(&registry).set("prefetch.children", false).set("prefetch.attestations", false).start();
    let mut random = Random::new(11);
    let names: Vec<String> = (0..40).map(|round| format!("org/app{round}")).collect();
    for (round, name) in (0_u64..).zip(&names) {
        let index = Index::attested(1000 + 10 * round);
        registry.add_index(name, "1", &index);
        let signature = Image::artifact(round, &index.images[2].manifest);
        if round % 2 == 0 {
            registry.add_image(name, "signature", &signature);
        }
        for part in parts(&index, &signature) {
            // Most images lack no or few parts.
            if random.below(12) >= round % 4 {
                larder.get(&format!("/v2/{name}/{part}"));
            }
        }
    }
    larder.wait_idle();
    registry.down();
    let references: Vec<String> = names.iter().map(|name| format!("{name}:1")).collect();
    let mut check = vec!["check", "--offline", "--json", "--platform", PLATFORM];
    check.extend(references.iter().map(String::as_str));
    let verdicts = verb::online(&larder, &check).json()["images"].clone();
    let mut complete = 0;
    for (name, verdict) in names.iter().zip(verdicts.as_array().unwrap()) {
        let pulls = Puller::ALL.map(|puller| puller.pull(larder.api(), name, "1", PLATFORM));
        let succeeds = pulls.iter().all(Result::is_ok);
        assert_eq!(verdict["pullable"], succeeds, "{name}: {pulls:#?}\n{verdict:#}");
        complete += usize::from(succeeds);
    }
    assert!((5..35).contains(&complete), "{complete} of 40 images can be pulled");
}
