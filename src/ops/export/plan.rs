//! Content of an archive in its order: index files, manifests, blobs.

use bytes::Bytes;
use oci_spec::image::ANNOTATION_REF_NAME;
use serde_json::{Value, json};

use crate::oci::media::{DOCKER_CONFIG, ManifestKind, OCI_INDEX};
use crate::oci::{Digest, Manifest, MediaType};

use super::lists::PlannedLists;
use super::report::ExportReport;
use crate::layout::{
    DOCKER_FILE, IMAGE_NAME, INDEX_FILE, MARKER, MARKER_FILE, REFERRERS, blob_path, entry_length,
};
use crate::ops::platform::NO_IMAGE;
use crate::ops::reference::{self, ImageReference};
use crate::ops::size_check::WrongSize;

const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// Manifest or index of an export.
#[derive(Clone, Debug)]
pub(super) struct PlannedDocument {
    pub(super) digest: Digest,
    pub(super) media_type: MediaType,
    pub(super) body: Bytes,
    /// Platform in the index.
    pub(super) platform: Option<String>,
}

impl PlannedDocument {
    pub(super) fn is_index(&self) -> bool {
        self.media_type.kind() == Some(ManifestKind::Index)
    }

    pub(super) fn read(&self) -> Option<Manifest> {
        Manifest::read(&self.body, Some(self.media_type.as_str())).ok()
    }
}

/// Blob of an export.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlannedBlob {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) cached: bool,
}

/// Content of an archive.
#[derive(Debug)]
pub(super) struct Plan {
    /// Manifest or index that the archive names.
    pub(super) root: PlannedDocument,
    /// Manifests below the root.
    pub(super) below: Vec<PlannedDocument>,
    pub(super) blobs: Vec<PlannedBlob>,
    /// Lists of referrers.
    pub(super) referrers: PlannedLists,
    /// True if everything below the index is included.
    pub(super) complete: bool,
    /// Reason why the upstream did not confirm the tag.
    pub(super) stale: Option<String>,
    /// Sizes in descriptors that contradict the content.
    pub(super) wrong_sizes: Vec<WrongSize>,
}

/// Entry of an archive.
#[derive(Clone, Debug)]
pub(super) enum ArchivePart {
    /// File in memory.
    File(String, Bytes),
    /// Blob from the cache, fetched if it is missing.
    Blob(PlannedBlob),
}

impl ArchivePart {
    /// Returns the bytes that the entry takes in the archive.
    pub(super) fn length(&self) -> u64 {
        match self {
            Self::File(path, content) => entry_length(path, content.len() as u64),
            Self::Blob(blob) => entry_length(&blob_path(&blob.digest), blob.size),
        }
    }
}

/// Complete name of the image in the archive, and its tag.
pub(super) type ArchiveName = (String, String);

impl Plan {
    pub(super) fn documents(&self) -> impl Iterator<Item = &PlannedDocument> {
        std::iter::once(&self.root).chain(&self.below)
    }

    /// Returns all entries in order. `repository` has the tags of signatures.
    pub(super) fn parts(&self, name: Option<&ArchiveName>, repository: &str) -> Vec<ArchivePart> {
        let file = |path: &str, content: String| ArchivePart::File(path.to_owned(), content.into());
        let mut parts = vec![
            file(MARKER_FILE, MARKER.to_owned()),
            file(INDEX_FILE, self.index(name, repository).to_string()),
        ];
        parts.extend(self.docker(name).map(|docker| file(DOCKER_FILE, docker.to_string())));
        parts.extend(self.documents().map(|it| ArchivePart::File(blob_path(&it.digest), it.body.clone())));
        parts.extend(
            self.referrers.bodies().map(|(digest, body)| ArchivePart::File(blob_path(&digest), body)),
        );
        parts.extend(self.blobs.iter().map(|blob| ArchivePart::Blob(*blob)));
        parts
    }

    fn index(&self, name: Option<&ArchiveName>, repository: &str) -> Value {
        let root = &self.root;
        let mut entry = index_entry(root, name);
        if let Some(referrers) = self.referrers.annotation() {
            entry["annotations"][REFERRERS] = json!(referrers);
        }
        if let Some(platform) = root.platform.as_deref().and_then(platform) {
            entry["platform"] = platform;
        }
        let mut entries = vec![entry];
        for (tag, digest) in &self.referrers.tags {
            let name = (format!("{repository}:{tag}"), tag.to_string());
            let document = self.documents().find(|document| document.digest == *digest);
            entries.extend(document.map(|document| index_entry(document, Some(&name))));
        }
        json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries })
    }

    /// Returns the `manifest.json` for docker before version 25, if the archive has exactly one image.
    fn docker(&self, name: Option<&ArchiveName>) -> Option<Value> {
        let is_image = |it: &&PlannedDocument| !it.is_index() && it.platform.as_deref() != Some(NO_IMAGE);
        let mut images = self.documents().filter(is_image);
        let (image, None) = (images.next()?, images.next()) else { return None };
        let read = image.read()?;
        let (config, layers) = read.blobs.split_first()?;
        let config_type = config.media_type.as_ref().map(MediaType::as_str)?;
        if ![OCI_CONFIG, DOCKER_CONFIG].contains(&config_type)
            || image.media_type.kind() != Some(ManifestKind::Image)
        {
            return None;
        }
        let layers: Vec<String> = layers.iter().map(|layer| blob_path(&layer.digest)).collect();
        let tags = name.map(|(full_name, _)| [reference::familiar(full_name)]);
        Some(json!([{ "Config": blob_path(&config.digest), "RepoTags": tags, "Layers": layers }]))
    }

    /// Returns the report of the export.
    pub(super) fn report(&self, reference: &ImageReference, name: Option<ArchiveName>) -> ExportReport {
        let documents = self.documents().map(|it| it.body.len() as u64);
        let platforms = self.documents().filter_map(|it| it.platform.clone());
        ExportReport {
            reference: reference.to_string(),
            name: name.map(|(full_name, _)| full_name),
            digest: self.root.digest,
            media_type: self.root.media_type.to_string(),
            platforms: platforms.filter(|it| it != NO_IMAGE).collect(),
            complete: self.complete,
            manifests: 1 + self.below.len() as u64,
            blobs: self.blobs.len() as u64,
            bytes: documents.chain(self.blobs.iter().map(|it| it.size)).sum(),
            fetched: self.blobs.iter().filter(|blob| !blob.cached).count() as u64,
            stale: self.stale.clone(),
            wrong_sizes: self.wrong_sizes.clone(),
            unknown_referrers: self.referrers.unknown.clone(),
        }
    }
}

