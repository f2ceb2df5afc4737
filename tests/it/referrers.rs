//! Referrers of an image: from the upstream and from the cache, by API and by tag, and never wrongly empty.

use crate::support;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};
use support::content::{OCI_INDEX, OCI_MANIFEST};
use support::fixture::{assert_answered_before_upstream, is_gateway_error};
use support::lists::descriptor;
use support::{Answer, Auth, Document, Fault, Gate, Image, InProcessLarder, Larder, Registry, Setup, When};

const SIGNATURE: &str = "application/vnd.example.signature";
const SBOM: &str = "application/vnd.example.sbom";

/// `library/app:v1` with a signature and an SBOM.
struct Signed {
    registry: Registry,
    larder: Larder,
    image: Image,
    signature: Document,
    sbom: Document,
}

impl Signed {
    /// With a registry that has the referrers API.
    fn new(change: impl FnOnce(Setup) -> Setup) -> Self {
        let signed = Self::without_api(change);
        signed.registry.offer_referrers(true);
        signed
    }

    /// As `new`; the server revalidates at every request.
    fn with_zero_ttl() -> Self {
        Self::new(|setup| setup.set("cache.tag_ttl", "0s").set("cache.negative_ttl", "0s"))
    }

    fn without_api(change: impl FnOnce(Setup) -> Setup) -> Self {
        let registry = Registry::start();
        let image = Image::small(1);
        let signature = Image::statement(SIGNATURE, "signed", &image.manifest);
        let sbom = Image::statement(SBOM, "listed", &image.manifest);
        registry.add_image("library/app", "v1", &image);
        for document in [&signature, &sbom] {
            registry.add_manifest("library/app", document);
        }
        let larder = change(Setup::with(&registry)).start();
        Self { registry, larder, image, signature, sbom }
    }

    fn path(&self) -> String {
        format!("/v2/library/app/referrers/{}", self.image.manifest.digest)
    }

    fn get(&self) -> Answer {
        self.larder.get(&self.path())
    }

    fn get_only(&self, artifact_type: &str) -> Answer {
        self.larder.get(&format!("{}?artifactType={artifact_type}", self.path()))
    }

    /// Returns the tag of the list in a registry without the API.
    fn fallback(&self) -> String {
        self.image.manifest.digest.replace(':', "-")
    }

    /// Adds an index of these documents with the fall-back tag.
    fn tag_list(&self, documents: &[&Document]) -> Document {
        let manifests: Vec<_> = documents.iter().map(|it| self.describe(it)).collect();
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
        let index = Document::json(OCI_INDEX, &index);
        self.registry.add_manifest("library/app", &index);
        self.registry.tag("library/app", &self.fallback(), &index.digest);
        index
    }

    fn describe(&self, document: &Document) -> Value {
        descriptor(document, &self.image.manifest.digest).unwrap()
    }

    /// Makes the server cache a manifest.
    fn cache_manifest(&self, document: &Document) {
        let path = format!("/v2/library/app/manifests/{}", document.digest);
        self.larder.get(&path).assert_body(&document.bytes);
    }

    /// Asserts that an answer lists exactly these documents, sorted.
    #[track_caller]
    fn lists(&self, answer: &Answer, documents: &[&Document]) {
        let mut wanted: Vec<_> = documents.iter().map(|it| self.describe(it)).collect();
        wanted.sort_by_key(|it| it["digest"].to_string());
        assert_list(answer);
        assert_eq!(answer.json()["manifests"], Value::from(wanted), "{:?}", answer.head);
    }

    fn requests(&self) -> usize {
        self.registry.requests().len()
    }
}

/// Asserts the properties of every list.
#[track_caller]
fn assert_list(answer: &Answer) {
    assert_eq!(answer.status(), 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some(OCI_INDEX));
    assert_eq!(answer.head.content_length(), Some(answer.body.len()));
    assert_eq!(answer.header("cache-control"), Some("no-cache, no-transform"));
    let document = answer.json();
    assert_eq!(document["schemaVersion"], 2);
    assert_eq!(document["mediaType"], OCI_INDEX);
    assert!(document["manifests"].is_array());
}

#[track_caller]
fn assert_stale(answer: &Answer) {
    answer.assert_outcome("larder; hit; detail=stale");
    assert!(answer.header("warning").unwrap().starts_with("299 - \""), "{answer:?}");
}

