//! Images with known bytes. They use little memory, because all blobs are parts of one pool.

use std::collections::HashMap;
use std::ops::Range;

use serde_json::json;

use crate::support::Random;
use crate::support::content::{OCI_INDEX, OCI_MANIFEST, sha256};

const POOL: usize = 64 << 20;
/// Number of families. Images of one family share two layers.
const FAMILIES: u64 = 40;
/// Number of repositories.
const REPOSITORIES: u64 = 100;

/// An image or index.
pub struct Image {
    pub repository: String,
    pub tag: String,
    /// Digests of the documents that a client requests, the document of the tag first.
    pub documents: Vec<String>,
    /// Digests of the blobs of the pulled platform, the config first.
    pub blobs: Vec<String>,
}

/// All images, and their content by digest.
pub struct World {
    pool: Vec<u8>,
    pub images: Vec<Image>,
    blobs: HashMap<String, Range<usize>>,
    documents: HashMap<String, (&'static str, Vec<u8>)>,
}

impl World {
    pub fn new(images: u64, largest: u64) -> Self {
        let mut world = Self {
            pool: Random::new(7).bytes(POOL),
            images: Vec::new(),
            blobs: HashMap::new(),
            documents: HashMap::new(),
        };
        let mut random = Random::new(11);
        let families: Vec<Vec<String>> = (0..FAMILIES)
            .map(|_| (0..2).map(|_| world.blob(&mut random, largest / 2, largest)).collect())
            .collect();
        for n in 0..images {
            let base = &families[usize::try_from(n % FAMILIES).unwrap()];
            let image = world.image(n, base, &mut random, largest);
            world.images.push(image);
        }
        world
    }

    fn image(&mut self, n: u64, base: &[String], random: &mut Random, largest: u64) -> Image {
        let (repository, tag) = (format!("soak/r{:02}", n % REPOSITORIES), format!("v{n}"));
        let mut documents = Vec::new();
        let mut pulled = Vec::new();
        let platforms: &[&str] = if n.is_multiple_of(4) { &["amd64", "arm64"] } else { &["amd64"] };
        for platform in platforms {
            let mut blobs = vec![self.blob(random, 500, 4000)];
            blobs.extend_from_slice(base);
            for _ in 0..=random.below(4) {
                blobs.push(self.layer(random, largest));
            }
            let describe = |digest: &String| json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": self.blobs[digest].len() });
            let layers: Vec<_> = blobs[1..].iter().map(describe).collect();
            let manifest = json!({
                "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": describe(&blobs[0]), "layers": layers,
                "annotations": { "soak": format!("{n} {platform}") },
            });
            documents.push((self.document(OCI_MANIFEST, manifest.to_string().into_bytes()), *platform));
            if pulled.is_empty() {
                pulled = blobs;
            }
        }
        let mut requested: Vec<String> = documents.iter().map(|(digest, _)| digest.clone()).take(1).collect();
        if platforms.len() > 1 {
            let children: Vec<_> = documents
                .iter()
                .map(|(digest, platform)| {
                    json!({
                        "mediaType": OCI_MANIFEST, "digest": digest, "size": self.documents[digest].1.len(),
                        "platform": { "os": "linux", "architecture": platform },
                    })
                })
                .collect();
            let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children });
            requested.insert(0, self.document(OCI_INDEX, index.to_string().into_bytes()));
        }
        Image { repository, tag, documents: requested, blobs: pulled }
    }

    /// Adds a layer. Each power of two of the size is equally likely.
    fn layer(&mut self, random: &mut Random, largest: u64) -> String {
        let octaves = u64::from(largest.ilog2()) - 11;
        let top = 1 << (12 + random.below(octaves));
        self.blob(random, top / 2, top)
    }

    fn blob(&mut self, random: &mut Random, least: u64, most: u64) -> String {
        let length = usize::try_from(least + random.below(most - least)).unwrap();
        let at = usize::try_from(random.below((POOL - length) as u64)).unwrap();
        let digest = sha256(&self.pool[at..at + length]);
        self.blobs.insert(digest.clone(), at..at + length);
        digest
    }

    fn document(&mut self, media_type: &'static str, bytes: Vec<u8>) -> String {
        let digest = sha256(&bytes);
        self.documents.insert(digest.clone(), (media_type, bytes));
        digest
    }

    pub fn blob_bytes(&self, digest: &str) -> Option<&[u8]> {
        Some(&self.pool[self.blobs.get(digest)?.clone()])
    }

    /// Returns a document by digest or tag, with its digest and media type.
    pub fn find(&self, repository: &str, reference: &str) -> Option<(&str, &'static str, &[u8])> {
        let digest = match reference.strip_prefix('v') {
            Some(number) => {
                let image = self.images.get(number.parse::<usize>().ok()?)?;
                (image.repository == repository).then_some(image.documents[0].as_str())?
            }
            None => reference,
        };
        let (key, (media_type, bytes)) = self.documents.get_key_value(digest)?;
        Some((key, media_type, bytes))
    }

    /// Returns the total size of all content.
    pub fn bytes(&self) -> u64 {
        let documents: usize = self.documents.values().map(|(_, bytes)| bytes.len()).sum();
        (documents + self.blobs.values().map(Range::len).sum::<usize>()) as u64
    }

    pub fn largest(&self) -> u64 {
        self.blobs.values().map(Range::len).max().unwrap_or_default() as u64
    }
}

/// Zipf distribution with exponent 1: the n-th number is drawn with a probability proportional to 1/n.
pub struct Zipf(Vec<f64>);

impl Zipf {
    pub fn new(count: usize) -> Self {
        let mut sum = 0.0;
        Self(
            (1..=count)
                .map(|n| {
                    sum += 1.0 / n as f64;
                    sum
                })
                .collect(),
        )
    }

    pub fn draw(&self, random: &mut Random) -> usize {
        let top = self.0.last().copied().unwrap_or_default();
        let at = random.below(1 << 53) as f64 / (1_u64 << 53) as f64 * top;
        self.0.partition_point(|sum| *sum < at).min(self.0.len() - 1)
    }
}
