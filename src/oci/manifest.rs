//! Manifests and indexes: detection of the media type, and extraction of descriptors. Documents are never changed.
//!
//! A document that two clients could interpret differently is rejected (see CVE-2021-41190). Each stored document has exactly
//! one media type, determined once.

use serde_json::value::RawValue;

use super::content::media::{self, ManifestKind, MediaType};
use super::digest::Digest;
use super::json;

/// Descriptor: reference to content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Digest of the content.
    pub digest: Digest,
    /// Size of the content in bytes, if given.
    pub size: Option<u64>,
    /// Media type of the content, if given.
    pub media_type: Option<MediaType>,
    /// Platform as `os/architecture[/variant]`, if given.
    pub platform: Option<String>,
    /// Version of the operating system (`os.version`), if given. Windows images differ in it.
    pub os_version: Option<String>,
    /// True if the descriptor has its own download addresses (`urls`). The registry may lack such a layer.
    pub foreign: bool,
    /// Manifest that the content attests, in an entry of an index (annotation `vnd.docker.reference.digest` of `BuildKit`).
    pub attests: Option<Box<Digest>>,
}

impl Descriptor {
    /// Returns true if an entry of an index is a manifest: its media type is that of a manifest, or is not given.
    ///
    /// Build caches are indexes whose entries are layers. containerd and `BuildKit` have the same rule.
    pub fn is_manifest(&self) -> bool {
        self.media_type
            .as_ref()
            .is_none_or(|it| it.kind().is_some() || it.as_str().to_ascii_lowercase().contains("manifest"))
    }
}

/// Default of the largest manifest that is accepted from an upstream, in bytes: the limit of containerd.
pub const SIZE_DEFAULT: u32 = 4 * 1048 * 1048;
/// Largest configurable value of this limit. The memory for documents of one upstream has room for one such manifest.
pub const SIZE_LIMIT: u32 = 16 << 20;

/// Annotation of an attestation in an index: digest of the manifest that the attestation is about.
const ATTESTED: &str = "vnd.docker.reference.digest";
/// Maximum length of a recorded digest, in characters.
const DIGEST_SHOWN_MAX: usize = 160;
/// Limit on the recorded digests of unsupported algorithms. One is sufficient to explain why a pull fails.
const UNSUPPORTED_MAX: usize = 8;

/// Parsed manifest or index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Media type for serving the document.
    pub media_type: MediaType,
    /// Child manifests (`manifests` of an index).
    pub children: Vec<Descriptor>,
    /// Blobs (`config`, `layers`, and `blobs` of an artifact).
    pub blobs: Vec<Descriptor>,
    /// Manifest that this manifest refers to.
    pub subject: Option<Digest>,
    /// Digests of children and blobs that cannot be verified, such as those of another algorithm. Such content is never
    /// served, so that a pull of the image fails. Only the first ones are recorded.
    pub unsupported: Vec<String>,
}

/// Error of parsing a manifest. Such a document is not stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The document is not a JSON object.
    #[error("the document is not a JSON object: {0}")]
    NotJson(String),
    /// Clients could interpret the document differently.
    #[error("the document is ambiguous: {0}")]
    Ambiguous(String),
    /// The document is a Docker schema 1 manifest.
    #[error(
        "the document is a Docker schema 1 manifest, which is not supported; push the image again in a current format"
    )]
    Schema1,
    /// Neither the header nor the body gives the type.
    #[error("neither the Content-Type nor the document gives the media type")]
    Unknown,
}

impl Manifest {
    /// Returns true for an index that contains blobs only: a build cache. It is no image, and no client requests its referrers.
    pub fn is_build_cache(&self) -> bool {
        !self.children.is_empty() && !self.children.iter().any(Descriptor::is_manifest)
    }

