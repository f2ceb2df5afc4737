//! Names: repository name, tag, reference, and the name of an upstream.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::digest::{Digest, DigestError};

/// Maximum length of a name. Clients limit `host[:port]/name` to 255 characters (distribution-spec, "Pulling manifests").
const NAME_MAX: usize = 255;
const TAG_MAX: usize = 128;

/// Error of parsing a name, tag or reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The repository name is invalid or longer than 255 characters.
    #[error(
        "`{0}` is not a repository name: lower-case letters, digits and separators, components joined by `/`"
    )]
    Name(String),
    /// The tag is invalid or longer than 128 characters.
    #[error(
        "`{0}` is not a tag: at most 128 of letters, digits, `_`, `.` and `-`, not starting with `.` or `-`"
    )]
    Tag(String),
    /// The reference contains a colon and is not a valid digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

macro_rules! text_type {
    ($name:ident) => {
        impl $name {
            /// Returns the text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

/// Name of a repository inside one registry, for example `library/busybox`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<str>);
text_type!(Name);

impl FromStr for Name {
    type Err = NameError;

    /// Parses a name by the grammar of the distribution-spec: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/…)*`.
    fn from_str(text: &str) -> Result<Self, NameError> {
        if !text.is_empty() && text.len() <= NAME_MAX && text.split('/').all(is_component) {
            Ok(Self(text.into()))
        } else {
            Err(NameError::Name(shown(text)))
        }
    }
}

/// Returns true for a path component: runs of `[a-z0-9]`, separated by one of `.`, `_`, `__` or `-`+.
fn is_component(text: &str) -> bool {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    if !bytes.first().is_some_and(alphanumeric) || !bytes.last().is_some_and(alphanumeric) {
        return false;
    }
    bytes.split(alphanumeric).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
    })
}

/// Tag: at most 128 characters of `[a-zA-Z0-9_][a-zA-Z0-9._-]*`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<str>);
text_type!(Tag);

impl FromStr for Tag {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let bytes = text.as_bytes();
        let first = bytes.first().is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
        let rest = bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        if first && rest && bytes.len() <= TAG_MAX {
            Ok(Self(text.into()))
        } else {
            Err(NameError::Tag(shown(text)))
        }
    }
}

impl Tag {
    /// Returns the tag of the referrers list in a registry without the referrers API (distribution-spec, "Referrers Tag
    /// Schema"). It contains at most 64 characters of the encoded digest.
    pub fn of_referrers(subject: &Digest) -> Self {
        let hex = subject.hex();
        let cut = hex.get(..64).unwrap_or(&hex);
        Self(format!("{}-{cut}", subject.algorithm().as_str()).into())
    }

    /// Returns the tags under which cosign stores the signatures, attestations and SBOMs of a manifest.
    pub fn of_signatures(subject: &Digest) -> impl Iterator<Item = Self> {
        let list = Self::of_referrers(subject);
        [".sig", ".att", ".sbom"].into_iter().map(move |suffix| Self(format!("{list}{suffix}").into()))
    }

    /// Returns the tags that lead to artifacts of a manifest: those of [`of_signatures`](Self::of_signatures), and the tag of
    /// its list of referrers.
    pub fn of_artifacts(subject: &Digest) -> impl Iterator<Item = Self> {
        Self::of_signatures(subject).chain(std::iter::once(Self::of_referrers(subject)))
    }

    /// Returns the digest that the tag begins with, and the rest of the tag: `sha256-HEX` is the tag of a list of referrers,
    /// and `sha256-HEX.sig` that of a signature. `None` for other tags, and for digests that a tag contains only in part.
    pub fn subject(&self) -> Option<(Digest, &str)> {
        const ALGORITHM: &str = "sha256";
        const HEX: usize = 64;
        let (hex, rest) = self.0.strip_prefix(ALGORITHM)?.strip_prefix('-')?.split_at_checked(HEX)?;
        Some((format!("{ALGORITHM}:{hex}").parse().ok()?, rest))
    }
}

/// Reference to a manifest: a tag or a digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// Tag, which may move to another digest.
    Tag(Tag),
    /// Digest, which always means the same content.
    Digest(Digest),
}

impl Reference {
    /// Returns the digest, if the reference is one.
    pub fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Digest(digest) => Some(digest),
            Self::Tag(_) => None,
        }
    }
}

