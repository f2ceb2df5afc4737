//! Manifests and indexes: detection of the media type, and extraction of descriptors. Documents are never changed.
//!
//! A document that two clients could interpret differently is rejected (see CVE-2021-41190). Each stored document has exactly
//! one media type, determined once.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::content::media::{self, ManifestKind, MediaType};
use super::digest::Digest;

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
    /// True if the descriptor has its own download addresses (`urls`). The registry may lack such a layer.
    pub foreign: bool,
}

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

/// Keys that determine the type of a document. Go's decoder ignores their case and uses the last duplicate; serde does
/// neither. A document that depends on this difference is rejected.
const DECISIVE: [&str; 9] = [
    "schemaVersion",
    "mediaType",
    "manifests",
    "config",
    "layers",
    "fsLayers",
    "signatures",
    "subject",
    "artifactType",
];

impl Manifest {
    /// Parses a document. `content_type` is the raw value of the Content-Type header, if there is one.
    ///
    /// The header determines the type if it gives a manifest type that agrees with the body. Otherwise the body does.
    pub fn read(body: &[u8], content_type: Option<&str>) -> Result<Self, ManifestError> {
        let document: TopLevelKeys =
            serde_json::from_slice(body).map_err(|error| ManifestError::NotJson(error.to_string()))?;
        document.check_keys()?;
        let media_type = document.media_type(content_type)?;
        let mut blobs: Vec<Descriptor> = document.get("config").and_then(descriptor).into_iter().collect();
        blobs.extend(document.descriptors("layers"));
        blobs.extend(document.descriptors("blobs"));
        Ok(Self {
            media_type,
            children: document.descriptors("manifests").collect(),
            blobs,
            subject: document.get("subject").and_then(descriptor).map(|subject| subject.digest),
        })
    }
}

/// Top level of a document: all keys in their order, including duplicates.
struct TopLevelKeys(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for TopLevelKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TopLevelVisitor;
        impl<'de> Visitor<'de> for TopLevelVisitor {
            type Value = TopLevelKeys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TopLevelKeys, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(TopLevelKeys(entries))
            }
        }
        deserializer.deserialize_map(TopLevelVisitor)
    }
}

impl TopLevelKeys {
    fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, value)| value)
    }

    /// Returns true if a key is present and neither null nor an empty list, as in Go.
    fn has(&self, key: &str) -> bool {
        match self.get(key) {
            None | Some(Value::Null) => false,
            Some(Value::Array(items)) => !items.is_empty(),
            Some(_) => true,
        }
    }

    fn descriptors(&self, key: &str) -> impl Iterator<Item = Descriptor> {
        self.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(descriptor)
    }

    fn check_keys(&self) -> Result<(), ManifestError> {
        for known in DECISIVE {
            let mut spellings = self.0.iter().filter(|(key, _)| equal_in_go(key, known));
            match (spellings.next(), spellings.next()) {
                (Some(_), Some(_)) => {
                    return Err(ManifestError::Ambiguous(format!("duplicate key `{known}`")));
                }
                (Some((key, _)), None) if key != known => {
                    return Err(ManifestError::Ambiguous(format!("the key `{known}` is spelled `{key}`")));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn media_type(&self, content_type: Option<&str>) -> Result<MediaType, ManifestError> {
        let header = content_type.and_then(MediaType::from_header);
        let named = match self.get("mediaType") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) if text.is_empty() => None,
            Some(Value::String(text)) => {
                Some(MediaType::new(text).ok_or_else(|| {
                    ManifestError::Ambiguous("its `mediaType` is not a media type".to_owned())
                })?)
            }
            Some(_) => return Err(ManifestError::Ambiguous("its `mediaType` is not a string".to_owned())),
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
        if self.get("schemaVersion").and_then(Value::as_u64) == Some(1) || self.has("fsLayers") {
            return Err(ManifestError::Schema1);
        }
        let image = self.has("config") || self.has("layers");
        // An index may be empty, an image may not. For an index the key is sufficient.
        let index = self.get("manifests").is_some_and(Value::is_array);
        let config_type =
            self.get("config").and_then(|config| config.get("mediaType")).and_then(Value::as_str);
        let (kind, detected) = match (image, index) {
            (true, true) => {
                return Err(ManifestError::Ambiguous(
                    "it has keys of an image and of an index, and no `mediaType`".into(),
                ));
            }
            (true, false) if config_type == Some(media::DOCKER_CONFIG) => {
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

/// Returns true if Go's JSON decoder treats both keys as equal. It uses Unicode case folding, where two characters outside
/// ASCII fold to ASCII letters.
fn equal_in_go(key: &str, known: &str) -> bool {
    let folded = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    key.chars().map(folded).eq(known.chars().map(folded))
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

/// Parses a descriptor. `None` if its digest cannot be verified, because such content is never served.
fn descriptor(value: &Value) -> Option<Descriptor> {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let platform = value.get("platform").and_then(|platform| {
        let mut name = format!("{}/{}", text(platform, "os")?, text(platform, "architecture")?);
        if let Some(variant) = text(platform, "variant").filter(|variant| !variant.is_empty()) {
            name.push('/');
            name.push_str(&variant);
        }
        Some(name)
    });
    Some(Descriptor {
        digest: value.get("digest")?.as_str()?.parse().ok()?,
        size: value.get("size").and_then(Value::as_u64),
        media_type: text(value, "mediaType").as_deref().and_then(MediaType::new),
        platform,
        foreign: value.get("urls").and_then(Value::as_array).is_some_and(|urls| !urls.is_empty()),
    })
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
        assert!(equal_in_go("\u{212a}ey", "key"));
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
    }
}
