//! The read-only cases of the OCI distribution-spec conformance suites: pull and content discovery, in front of a
//! registry
//! with the expected content. Each test has the name of its case.

use crate::support;

use serde_json::Value;
use support::content::OCI_INDEX;
use support::{Answer, Blob, Document, Image, Index, Larder, Registry, Setup};

/// `Accept` headers of the suites: the two OCI types, in two header lines.
const ACCEPT: [(&str, &str); 2] = [
    ("Accept", "application/vnd.oci.image.index.v1+json"),
    ("Accept", "application/vnd.oci.image.manifest.v1+json"),
];
const TYPES: [&str; 2] = ["application/vnd.example.signature", "application/vnd.example.sbom"];
const REPOSITORY: &str = "/v2/library/conformance";

/// A registry with tags and referrers, and a server with an empty cache.
struct Suite {
    _registry: Registry,
    larder: Larder,
    image: Image,
    index: Index,
    referrers: Vec<Document>,
}

impl Suite {
    fn new() -> Self {
        let registry = Registry::start();
        registry.offer_referrers(true);
        let (image, index) = (Image::small(1), Index::oci(10));
        registry.add_image("library/conformance", "tag1", &image);
        registry.add_index("library/conformance", "tag2", &index);
        for tag in ["A", "b", "tag3", "zz"] {
            registry.tag("library/conformance", tag, &image.manifest.digest);
        }
        let referrers: Vec<_> =
            TYPES.iter().map(|kind| Image::statement(kind, "a note", &image.manifest)).collect();
        for document in &referrers {
            registry.add_manifest("library/conformance", document);
        }
        // The suites list tags before they pull any content.
        let larder = Setup::with(&registry).set("cache.tags_list", "merged").start();
        Self { _registry: registry, larder, image, index, referrers }
    }

    fn ask(&self, method: &str, path: &str) -> Answer {
        self.larder.api().send(method, &format!("{REPOSITORY}/{path}"), &ACCEPT)
    }

    fn tags(&self, query: &str) -> (Vec<String>, Answer) {
        let answer = self.ask("GET", &format!("tags/list{query}"));
        assert_eq!(answer.status(), 200, "{answer:?}");
        (serde_json::from_value(answer.json()["tags"].clone()).unwrap(), answer)
    }

    fn blobs(&self) -> Vec<&Blob> {
        self.image.blobs().collect()
    }

    /// Returns (reference, document) by tag and by digest.
    fn manifests(&self) -> Vec<(String, &Document)> {
        let (image, index) = (&self.image.manifest, &self.index.document);
        let children = self.index.images.iter().map(|child| &child.manifest);
        let mut all = vec![("tag1".to_owned(), image), ("tag2".to_owned(), index)];
        all.extend([image, index].into_iter().chain(children).map(|it| (it.digest.clone(), it)));
        all
    }
}

fn error_code(answer: &Answer) -> String {
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let errors = answer.json()["errors"].as_array().unwrap().clone();
    assert!(!errors.is_empty());
    errors[0]["code"].as_str().unwrap().to_owned()
}

#[test]
fn base_ping() {
    let suite = Suite::new();
    for path in ["/v2/", "/v2"] {
        assert_eq!(suite.larder.get(path).status(), 200);
    }
}

#[test]
fn base_empty_tag_list() {
    let suite = Suite::new();
    let answer = suite.larder.get("/v2/library/nothing-here/tags/list");
    assert!([200, 404].contains(&answer.status()), "{answer:?}");
}

#[test]
fn base_empty_referrers() {
    let suite = Suite::new();
    let answer = suite.ask("GET", &format!("referrers/{}", Blob::new("random").digest));
    assert_eq!(answer.status(), 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some(OCI_INDEX));
    let index = answer.json();
    assert_eq!((&index["schemaVersion"], &index["mediaType"]), (&Value::from(2), &Value::from(OCI_INDEX)));
    assert_eq!(index["manifests"], Value::Array(Vec::new()));
}

#[test]
fn discovery_tags_are_listed_in_order() {
    let (tags, _) = Suite::new().tags("");
    assert_eq!(tags, ["A", "b", "tag1", "tag2", "tag3", "zz"]);
}