/// Returns the entry of a document in `index.json`.
fn index_entry(document: &PlannedDocument, name: Option<&ArchiveName>) -> Value {
    let PlannedDocument { digest, media_type, body, .. } = document;
    let mut entry = json!({ "mediaType": media_type.as_str(), "digest": digest, "size": body.len() });
    if let Some((full_name, tag)) = name {
        entry["annotations"] = json!({ IMAGE_NAME: full_name, ANNOTATION_REF_NAME: tag });
    }
    entry
}

/// Returns a platform as in a descriptor.
fn platform(text: &str) -> Option<Value> {
    let mut parts = text.split('/');
    let mut platform = json!({ "os": parts.next()?, "architecture": parts.next()? });
    if let Some(variant) = parts.next() {
        platform["variant"] = json!(variant);
    }
    Some(platform)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;
    use crate::oci::media::{DOCKER_LIST, OCI_MANIFEST};

    fn document(media_type: &str, text: String, platform: Option<&str>) -> PlannedDocument {
        PlannedDocument {
            digest: Digest::of(Algorithm::Sha256, text.as_bytes()),
            media_type: MediaType::new(media_type).expect("a type"),
            body: text.into(),
            platform: platform.map(str::to_owned),
        }
    }

    fn image(config: &str, platform: Option<&str>) -> PlannedDocument {
        let digest = |text: &str| Digest::of(Algorithm::Sha256, text.as_bytes());
        let config = json!({ "mediaType": config, "digest": digest(config), "size": 1 });
        let layer = json!({ "mediaType": "application/x", "digest": digest("layer"), "size": 1 });
        let value = json!({ "schemaVersion": 2, "config": config, "layers": [layer], "of": platform });
        document(OCI_MANIFEST, value.to_string(), platform)
    }

    fn plan(root: PlannedDocument, below: Vec<PlannedDocument>) -> Plan {
        Plan {
            root,
            below,
            blobs: Vec::new(),
            referrers: PlannedLists::default(),
            complete: true,
            stale: None,
            wrong_sizes: Vec::new(),
        }
    }

    #[test]
    fn docker_manifest_is_written_for_one_image() {
        let name = ("docker.io/library/a:1".to_owned(), "1".to_owned());
        let index = || document(DOCKER_LIST, "{}".to_owned(), None);
        let docker = |plan: Plan| plan.docker(Some(&name));
        let found = docker(plan(image(OCI_CONFIG, None), Vec::new())).expect("one image");
        assert_eq!(found[0]["RepoTags"], json!(["a:1"]));
        assert!(found[0]["Config"].as_str().is_some_and(|it| it.starts_with("blobs/sha256/")));
        assert_eq!(found[0]["Layers"].as_array().map(Vec::len), Some(1));
        let attested = vec![image(DOCKER_CONFIG, Some("linux/amd64")), image(OCI_CONFIG, Some(NO_IMAGE))];
        assert!(docker(plan(index(), attested)).is_some());
        let two = vec![image(OCI_CONFIG, Some("linux/amd64")), image(OCI_CONFIG, Some("linux/arm64"))];
        assert_eq!(docker(plan(index(), two)), None);
        assert_eq!(docker(plan(image("application/vnd.oci.empty.v1+json", None), Vec::new())), None);
    }

    #[test]
    fn index_entry_has_name_and_platform() {
        let name = ("quay.io/a:1".to_owned(), "1".to_owned());
        let index = plan(image(OCI_CONFIG, Some("linux/arm/v7")), Vec::new()).index(Some(&name), "quay.io/a");
        let entry = &index["manifests"][0];
        assert_eq!(entry["annotations"], json!({ IMAGE_NAME: "quay.io/a:1", ANNOTATION_REF_NAME: "1" }));
        let platform = json!({ "os": "linux", "architecture": "arm", "variant": "v7" });
        assert_eq!((&entry["platform"], &entry["mediaType"]), (&platform, &json!(OCI_MANIFEST)));
        assert!(
            plan(image(OCI_CONFIG, None), Vec::new()).index(None, "quay.io/a")["manifests"][0]
                .get("annotations")
                .is_none()
        );
    }
}
