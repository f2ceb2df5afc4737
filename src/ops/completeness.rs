//! Completeness of an image: the content that a pull needs, and the part of it that is not cached.
//!
//! `warm`, `check`, `ls`, `inspect`, `export` and the status page share this definition, so that they never contradict
//! each other. An image is:
//!
//! * the manifest of a platform, with config and layers;
//! * its attestations: the manifests that the index annotates with the digest of the image, with their blobs;
//! * the lists of referrers of the index, of the manifest and of the attestations, or the upstream's answer that there are
//!   none.
//!
//! Docker pulls the attestations with the image and requests their lists, and fails without them. The content of the
//! referrers, such as signatures, is not a part of the image: see [`Artifacts`](super::artifacts::Artifacts).

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::oci::Digest;

use super::image_tree::{ContentPart, ImageTree, PlatformImage};
use super::platform::Platform;
use super::size_check::WrongSize;

/// Platforms with the texts by which they were requested.
pub type Platforms = [(String, Platform)];

/// Content that a pull needs and that is not cached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Missing)]
pub struct MissingPart {
    /// Platform that needs the content, if stated.
    pub platform: Option<String>,
    /// `manifest` or `blob`; `referrers` for the list of referrers of the manifest with the digest.
    #[schema(pattern = "^(manifest|blob|referrers)$")]
    pub kind: String,
    /// The content.
    #[serde(flatten)]
    pub part: ContentPart,
}

impl MissingPart {
    fn new(platform: Option<&String>, kind: &str, part: &ContentPart) -> Self {
        Self { platform: platform.cloned(), kind: kind.to_owned(), part: part.clone() }
    }

    /// Returns the part for a manifest of which only the digest is known.
    pub fn manifest(digest: Digest) -> Self {
        let (size, stated_size, media_type) = (None, None, None);
        let part = ContentPart { digest, size, stated_size, media_type, cached: false, foreign: false };
        Self::new(None, "manifest", &part)
    }

    /// Returns the part for the list of referrers of a manifest.
    pub fn list(platform: Option<&String>, subject: Digest) -> Self {
        let (size, stated_size, media_type) = (None, None, None);
        let part =
            ContentPart { digest: subject, size, stated_size, media_type, cached: false, foreign: false };
        Self::new(platform, "referrers", &part)
    }

    /// Returns true for a manifest.
    pub fn is_manifest(&self) -> bool {
        self.kind == "manifest"
    }

    /// Returns true for a list of referrers.
    pub fn is_list(&self) -> bool {
        self.kind == "referrers"
    }
}

/// Content that a pull of some platforms of an image needs.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// Images that are pulled, each manifest once.
    pub images: Vec<PlatformImage>,
    /// Content that is needed and not cached.
    pub missing: Vec<MissingPart>,
    /// Content that is not cached and states which platforms there are.
    pub unknown: Vec<MissingPart>,
    /// Sizes in descriptors that contradict the content. Some clients refuse such an image.
    pub wrong_sizes: Vec<WrongSize>,
    /// Reason for which the pull fails, other than missing content.
    pub reason: Option<String>,
}

impl Needs {
    /// Returns the needs of a pull of some platforms, or of all platforms if there are none.
    pub fn of(tree: &ImageTree, platforms: &Platforms) -> Self {
        let mut needs = Self::default();
        // Clients pull a single image for any platform, with a warning.
        let chosen = if platforms.is_empty() || !tree.is_index {
            all_images(tree)
        } else {
            needs.choose(tree, platforms)
        };
        let attestations = attestations(tree);
        let attestations = chosen.iter().flat_map(|image| attestations.of(image));
        let chosen: Vec<&PlatformImage> = chosen.iter().copied().chain(attestations).collect();
        needs.add_each(chosen);
        needs.add_root_list(tree);
        needs.report_sizes(tree.indexes.iter().chain(&tree.blobs));
        let blobs = tree.blobs.iter().filter(|blob| !blob.cached);
        needs.missing.extend(blobs.map(|blob| MissingPart::new(None, "blob", blob)));
        if platforms.is_empty() {
            needs.missing.extend(missing_indexes(tree));
            needs.report_unsupported(&tree.unsupported);
            if let Some(limit) = tree.limit {
                needs.reason.get_or_insert(format!("the index is too large: {limit}"));
            }
        }
        needs
    }