#[test]
fn discovery_n_and_last() {
    let suite = Suite::new();
    let (all, _) = suite.tags("");
    let (first, answer) = suite.tags("?n=3");
    assert_eq!(first, all[..3]);
    let link = answer.header("link").expect("there are more").to_owned();
    assert!(
        link.starts_with(&format!("<{REPOSITORY}/tags/list?")) && link.ends_with("; rel=\"next\""),
        "{link}"
    );
    let next = link.trim_start_matches('<').split('>').next().unwrap();
    let rest = suite.larder.get(next).json();
    assert_eq!(rest["tags"], Value::from(all[3..].to_vec()));
    assert_eq!(suite.tags(&format!("?last={}", all[2])).0, all[3..]);
    assert_eq!(suite.tags("?n=2&last=A").0, ["b", "tag1"]);
    // `last` does not need to exist.
    assert_eq!(suite.tags("?last=tag11").0, ["tag2", "tag3", "zz"]);
    let (none, answer) = suite.tags("?n=0");
    assert!(none.is_empty() && answer.header("link").is_none());
    assert_eq!(error_code(&suite.ask("GET", "tags/list?n=-1")), "PAGINATION_NUMBER_INVALID");
}

#[test]
fn pull_head_has_every_header_and_no_body() {
    let suite = Suite::new();
    for (reference, document) in suite.manifests() {
        let answer = suite.ask("HEAD", &format!("manifests/{reference}"));
        assert_eq!((answer.status(), answer.body.len()), (200, 0), "{reference}: {answer:?}");
        assert_eq!(answer.header("docker-content-digest"), Some(document.digest.as_str()));
        assert_eq!(answer.header("content-type"), Some(document.media_type.as_str()));
        assert_eq!(answer.header("content-length"), Some(document.bytes.len().to_string().as_str()));
    }
    for blob in suite.blobs() {
        let answer = suite.ask("HEAD", &format!("blobs/{}", blob.digest));
        assert_eq!((answer.status(), answer.body.len()), (200, 0), "{answer:?}");
        assert_eq!(answer.header("docker-content-digest"), Some(blob.digest.as_str()));
        assert_eq!(answer.header("content-length"), Some(blob.len().to_string().as_str()));
    }
}

#[test]
fn pull_manifests_and_blobs() {
    let suite = Suite::new();
    // First not cached, then cached.
    for _ in 0..2 {
        for (reference, document) in suite.manifests() {
            let answer = suite.ask("GET", &format!("manifests/{reference}"));
            answer.assert_body(&document.bytes);
            assert_eq!(answer.header("docker-content-digest"), Some(document.digest.as_str()));
            assert_eq!(answer.header("content-type"), Some(document.media_type.as_str()));
        }
        for blob in suite.blobs() {
            let answer = suite.ask("GET", &format!("blobs/{}", blob.digest));
            answer.assert_body(&blob.bytes);
            assert_eq!(answer.header("docker-content-digest"), Some(blob.digest.as_str()));
        }
        suite.larder.wait_idle();
    }
}

#[test]
fn pull_ranges_of_blobs() {
    let registry = Registry::start();
    let blob = Blob::random(3, 3000);
    registry.add_blob("library/conformance", &blob);
    let larder = Larder::in_front_of(&registry);
    let path = format!("{REPOSITORY}/blobs/{}", blob.digest);
    for (range, from, to) in
        [("500-1499", 500, 1500), ("500-", 500, 3000), ("-500", 2500, 3000), ("2000-5000", 2000, 3000)]
    {
        let answer = larder.api().send("GET", &path, &[("Range", &format!("bytes={range}"))]);
        assert_eq!(answer.status(), 206, "{range}: {answer:?}");
        assert_eq!(answer.body, blob.bytes[from..to], "{range}");
        let content_range = format!("bytes {from}-{}/3000", to - 1);
        assert_eq!(answer.header("content-range"), Some(content_range.as_str()));
        assert_eq!(answer.header("content-length"), Some((to - from).to_string().as_str()));
    }
    for range in ["500-0", "3000-", "5000-6000"] {
        let answer = larder.api().send("GET", &path, &[("Range", &format!("bytes={range}"))]);
        assert_eq!(answer.status(), 416, "{range}: {answer:?}");
        assert_eq!(answer.header("content-range"), Some("bytes */3000"));
    }
}