    /// Parses a document. `content_type` is the raw value of the Content-Type header, if there is one.
    ///
    /// The header determines the type if it gives a manifest type that agrees with the body. Otherwise the body does. The
    /// result needs memory for the descriptors and the texts in them; everything else in the document is skipped.
    pub fn read(body: &[u8], content_type: Option<&str>) -> Result<Self, ManifestError> {
        let text = json::text(body);
        let document = TopLevelKeys::read(&text)?;
        let media_type = document.media_type(content_type)?;
        let mut context = ReadContext::default();
        let mut blobs: Vec<Descriptor> = document
            .value("config")
            .and_then(|config| descriptor(config, &mut context))
            .into_iter()
            .collect();
        document.add_descriptors("layers", &mut blobs, &mut context);
        document.add_descriptors("blobs", &mut blobs, &mut context);
        let mut children = Vec::new();
        document.add_descriptors("manifests", &mut children, &mut context);
        blobs.shrink_to_fit();
        children.shrink_to_fit();
        let unsupported = std::mem::take(&mut context.unsupported);
        let subject = document.value("subject").and_then(|subject| descriptor(subject, &mut context));
        let subject = subject.map(|subject| subject.digest);
        Ok(Self { media_type, children, blobs, subject, unsupported })
    }
}

/// Keys that are read. The first [`DECISIVE`] of them determine the type of a document; the last one is the list of an artifact.
const READ: [&str; 10] = [
    "schemaVersion",
    "mediaType",
    "manifests",
    "config",
    "layers",
    "fsLayers",
    "signatures",
    "subject",
    "artifactType",
    "blobs",
];

/// Number of keys that determine the type of a document. Go's decoder ignores their case and uses the last duplicate; serde
/// does neither. A document that depends on this difference is rejected.
const DECISIVE: usize = 9;

/// Values of the keys in [`READ`]. All other members of a document are skipped.
#[derive(Default)]
struct TopLevelKeys<'a>([Option<&'a RawValue>; READ.len()]);

impl<'a> TopLevelKeys<'a> {
    fn read(text: &'a str) -> Result<Self, ManifestError> {
        let mut keys = Self::default();
        // Spelling of each decisive key.
        let mut spellings: [Option<String>; DECISIVE] = Default::default();
        let mut duplicate = None;
        json::members(text, |key, value| {
            if let Some(place) = READ.iter().position(|known| *known == key) {
                keys.0[place] = Some(value);
            }
            if let Some(place) = READ[..DECISIVE].iter().position(|known| json::equal_in_go(key, known))
                && spellings[place].replace(key.to_owned()).is_some()
            {
                duplicate.get_or_insert(READ[place]);
            }
        })
        .map_err(|error| ManifestError::NotJson(error.to_string()))?;
        if let Some(known) = duplicate {
            return Err(ManifestError::Ambiguous(format!("duplicate key `{known}`")));
        }
        for (known, spelling) in READ.iter().zip(&spellings) {
            if let Some(key) = spelling.as_ref().filter(|key| key != known) {
                return Err(ManifestError::Ambiguous(format!("the key `{known}` is spelled `{key}`")));
            }
        }
        Ok(keys)
    }

