//! Confirmed absences: of referrers, and of the tags of signatures. They are kept like the state of a tag: revalidated after
//! their TTL, served stale in an outage, and kept across a restart. Clients such as dockerd 29 refuse a whole image if an error
//! takes their place.

use crate::support;

use std::time::Duration;

use serde_json::json;
use support::content::OCI_INDEX;
use support::fixture::is_gateway_error;
use support::{Answer, Fault, Image, InProcessLarder, Registry, Setup, When, verb};

const SIGNATURE: &str = "application/vnd.example.signature";
/// More than every TTL.
const LATER: Duration = Duration::from_mins(10);

/// `library/app:v1` without any referrer, and an in-process server.
struct Unsigned {
    registry: Registry,
    larder: InProcessLarder,
    image: Image,
}

impl Unsigned {
    fn new(api: bool, change: impl FnOnce(Setup) -> Setup) -> Self {
        let (registry, image) = (Registry::start(), Image::small(1));
        registry.add_image("library/app", "v1", &image);
        registry.offer_referrers(api);
        let larder = InProcessLarder::start(change(Setup::with(&registry)));
        Self { registry, larder, image }
    }

    fn list(&self) -> String {
        format!("/v2/library/app/referrers/{}", self.image.manifest.digest)
    }

    /// Returns the path of a tag that belongs to the image.
    fn tag(&self, suffix: &str) -> String {
        format!("/v2/library/app/manifests/{}{suffix}", self.image.manifest.digest.replace(':', "-"))
    }

    fn get(&self) -> Answer {
        self.larder.get(&self.list())
    }

    /// Starts a new process on the same store.
    fn restart(self, ahead: Duration, change: impl FnOnce(Setup) -> Setup) -> Self {
        let setup = change(Setup::with(&self.registry));
        Self { larder: self.larder.restart_with(setup, ahead), ..self }
    }
}

#[track_caller]
fn assert_none(answer: &Answer) {
    assert_eq!(answer.status(), 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some(OCI_INDEX));
    assert_eq!(answer.json()["manifests"], json!([]));
}

/// Asserts that an answer is stale, and older than every TTL.
#[track_caller]
fn assert_stale(answer: &Answer) {
    answer.assert_outcome("larder; hit; detail=stale");
    assert!(answer.header("warning").is_some_and(|text| text.starts_with("299 - \"")), "{answer:?}");
    let age = answer.header("age").map(|age| age.parse::<u64>().unwrap());
    assert!(age >= Some(LATER.as_secs()), "{answer:?}");
}

#[test]
fn confirmed_absence_of_referrers_is_served_in_an_outage_and_after_a_restart() {
    for api in [true, false] {
        let unsigned = Unsigned::new(api, |setup| setup);
        let first = unsigned.get();
        assert_none(&first);
        assert_eq!((first.header("age"), first.header("warning")), (Some("0"), None));
        unsigned.get().assert_outcome("larder; hit");
        unsigned.registry.down();
        unsigned.larder.advance(LATER);
        for path in [unsigned.list(), unsigned.list() + "?artifactType=application%2Fvnd.a"] {
            let answer = unsigned.larder.get(&path);
            assert_none(&answer);
            assert_stale(&answer);
        }
        let unsigned = unsigned.restart(LATER * 2, |setup| setup);
        let answer = unsigned.get();
        assert_none(&answer);
        assert_stale(&answer);
        unsigned.registry.up();
        support::eventually("the upstream is asked again", || unsigned.get().header("warning").is_none());
        assert_none(&unsigned.get());
    }
}

#[test]
fn absence_ends_with_stale_if_error() {
    let limit = |setup: Setup| setup.set("cache.stale_if_error", "1h");
    for api in [true, false] {
        let unsigned = Unsigned::new(api, limit);
        assert_none(&unsigned.get());
        assert_eq!(unsigned.larder.get(&unsigned.tag(".sig")).status(), 404);
        unsigned.registry.down();
        unsigned.larder.advance(Duration::from_mins(59));
        assert_none(&unsigned.get());
        assert_eq!(unsigned.larder.get(&unsigned.tag(".sig")).status(), 404);
        unsigned.larder.advance(Duration::from_mins(3));
        for path in [unsigned.list(), unsigned.tag(".sig")] {
            assert!(is_gateway_error(unsigned.larder.get(&path).status()), "{path}");
        }
        let unsigned = unsigned.restart(Duration::from_hours(2), limit);
        for path in [unsigned.list(), unsigned.tag(".sig")] {
            assert!(is_gateway_error(unsigned.larder.get(&path).status()), "{path}");
        }
    }
}

#[test]
fn every_form_of_absence_is_kept() {
    let answer = |status, content_type: &str, body: &str| {
        let headers = vec![("Content-Type".to_owned(), content_type.to_owned())];
        Fault::Answer(status, headers, body.as_bytes().to_vec())
    };
    let empty = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [] }).to_string();
    for fault in [
        Fault::Status(400),
        Fault::Status(404),
        Fault::Status(405),
        Fault::Status(501),
        answer(404, "text/plain", "404 page not found"),
        answer(200, "text/html", "<html>"),
        answer(200, OCI_INDEX, &empty),
    ] {
        let unsigned = Unsigned::new(true, |setup| setup);
        unsigned.registry.script(When::any().path("/referrers/"), fault);
        assert_none(&unsigned.get());
        unsigned.registry.down();
        unsigned.larder.advance(LATER);
        let answer = unsigned.get();
        assert_none(&answer);
        assert_stale(&answer);
    }
}

