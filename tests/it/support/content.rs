//! Content for the scripted registry: blobs, manifests and indexes with known bytes.

use std::sync::Arc;

use serde_json::{Value, json};
use sha2::Digest as _;

use super::Random;

pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Type of signatures before OCI 1.1.
pub const OCI_ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const IN_TOTO: &str = "application/vnd.in-toto+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

fn hex(bytes: impl AsRef<[u8]>) -> String {
    use std::fmt::Write as _;
    bytes.as_ref().iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(sha2::Sha256::digest(bytes)))
}

pub fn sha512(bytes: &[u8]) -> String {
    format!("sha512:{}", hex(sha2::Sha512::digest(bytes)))
}

/// Bytes and their digest.
#[derive(Clone, Debug)]
pub struct Blob {
    pub bytes: Arc<Vec<u8>>,
    pub digest: String,
}

impl Blob {
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self { digest: sha256(&bytes), bytes: Arc::new(bytes) }
    }

    pub fn sha512(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self { digest: sha512(&bytes), bytes: Arc::new(bytes) }
    }

    /// Returns `length` random bytes. Equal seeds give equal bytes.
    pub fn random(seed: u64, length: usize) -> Self {
        Self::new(Random::new(seed).bytes(length))
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn descriptor(&self, media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": self.digest, "size": self.bytes.len() })
    }
}

/// A manifest as a registry serves it: bytes, digest and Content-Type.
#[derive(Clone, Debug)]
pub struct Document {
    pub bytes: Arc<Vec<u8>>,
    pub digest: String,
    pub media_type: String,
}

impl Document {
    pub fn new(media_type: &str, bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self { digest: sha256(&bytes), bytes: Arc::new(bytes), media_type: media_type.to_owned() }
    }

    /// Serialises a manifest with unusual white space, so that serialising it again changes the digest.
    pub fn json(media_type: &str, value: &Value) -> Self {
        let mut text = serde_json::to_string_pretty(value).unwrap().replace("  ", "   ");
        text.push_str(" \n");
        Self::new(media_type, text)
    }

    /// Returns the same bytes with their sha512 digest.
    #[must_use]
    pub fn with_sha512(mut self) -> Self {
        self.digest = sha512(&self.bytes);
        self
    }

    pub fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len() })
    }
}

/// An image for one platform.
#[derive(Clone, Debug)]
pub struct Image {
    pub manifest: Document,
    pub config: Blob,
    pub layers: Vec<Blob>,
}

impl Image {
    /// Returns an OCI image with these layers.
    pub fn oci(seed: u64, platform: &str, layers: Vec<Blob>) -> Self {
        Self::build(seed, platform, layers, [OCI_MANIFEST, OCI_CONFIG, OCI_LAYER], None)
    }

    /// Returns a Docker v2s2 image with these layers.
    pub fn docker(seed: u64, platform: &str, layers: Vec<Blob>) -> Self {
        Self::build(seed, platform, layers, [DOCKER_MANIFEST, DOCKER_CONFIG, DOCKER_LAYER], None)
    }

    /// Returns an OCI image with one layer of 3,000 bytes.
    pub fn small(seed: u64) -> Self {
        Self::oci(seed, "linux/amd64", vec![Blob::random(seed, 3000)])
    }

    /// Returns an artifact whose subject is `subject`.
    pub fn artifact(seed: u64, subject: &Document) -> Self {
        let layers = vec![Blob::new(format!("a statement about {} ({seed})", subject.digest))];
        Self::build(seed, "unknown/unknown", layers, [OCI_MANIFEST, OCI_CONFIG, OCI_LAYER], Some(subject))
    }

    /// Returns the attestation of an image, as build programs write it.
    pub fn attestation(seed: u64, subject: &Document) -> Self {
        let statement = json!({
            "_type": "https://in-toto.io/Statement/v0.1", "predicateType": "https://slsa.dev/provenance/v1",
            "subject": [], "predicate": { "of": subject.digest, "seed": seed },
        });
        let layers = vec![Blob::new(statement.to_string())];
        Self::build(seed, "unknown/unknown", layers, [OCI_MANIFEST, OCI_CONFIG, IN_TOTO], None)
    }