#[test]
fn upstream_pages_are_merged_and_cached() {
    let signed = Signed::new(|setup| setup);
    signed.registry.page_lists(1);
    let answer = signed.get();
    signed.lists(&answer, &[&signed.signature, &signed.sbom]);
    answer.assert_outcome("larder; fwd=uri-miss; stored; detail=miss");
    assert_eq!((answer.header("age"), answer.header("warning")), (Some("0"), None));
    assert_eq!(answer.header("oci-filters-applied"), None);
    assert_eq!(answer.header("link"), None);
    let asked = signed.registry.requests();
    assert_eq!(asked.len(), 2, "a page each");
    assert!(asked.iter().all(|seen| seen.path == signed.path()), "{asked:?}");
    assert_eq!(asked[0].query, "");
    assert_eq!(asked[0].header("accept"), Some(OCI_INDEX));
    for _ in 0..3 {
        let again = signed.get();
        again.assert_outcome("larder; hit");
        assert_eq!(again.body, answer.body);
    }
    let head = signed.larder.head(&signed.path());
    assert_eq!((head.status(), head.head.content_length()), (200, Some(answer.body.len())));
    assert_eq!(head.header("content-type"), Some(OCI_INDEX));
    // Listed manifests are not prefetched.
    signed.larder.wait_idle();
    assert_eq!(signed.requests(), 2);
    let labels = [("kind", "referrers"), ("outcome", "hit"), ("status", "2xx")];
    assert_eq!(signed.larder.counter("larder_requests_total", &labels), 4);
}

#[test]
fn filter_is_applied_by_the_server() {
    let signed = Signed::new(|setup| setup);
    for (artifact_type, wanted) in
        [(SIGNATURE, vec![&signed.signature]), (SBOM, vec![&signed.sbom]), ("application/vnd.none", vec![])]
    {
        let answer = signed.get_only(&artifact_type.replace('/', "%2F"));
        signed.lists(&answer, &wanted);
        assert_eq!(answer.header("oci-filters-applied"), Some("artifactType"));
    }
    // In doubt the list is not filtered, and does not claim to be: no value, no media type, or several types.
    for doubtful in ["", "signature", "a%20b%2Fc", &format!("{SIGNATURE}&artifactType={SBOM}")] {
        let answer = signed.get_only(doubtful);
        signed.lists(&answer, &[&signed.signature, &signed.sbom]);
        assert_eq!(answer.header("oci-filters-applied"), None, "{doubtful}");
    }
    let answer = signed.get_only(&format!("{SBOM}&artifactType={SBOM}"));
    signed.lists(&answer, &[&signed.sbom]);
    let asked = signed.registry.requests();
    assert!(
        asked.len() == 1 && asked[0].query.is_empty(),
        "one question for all, without a filter: {asked:?}"
    );
}

#[test]
fn filter_takes_a_raw_plus_as_itself() {
    let signed = Signed::new(|setup| setup);
    let document = Image::statement("application/spdx+json", "an SBOM", &signed.image.manifest);
    signed.registry.add_manifest("library/app", &document);
    for artifact_type in ["application/spdx+json", "application%2Fspdx%2Bjson"] {
        let answer = signed.get_only(artifact_type);
        signed.lists(&answer, &[&document]);
        assert_eq!(answer.header("oci-filters-applied"), Some("artifactType"));
    }
}

#[test]
fn artifact_type_falls_back_to_the_config_type() {
    let signed = Signed::new(|setup| setup);
    let config_type = "application/vnd.example.config";
    let config = json!({ "mediaType": config_type, "digest": signed.image.config.digest, "size": 2 });
    let subject = json!({
        "mediaType": OCI_MANIFEST, "digest": signed.image.manifest.digest,
        "size": signed.image.manifest.bytes.len(),
    });
    let value = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [], "subject": subject,
    });
    let document = Document::json(OCI_MANIFEST, &value);
    signed.registry.add_manifest("library/app", &document);
    signed.cache_manifest(&document);
    // From the upstream's list, then from the cache alone.
    signed.lists(&signed.get_only(config_type), &[&document]);
    let other = Signed::without_api(|setup| setup);
    other.registry.add_manifest("library/app", &document);
    other.cache_manifest(&document);
    other.lists(&other.get_only(config_type), &[&document]);
}

#[test]
fn list_is_revalidated_after_its_ttl() {
    let signed = Signed::with_zero_ttl();
    signed.lists(&signed.get(), &[&signed.signature, &signed.sbom]);
    signed.get().assert_outcome("larder; hit; detail=revalidated");
    let third = Image::statement(SBOM, "another", &signed.image.manifest);
    signed.registry.add_manifest("library/app", &third);
    let answer = signed.get();
    answer.assert_outcome("larder; fwd=uri-miss; stored; detail=miss");
    signed.lists(&answer, &[&signed.signature, &signed.sbom, &third]);
    assert_eq!(signed.requests(), 3);
}

#[test]
fn concurrent_requests_are_coalesced() {
    let signed = Signed::new(|setup| setup);
    let gate = Gate::new();
    signed.registry.script(When::any().path("/referrers/"), Fault::HoldHead(gate.clone()));
    let (client, path) = (signed.larder.api(), signed.path());
    let outcomes: BTreeSet<String> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(|| client.get(&path))).collect();
        gate.wait_reached(1);
        gate.open();
        clients.into_iter().map(|it| it.join().unwrap().head.outcome().to_owned()).collect()
    });
    assert_eq!(signed.requests(), 1);
    assert!(outcomes.contains("larder; fwd=uri-miss; stored; detail=miss"), "{outcomes:?}");
}