#[test]
fn absence_is_kept_while_the_registry_refuses_or_fails() {
    for status in [500, 503, 429, 403] {
        for api in [true, false] {
            let unsigned = Unsigned::new(api, |setup| setup);
            assert_none(&unsigned.get());
            unsigned.registry.script(When::any(), Fault::Status(status));
            unsigned.larder.advance(LATER);
            let answer = unsigned.get();
            assert_none(&answer);
            assert_stale(&answer);
        }
    }
}

#[test]
fn later_signature_is_seen_after_the_ttl() {
    for api in [true, false] {
        let unsigned = Unsigned::new(api, |setup| setup);
        assert_none(&unsigned.get());
        let statement = Image::statement(SIGNATURE, "late", &unsigned.image.manifest);
        unsigned.registry.add_manifest("library/app", &statement);
        let entry = support::lists::descriptor(&statement, &unsigned.image.manifest.digest).unwrap();
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry] });
        let index = support::Document::json(OCI_INDEX, &index);
        unsigned.registry.add_manifest("library/app", &index);
        let tag = unsigned.image.manifest.digest.replace(':', "-");
        unsigned.registry.tag("library/app", &tag, &index.digest);
        unsigned.larder.advance(LATER);
        assert_eq!(unsigned.get().json()["manifests"], json!([entry]));
        // The absence does not come back in an outage, nor after a restart.
        unsigned.registry.down();
        unsigned.larder.advance(LATER);
        assert_eq!(unsigned.get().json()["manifests"], json!([entry]));
        let unsigned = unsigned.restart(LATER * 2, |setup| setup);
        assert_eq!(unsigned.get().json()["manifests"], json!([entry]));
    }
}

#[test]
fn absence_of_signature_tags_is_served_in_an_outage_and_after_a_restart() {
    let unsigned = Unsigned::new(false, |setup| setup);
    let suffixes = ["", ".sig", ".att", ".sbom"];
    for suffix in suffixes {
        unsigned.larder.get(&unsigned.tag(suffix)).assert_error(404, "MANIFEST_UNKNOWN");
    }
    for other in ["latest", "sha256-00.sig"] {
        assert_eq!(unsigned.larder.get(&format!("/v2/library/app/manifests/{other}")).status(), 404);
    }
    unsigned.registry.down();
    unsigned.larder.advance(LATER);
    let check = |unsigned: &Unsigned| {
        for suffix in suffixes {
            let answer = unsigned.larder.get(&unsigned.tag(suffix));
            answer.assert_error(404, "MANIFEST_UNKNOWN");
            assert_stale(&answer);
            let head = unsigned.larder.api().head(&unsigned.tag(suffix));
            assert_eq!((head.status(), head.header("warning").is_some()), (404, true));
        }
        // The absence of an ordinary tag is not kept.
        let answer = unsigned.larder.get("/v2/library/app/manifests/latest");
        assert!(is_gateway_error(answer.status()), "{answer:?}");
        // Another kind of tag, another image, another repository.
        for path in [
            unsigned.tag(".txt"),
            unsigned
                .tag(".sig")
                .replace(&unsigned.image.manifest.digest[7..], &unsigned.image.config.digest[7..]),
            unsigned.tag(".sig").replace("library/app", "library/other"),
        ] {
            assert!(is_gateway_error(unsigned.larder.get(&path).status()), "{path}");
        }
        // A registry may have the list without the tag.
        assert!(is_gateway_error(unsigned.get().status()));
    };
    check(&unsigned);
    let unsigned = unsigned.restart(LATER * 2, |setup| setup);
    check(&unsigned);
}

#[test]
fn outage_without_a_confirmed_absence_is_an_error() {
    let unsigned = Unsigned::new(true, |setup| setup);
    unsigned.registry.down();
    for path in [unsigned.list(), unsigned.tag(""), unsigned.tag(".sig")] {
        assert!(is_gateway_error(unsigned.larder.get(&path).status()), "{path}");
    }
    // What the registry has for another digest says nothing.
    unsigned.registry.up();
    support::eventually("the upstream is used again", || unsigned.get().status() == 200);
    unsigned.registry.down();
    let other = Image::small(2).manifest.digest;
    let answer = unsigned.larder.get(&format!("/v2/library/app/referrers/{other}"));
    assert!(is_gateway_error(answer.status()), "{answer:?}");
}

#[test]
fn hanging_registry_does_not_delay_an_absence() {
    let unsigned = Unsigned::new(true, |setup| setup.set("cache.revalidate_timeout", "100ms"));
    assert_none(&unsigned.get());
    let gate = support::Gate::new();
    unsigned.registry.script(When::any(), Fault::HoldHead(gate.clone()));
    unsigned.larder.advance(LATER);
    let answer = unsigned.get();
    assert_none(&answer);
    assert_stale(&answer);
    gate.open();
}

#[test]
fn absence_goes_with_its_image() {
    let registry = Registry::start();
    let image = Image::small(1);
    registry.add_image("library/app", "v1", &image);
    registry.offer_referrers(true);
    let mut larder = Setup::with(&registry).start();
    assert_eq!(larder.get("/v2/library/app/manifests/v1").status(), 200);
    let path = format!("/v2/library/app/referrers/{}", image.manifest.digest);
    assert_none(&larder.get(&path));
    verb::online(&larder, &["rm", "library/app:v1"]).exited_with(0);
    registry.down();
    assert!(is_gateway_error(larder.get(&path).status()));
    larder.restart();
    assert!(is_gateway_error(larder.get(&path).status()));
}