    /// Returns the manifest of an artifact with a type and annotations, whose subject is `subject`.
    pub fn statement(media_type: &str, note: &str, subject: &Document) -> Document {
        let value = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": media_type,
            "config": Blob::new("{}").descriptor("application/vnd.oci.empty.v1+json"),
            "layers": [], "subject": subject.descriptor(), "annotations": { "note": note },
        });
        Document::json(OCI_MANIFEST, &value)
    }

    fn build(
        seed: u64,
        platform: &str,
        layers: Vec<Blob>,
        [manifest, config_type, layer_type]: [&str; 3],
        subject: Option<&Document>,
    ) -> Self {
        let (os, architecture) = platform.split_once('/').unwrap();
        let config = json!({
            "architecture": architecture, "os": os, "config": { "Labels": { "seed": seed.to_string() } },
            "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|l| &l.digest).collect::<Vec<_>>() },
        });
        let config = Blob::new(config.to_string());
        let mut value = json!({
            "schemaVersion": 2, "mediaType": manifest, "config": config.descriptor(config_type),
            "layers": layers.iter().map(|layer| layer.descriptor(layer_type)).collect::<Vec<_>>(),
        });
        if let Some(subject) = subject {
            value["artifactType"] = json!("application/vnd.example.statement");
            value["subject"] = subject.descriptor();
        }
        Self { manifest: Document::json(manifest, &value), config, layers }
    }

    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        std::iter::once(&self.config).chain(&self.layers)
    }
}

/// An index over images and other indexes.
#[derive(Clone, Debug)]
pub struct Index {
    pub document: Document,
    pub images: Vec<Image>,
    pub indexes: Vec<Index>,
}

impl Index {
    /// Returns an OCI index of linux/amd64 and linux/arm64.
    pub fn oci(seed: u64) -> Self {
        let image = |n: u64, platform| Image::oci(seed + n, platform, vec![Blob::random(seed + n, 5000)]);
        Self::over(OCI_INDEX, vec![image(1, "linux/amd64"), image(2, "linux/arm64")], Vec::new())
    }

    /// Returns a Docker manifest list of linux/amd64 and linux/arm64.
    pub fn docker(seed: u64) -> Self {
        let image = |n: u64, platform| Image::docker(seed + n, platform, vec![Blob::random(seed + n, 5000)]);
        Self::over(DOCKER_LIST, vec![image(1, "linux/amd64"), image(2, "linux/arm64")], Vec::new())
    }

    /// Returns an index that contains an image and another index.
    pub fn nested(seed: u64) -> Self {
        let image = Image::oci(seed, "linux/s390x", vec![Blob::random(seed, 4000)]);
        Self::over(OCI_INDEX, vec![image], vec![Self::oci(seed + 10)])
    }

    /// Returns an index of linux/amd64 and linux/arm64, followed by an attestation of each, as build programs write it.
    pub fn attested(seed: u64) -> Self {
        let mut images = Self::oci(seed).images;
        let subjects: Vec<Document> = images.iter().map(|image| image.manifest.clone()).collect();
        images.extend(subjects.iter().map(|subject| Image::attestation(seed, subject)));
        let mut manifests: Vec<Value> = images.iter().map(of_image).collect();
        for (entry, subject) in manifests[2..].iter_mut().zip(&subjects) {
            entry["annotations"] = json!({
                "vnd.docker.reference.digest": subject.digest,
                "vnd.docker.reference.type": "attestation-manifest",
            });
        }
        let value = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
        Self { document: Document::json(OCI_INDEX, &value), images, indexes: Vec::new() }
    }

    pub fn over(media_type: &str, images: Vec<Image>, indexes: Vec<Self>) -> Self {
        let manifests: Vec<Value> =
            images.iter().map(of_image).chain(indexes.iter().map(|i| i.document.descriptor())).collect();
        let value = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests });
        Self { document: Document::json(media_type, &value), images, indexes }
    }

    /// Returns the document of this index and all documents below it.
    pub fn documents(&self) -> Vec<&Document> {
        let mut all = vec![&self.document];
        all.extend(self.images.iter().map(|image| &image.manifest));
        all.extend(self.indexes.iter().flat_map(Self::documents));
        all
    }

    /// Returns all images at any depth.
    pub fn all_images(&self) -> Vec<&Image> {
        self.images.iter().chain(self.indexes.iter().flat_map(Self::all_images)).collect()
    }
}

/// Returns the entry of an image in an index. Its platform is that of the config.
fn of_image(image: &Image) -> Value {
    let config: Value = serde_json::from_slice(&image.config.bytes).unwrap();
    let mut descriptor = image.manifest.descriptor();
    descriptor["platform"] = json!({ "os": config["os"], "architecture": config["architecture"] });
    descriptor
}