    fn get(&self, key: &str) -> Option<&'a RawValue> {
        self.0[READ.iter().position(|known| *known == key)?]
    }

    /// Returns the value of a key unless it is null.
    fn value(&self, key: &str) -> Option<&'a RawValue> {
        self.get(key).filter(|value| !json::is_null(value))
    }

    /// Returns true if a key is present and neither null nor an empty list, as in Go.
    fn has(&self, key: &str) -> bool {
        self.value(key).is_some_and(|value| !json::is_empty_list(value))
    }

    fn add_descriptors(&self, key: &str, found: &mut Vec<Descriptor>, context: &mut ReadContext) {
        if let Some(list) = self.value(key) {
            json::elements(list, |element| found.extend(descriptor(element, context)));
        }
    }

    fn media_type(&self, content_type: Option<&str>) -> Result<MediaType, ManifestError> {
        let header = content_type.and_then(MediaType::from_header);
        let named =
            match self.value("mediaType").map(json::string) {
                None => None,
                Some(Some(text)) if text.is_empty() => None,
                Some(Some(text)) => Some(MediaType::new(&text).ok_or_else(|| {
                    ManifestError::Ambiguous("its `mediaType` is not a media type".to_owned())
                })?),
                Some(None) => {
                    return Err(ManifestError::Ambiguous("its `mediaType` is not a string".to_owned()));
                }
            };
        match named {
            Some(named) => self.named_type(named, header),
            None => self.detected_type(header),
        }
    }

    /// Returns the type that the body gives, if it agrees with the keys of the body and with the header.
    fn named_type(&self, named: MediaType, header: Option<MediaType>) -> Result<MediaType, ManifestError> {
        let clash = |keys: &[&str]| keys.iter().find(|key| self.has(key)).map(|key| (*key).to_owned());
        let wrong = match named.kind() {
            Some(ManifestKind::Schema1) => return Err(ManifestError::Schema1),
            Some(ManifestKind::Image) => clash(&["manifests", "fsLayers"]),
            Some(ManifestKind::Index) => clash(&["config", "layers", "fsLayers"]),
            None if is_generic(&named) => {
                return Err(ManifestError::Ambiguous(format!(
                    "its `mediaType` is {named}, which is not a type of manifests"
                )));
            }
            None => match header {
                // An unknown type is stored if header and body agree.
                Some(header) if !is_generic(&header) && header != named => {
                    return Err(ManifestError::Ambiguous(format!(
                        "Content-Type is {header}, the body gives {named}"
                    )));
                }
                _ => None,
            },
        };
        match wrong {
            Some(key) => Err(ManifestError::Ambiguous(format!("a {named} with `{key}`"))),
            None => Ok(named),
        }
    }

    /// Returns the type of a document that gives none. Its keys determine the kind; the header may select a type of this
    /// kind.
    fn detected_type(&self, header: Option<MediaType>) -> Result<MediaType, ManifestError> {
        if self.get("schemaVersion").and_then(json::unsigned) == Some(1) || self.has("fsLayers") {
            return Err(ManifestError::Schema1);
        }
        let image = self.has("config") || self.has("layers");
        let header_kind = header.as_ref().and_then(MediaType::kind);
        // An index may be empty, an image may not. For an index the key is sufficient. Go encodes an empty list as null by
        // default; then the header must confirm that the document is an index.
        let index = self.get("manifests").is_some_and(|list| {
            json::is_list(list) || (json::is_null(list) && header_kind == Some(ManifestKind::Index))
        });
        let config_type = self.value("config").and_then(|config| json::text_member(config, "mediaType"));
        let (kind, detected) = match (image, index) {
            (true, true) => {
                return Err(ManifestError::Ambiguous(
                    "it has keys of an image and of an index, and no `mediaType`".into(),
                ));
            }
            (true, false) if config_type.as_deref() == Some(media::DOCKER_CONFIG) => {
                (ManifestKind::Image, media::DOCKER_MANIFEST)
            }
            (true, false) => (ManifestKind::Image, media::OCI_MANIFEST),
            (false, true) => (ManifestKind::Index, media::OCI_INDEX),
            (false, false) => return Err(ManifestError::Unknown),
        };
        match header {
            Some(header) if header.kind() == Some(kind) => Ok(header),
            _ => MediaType::new(detected).ok_or(ManifestError::Unknown),
        }
    }
}

/// Returns true for types that cannot be the type of a manifest: types other than `application/*`, and general types. A
/// document served as `text/html` could attack a browser.
fn is_generic(media_type: &MediaType) -> bool {
    let text = media_type.as_str().to_ascii_lowercase();
    match text.strip_prefix("application/") {
        None => true,
        Some(subtype) => matches!(
            subtype,
            "json" | "octet-stream" | "x-octet-stream" | "xml" | "xhtml+xml" | "javascript" | "x-javascript"
        ),
    }
}

/// Media types of a document, each allocated once: most descriptors of a document have one of very few types.
#[derive(Default)]
struct InternedTypes(Vec<MediaType>);

impl InternedTypes {
    /// Types that are remembered.
    const MAX: usize = 8;

    fn intern(&mut self, text: &str) -> Option<MediaType> {
        if let Some(known) = self.0.iter().find(|known| known.as_str() == text) {
            return Some(known.clone());
        }
        let new = MediaType::new(text)?;
        if self.0.len() < Self::MAX {
            self.0.push(new.clone());
        }
        Some(new)
    }
}