impl FromStr for Reference {
    type Err = NameError;

    /// Parses a digest if the text contains a colon, otherwise a tag.
    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.contains(':') { Ok(Self::Digest(text.parse()?)) } else { Ok(Self::Tag(text.parse()?)) }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// Name of a configured upstream, for example `docker.io`. It is a look-up key and never used as an address.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UpstreamName(Arc<str>);
text_type!(UpstreamName);

impl FromStr for UpstreamName {
    type Err = NameError;

    /// Parses a host name, optionally with a port. The name must be usable as `?ns=` and as a `Host` header.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let allowed =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b':' | b'_');
        let edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = text.as_bytes();
        let ends = bytes.first().is_some_and(edge) && bytes.last().is_some_and(edge);
        if ends && text.len() <= NAME_MAX && text.bytes().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err(NameError::Name(shown(text)))
        }
    }
}

/// Repository of an upstream. Tags and links belong to a repository.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    /// Configured name of the upstream.
    pub upstream: UpstreamName,
    /// Name inside the upstream.
    pub name: Name,
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.upstream, self.name)
    }
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Returns a name for an error message. Names come from clients, so the text is truncated and made printable.
fn shown(text: &str) -> String {
    text.chars().take(100).map(|c| if c.is_ascii_graphic() { c } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn names_follow_the_grammar() {
        for good in ["a", "library/busybox", "a.b/c_d/e__f/g---h", "blobs/manifests/tags", "0"] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in
            ["", "/", "a/", "/a", "a//b", "A", "a..b", "a___b", "a._b", "-a", "a-", "_catalog", "a:b", "é"]
        {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
        assert!("a".repeat(256).parse::<Name>().is_err());
    }

    #[test]
    fn tags_follow_the_grammar() {
        for good in ["latest", "_x", "1.2-3_4", "A"] {
            assert!(good.parse::<Tag>().is_ok(), "{good}");
        }
        for bad in ["", ".INVALID_MANIFEST_NAME", "-a", "a/b", "a b", "ü"] {
            assert!(bad.parse::<Tag>().is_err(), "{bad}");
        }
        assert!("a".repeat(128).parse::<Tag>().is_ok());
        assert!("a".repeat(129).parse::<Tag>().is_err());
    }

    #[test]
    fn tag_of_referrers_is_a_valid_tag() {
        for algorithm in Algorithm::ALL {
            let digest = Digest::of(*algorithm, b"x");
            let tag = Tag::of_referrers(&digest);
            assert_eq!(tag.as_str(), format!("{}-{}", algorithm.as_str(), &digest.hex()[..64]));
            assert_eq!(tag.as_str().parse(), Ok(tag));
        }
    }

    #[test]
    fn tag_has_its_subject() {
        let digest = Digest::of(Algorithm::Sha256, b"x");
        assert_eq!(Tag::of_referrers(&digest).subject(), Some((digest, "")));
        let signature: Tag = format!("sha256-{}.sig", digest.hex()).parse().expect("a tag");
        assert_eq!(signature.subject(), Some((digest, ".sig")));
        let upper = format!("sha256-{}", digest.hex().to_uppercase());
        let short = format!("sha256-{}", &digest.hex()[1..]);
        for other in ["latest", "sha256-", &upper, &short] {
            assert_eq!(other.parse::<Tag>().expect("a tag").subject(), None, "{other}");
        }
        // A tag contains half of a longer digest.
        assert_eq!(Tag::of_referrers(&Digest::of(Algorithm::Sha512, b"x")).subject(), None);
    }

    #[test]
    fn reference_with_a_colon_is_a_digest() {
        assert!(matches!("sha256:bad".parse::<Reference>(), Err(NameError::Digest(_))));
        assert!(matches!("bad!".parse::<Reference>(), Err(NameError::Tag(_))));
    }

    #[test]
    fn upstream_name_is_a_host_name() {
        for good in ["docker.io", "reg.example.test:5000", "localhost"] {
            assert!(good.parse::<UpstreamName>().is_ok(), "{good}");
        }
        for bad in ["", "a/b", "user@host", "http://x", "Docker.io", "x:"] {
            assert!(bad.parse::<UpstreamName>().is_err(), "{bad}");
        }
    }
}