#[test]
fn fallback_tag_is_used_without_the_api() {
    let signed = Signed::without_api(|setup| setup);
    let index = signed.tag_list(&[&signed.signature, &signed.sbom]);
    let answer = signed.get();
    signed.lists(&answer, &[&signed.signature, &signed.sbom]);
    answer.assert_outcome("larder; fwd=uri-miss; stored; detail=miss");
    assert_eq!(signed.registry.count("GET", "/referrers/"), 1);
    // A client that requests the tag gets the index unchanged.
    let path = format!("/v2/library/app/manifests/{}", signed.fallback());
    let tagged = signed.larder.get(&path);
    tagged.assert_body(&index.bytes);
    tagged.assert_outcome("larder; hit");
    signed.get().assert_outcome("larder; hit");
    // The missing API is remembered: another image causes one request, for its tag.
    let other = Image::small(2);
    signed.registry.add_image("library/app", "v2", &other);
    let answer = signed.larder.get(&format!("/v2/library/app/referrers/{}", other.manifest.digest));
    signed.lists(&answer, &[]);
    assert_eq!(signed.registry.count("GET", "/referrers/"), 1);
}

#[test]
fn fallback_tag_of_a_long_digest_is_truncated() {
    let signed = Signed::without_api(|setup| setup);
    let subject = signed.image.manifest.clone().with_sha512();
    let statement = Image::statement(SIGNATURE, "long", &subject);
    let entry = descriptor(&statement, &subject.digest).unwrap();
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry] });
    let index = Document::json(OCI_INDEX, &index);
    signed.registry.add_manifest("library/app", &index);
    let hex = subject.digest.strip_prefix("sha512:").unwrap();
    signed.registry.tag("library/app", &format!("sha512-{}", &hex[..64]), &index.digest);
    let answer = signed.larder.get(&format!("/v2/library/app/referrers/{}", subject.digest));
    assert_list(&answer);
    assert_eq!(answer.json()["manifests"], json!([entry]));
}

#[test]
fn empty_list_is_cached_for_the_shorter_ttl() {
    for api in [true, false] {
        let signed = Signed::new(|setup| setup.set("cache.negative_ttl", "1h").set("cache.tag_ttl", "1h"));
        signed.registry.offer_referrers(api);
        let digest = format!("sha256:{}", "0".repeat(64));
        for repository in ["library/app", "library/none"] {
            signed.registry.forget_requests();
            let path = format!("/v2/{repository}/referrers/{digest}");
            let answer = signed.larder.get(&path);
            signed.lists(&answer, &[]);
            answer.assert_outcome("larder; fwd=uri-miss; stored; detail=miss");
            let asked = signed.requests();
            assert!((1..=2).contains(&asked), "{asked}");
            for _ in 0..3 {
                let again = signed.larder.get(&path);
                signed.lists(&again, &[]);
                again.assert_outcome("larder; hit");
            }
            assert_eq!(signed.requests(), asked, "{repository}, with the API: {api}");
        }
    }
    // A client that asks just before a signature is pushed does not wait for the longer TTL to see it.
    for (negative_ttl, tag_ttl) in [("0s", "1h"), ("1h", "0s")] {
        let signed =
            Signed::new(|setup| setup.set("cache.negative_ttl", negative_ttl).set("cache.tag_ttl", tag_ttl));
        let other = Image::small(2);
        signed.registry.add_image("library/app", "v2", &other);
        let path = format!("/v2/library/app/referrers/{}", other.manifest.digest);
        signed.lists(&signed.larder.get(&path), &[]);
        let statement = Image::statement(SIGNATURE, "late", &other.manifest);
        signed.registry.add_manifest("library/app", &statement);
        let answer = signed.larder.get(&path);
        assert_eq!(answer.json()["manifests"].as_array().unwrap().len(), 1);
    }
}

/// An in-process server in front of a registry with one image, and the path of its referrers.
fn timed(change: impl FnOnce(Setup) -> Setup) -> (Registry, InProcessLarder, Image, String) {
    let (registry, image) = (Registry::start(), Image::small(1));
    registry.add_image("library/app", "v1", &image);
    let larder = InProcessLarder::start(change(Setup::with(&registry)));
    let path = format!("/v2/library/app/referrers/{}", image.manifest.digest);
    (registry, larder, image, path)
}

/// Adds an SBOM of the image to the API and to the tag. Returns its entry in the list.
fn listed_both_ways(registry: &Registry, image: &Image) -> (Document, Value) {
    let sbom = Image::statement(SBOM, "listed", &image.manifest);
    registry.add_manifest("library/app", &sbom);
    let entry = descriptor(&sbom, &image.manifest.digest).unwrap();
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry] });
    let index = Document::json(OCI_INDEX, &index);
    registry.add_manifest("library/app", &index);
    registry.tag("library/app", &image.manifest.digest.replace(':', "-"), &index.digest);
    (sbom, entry)
}