#[test]
fn pull_missing_content_is_404() {
    let suite = Suite::new();
    let digest = Blob::new("missing content").digest;
    for method in ["HEAD", "GET"] {
        for (path, code) in [
            (format!("manifests/{digest}"), "MANIFEST_UNKNOWN"),
            ("manifests/unknown".to_owned(), "MANIFEST_UNKNOWN"),
            ("manifests/.INVALID_MANIFEST_NAME".to_owned(), "MANIFEST_UNKNOWN"),
            (format!("blobs/{digest}"), "BLOB_UNKNOWN"),
        ] {
            let answer = suite.ask(method, &path);
            assert_eq!(answer.status(), 404, "{method} {path}: {answer:?}");
            if method == "GET" {
                assert_eq!(error_code(&answer), code, "{path}");
            } else {
                assert!(answer.body.is_empty());
            }
        }
    }
}

#[test]
fn pull_malformed_digest() {
    let suite = Suite::new();
    for path in ["manifests/sha256:baddigeststring", "blobs/sha256:baddigeststring", "referrers/sha256:bad"] {
        let answer = suite.ask("GET", path);
        assert_eq!(answer.status(), 400, "{path}: {answer:?}");
        assert_eq!(error_code(&answer), "DIGEST_INVALID", "{path}");
    }
}

#[test]
fn discovery_referrers() {
    let suite = Suite::new();
    let path = format!("referrers/{}", suite.image.manifest.digest);
    let answer = suite.ask("GET", &path);
    assert_eq!(answer.status(), 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some(OCI_INDEX));
    assert_eq!(answer.header("oci-filters-applied"), None);
    let index = answer.json();
    assert_eq!((&index["schemaVersion"], &index["mediaType"]), (&Value::from(2), &Value::from(OCI_INDEX)));
    let listed = index["manifests"].as_array().unwrap();
    assert_eq!(listed.len(), suite.referrers.len());
    for (document, kind) in suite.referrers.iter().zip(TYPES) {
        let one = listed.iter().find(|one| one["digest"] == *document.digest).expect("it is listed");
        assert_eq!((&one["artifactType"], &one["size"]), (&kind.into(), &document.bytes.len().into()));
        assert_eq!(one["mediaType"], *document.media_type);
        assert_eq!(one["annotations"]["note"], "a note");
    }
}

#[test]
fn discovery_referrers_are_filtered() {
    let suite = Suite::new();
    for (document, kind) in suite.referrers.iter().zip(TYPES) {
        let path = format!("referrers/{}?artifactType={kind}", suite.image.manifest.digest);
        let answer = suite.ask("GET", &path);
        assert_eq!(answer.status(), 200, "{answer:?}");
        assert_eq!(answer.header("oci-filters-applied"), Some("artifactType"));
        let listed = answer.json()["manifests"].as_array().unwrap().clone();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0]["digest"], *document.digest);
    }
}

#[test]
fn write_requests_are_unsupported() {
    let suite = Suite::new();
    let (manifest, blob) = (&suite.image.manifest.digest, &suite.image.layers[0].digest);
    for (method, path) in [
        ("DELETE", "manifests/tag1".to_owned()),
        ("DELETE", format!("manifests/{manifest}")),
        ("DELETE", format!("blobs/{blob}")),
        ("POST", "blobs/uploads/".to_owned()),
        ("PUT", "manifests/new".to_owned()),
    ] {
        let answer = suite.ask(method, &path);
        assert_eq!(answer.status(), 405, "{method} {path}: {answer:?}");
        assert_eq!(
            (error_code(&answer).as_str(), answer.header("allow")),
            ("UNSUPPORTED", Some("GET, HEAD"))
        );
    }
    suite.ask("GET", "manifests/tag1").assert_body(&suite.image.manifest.bytes);
}
