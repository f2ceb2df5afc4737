//! What an operator calls an image: `busybox`, `ghcr.io/org/app:1`, `app@sha256:…`, `app:1@sha256:…`. Which upstream and
//! repository that means is decided by the same rules as for a client.

use std::fmt;

use crate::cache::Cache;
use crate::oci::{Digest, Repository, Tag};

use super::OpsError;

/// The tag that is meant where none is named.
const LATEST: &str = "latest";

/// An image as it was named; it has a tag, a digest, or both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Whose it is.
    pub repository: Repository,
    /// The tag, where one was named, or nothing was.
    pub tag: Option<Tag>,
    /// The digest, where one was named.
    pub digest: Option<Digest>,
}

impl fmt::Display for Named {
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

/// Reads a reference.
pub fn parse(cache: &Cache, text: &str) -> Result<Named, OpsError> {
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
    Ok(Named { repository, tag, digest })
}

/// Reads the name of a repository.
pub fn repository(cache: &Cache, name: &str) -> Result<Repository, OpsError> {
    Ok(cache.route(None, None, None, name)?)
}

/// Name, tag and digest. A colon before the last slash belongs to a host's port.
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
    fn names_tags_and_digests_are_told_apart() {
        assert_eq!(split("busybox"), ("busybox", None, None));
        assert_eq!(split("a/b:1"), ("a/b", Some("1"), None));
        assert_eq!(split("reg:5000/a"), ("reg:5000/a", None, None));
        assert_eq!(split("reg:5000/a:1@sha256:x"), ("reg:5000/a", Some("1"), Some("sha256:x")));
        assert_eq!(split("a@sha256:x"), ("a", None, Some("sha256:x")));
        assert_eq!(split("a:"), ("a", Some(""), None));
        assert_eq!(split(""), ("", None, None));
    }
}
