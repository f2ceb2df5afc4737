//! The peculiarities of ghcr.io: no referrers API but a redirect to a web site that refuses or limits requests, a rate limit
//! that lasts less than a millisecond, and an index of signatures with wrong artifact types.

use serde_json::json;

use super::content::{OCI_INDEX, OCI_MANIFEST};
use super::{Document, Fault, Image, Registry, Setup, When};

/// Artifact type that the fall-back index states for every entry.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// Registry without the referrers API, and the web site that it redirects to.
pub struct Ghcr {
    pub registry: Registry,
    pub site: Registry,
}

impl Ghcr {
    /// Starts both. The web site answers with `fault`.
    pub fn start(fault: Fault) -> Self {
        let (registry, site) = (Registry::start(), Registry::start());
        site.script(When::any(), fault);
        let ghcr = Self { registry, site };
        ghcr.redirect_referrers();
        ghcr
    }

    fn redirect_referrers(&self) {
        let target = format!("{}/-", self.site.url());
        self.registry.script(When::any().path("/referrers/"), Fault::Redirect(303, target));
    }

    /// Answer of the web site that limits requests for hours.
    pub fn limited() -> Fault {
        let headers = vec![("Retry-After".to_owned(), "7200".to_owned())];
        Fault::Answer(429, headers, b"Too many requests".to_vec())
    }

    /// Answer of the web site to an unknown path.
    pub fn not_found() -> Fault {
        let headers = vec![("Content-Type".to_owned(), "text/plain; charset=utf-8".to_owned())];
        Fault::Answer(404, headers, b"Not Found".to_vec())
    }

    /// Answer of the registry whose rate limit is over after 714.6 µs.
    pub fn momentary_limit(in_header: bool) -> Fault {
        let text = "retry-after: 714.6\u{b5}s, allowed: 44000/minute";
        let body = json!({ "errors": [{ "code": "TOOMANYREQUESTS", "message": text }] }).to_string();
        let mut headers = vec![("Content-Type".to_owned(), "application/json".to_owned())];
        if in_header {
            headers.push(("Retry-After".to_owned(), "714.6\u{b5}s".to_owned()));
            return Fault::Answer(429, headers, b"{}".to_vec());
        }
        Fault::Answer(429, headers, body.into_bytes())
    }

    /// Adds a signature of an image as `cosign sign` does: with a fall-back index that states the type of the empty config.
    pub fn sign(&self, repository: &str, image: &Image, artifact_type: &str) -> Document {
        let signature = Image::statement(artifact_type, "signed", &image.manifest);
        self.registry.add_manifest(repository, &signature);
        let entry = json!({
            "mediaType": OCI_MANIFEST, "digest": signature.digest, "size": signature.bytes.len(),
            "artifactType": EMPTY,
        });
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry] });
        let index = Document::json(OCI_INDEX, &index);
        self.registry.add_manifest(repository, &index);
        self.registry.tag(repository, &image.manifest.digest.replace(':', "-"), &index.digest);
        signature
    }

    pub fn setup(&self) -> Setup {
        // Both hosts have the same address.
        Setup::with(&self.registry).upstream_set("docker.io", "allow_private", true)
    }
}