    /// Returns the needs of a pull of one image of a tree.
    pub fn of_image(tree: &ImageTree, image: &PlatformImage) -> Self {
        let mut needs = Self::default();
        needs.add_each(std::iter::once(image).chain(attestations(tree).of(image)));
        needs.add_root_list(tree);
        needs
    }

    /// Adds the other manifests of an index, which a copy of all platforms includes. A pull does not need them.
    pub fn add_other_manifests(&mut self, tree: &ImageTree) {
        self.add_each(tree.images.iter().filter(|image| !image.is_image()));
    }

    /// Returns true if a pull succeeds without the upstream.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.reason.is_none()
    }

    /// Returns the images for the wanted platforms. If there is none, records the content that may name it.
    fn choose<'a>(&mut self, tree: &'a ImageTree, platforms: &Platforms) -> Vec<&'a PlatformImage> {
        let mut chosen = Vec::new();
        // The index of a build cache contains blobs only, which are for every platform.
        let has_only_blobs = tree.images.is_empty() && !tree.blobs.is_empty();
        for (text, platform) in platforms {
            let available =
                tree.images.iter().map(|image| (image.platform.as_deref(), image.os_version.as_deref()));
            let found = platform.choose_all(available);
            if found.is_empty() && !has_only_blobs {
                let available = tree.platforms().join(", ");
                let limit = tree.limit.map(|limit| format!("; the index is too large: {limit}"));
                let limit = limit.unwrap_or_default();
                self.reason = Some(format!("no image for {text}; available: {available}{limit}"));
                self.unknown = unknown_platforms(tree);
            }
            chosen.extend(found.into_iter().filter_map(|position| tree.images.get(position)));
        }
        chosen
    }

    /// Adds the list of referrers of an index.
    fn add_root_list(&mut self, tree: &ImageTree) {
        if tree.is_index && !tree.has_list {
            self.missing.push(MissingPart::list(None, tree.digest));
        }
    }

    /// Adds images, each manifest once.
    fn add_each<'a>(&mut self, images: impl IntoIterator<Item = &'a PlatformImage>) {
        let mut seen: HashSet<Digest> = self.images.iter().map(|image| image.manifest.digest).collect();
        for image in images {
            if seen.insert(image.manifest.digest) {
                self.add(image);
            }
        }
    }

    fn add(&mut self, image: &PlatformImage) {
        let platform = image.platform.as_ref();
        for part in image.missing() {
            let kind = if part.digest == image.manifest.digest { "manifest" } else { "blob" };
            self.missing.push(MissingPart::new(platform, kind, part));
        }
        if !image.has_list {
            self.missing.push(MissingPart::list(platform, image.manifest.digest));
        }
        self.report_unsupported(&image.unsupported);
        self.report_sizes(std::iter::once(&image.manifest).chain(&image.blobs));
        self.images.push(image.clone());
    }

    /// Records the sizes that contradict the content, each once.
    fn report_sizes<'a>(&mut self, parts: impl Iterator<Item = &'a ContentPart>) {
        self.wrong_sizes.extend(parts.filter_map(ContentPart::wrong_size));
        self.wrong_sizes.sort_by_key(|wrong| (wrong.digest, wrong.stated));
        self.wrong_sizes.dedup();
    }

    fn report_unsupported(&mut self, digests: &[String]) {
        if let Some(digest) = digests.first() {
            self.reason.get_or_insert(format!("{digest} cannot be cached: its digest cannot be verified"));
        }
    }
}

/// Returns for each image of a tree, in the same order, whether a pull of it succeeds without the upstream.
pub fn complete_images(tree: &ImageTree) -> Vec<bool> {
    let attestations = attestations(tree);
    let mut known: HashMap<Digest, bool> = HashMap::new();
    let has_list = tree.has_list || !tree.is_index;
    let complete = |image: &PlatformImage| {
        has_list && image.is_pullable() && attestations.of(image).all(PlatformImage::is_pullable)
    };
    let known = tree
        .images
        .iter()
        .map(|image| *known.entry(image.manifest.digest).or_insert_with(|| complete(image)));
    known.collect()
}

/// Attestations of a tree, by the manifest that they attest.
struct Attestations<'a>(HashMap<Digest, Vec<&'a PlatformImage>>);

impl<'a> Attestations<'a> {
    fn of(&self, image: &PlatformImage) -> impl Iterator<Item = &'a PlatformImage> + use<'a, '_> {
        self.0.get(&image.manifest.digest).into_iter().flatten().copied()
    }
}