#[test]
fn missing_signature_tags_are_cached_for_the_shorter_ttl() {
    let (registry, larder, image, _) =
        timed(|setup| setup.set("cache.negative_ttl", "10m").set("cache.tag_ttl", "1h"));
    let path =
        |suffix| format!("/v2/library/app/manifests/{}.{suffix}", image.manifest.digest.replace(':', "-"));
    for round in 1..=3 {
        for _ in 0..4 {
            for suffix in ["sig", "att", "sbom"] {
                assert_eq!(larder.get(&path(suffix)).status(), 404);
            }
            larder.advance(Duration::from_mins(2));
        }
        assert_eq!(registry.requests().len(), 3 * round);
        larder.advance(Duration::from_mins(2));
    }
    let signature = Image::statement(SIGNATURE, "late", &image.manifest);
    registry.add_manifest("library/app", &signature);
    registry.tag("library/app", path("sig").rsplit('/').next().unwrap(), &signature.digest);
    larder.get(&path("sig")).assert_body(&signature.bytes);
}

#[test]
fn list_is_fresh_for_tag_ttl() {
    for api in [true, false] {
        let (registry, larder, image, path) = timed(|setup| setup.set("cache.tag_ttl", "1h"));
        registry.offer_referrers(api);
        let (sbom, entry) = listed_both_ways(&registry, &image);
        assert_eq!(larder.get(&path).json()["manifests"], json!([entry]));
        // The child of an index is prefetched, an entry of the list is not.
        if !api {
            registry.wait_for(1, "GET", &sbom.digest);
        }
        let asked = registry.requests().len();
        larder.advance(Duration::from_mins(56));
        let answer = larder.get(&path);
        answer.assert_outcome("larder; hit");
        assert!(answer.header("age").unwrap().parse::<u64>().unwrap() >= 56 * 60);
        assert_eq!(registry.requests().len(), asked);
        larder.advance(Duration::from_mins(4));
        let answer = larder.get(&path);
        answer.assert_outcome("larder; hit; detail=revalidated");
        assert_eq!(answer.header("age"), Some("0"));
    }
}

#[test]
fn fresh_list_is_served_in_an_outage() {
    for api in [true, false] {
        let (registry, larder, image, path) = timed(|setup| setup.set("cache.tag_ttl", "1h"));
        registry.offer_referrers(api);
        let (sbom, entry) = listed_both_ways(&registry, &image);
        assert_eq!(larder.get(&path).json()["manifests"], json!([entry]));
        assert_eq!(larder.get(&format!("/v2/library/app/manifests/{}", sbom.digest)).status(), 200);
        registry.down();
        for n in 0..4 {
            assert!(is_gateway_error(larder.get(&format!("/v2/library/app/manifests/none-{n}")).status()));
        }
        let answer = larder.get(&path);
        assert_eq!(answer.json()["manifests"], json!([entry]));
        answer.assert_outcome("larder; hit");
        assert_eq!(answer.header("warning"), None);
    }
}

#[test]
fn missing_api_is_probed_again_later() {
    let (registry, larder, image, path) = timed(|setup| setup.set("cache.negative_ttl", "0s"));
    let listed = || larder.get(&path).json()["manifests"].as_array().unwrap().len();
    assert_eq!(listed(), 0);
    registry.offer_referrers(true);
    registry.add_manifest("library/app", &Image::statement(SBOM, "listed", &image.manifest));
    larder.advance(Duration::from_mins(9));
    assert_eq!((listed(), registry.count("GET", "/referrers/")), (0, 1));
    larder.advance(Duration::from_mins(1));
    assert_eq!((listed(), registry.count("GET", "/referrers/")), (1, 2));
}

/// An error about the repository or the digest does not mean that the API is missing.
#[test]
fn unknown_repository_is_not_a_missing_api() {
    let signed = Signed::new(|setup| setup.set("cache.negative_ttl", "1h"));
    let refused = Fault::Status(404);
    signed.registry.script(When::any().path("/referrers/").times(1), refused);
    let unknown = format!("/v2/library/app/referrers/sha256:{}", "0".repeat(64));
    for _ in 0..3 {
        signed.lists(&signed.larder.get(&unknown), &[]);
    }
    assert_eq!(signed.registry.count("GET", "/referrers/"), 1);
    signed.lists(&signed.get(), &[&signed.signature, &signed.sbom]);
}

#[test]
fn cached_referrers_are_added() {
    // Neither the list of the API nor that of the tag contains the manifest that a client pulled by digest.
    for api in [true, false] {
        let signed = Signed::with_zero_ttl();
        signed.registry.offer_referrers(api);
        signed.cache_manifest(&signed.signature);
        signed.registry.remove_manifest("library/app", &signed.signature.digest);
        if api {
            signed.lists(&signed.get(), &[&signed.signature, &signed.sbom]);
        } else {
            signed.lists(&signed.get(), &[&signed.signature]);
            signed.tag_list(&[&signed.sbom]);
            signed.lists(&signed.get(), &[&signed.signature, &signed.sbom]);
        }
        // The index of a tag is not filtered.
        let all = [&signed.signature, &signed.sbom];
        signed.lists(&signed.get_only(SIGNATURE), if api { &all[..1] } else { &all });
    }
}

