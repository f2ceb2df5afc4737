//! References of images as an operator writes them: `busybox`, `ghcr.io/org/app:1`, `app@sha256:…`, `app:1@sha256:…`. They
//! are routed to an upstream by the same rules as the requests of clients.

use std::fmt;

use crate::cache::Cache;
use crate::oci::{Digest, Name, Repository, Tag};

use super::protocol::OpsError;

/// Tag of a reference without tag and digest.
const LATEST: &str = "latest";
/// Registry of a name without one.
const DOCKER_HUB: &str = "docker.io";

/// Parsed reference of an image, with a tag, a digest, or both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageReference {
    /// Repository of the image.
    pub repository: Repository,
    /// Tag in the reference, or `latest` if it has no tag and no digest.
    pub tag: Option<Tag>,
    /// Digest in the reference.
    pub digest: Option<Digest>,
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.repository.fmt(f)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Parses a reference.
pub fn parse(cache: &Cache, text: &str) -> Result<ImageReference, OpsError> {
    let (name, tag, digest) = split(text);
    let repository = repository(cache, name)?;
    let tag = match (tag, digest) {
        (Some(tag), _) => Some(tag.parse()?),
        (None, Some(_)) => None,
        (None, None) => Some(LATEST.parse()?),
    };
    let digest = digest.map(str::parse).transpose().map_err(|error| {
        let error: crate::oci::digest::DigestError = error;
        OpsError::Invalid(error.to_string())
    })?;
    Ok(ImageReference { repository, tag, digest })
}

/// Parses the name of a repository.
pub fn repository(cache: &Cache, name: &str) -> Result<Repository, OpsError> {
    Ok(cache.route(None, None, None, name)?)
}

/// Parses a reference of another program. An unknown registry is an error, not a part of a name at the default registry.
pub fn parse_foreign(cache: &Cache, text: &str) -> Result<ImageReference, OpsError> {
    if let Some((host, _)) = host(text) {
        cache.upstream_named(host)?;
    }
    parse(cache, text)
}

/// Parses the name of a repository of another program, like [`parse_foreign`].
pub fn repository_foreign(cache: &Cache, name: &str) -> Result<Repository, OpsError> {
    if let Some((host, _)) = host(name) {
        cache.upstream_named(host)?;
    }
    repository(cache, name)
}

/// Returns the tag of a reference, or `latest` if it has no tag and no digest.
pub fn tag_of(text: &str) -> Result<Option<Tag>, OpsError> {
    Ok(match split(text) {
        (_, Some(tag), _) => Some(tag.parse()?),
        (_, None, Some(_)) => None,
        (_, None, None) => Some(LATEST.parse()?),
    })
}

/// Returns the complete name for a short one, as clients write it, and its tag.
pub fn complete_name(cache: &Cache, text: &str) -> Result<(String, String), OpsError> {
    let (name, tag, digest) = split(text);
    if digest.is_some() {
        return Err(OpsError::Invalid(format!(
            "`{text}` has a digest; a name for the archive has at most a tag"
        )));
    }
    let tag: Tag = tag.unwrap_or(LATEST).parse()?;
    let known = name.split_once('/').filter(|(first, _)| cache.upstream_named(first).is_ok());
    let (registry, name) = host(name).or(known).unwrap_or((DOCKER_HUB, name));
    let official = registry == DOCKER_HUB && !name.contains('/');
    let name: Name = if official { format!("library/{name}").parse()? } else { name.parse()? };
    Ok((format!("{registry}/{name}:{tag}"), tag.to_string()))
}

/// Returns the short form of a complete name, as docker shows it.
pub fn familiar(name: &str) -> &str {
    let Some(short) = name.strip_prefix("docker.io/") else { return name };
    short.strip_prefix("library/").unwrap_or(short)
}

/// Splits the registry from a name, by the rule of all clients: a host has a dot or a port, or is `localhost`.
fn host(text: &str) -> Option<(&str, &str)> {
    text.split_once('/').filter(|(first, _)| first.contains(['.', ':']) || *first == "localhost")
}

/// Splits a reference into name, tag and digest. A colon before the last slash belongs to a port.
fn split(text: &str) -> (&str, Option<&str>, Option<&str>) {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    let last = rest.rfind('/').map_or(0, |slash| slash + 1);
    match rest[last..].split_once(':') {
        Some((name, tag)) => (&rest[..last + name.len()], Some(tag), digest),
        None => (rest, None, digest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_is_split_from_a_name() {
        assert_eq!(host("reg.test/a/b:1"), Some(("reg.test", "a/b:1")));
        assert_eq!(host("reg:5000/a"), Some(("reg:5000", "a")));
        assert_eq!(host("localhost/a"), Some(("localhost", "a")));
        for other in ["a/b:1", "a:1", "a", "library/a.b"] {
            assert_eq!(host(other), None, "{other}");
        }
    }

    #[test]
    fn familiar_name_omits_docker_hub() {
        for (name, shown) in [
            ("docker.io/library/a:1", "a:1"),
            ("docker.io/org/a:1", "org/a:1"),
            ("quay.io/library/a:1", "quay.io/library/a:1"),
        ] {
            assert_eq!(familiar(name), shown);
        }
    }

    #[test]
    fn reference_is_split_into_name_tag_and_digest() {
        assert_eq!(split("busybox"), ("busybox", None, None));
        assert_eq!(split("a/b:1"), ("a/b", Some("1"), None));
        assert_eq!(split("reg:5000/a"), ("reg:5000/a", None, None));
        assert_eq!(split("reg:5000/a:1@sha256:x"), ("reg:5000/a", Some("1"), Some("sha256:x")));
        assert_eq!(split("a@sha256:x"), ("a", None, Some("sha256:x")));
        assert_eq!(split("a:"), ("a", Some(""), None));
        assert_eq!(split(""), ("", None, None));
    }
}