/// State that is shared by the descriptors of one document.
#[derive(Default)]
struct ReadContext {
    types: InternedTypes,
    /// Digests that cannot be verified.
    unsupported: Vec<String>,
}

impl ReadContext {
    fn digest(&mut self, text: &str) -> Option<Digest> {
        let digest = text.parse().ok();
        if digest.is_none() && self.unsupported.len() < UNSUPPORTED_MAX {
            self.unsupported.push(text.chars().take(DIGEST_SHOWN_MAX).collect());
        }
        digest
    }
}

/// Parses a descriptor. `None` if its digest cannot be verified, because such content is never served.
fn descriptor(value: &RawValue, context: &mut ReadContext) -> Option<Descriptor> {
    let (mut digest, mut size, mut media_type, mut foreign) = (None, None, None, false);
    let (mut named_platform, mut os_version, mut attests) = (None, None, None);
    json::members(value.get(), |key, value| match key {
        "digest" => digest = json::string(value).and_then(|text| context.digest(&text)),
        "size" => size = json::unsigned(value),
        "mediaType" => media_type = json::string(value).and_then(|text| context.types.intern(&text)),
        "platform" => {
            (named_platform, os_version) = (platform(value), json::text_member(value, "os.version"));
        }
        "urls" => foreign = json::is_list(value) && !json::is_empty_list(value),
        "annotations" => {
            let subject = json::text_member(value, ATTESTED).and_then(|text| text.parse().ok());
            attests = subject.map(Box::new);
        }
        _ => {}
    })
    .ok()?;
    let platform = named_platform;
    Some(Descriptor { digest: digest?, size, media_type, platform, os_version, foreign, attests })
}