/// Answers of an upstream to the request for the list, and the expected answers to the client: with the list as a tag,
/// and without.
#[test]
fn upstream_answers_map_to_client_answers() {
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Wanted {
        /// The list of the tag. An empty list if there is no tag.
        Tag,
        Status(u16),
        /// 502, 503 or 504.
        GatewayError,
    }
    let answer = |status, content_type: &str, body: &str| {
        let headers = vec![("Content-Type".to_owned(), content_type.to_owned())];
        Fault::Answer(status, headers, body.as_bytes().to_vec())
    };
    let coded = |status, code: &str| {
        answer(status, "application/json", &json!({ "errors": [{ "code": code }] }).to_string())
    };
    let manifest = json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": {}, "layers": [] });
    let cases = [
        (answer(404, "text/plain", "404 page not found"), Wanted::Tag),
        (coded(404, "NAME_UNKNOWN"), Wanted::Tag),
        (coded(404, "UNSUPPORTED"), Wanted::Tag),
        (coded(400, "DIGEST_INVALID"), Wanted::Tag),
        (coded(405, "UNSUPPORTED"), Wanted::Tag),
        (answer(406, "text/html", "<p>Not acceptable</p>"), Wanted::Tag),
        (answer(501, "text/plain", "no"), Wanted::Tag),
        (answer(200, "text/html", "<html>Welcome</html>"), Wanted::Tag),
        (answer(200, OCI_INDEX, "not JSON"), Wanted::Tag),
        (answer(200, OCI_MANIFEST, &manifest.to_string()), Wanted::Tag),
        (Fault::Status(500), Wanted::GatewayError),
        (Fault::Status(502), Wanted::GatewayError),
        (Fault::Status(503), Wanted::GatewayError),
        (Fault::Status(429), Wanted::Status(503)),
        (Fault::Status(401), Wanted::Status(403)),
        (Fault::Status(403), Wanted::Status(403)),
        (Fault::CloseConnection, Wanted::GatewayError),
        (Fault::EndOneByteEarly, Wanted::GatewayError),
        (Fault::SetHeader("Content-Encoding", "br".to_owned()), Wanted::GatewayError),
        // Pages that are endless or missing.
        (Fault::SetHeader("Link", "<?last=x>; rel=\"next\"".to_owned()), Wanted::GatewayError),
        (Fault::SetHeader("Link", "</>; rel=\"next\"".to_owned()), Wanted::GatewayError),
    ];
    let check = |n: usize, fault: &Fault, wanted: Wanted| {
        for tagged in [true, false] {
            let signed = Signed::with_zero_ttl();
            if tagged {
                signed.tag_list(&[&signed.sbom]);
            }
            signed.registry.script(When::any().path("/referrers/"), fault.clone());
            let answer = signed.get();
            match wanted {
                Wanted::Tag if tagged => signed.lists(&answer, &[&signed.sbom]),
                Wanted::Tag => signed.lists(&answer, &[]),
                Wanted::Status(status) => assert_eq!(answer.status(), status, "case {n}: {answer:?}"),
                Wanted::GatewayError => assert!(is_gateway_error(answer.status()), "case {n}: {answer:?}"),
            }
            assert_eq!(answer.header("www-authenticate"), None);
            assert_eq!(answer.header("warning"), None, "case {n}");
            if wanted != Wanted::Tag {
                assert!(answer.json()["errors"][0]["code"].is_string(), "case {n}: {answer:?}");
                assert_known_referrers_are_listed(&signed, fault);
            }
        }
    };
    // Most cases wait for retries. Eight servers and registries at a time do not overload a small machine.
    let queue = Mutex::new(cases.into_iter().enumerate());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let Some((n, (fault, wanted))) = queue.lock().unwrap().next() else { return };
                    check(n, &fault, wanted);
                }
            });
        }
    });
}

/// Asserts the answers when the list is unavailable: first with a cached referrer, then with the cached list.
fn assert_known_referrers_are_listed(signed: &Signed, fault: &Fault) {
    // After some faults the server pauses its requests to the registry.
    let path = format!("/v2/library/app/manifests/{}", signed.signature.digest);
    support::eventually("the signature is cached", || signed.larder.get(&path).status() == 200);
    // A list of cached referrers is better than none. It is marked as incomplete.
    let answer = signed.get();
    signed.lists(&answer, &[&signed.signature]);
    assert_stale(&answer);
    // A filter without a match does not turn "not known" into "none".
    let answer = signed.get_only(SBOM);
    assert!(answer.status() == 403 || is_gateway_error(answer.status()), "{answer:?}");
    // A complete list that was cached once is still served.
    signed.registry.clear_faults();
    support::eventually("the list is complete", || signed.get().head.header("warning").is_none());
    signed.lists(&signed.get(), &[&signed.signature, &signed.sbom]);
    signed.registry.script(When::any().path("/referrers/"), fault.clone());
    let answer = signed.get();
    signed.lists(&answer, &[&signed.signature, &signed.sbom]);
    assert_stale(&answer);
    assert!(answer.header("age").is_some(), "{answer:?}");
}

