//! Registries of one row, their content, and their requests.

use std::fmt::Write as _;

use super::cases::{Case, Request, Second};
use super::support::{Blob, Document, Gate, Image, Registry, Seen, TlsServer};

/// Repository with all content.
pub(crate) const REPOSITORY: &str = "org/app";
/// Length of bodies: larger than one read.
pub(crate) const LENGTH: usize = 90_000;

/// Content of the registries of a row.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    /// Document of the tag.
    pub(crate) document: Document,
    pub(crate) blob: Blob,
    /// Artifact that refers to the document. It is in the list of referrers.
    pub(crate) signature: Document,
    /// Expected document for the tag, if it is a different one.
    pub(crate) converted: Option<Document>,
}

impl Content {
    /// Returns an image with one layer. The manifest has the size of the layer.
    pub(crate) fn image(seed: u64) -> Self {
        let blob = Blob::random(seed, LENGTH);
        let mut manifest: serde_json::Value =
            serde_json::from_slice(&Image::oci(seed, "linux/amd64", vec![blob.clone()]).manifest.bytes)
                .unwrap();
        manifest["annotations"] = serde_json::json!({ "padding": "x".repeat(LENGTH) });
        let document = Document::json(super::support::content::OCI_MANIFEST, &manifest);
        let signature = sign(&document);
        Self { document, blob, signature, converted: None }
    }

    /// Returns content with another document.
    pub(crate) fn document(seed: u64, media_type: &str, text: impl Into<Vec<u8>>) -> Self {
        let document = Document::new(media_type, text);
        Self { signature: sign(&document), document, ..Self::image(seed) }
    }
}

fn sign(document: &Document) -> Document {
    Image::statement("application/vnd.example.signature", "signed", document)
}

/// Registries of one row.
pub(crate) struct Site {
    /// Name of the row's upstream.
    pub(crate) upstream: String,
    pub(crate) first: Registry,
    /// Another registry with the same content.
    pub(crate) other: Registry,
    second: Second,
    pub(crate) content: Content,
    /// Opened when the client has the head of its answer.
    pub(crate) head: Gate,
    pub(crate) tls: Option<TlsServer>,
}

impl Site {
    pub(crate) fn new(n: usize, case: &Case) -> Self {
        let content = (case.content)(n as u64);
        let (first, other) = (Registry::start(), Registry::start());
        for registry in [&first, &other] {
            registry.offer_referrers(true);
            registry.add_manifest(REPOSITORY, &content.document);
            registry.add_manifest(REPOSITORY, &content.signature);
            registry.add_blob(REPOSITORY, &content.blob);
            registry.tag(REPOSITORY, "v1", &content.document.digest);
            if let Some(converted) = &content.converted {
                registry.add_manifest(REPOSITORY, converted);
            }
        }
        let tls = case.tls.then(|| {
            let to = other.url();
            TlsServer::start(format!("HTTP/1.1 307 x\r\nLocation: {to}/x\r\nContent-Length: 0\r\n\r\n"))
        });
        Self {
            upstream: format!("row{n}.test"),
            first,
            other,
            second: case.second,
            content,
            head: Gate::new(),
            tls,
        }
    }

    pub(crate) fn endpoints(&self) -> Vec<String> {
        match (&self.tls, self.second) {
            (Some(tls), _) => vec![tls.url()],
            (None, Second::Endpoint) => vec![self.first.url(), self.other.url()],
            (None, Second::Unused | Second::RedirectTarget) => vec![self.first.url()],
        }
    }

    /// Returns the path of a client's request.
    pub(crate) fn path(&self, request: Request) -> String {
        let Content { document, blob, .. } = &self.content;
        let (what, reference) = match request {
            Request::Tag | Request::CachedTag => ("manifests", "v1"),
            Request::Digest | Request::CachedDigest => ("manifests", document.digest.as_str()),
            Request::Blob | Request::CachedBlob => ("blobs", blob.digest.as_str()),
            Request::Referrers | Request::CachedReferrers => ("referrers", document.digest.as_str()),
        };
        format!("/v2/{}/{REPOSITORY}/{what}/{reference}", self.upstream)
    }

    /// Compares a complete body with the correct one.
    pub(crate) fn verdict(&self, request: Request, body: &[u8]) -> &'static str {
        let Content { document, blob, signature, converted } = &self.content;
        let correct = match request {
            Request::Tag | Request::CachedTag => converted.as_ref().unwrap_or(document).bytes.clone(),
            Request::Digest | Request::CachedDigest => document.bytes.clone(),
            Request::Blob | Request::CachedBlob => blob.bytes.clone(),
            Request::Referrers | Request::CachedReferrers => {
                let list: serde_json::Value = serde_json::from_slice(body).unwrap();
                return match list["manifests"].as_array().map(Vec::as_slice) {
                    Some([only]) if only["digest"] == signature.digest.as_str() => "complete",
                    Some([]) => "empty list",
                    _ => "WRONG",
                };
            }
        };
        if body == *correct { "complete" } else { "WRONG" }
    }

    pub(crate) fn forget_requests(&self) {
        self.first.forget_requests();
        self.other.forget_requests();
    }

    pub(crate) fn down(&self) {
        self.first.down();
        self.other.down();
    }

    /// Returns the requests of all registries in short form.
    pub(crate) fn requests(&self) -> String {
        let (first, other) = (self.list(&self.first), self.list(&self.other));
        match self.second {
            Second::Unused => first,
            Second::RedirectTarget => format!("{first}; other host: {other}"),
            Second::Endpoint => format!("first: {first}; second: {other}"),
        }
    }

    fn list(&self, registry: &Registry) -> String {
        let mut words: Vec<(String, usize)> = Vec::new();
        for seen in registry.requests() {
            let word = self.word(&seen);
            match words.last_mut() {
                Some((last, count)) if *last == word => *count += 1,
                _ => words.push((word, 1)),
            }
        }
        if words.is_empty() {
            return "nothing".to_owned();
        }
        let words: Vec<_> = words
            .into_iter()
            .map(|(word, count)| if count > 1 { format!("{word} ×{count}") } else { word })
            .collect();
        words.join(", ")
    }

    fn word(&self, seen: &Seen) -> String {
        let reference = seen.path.rsplit('/').next().unwrap_or_default();
        let what = match reference {
            "v1" => "tag",
            "token" => "token",
            _ if seen.path.contains("/referrers/") => "referrers",
            tag if tag.starts_with("sha256-") => "list tag",
            digest if digest == self.content.blob.digest => "blob",
            digest if digest == self.content.document.digest => "digest",
            digest if digest.starts_with("sha256:") => "another digest",
            other => other,
        };
        let mut word = format!("{} {what}", seen.method);
        if let Some(from) = seen.range_start() {
            let _ = write!(word, " @{from}");
        }
        if seen.header("authorization").is_some_and(|given| given.starts_with("Basic ")) {
            word.push_str(" with the password");
        }
        word
    }
}