fn attestations(tree: &ImageTree) -> Attestations<'_> {
    let mut found: HashMap<Digest, Vec<&PlatformImage>> = HashMap::new();
    for image in &tree.images {
        if let Some(subject) = image.attests {
            found.entry(subject).or_default().push(image);
        }
    }
    Attestations(found)
}

/// Returns the images of a tree. Manifests that are no images count only if there is nothing else.
fn all_images(tree: &ImageTree) -> Vec<&PlatformImage> {
    let images: Vec<&PlatformImage> = tree.images.iter().filter(|image| image.is_image()).collect();
    if images.is_empty() && tree.blobs.is_empty() { tree.images.iter().collect() } else { images }
}

/// Returns the indexes below the root that are not cached.
fn missing_indexes(tree: &ImageTree) -> impl Iterator<Item = MissingPart> {
    let missing = tree.indexes.iter().filter(|index| !index.cached);
    missing.map(|index| MissingPart::new(None, "manifest", index))
}

/// Returns the content that states the platforms of images without a platform in the index: indexes, manifests, configs.
fn unknown_platforms(tree: &ImageTree) -> Vec<MissingPart> {
    let unknown = tree.images.iter().filter(|image| image.platform.is_none());
    let parts = unknown.filter_map(|image| {
        if !image.manifest.cached {
            return Some(MissingPart::new(None, "manifest", &image.manifest));
        }
        let config = image.config().filter(|config| !config.cached)?;
        Some(MissingPart::new(None, "blob", config))
    });
    missing_indexes(tree).chain(parts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::index_walk::WalkLimit;
    use crate::oci::{Algorithm, MediaType};
    use crate::store::StoredManifest;

    fn part(name: &str, cached: bool) -> ContentPart {
        let digest = Digest::of(Algorithm::Sha256, name.as_bytes());
        ContentPart { digest, size: None, stated_size: None, media_type: None, cached, foreign: false }
    }

    fn image(platform: Option<&str>, os_version: Option<&str>, cached: bool) -> PlatformImage {
        let name = format!("{platform:?} {os_version:?}");
        let config = ContentPart {
            media_type: Some("application/vnd.oci.image.config.v1+json".to_owned()),
            ..part(&format!("config {name}"), cached)
        };
        PlatformImage {
            platform: platform.map(str::to_owned),
            os_version: os_version.map(str::to_owned),
            manifest: part(&name, true),
            blobs: vec![config],
            unsupported: Vec::new(),
            attests: None,
            has_list: true,
        }
    }

    fn tree(images: Vec<PlatformImage>) -> ImageTree {
        let media_type = MediaType::oci_index();
        ImageTree {
            document: StoredManifest { media_type, body: Vec::new().into() },
            is_index: true,
            digest: Digest::of(Algorithm::Sha256, b"index"),
            has_list: true,
            images,
            indexes: Vec::new(),
            blobs: Vec::new(),
            unsupported: Vec::new(),
            limit: None,
        }
    }

    fn needs(tree: &ImageTree, platform: &str) -> Needs {
        let platform = (platform.to_owned(), Platform::parse(platform).expect("a platform"));
        Needs::of(tree, &[platform])
    }

    #[test]
    fn wanted_platforms_are_needed_and_others_are_not() {
        let tree =
            tree(vec![image(Some("linux/amd64"), None, true), image(Some("linux/arm64"), None, false)]);
        assert!(needs(&tree, "linux/amd64").is_complete());
        assert_eq!(needs(&tree, "linux/arm64").missing.len(), 1);
        assert_eq!(Needs::of(&tree, &[]).missing.len(), 1);
        let other = needs(&tree, "linux/s390x");
        assert!(other.reason.is_some_and(|reason| reason.contains("linux/amd64, linux/arm64")));
        assert!(other.unknown.is_empty());
    }

    #[test]
    fn every_version_of_windows_is_needed() {
        let tree = tree(vec![
            image(Some("windows/amd64"), Some("10.0.17763.1"), true),
            image(Some("windows/amd64"), Some("10.0.20348.1"), false),
        ]);
        assert_eq!(needs(&tree, "windows/amd64").missing.len(), 1);
    }

    #[test]
    fn config_names_the_platform_that_the_index_does_not_state() {
        let tree = tree(vec![image(None, Some("a"), false), image(None, Some("b"), true)]);
        let needs = needs(&tree, "linux/amd64");
        let kinds: Vec<_> = needs.unknown.iter().map(|part| part.kind.as_str()).collect();
        assert_eq!((kinds, needs.is_complete()), (vec!["blob"], false));
    }

    #[test]
    fn blobs_of_a_build_cache_are_needed_for_every_platform() {
        let mut cache = tree(Vec::new());
        cache.blobs = vec![part("layer", true), part("config", false)];
        for needs in [needs(&cache, "linux/amd64"), Needs::of(&cache, &[])] {
            assert_eq!(needs.missing.iter().map(|part| part.kind.as_str()).collect::<Vec<_>>(), ["blob"]);
            assert_eq!(needs.reason, None);
        }
    }

    #[test]
    fn limits_and_unsupported_digests_prevent_completeness() {
        let whole = || tree(vec![image(Some("linux/amd64"), None, true)]);
        let mut limited = whole();
        limited.limit = Some(WalkLimit::Count);
        assert!(!Needs::of(&limited, &[]).is_complete());
        assert!(needs(&limited, "linux/amd64").is_complete(), "the image is within the limits");
        assert!(needs(&limited, "linux/arm64").reason.is_some_and(|reason| reason.contains("4096")));
        let mut unsupported = whole();
        unsupported.images[0].unsupported = vec!["blake3:00".to_owned()];
        let needs = needs(&unsupported, "linux/amd64");
        assert!(needs.reason.is_some_and(|reason| reason.starts_with("blake3:00 ")));
        // A child of another platform does not matter.
        let mut other = whole();
        other.unsupported = vec!["blake3:00".to_owned()];
        assert!(!Needs::of(&other, &[]).is_complete());
    }

    #[test]
    fn attestations_belong_to_the_image_that_they_attest() {
        let (amd64, arm64) = (image(Some("linux/amd64"), None, true), image(Some("linux/arm64"), None, true));
        let attestation = |image: &PlatformImage, cached| {
            let name = format!("attestation of {:?}", image.platform);
            let blobs = vec![part(&format!("blob of {name}"), cached)];
            PlatformImage {
                platform: Some("unknown/unknown".to_owned()),
                manifest: part(&name, true),
                blobs,
                attests: Some(image.manifest.digest),
                ..image.clone()
            }
        };
        let (kept, lost) = (attestation(&amd64, true), attestation(&arm64, false));
        let tree = tree(vec![amd64, arm64, kept, lost]);
        assert!(needs(&tree, "linux/amd64").is_complete());
        assert_eq!(needs(&tree, "linux/amd64").images.len(), 2);
        assert_eq!(needs(&tree, "linux/arm64").missing.len(), 1);
        assert_eq!(Needs::of(&tree, &[]).missing.len(), 1);
        assert_eq!(complete_images(&tree), [true, false, true, false]);
        assert!(!Needs::of_image(&tree, &tree.images[1]).is_complete());
    }

    #[test]
    fn other_manifests_count_only_alone() {
        let other = || image(Some("unknown/unknown"), None, false);
        let both = tree(vec![image(Some("linux/amd64"), None, true), other()]);
        assert!(Needs::of(&both, &[]).is_complete());
        assert!(!Needs::of(&tree(vec![other()]), &[]).is_complete());
        let mut copy = Needs::of(&both, &[]);
        copy.add_other_manifests(&both);
        assert_eq!(copy.missing.len(), 1);
    }

    #[test]
    fn lists_of_referrers_are_needed() {
        let whole =
            || tree(vec![image(Some("linux/amd64"), None, true), image(Some("linux/arm64"), None, true)]);
        let lists = |tree: &ImageTree, platform| {
            let needs = needs(tree, platform);
            needs
                .missing
                .iter()
                .filter(|part| part.is_list())
                .map(|part| part.part.digest)
                .collect::<Vec<_>>()
        };
        assert!(lists(&whole(), "linux/amd64").is_empty());
        let mut lost = whole();
        lost.images[0].has_list = false;
        assert_eq!(lists(&lost, "linux/amd64"), [lost.images[0].manifest.digest]);
        assert!(lists(&lost, "linux/arm64").is_empty());
        assert_eq!(complete_images(&lost), [false, true]);
        lost.has_list = false;
        assert_eq!(lists(&lost, "linux/arm64"), [lost.digest]);
        assert_eq!(complete_images(&lost), [false, false]);
    }
}