#[test]
fn truncated_list_is_rejected() {
    let signed = Signed::with_zero_ttl();
    signed.registry.page_lists(1);
    for fault in [
        Fault::Status(500),
        Fault::Status(404),
        Fault::CloseConnection,
        Fault::Answer(200, vec![("Content-Type".into(), "text/html".into())], b"<html>".to_vec()),
        // The first page again and again.
        Fault::rewrite(|seen, plan| plan.set("Link", &format!("<?{}>; rel=\"next\"", seen.query))),
    ] {
        signed.registry.clear_faults();
        signed.registry.script(When::any().path("/referrers/").after(1), fault);
        let answer = signed.get();
        assert!(is_gateway_error(answer.status()), "{answer:?}");
    }
    signed.registry.clear_faults();
    signed.lists(&signed.get(), &[&signed.signature, &signed.sbom]);
}

#[test]
fn endless_list_is_abandoned() {
    let signed = Signed::new(|setup| setup);
    let gate = Gate::new();
    let endless = Fault::rewrite(|seen, plan| {
        let page: usize = seen.query.strip_prefix("page=").map_or(0, |n| n.parse().unwrap());
        plan.set("Link", &format!("<{}?page={}>; rel=\"next\"", seen.path, page + 1));
    });
    signed.registry.script(When::any().path("/referrers/"), endless);
    signed.registry.script(When::any().path("/referrers/").after(3000), Fault::HoldHead(gate));
    let answer = signed.get();
    assert!(is_gateway_error(answer.status()), "{answer:?}");
    let asked = signed.registry.count("GET", "/referrers/");
    assert!(asked <= 1000, "{asked}");
}

#[test]
fn link_header_to_another_host_is_refused() {
    let signed = Signed::new(|setup| setup);
    let elsewhere = Registry::start();
    signed.registry.page_lists(1);
    let base = elsewhere.url();
    let moved = Fault::rewrite(move |_, plan| {
        let link = plan.headers.iter().find(|(name, _)| name == "Link").map(|(_, value)| value.clone());
        if let Some(link) = link {
            plan.set("Link", &link.replacen('<', &format!("<{base}/somewhere"), 1));
        }
    });
    signed.registry.script(When::any().path("/referrers/"), moved);
    signed.lists(&signed.get(), &[&signed.signature, &signed.sbom]);
    assert_eq!(elsewhere.requests().len(), 0);
}

#[test]
fn list_survives_a_restart_and_an_outage() {
    for api in [true, false] {
        let mut signed = Signed::with_zero_ttl();
        signed.registry.offer_referrers(api);
        signed.tag_list(&[&signed.signature, &signed.sbom]);
        let before = signed.get();
        signed.lists(&before, &[&signed.signature, &signed.sbom]);
        signed.larder.stop();
        signed.registry.down();
        signed.larder.restart();
        let answer = signed.get();
        assert_eq!(answer.body, before.body, "with the API: {api}");
        assert_stale(&answer);
        assert!(answer.header("age").is_some_and(|age| age.parse::<u64>().is_ok()));
        // The index of a tag is not filtered. The last list of the API had no entry of the second type.
        let all = [&signed.signature, &signed.sbom];
        for (artifact_type, listed) in [(SBOM, &all[1..]), ("application/vnd.none", &all[..0])] {
            let answer = signed.get_only(artifact_type);
            signed.lists(&answer, if api { listed } else { &all });
            assert_eq!(answer.header("oci-filters-applied"), api.then_some("artifactType"));
            assert_stale(&answer);
        }
        signed.registry.up();
        support::eventually("the upstream is used again", || {
            signed.get().head.outcome() == "larder; hit; detail=revalidated"
        });
    }
}

#[test]
fn cached_referrers_survive_a_restart() {
    let mut signed = Signed::new(|setup| setup);
    signed.cache_manifest(&signed.signature);
    signed.larder.stop();
    signed.registry.down();
    signed.larder.restart();
    let answer = signed.get();
    signed.lists(&answer, &[&signed.signature]);
    assert_stale(&answer);
    assert!(is_gateway_error(signed.get_only(SBOM).status()));
}