/// Returns a platform as `os/architecture[/variant]`.
fn platform(value: &RawValue) -> Option<String> {
    let (mut os, mut architecture, mut variant) = (None, None, None);
    json::members(value.get(), |key, value| match key {
        "os" => os = json::string(value),
        "architecture" => architecture = json::string(value),
        "variant" => variant = json::string(value),
        _ => {}
    })
    .ok()?;
    let mut name = format!("{}/{}", os?, architecture?);
    if let Some(variant) = variant.filter(|variant| !variant.is_empty()) {
        name.push('/');
        name.push_str(&variant);
    }
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use media::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};

    const D: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

    fn type_of(body: &str, header: Option<&str>) -> Result<String, ManifestError> {
        Manifest::read(body.as_bytes(), header).map(|found| found.media_type.to_string())
    }

    #[test]
    fn media_type_of_agreeing_header_and_body() {
        let body = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[]}}"#);
        for header in
            [Some(OCI_INDEX), None, Some("application/json"), Some(OCI_MANIFEST), Some("text/plain; x=y")]
        {
            assert_eq!(type_of(&body, header).as_deref(), Ok(OCI_INDEX), "{header:?}");
        }
    }

    #[test]
    fn media_type_is_detected_from_keys() {
        let image = format!(r#"{{"config":{{"digest":"{D}","size":2}},"layers":[]}}"#);
        assert_eq!(type_of(&image, None).as_deref(), Ok(OCI_MANIFEST));
        assert_eq!(type_of(&image, Some(DOCKER_MANIFEST)).as_deref(), Ok(DOCKER_MANIFEST));
        assert_eq!(type_of(&image, Some(OCI_INDEX)).as_deref(), Ok(OCI_MANIFEST));
        let docker = image.replace("\"size\"", &format!(r#""mediaType":"{}","size""#, media::DOCKER_CONFIG));
        assert_eq!(type_of(&docker, None).as_deref(), Ok(DOCKER_MANIFEST));
        assert_eq!(type_of(r#"{"manifests":[]}"#, Some(DOCKER_LIST)).as_deref(), Ok(DOCKER_LIST));
        assert_eq!(
            type_of(r#"{"manifests":[]}"#, Some("application/octet-stream")).as_deref(),
            Ok(OCI_INDEX)
        );
    }

    #[test]
    fn ambiguous_documents_are_rejected() {
        let refused =
            |body: &str| assert!(matches!(type_of(body, None), Err(ManifestError::Ambiguous(_))), "{body}");
        refused(&format!(r#"{{"mediaType":"{OCI_INDEX}","manifests":[],"layers":[{{}}]}}"#));
        refused(&format!(r#"{{"mediaType":"{OCI_MANIFEST}","manifests":[{{}}],"config":{{}}}}"#));
        refused(r#"{"manifests":[{}],"layers":[{}]}"#);
        refused(&format!(r#"{{"mediaType":"{OCI_INDEX}","mediaType":"{OCI_MANIFEST}"}}"#));
        refused(&format!(r#"{{"MediaType":"{OCI_INDEX}","manifests":[]}}"#));
        refused(r#"{"mediaType":7}"#);
    }

    #[test]
    fn keys_that_go_treats_as_equal_are_duplicates() {
        for twin in [
            "layer\u{17f}",
            "\u{17f}ubject",
            "LAYER\u{17f}",
            r"layer\u017f",
            "artifactType\":1,\"ARTIFACTTYPE",
        ] {
            let body = format!(r#"{{"mediaType":"{OCI_INDEX}","manifests":[],"{twin}":[{{}}]}}"#);
            assert!(matches!(type_of(&body, None), Err(ManifestError::Ambiguous(_))), "{body}");
        }
        assert!(json::equal_in_go("\u{212a}ey", "key"));
        // The German sharp s folds only to itself.
        let body = format!(r#"{{"mediaType":"{OCI_INDEX}","manifests":[],"layerß":[{{}}]}}"#);
        assert_eq!(type_of(&body, None).as_deref(), Ok(OCI_INDEX));
    }

    #[test]
    fn general_media_types_are_rejected() {
        for named in [
            "application/json",
            "Application/JSON",
            "application/octet-stream",
            "binary/octet-stream",
            "application/xhtml+xml",
            "text/html",
            "text/vnd.example",
            "image/svg+xml",
        ] {
            let body = format!(r#"{{"mediaType":"{named}","manifests":[]}}"#);
            for header in [None, Some(named), Some(OCI_INDEX)] {
                let refused = type_of(&body, header);
                assert!(
                    matches!(&refused, Err(ManifestError::Ambiguous(text)) if text.contains(named)),
                    "{header:?}: {refused:?}"
                );
            }
        }
    }

    #[test]
    fn schema1_and_invalid_documents_are_rejected() {
        assert_eq!(type_of(r#"{"schemaVersion":1,"fsLayers":[]}"#, None), Err(ManifestError::Schema1));
        let signed = format!(r#"{{"mediaType":"{}"}}"#, media::DOCKER_SCHEMA1_SIGNED);
        assert_eq!(type_of(&signed, None), Err(ManifestError::Schema1));
        assert_eq!(type_of("{}", None), Err(ManifestError::Unknown));
        assert!(matches!(type_of("[]", None), Err(ManifestError::NotJson(_))));
        assert!(matches!(type_of("<html>", None), Err(ManifestError::NotJson(_))));
    }

    #[test]
    fn unread_members_may_have_any_form() {
        let base = format!(r#"{{"config":{{"digest":"{D}","size":2}},"layers":[{{"digest":"{D}"}}]"#);
        let deep = format!("{}{}", "[".repeat(130), "]".repeat(130));
        for odd in [
            b"\"annotations\":{\"a\":\"M\xfcller\"}".to_vec(),
            br#""annotations":{"a":"\ud83d"}"#.to_vec(),
            br#""\ud83d":7"#.to_vec(),
            b"\"x\":1e999".to_vec(),
            format!("\"x\":{deep}").into_bytes(),
            format!("\"artifactType\":{deep}").into_bytes(),
        ] {
            let body = [base.as_bytes(), b",", &odd, b"}"].concat();
            let found = Manifest::read(&body, None).expect("an image");
            assert_eq!((found.media_type.as_str(), found.blobs.len()), (OCI_MANIFEST, 2));
        }
        // Inside a descriptor, too.
        let body =
            format!(r#"{{"manifests":[{{"digest":"{D}","size":1e999,"data":"\udc00","x":{deep}}},7,null]}}"#);
        let found = Manifest::read(body.as_bytes(), None).expect("an index");
        assert_eq!((found.children.len(), found.children[0].size), (1, None));
    }

    #[test]
    fn null_list_of_an_index_needs_its_header() {
        let body = r#"{"schemaVersion":2,"manifests":null}"#;
        assert_eq!(type_of(body, Some(OCI_INDEX)).as_deref(), Ok(OCI_INDEX));
        assert_eq!(type_of(body, Some(DOCKER_LIST)).as_deref(), Ok(DOCKER_LIST));
        for header in [None, Some(OCI_MANIFEST), Some("application/json")] {
            assert_eq!(type_of(body, header), Err(ManifestError::Unknown), "{header:?}");
        }
    }

    #[test]
    fn wide_document_needs_little_memory() {
        let entry = format!(r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{D}","size":1}}"#);
        let body = format!(r#"{{"layers":[{}]}}"#, vec![entry.as_str(); 33_000].join(","));
        let found = Manifest::read(body.as_bytes(), None).expect("an image");
        assert_eq!((found.blobs.len(), found.blobs.capacity()), (33_000, 33_000));
        assert!(std::mem::size_of::<Descriptor>() * found.blobs.len() < 2 * body.len());
    }

    #[test]
    fn unknown_media_types_are_accepted() {
        let body =
            r#"{"mediaType":"application/vnd.example.experiment.v1+json","target":{},"dependencies":[]}"#;
        let own = "application/vnd.example.experiment.v1+json";
        assert_eq!(type_of(body, Some(own)).as_deref(), Ok(own));
        assert_eq!(type_of(body, None).as_deref(), Ok(own));
        assert!(matches!(type_of(body, Some(OCI_INDEX)), Err(ManifestError::Ambiguous(_))));
    }

    #[test]
    fn read_extracts_descriptors() {
        let body = format!(
            r#"{{"manifests":[{{"digest":"{D}","size":2,"mediaType":"{OCI_MANIFEST}",
            "platform":{{"os":"linux","architecture":"arm","variant":"v7"}}}},{{"digest":"blake3:00"}}],
            "subject":{{"digest":"{D}"}}}}"#
        );
        let found = Manifest::read(body.as_bytes(), None).expect("an index");
        assert_eq!(found.children.len(), 1);
        assert_eq!(found.children[0].platform.as_deref(), Some("linux/arm/v7"));
        assert_eq!(found.children[0].size, Some(2));
        assert!(found.subject.is_some() && found.blobs.is_empty());
        assert_eq!(found.unsupported, ["blake3:00"]);
    }

    #[test]
    fn attestation_names_its_manifest() {
        let entry = |annotations: &str| {
            let body = format!(r#"{{"manifests":[{{"digest":"{D}","annotations":{annotations}}}]}}"#);
            let index = Manifest::read(body.as_bytes(), None).expect("an index");
            index.children[0].attests.clone()
        };
        let named = entry(&format!(r#"{{"a":"b","vnd.docker.reference.digest":"{D}"}}"#));
        assert_eq!(named.map(|subject| subject.to_string()).as_deref(), Some(D));
        for other in ["{}", "null", "7", r#"{"vnd.docker.reference.digest":"x"}"#] {
            assert_eq!(entry(other), None, "{other}");
        }
    }

    #[test]
    fn entries_of_an_index_are_manifests_unless_their_type_is_another() {
        let of = |media_type: Option<&str>| Descriptor {
            digest: D.parse().expect("a digest"),
            size: None,
            media_type: media_type.and_then(MediaType::new),
            platform: None,
            os_version: None,
            foreign: false,
            attests: None,
        };
        for manifest in [
            None,
            Some(OCI_MANIFEST),
            Some(DOCKER_LIST),
            Some("application/vnd.oci.artifact.manifest.v1+json"),
        ] {
            assert!(of(manifest).is_manifest(), "{manifest:?}");
        }
        for blob in ["application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.buildkit.cacheconfig.v0"]
        {
            assert!(!of(Some(blob)).is_manifest(), "{blob}");
        }
    }
}
