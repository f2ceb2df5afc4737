//! Media types of manifests, and parsing of Content-Type headers.

use std::fmt;
use std::sync::Arc;

/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Docker manifest list, schema 2.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker image manifest, version 2 schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker image manifest, version 2 schema 1, unsigned; never served.
pub const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+json";
/// Docker image manifest, version 2 schema 1, signed; never served.
pub const DOCKER_SCHEMA1_SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
/// Docker image configuration. It identifies a manifest without a media type as Docker's.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// OCI artifact manifest, of a draft of the image-spec 1.1. Signatures and SBOMs of that time have it.
pub const OCI_ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";

/// Types of images and indexes, in the order of preference. None of them makes a registry convert a manifest.
pub const CANONICAL_ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
application/vnd.oci.image.manifest.v1+json, \
application/vnd.docker.distribution.manifest.list.v2+json, \
application/vnd.docker.distribution.manifest.v2+json";

/// Accept value for upstreams: all types that can be stored. Some registries answer 404 for a type that is not accepted.
pub const UPSTREAM_ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
application/vnd.oci.image.manifest.v1+json, \
application/vnd.docker.distribution.manifest.list.v2+json, \
application/vnd.docker.distribution.manifest.v2+json, \
application/vnd.oci.artifact.manifest.v1+json";

/// Kind of a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ManifestKind {
    /// Image index or manifest list: refers to other manifests.
    Index,
    /// Image manifest: refers to a config and layers.
    Image,
    /// Docker schema 1, which is never stored.
    Schema1,
}

/// Media type of a document, without parameters, exactly as it is served.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MediaType(Arc<str>);

impl MediaType {
    /// Parses a media type without parameters.
    pub fn new(text: &str) -> Option<Self> {
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$&-^_.+/".contains(&b);
        let shaped =
            text.split_once('/').is_some_and(|(a, b)| !a.is_empty() && !b.is_empty() && !b.contains('/'));
        (shaped && text.len() <= 255 && text.bytes().all(token)).then(|| Self(text.into()))
    }

    /// Returns the type of an OCI image index.
    pub fn oci_index() -> Self {
        Self(OCI_INDEX.into())
    }

    /// Parses the value of a Content-Type header and drops the parameters. `None` if the value is not a media type.
    pub fn from_header(value: &str) -> Option<Self> {
        Self::new(value.split(';').next().unwrap_or_default().trim())
    }

    /// Returns the media type as it is served.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the kind of manifest, or `None` if this is not the type of a manifest.
    pub fn kind(&self) -> Option<ManifestKind> {
        kind_of(&self.0)
    }
}

/// Returns the kind of manifest of a known type. Types are compared without regard to case (RFC 9110, 8.3.1).
pub fn kind_of(media_type: &str) -> Option<ManifestKind> {
    let is = |known: &str| media_type.eq_ignore_ascii_case(known);
    if is(OCI_INDEX) || is(DOCKER_LIST) {
        Some(ManifestKind::Index)
    } else if is(OCI_MANIFEST) || is(DOCKER_MANIFEST) {
        Some(ManifestKind::Image)
    } else if is(DOCKER_SCHEMA1) || is(DOCKER_SCHEMA1_SIGNED) {
        Some(ManifestKind::Schema1)
    } else {
        None
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstream_is_asked_for_all_types() {
        assert_eq!(UPSTREAM_ACCEPT, format!("{CANONICAL_ACCEPT}, {OCI_ARTIFACT}"));
    }

    #[test]
    fn header_parameters_are_dropped() {
        let kept =
            MediaType::from_header("application/vnd.oci.image.index.v1+json; charset=utf-8").expect("a type");
        assert_eq!(kept.as_str(), OCI_INDEX);
        assert_eq!(kept.kind(), Some(ManifestKind::Index));
        assert!(MediaType::from_header("").is_none());
        assert!(MediaType::from_header("nonsense").is_none());
        assert!(MediaType::from_header("a/b\r\nx: y").is_none());
    }
}