#[test]
fn outage_gives_no_empty_list_that_was_not_confirmed() {
    for api in [true, false] {
        let signed = Signed::with_zero_ttl();
        signed.registry.offer_referrers(api);
        let [asked, other] = [2, 3].map(|seed| Image::small(seed).manifest.digest);
        signed.lists(&signed.larder.get(&format!("/v2/library/app/referrers/{asked}")), &[]);
        let path = format!("/v2/library/app/referrers/{other}");
        signed.registry.down();
        for method in ["GET", "HEAD"] {
            let answer = signed.larder.api().send(method, &path, &[]);
            assert!(is_gateway_error(answer.status()), "{method}, with the API: {api}: {answer:?}");
        }
    }
}

#[test]
fn hanging_upstream_without_cached_list_is_an_error() {
    let signed = Signed::with_zero_ttl();
    signed.registry.script(When::any(), Fault::HoldHead(Gate::new()));
    let answer = signed.get();
    assert!([502, 504].contains(&answer.status()), "{answer:?}");
}

#[test]
fn hanging_upstream_does_not_delay_cached_lists() {
    let signed = Signed::with_zero_ttl();
    signed.cache_manifest(&signed.signature);
    let gate = Gate::new();
    signed.registry.script(When::any(), Fault::HoldHead(gate.clone()));
    assert_stale(&signed.get());
    assert_answered_before_upstream(&signed.larder, &gate);
}

#[test]
fn list_deleted_upstream_follows_the_tag_rules() {
    for (policy, left) in [("miss", 0), ("stale", 2)] {
        let signed = Signed::new(|setup| {
            setup
                .set("cache.tag_ttl", "0s")
                .set("cache.negative_ttl", "0s")
                .set("cache.on_upstream_404", policy)
        });
        signed.lists(&signed.get(), &[&signed.signature, &signed.sbom]);
        for document in [&signed.signature, &signed.sbom] {
            signed.registry.remove_manifest("library/app", &document.digest);
        }
        for _ in 0..2 {
            let answer = signed.get();
            assert_list(&answer);
            assert_eq!(answer.json()["manifests"].as_array().unwrap().len(), left, "{policy}");
        }
    }
}

#[test]
fn stale_list_respects_stale_if_error() {
    let signed = Signed::new(|setup| setup.set("cache.tag_ttl", "0s").set("cache.stale_if_error", "0s"));
    signed.lists(&signed.get(), &[&signed.signature, &signed.sbom]);
    signed.registry.down();
    let answer = signed.get();
    assert!(is_gateway_error(answer.status()), "{answer:?}");
}

#[test]
fn fallback_tag_that_is_not_an_index_is_an_error() {
    let signed = Signed::without_api(|setup| setup);
    signed.registry.tag("library/app", &signed.fallback(), &signed.signature.digest);
    let answer = signed.get();
    assert_eq!(answer.status(), 502, "{answer:?}");
}

#[test]
fn referrers_belong_to_one_repository() {
    let signed = Signed::with_zero_ttl();
    let kept = signed.get();
    signed.lists(&kept, &[&signed.signature, &signed.sbom]);
    signed.cache_manifest(&signed.signature);
    let there = signed.path().replace("library/app", "evil/x");
    // A repository with content from its own upstream.
    signed.registry.add_image("evil/x", "v1", &Image::small(9));
    let answer = signed.larder.get(&there);
    signed.lists(&answer, &[]);
    signed.registry.down();
    let answer = signed.larder.get(&there);
    signed.lists(&answer, &[]);
    assert_stale(&answer);
    signed.registry.up();
    // The list has a digest too, and is not a manifest of another repository.
    let digest = support::content::sha256(&kept.body);
    for repository in ["library/app", "evil/x"] {
        let path = format!("/v2/{repository}/manifests/{digest}");
        support::eventually("the upstream is used again", || {
            !is_gateway_error(signed.larder.get(&path).status())
        });
        let status = signed.larder.get(&path).status();
        assert_eq!(status, if repository == "evil/x" { 404 } else { 200 });
    }
}

#[test]
fn listed_referrer_is_not_linked() {
    let signed = Signed::with_zero_ttl();
    signed.cache_manifest(&signed.image.manifest);
    // A manifest of evil/x declares a private manifest as its subject.
    signed.registry.add_image("evil/x", "v1", &Image::small(9));
    let entry = json!({
        "mediaType": OCI_MANIFEST, "digest": signed.image.manifest.digest,
        "size": signed.image.manifest.bytes.len(),
    });
    let list = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry] });
    let headers = vec![("Content-Type".to_owned(), OCI_INDEX.to_owned())];
    let fault = Fault::Answer(200, headers, list.to_string().into_bytes());
    signed.registry.script(When::any().path("/evil/x/referrers/"), fault);
    let answer = signed.larder.get(&format!("/v2/evil/x/referrers/sha256:{}", "0".repeat(64)));
    assert_list(&answer);
    assert_eq!(answer.json()["manifests"], json!([entry]));
    let path = format!("/v2/evil/x/manifests/{}", signed.image.manifest.digest);
    for method in ["GET", "HEAD"] {
        assert_eq!(signed.larder.api().send(method, &path, &[]).status(), 404);
    }
}

