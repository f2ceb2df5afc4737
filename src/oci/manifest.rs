//! Manifests and indexes as opaque documents: which type is this, and what does it point at?
//!
//! Nothing here rewrites a document. The rules refuse what two clients could read in two ways
//! (CVE-2021-41190 and its kin): a document is kept only under one type, decided once.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::content::media::{self, ManifestKind, MediaType};
use super::digest::Digest;

/// What a descriptor says of the content it points at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The content's digest.
    pub digest: Digest,
    /// The content's size in bytes, where stated.
    pub size: Option<u64>,
    /// The content's media type, where stated.
    pub media_type: Option<MediaType>,
    /// `os/architecture[/variant]`, where stated.
    pub platform: Option<String>,
    /// Whether it names addresses of its own (`urls`): a layer that the registry need not have.
    pub foreign: bool,
}

/// What is known of a document after reading it once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The type it is served under.
    pub media_type: MediaType,
    /// Manifests it points at (an index's `manifests`).
    pub children: Vec<Descriptor>,
    /// Blobs it points at (`config`, `layers`, an artifact's `blobs`).
    pub blobs: Vec<Descriptor>,
    /// The manifest that this one refers to.
    pub subject: Option<Digest>,
}

/// Why a document is not kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not a JSON object.
    #[error("the document is not a JSON object: {0}")]
    NotJson(String),
    /// Two readers could take it for two different things.
    #[error("the document is ambiguous: {0}")]
    Ambiguous(String),
    /// Docker schema 1.
    #[error(
        "the document is a Docker schema 1 manifest, which is not kept; push the image again in a current format"
    )]
    Schema1,
    /// Neither header nor body tells its type.
    #[error("neither the Content-Type nor the document says what it is")]
    Unknown,
}

/// The keys whose meaning decides between types. Go's decoder matches them in any case and takes the last of
/// several, serde does neither, so a document that relies on either is refused.
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
    /// Reads a document that came with `content_type` (the raw header value, if any).
    ///
    /// The header wins if it names a manifest type that agrees with the body, else the body decides.
    pub fn read(body: &[u8], content_type: Option<&str>) -> Result<Self, ManifestError> {
        let document: Document =
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

/// The top level of a document, in order, with nothing folded together.
struct Document(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TopLevel;
        impl<'de> Visitor<'de> for TopLevel {
            type Value = Document;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Document(entries))
            }
        }
        deserializer.deserialize_map(TopLevel)
    }
}

impl Document {
    fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, value)| value)
    }

    /// A key counts as present unless it is null or an empty list, as in Go.
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
            let mut spellings = self.0.iter().filter(|(key, _)| same_to_go(key, known));
            match (spellings.next(), spellings.next()) {
                (Some(_), Some(_)) => {
                    return Err(ManifestError::Ambiguous(format!("the key `{known}` stands in it twice")));
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

    /// The body names its type: that stands, if its shape allows it and no specific header contradicts.
    fn named_type(&self, named: MediaType, header: Option<MediaType>) -> Result<MediaType, ManifestError> {
        let clash = |keys: &[&str]| keys.iter().find(|key| self.has(key)).map(|key| (*key).to_owned());
        let wrong = match named.kind() {
            Some(ManifestKind::Schema1) => return Err(ManifestError::Schema1),
            Some(ManifestKind::Image) => clash(&["manifests", "fsLayers"]),
            Some(ManifestKind::Index) => clash(&["config", "layers", "fsLayers"]),
            None if is_generic(&named) => {
                return Err(ManifestError::Ambiguous(format!(
                    "its `mediaType` is {named}, which is no manifest's type"
                )));
            }
            None => match header {
                // A type of nobody's list is opaque: kept if header and body tell the same story.
                Some(header) if !is_generic(&header) && header != named => {
                    return Err(ManifestError::Ambiguous(format!(
                        "Content-Type says {header}, the body {named}"
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

    /// The body names no type: its shape must tell, and the header may choose between types of that shape.
    fn detected_type(&self, header: Option<MediaType>) -> Result<MediaType, ManifestError> {
        if self.get("schemaVersion").and_then(Value::as_u64) == Some(1) || self.has("fsLayers") {
            return Err(ManifestError::Schema1);
        }
        let image = self.has("config") || self.has("layers");
        // An index may be empty, an image may not: the bare key is enough here.
        let index = self.get("manifests").is_some_and(Value::is_array);
        let config_type =
            self.get("config").and_then(|config| config.get("mediaType")).and_then(Value::as_str);
        let (kind, detected) = match (image, index) {
            (true, true) => {
                return Err(ManifestError::Ambiguous(
                    "both an image's and an index's keys, and no `mediaType`".into(),
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

/// Whether Go's JSON decoder takes one key for the other. It folds case as Unicode does, and two characters outside
/// ASCII have their lower case in it.
fn same_to_go(key: &str, known: &str) -> bool {
    let folded = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    key.chars().map(folded).eq(known.chars().map(folded))
}

/// Types that say nothing about a manifest. None but an `application/*` is one, and served under `text/html` or its
/// like a document could do harm in a browser.
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

/// Reads a descriptor; one whose digest cannot be verified here points at nothing that could be served.
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
    fn header_and_body_agree() {
        let body = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[]}}"#);
        for header in
            [Some(OCI_INDEX), None, Some("application/json"), Some(OCI_MANIFEST), Some("text/plain; x=y")]
        {
            assert_eq!(type_of(&body, header).as_deref(), Ok(OCI_INDEX), "{header:?}");
        }
    }

    #[test]
    fn shape_decides_where_nothing_is_named() {
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
    fn two_readings_are_refused() {
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
    fn what_go_folds_is_another_spelling() {
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
        assert!(same_to_go("\u{212a}ey", "key"));
        // German's sharp s folds to itself alone.
        let body = format!(r#"{{"mediaType":"{OCI_INDEX}","manifests":[],"layerß":[{{}}]}}"#);
        assert_eq!(type_of(&body, None).as_deref(), Ok(OCI_INDEX));
    }

    #[test]
    fn a_type_that_is_no_manifests_is_never_served() {
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
    fn schema1_and_nonsense_are_refused() {
        assert_eq!(type_of(r#"{"schemaVersion":1,"fsLayers":[]}"#, None), Err(ManifestError::Schema1));
        let signed = format!(r#"{{"mediaType":"{}"}}"#, media::DOCKER_SCHEMA1_SIGNED);
        assert_eq!(type_of(&signed, None), Err(ManifestError::Schema1));
        assert_eq!(type_of("{}", None), Err(ManifestError::Unknown));
        assert!(matches!(type_of("[]", None), Err(ManifestError::NotJson(_))));
        assert!(matches!(type_of("<html>", None), Err(ManifestError::NotJson(_))));
    }

    #[test]
    fn unknown_types_are_opaque() {
        let body =
            r#"{"mediaType":"application/vnd.example.experiment.v1+json","target":{},"dependencies":[]}"#;
        let own = "application/vnd.example.experiment.v1+json";
        assert_eq!(type_of(body, Some(own)).as_deref(), Ok(own));
        assert_eq!(type_of(body, None).as_deref(), Ok(own));
        assert!(matches!(type_of(body, Some(OCI_INDEX)), Err(ManifestError::Ambiguous(_))));
    }

    #[test]
    fn finds_what_it_points_at() {
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