#[test]
fn referrer_is_linked_to_each_repository_that_fetched_it() {
    let signed = Signed::with_zero_ttl();
    signed.registry.offer_referrers(false);
    signed.cache_manifest(&signed.signature);
    // The bytes are cached. One HEAD request confirms that the other repository contains them.
    signed.registry.add_manifest("library/copy", &signed.signature);
    let path = format!("/v2/library/copy/manifests/{}", signed.signature.digest);
    signed.larder.get(&path).assert_outcome("larder; hit; detail=revalidated");
    let copy = signed.path().replace("library/app", "library/copy");
    signed.lists(&signed.larder.get(&copy), &[&signed.signature]);
}

#[test]
fn long_list_is_paginated() {
    const MOST: usize = 4 << 20;
    let signed = Signed::new(|setup| setup);
    let note = "x".repeat(100_000);
    let mut wanted = BTreeSet::from([signed.signature.digest.clone(), signed.sbom.digest.clone()]);
    for n in 0..60 {
        let document = Image::statement(SIGNATURE, &format!("{n}{note}"), &signed.image.manifest);
        signed.registry.add_manifest("library/app", &document);
        wanted.insert(document.digest);
    }
    signed.registry.page_lists(10);
    for query in ["", "?artifactType=application%2Fvnd.example.signature&ns=docker.io"] {
        let (mut found, mut pages) = (Vec::new(), 0);
        let mut next = Some(format!("{}{query}", signed.path()));
        while let Some(path) = next {
            let answer = signed.larder.get(&path);
            assert_list(&answer);
            assert!(answer.body.len() <= MOST, "{}", answer.body.len());
            let filtered = answer.header("oci-filters-applied").is_some();
            assert_eq!(filtered, !query.is_empty(), "{path}");
            let document = answer.json();
            let page = document["manifests"].as_array().unwrap();
            found.extend(page.iter().map(|it| it["digest"].as_str().unwrap().to_owned()));
            pages += 1;
            next = answer.header("link").map(|link| {
                let (target, parameters) = link.split_once(';').unwrap();
                assert_eq!(parameters.trim(), "rel=\"next\"");
                let target = target.strip_prefix('<').unwrap().strip_suffix('>').unwrap();
                assert!(target.starts_with(&format!("{}?", signed.path())), "{target}");
                for part in query.trim_start_matches('?').split('&') {
                    assert!(target.contains(part), "{target} has lost {part}");
                }
                target.to_owned()
            });
        }
        assert_eq!(pages, 2);
        assert!(found.is_sorted());
        if !query.is_empty() {
            found.push(signed.sbom.digest.clone());
        }
        assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), wanted);
    }
}

#[test]
fn pages_are_requested_with_the_token() {
    let signed = Signed::new(|setup| setup);
    signed.registry.page_lists(1);
    signed.registry.require_auth(Auth::Bearer(None));
    signed.lists(&signed.get(), &[&signed.signature, &signed.sbom]);
    assert_eq!(signed.registry.count("GET", "/token"), 1);
    assert_eq!(signed.registry.count("GET", "/referrers/"), 3);
}

#[test]
fn malformed_requests_are_rejected() {
    let signed = Signed::new(|setup| setup);
    for digest in ["sha256:bad", "latest", "sha256:", "blake3:00"] {
        signed.larder.get(&format!("/v2/library/app/referrers/{digest}")).assert_error(400, "DIGEST_INVALID");
    }
    let nowhere = signed.path() + "?ns=nowhere.test";
    signed.larder.get(&nowhere).assert_error(404, "NAME_UNKNOWN");
    assert_eq!(signed.requests(), 0);
}

#[test]
fn layout_lists_its_referrers() {
    let (image, folder) = (Image::small(1), tempfile::tempdir().unwrap());
    let signature = Image::statement(SIGNATURE, "signed", &image.manifest);
    let root = folder.path().join("org/app");
    let blobs = root.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let mut entries = Vec::new();
    for document in [&image.manifest, &signature] {
        std::fs::write(blobs.join(document.digest.strip_prefix("sha256:").unwrap()), &*document.bytes)
            .unwrap();
        entries.push(json!({
            "mediaType": OCI_MANIFEST, "digest": document.digest, "size": document.bytes.len(),
        }));
    }
    let index = json!({ "schemaVersion": 2, "manifests": entries });
    std::fs::write(root.join("index.json"), index.to_string()).unwrap();
    let larder = Setup::empty()
        .upstream_set("docker.io", "default", true)
        .upstream_set("docker.io", "endpoints", vec![format!("oci://{}", folder.path().display())])
        .start();
    let list = |digest: &str| {
        let answer = larder.get(&format!("/v2/org/app/referrers/{digest}"));
        assert_list(&answer);
        answer.json()["manifests"].clone()
    };
    let entry = descriptor(&signature, &image.manifest.digest).unwrap();
    assert_eq!(list(&image.manifest.digest), json!([entry]));
    assert_eq!(list(&signature.digest), json!([]));
}
