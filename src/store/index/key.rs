//! The one place where a fact's key becomes bytes.
//!
//! Numbers are big-endian, so that byte order is number order; texts that are followed by something end with a
//! zero byte, which no name contains, so that no key is another's prefix by accident.

use crate::oci::{Algorithm, Digest, Repository, UpstreamName};
use crate::store::index::pointer::{Pointer, TagKey};

/// A fact's key.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) enum Key<'a> {
    /// A tag of a repository.
    Tag(&'a Repository, &'a str),
    /// A tag of a repository for clients that accept only these types.
    Variant(&'a Repository, &'a str, &'a str),
    /// A repository that holds a tag.
    Repository(&'a UpstreamName, &'a str),
    /// A repository's right to a digest.
    Link(&'a Repository, &'a Digest),
    /// A manifest held.
    Manifest(&'a Digest),
    /// A blob held.
    Blob(&'a Digest),
    /// When a manifest or blob was last asked for.
    Access(&'a Digest),
    /// When a manifest or blob was last verified again.
    Verified(&'a Digest),
    /// A blob whose bytes must go, because they are wrong or were not copied to their end.
    Draft(&'a Digest),
    /// An index below which something is still to be fetched.
    Prefetch(&'a Repository, &'a Digest),
    /// The list of what refers to a manifest of a repository.
    Referrers(&'a Repository, &'a Digest),
    /// That a repository's manifest is referred to by another that was kept for it.
    Referrer(&'a Repository, &'a Digest, &'a Digest),
}

impl<'a> From<&'a Pointer> for Key<'a> {
    fn from(pointer: &'a Pointer) -> Self {
        match pointer {
            Pointer::Tag(TagKey { repository, tag, variant: Some(types) }) => {
                Self::Variant(repository, tag.as_str(), types)
            }
            Pointer::Tag(TagKey { repository, tag, variant: None }) => Self::Tag(repository, tag.as_str()),
            Pointer::Referrers(repository, subject) => Self::Referrers(repository, subject),
        }
    }
}

impl Key<'_> {
    /// The prefix of all manifest facts.
    pub(in crate::store) const fn manifests() -> &'static [u8] {
        b"m"
    }

    /// The prefix of all blob facts.
    pub(in crate::store) const fn blobs() -> &'static [u8] {
        b"b"
    }

    /// The prefixes of all facts that stand for a manifest: tags, their variants, lists of referrers.
    pub(in crate::store) const fn pointers() -> [&'static [u8]; 3] {
        [b"t", b"v", b"f"]
    }

    /// The prefix of all tags.
    pub(in crate::store) const fn tags() -> &'static [u8] {
        b"t"
    }

    /// The prefix of all facts of the kind [`Key::Referrer`].
    pub(in crate::store) const fn referrers() -> &'static [u8] {
        b"s"
    }

    /// The prefixes of all facts about content that say nothing without it.
    pub(in crate::store) const fn remarks() -> [&'static [u8]; 2] {
        [b"a", b"c"]
    }

    /// The prefix of all links.
    pub(in crate::store) const fn links() -> &'static [u8] {
        b"l"
    }

    /// Reads the key of a link.
    pub(in crate::store) fn read_link(key: &[u8]) -> Option<(Repository, Digest)> {
        let (repository, target) = read_repository(key.strip_prefix(Self::links())?)?;
        Some((repository, digest(target)?))
    }

    /// Reads the key of a pointer.
    pub(in crate::store) fn read_pointer(key: &[u8]) -> Option<Pointer> {
        let (kind, rest) = key.split_first()?;
        let (repository, rest) = read_repository(rest)?;
        let (tag, variant) = match kind {
            b't' => (rest, None),
            b'v' => {
                let end = rest.iter().position(|byte| *byte == 0)?;
                (&rest[..end], Some(String::from_utf8_lossy(&rest[end + 1..]).into_owned()))
            }
            b'f' => return Some(Pointer::Referrers(repository, digest(rest)?)),
            _ => return None,
        };
        let tag = std::str::from_utf8(tag).ok()?.parse().ok()?;
        Some(Pointer::Tag(TagKey { repository, tag, variant }))
    }

    /// Returns the repository of the key of a tag; `None` for every other key.
    pub(in crate::store) fn read_tagged_repository(key: &[u8]) -> Option<Repository> {
        match Self::read_pointer(key)? {
            Pointer::Tag(TagKey { repository, variant: None, .. }) => Some(repository),
            Pointer::Tag(_) | Pointer::Referrers(..) => None,
        }
    }

    /// Reads the key of the kind [`Key::Referrer`]: what refers.
    pub(in crate::store) fn read_referrer(key: &[u8]) -> Option<Digest> {
        let (_, digests) = read_repository(key.strip_prefix(Self::referrers())?)?;
        let (_, referrer) = split_digest(digests)?;
        digest(referrer)
    }

    /// The prefix of all links of a repository.
    pub(in crate::store) fn links_of(repository: &Repository) -> Vec<u8> {
        let mut key = Self::links().to_vec();
        push_repository(&mut key, repository);
        key
    }

    /// The prefix of all variants of a tag.
    pub(in crate::store) fn variants_of(repository: &Repository, tag: &str) -> Vec<u8> {
        let mut key = vec![b'v'];
        push_repository(&mut key, repository);
        push_text(&mut key, tag);
        key
    }

    /// The prefix of all walks.
    pub(in crate::store) const fn prefetches() -> &'static [u8] {
        b"w"
    }

    /// Reads the key of a walk.
    pub(in crate::store) fn read_prefetch(key: &[u8]) -> Option<(Repository, Digest)> {
        let (repository, index) = read_repository(key.strip_prefix(Self::prefetches())?)?;
        Some((repository, digest(index)?))
    }

    /// The prefix of all facts of the kind [`Key::Referrer`] about one manifest.
    pub(in crate::store) fn referrers_of(repository: &Repository, subject: &Digest) -> Vec<u8> {
        let mut key = vec![b's'];
        push_repository(&mut key, repository);
        push_digest(&mut key, subject);
        key
    }

    /// The prefix of all facts of drafts.
    pub(in crate::store) const fn drafts() -> &'static [u8] {
        b"d"
    }

    pub(in crate::store) fn to_bytes(self) -> Vec<u8> {
        let mut key = Vec::with_capacity(128);
        match self {
            Self::Tag(repository, tag) => {
                key.push(b't');
                push_repository(&mut key, repository);
                key.extend_from_slice(tag.as_bytes());
            }
            Self::Variant(repository, tag, types) => {
                key.push(b'v');
                push_repository(&mut key, repository);
                push_text(&mut key, tag);
                key.extend_from_slice(types.as_bytes());
            }
            Self::Repository(upstream, name) => {
                key.push(b'r');
                push_text(&mut key, upstream.as_str());
                key.extend_from_slice(name.as_bytes());
            }
            Self::Link(repository, digest) => {
                key.push(b'l');
                push_repository(&mut key, repository);
                push_digest(&mut key, digest);
            }
            Self::Manifest(digest) => {
                key.extend_from_slice(Self::manifests());
                push_digest(&mut key, digest);
            }
            Self::Blob(digest) => {
                key.extend_from_slice(Self::blobs());
                push_digest(&mut key, digest);
            }
            Self::Access(digest) => {
                key.push(b'a');
                push_digest(&mut key, digest);
            }
            Self::Verified(digest) => {
                key.push(b'c');
                push_digest(&mut key, digest);
            }
            Self::Draft(digest) => {
                key.extend_from_slice(Self::drafts());
                push_digest(&mut key, digest);
            }
            Self::Prefetch(repository, digest) => {
                key.extend_from_slice(Self::prefetches());
                push_repository(&mut key, repository);
                push_digest(&mut key, digest);
            }
            Self::Referrers(repository, subject) => {
                key.push(b'f');
                push_repository(&mut key, repository);
                push_digest(&mut key, subject);
            }
            Self::Referrer(repository, subject, referrer) => {
                key = Self::referrers_of(repository, subject);
                push_digest(&mut key, referrer);
            }
        }
        key
    }
}

/// The digest of a blob's fact, from its key.
pub(in crate::store) fn blob_of(key: &[u8]) -> Option<Digest> {
    digest(key.strip_prefix(Key::blobs())?)
}

/// The prefix of all pages of a digest.
pub(in crate::store) fn pages_of(digest: &Digest) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + 64 + 8);
    push_digest(&mut key, digest);
    key
}

/// The key of one page.
pub(in crate::store) fn page(digest: &Digest, number: u64) -> Vec<u8> {
    let mut key = pages_of(digest);
    key.extend_from_slice(&number.to_be_bytes());
    key
}

/// Whose page a key is.
pub(in crate::store) fn page_of(key: &[u8]) -> Option<Digest> {
    digest(split_digest(key)?.0)
}

fn push_repository(key: &mut Vec<u8>, repository: &Repository) {
    push_text(key, repository.upstream.as_str());
    push_text(key, repository.name.as_str());
}

fn push_text(key: &mut Vec<u8>, text: &str) {
    key.extend_from_slice(text.as_bytes());
    key.push(0);
}

fn push_digest(key: &mut Vec<u8>, digest: &Digest) {
    key.push(match digest.algorithm() {
        Algorithm::Sha256 => 1,
        Algorithm::Sha512 => 2,
    });
    key.extend_from_slice(digest.as_bytes());
}

/// Reads what `push_repository` wrote, and gives what comes after it.
fn read_repository(key: &[u8]) -> Option<(Repository, &[u8])> {
    let mut parts = key.splitn(3, |byte| *byte == 0);
    let mut text = || std::str::from_utf8(parts.next()?).ok();
    let (upstream, name) = (text()?.parse().ok()?, text()?.parse().ok()?);
    Some((Repository { upstream, name }, parts.next()?))
}

/// Cuts the first of several digests off.
fn split_digest(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = match bytes.first()? {
        1 => 1 + 32,
        _ => 1 + 64,
    };
    bytes.split_at_checked(length)
}

/// Reads what `push_digest` wrote.
pub(in crate::store) fn digest(bytes: &[u8]) -> Option<Digest> {
    let (algorithm, raw) = bytes.split_first()?;
    let algorithm = match algorithm {
        1 => Algorithm::Sha256,
        2 => Algorithm::Sha512,
        _ => return None,
    };
    Digest::from_bytes(algorithm, raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walks_key_reads_back() {
        let repository = Repository {
            upstream: "reg.test:5000".parse().expect("a name"),
            name: "org/app".parse().expect("a name"),
        };
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let digest = Digest::of(algorithm, b"x");
            let key = Key::Prefetch(&repository, &digest).to_bytes();
            assert_eq!(Key::read_prefetch(&key), Some((repository.clone(), digest)));
            assert_eq!(Key::read_prefetch(&key[..key.len() - 1]), None);
        }
        assert_eq!(Key::read_prefetch(b"w"), None);
    }

    #[test]
    fn order_of_keys_is_order_of_names_and_numbers() {
        let digest = Digest::of(Algorithm::Sha256, b"x");
        assert!(page(&digest, 255) < page(&digest, 256));
        assert!(page(&digest, u64::from(u32::MAX)) < page(&digest, u64::from(u32::MAX) + 1));
        let repository = |name: &str| Repository {
            upstream: "docker.io".parse().expect("a name"),
            name: name.parse().expect("a name"),
        };
        let (a, ab) = (repository("a"), repository("a/b"));
        // A repository's tags never mix with those of one whose name goes on.
        let prefix = Key::Tag(&a, "").to_bytes();
        assert!(!Key::Tag(&ab, "x").to_bytes().starts_with(&prefix));
        assert!(Key::Tag(&a, "1").to_bytes() < Key::Tag(&a, "10").to_bytes());
    }

    #[test]
    fn digests_come_back_from_keys() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let mut key = Vec::new();
            push_digest(&mut key, &Digest::of(algorithm, b"x"));
            assert_eq!(digest(&key), Some(Digest::of(algorithm, b"x")));
            assert_eq!(digest(&key[..key.len() - 1]), None);
        }
        assert_eq!(digest(&[]), None);
        assert_eq!(digest(&[9, 0]), None);
    }

    #[test]
    fn the_keys_of_tags_and_referrers_read_back() {
        let repository = Repository {
            upstream: "docker.io".parse().expect("a name"),
            name: "a/b".parse().expect("a name"),
        };
        let digest = Digest::of(Algorithm::Sha512, b"z");
        let tag =
            |variant| TagKey { repository: repository.clone(), tag: "1.2".parse().expect("a tag"), variant };
        for pointer in [
            Pointer::Tag(tag(None)),
            Pointer::Tag(tag(Some("a/b, c/d".to_owned()))),
            Pointer::Referrers(repository.clone(), digest),
        ] {
            assert_eq!(Key::read_pointer(&Key::from(&pointer).to_bytes()), Some(pointer));
        }
        let (short, long) = (Digest::of(Algorithm::Sha256, b"x"), Digest::of(Algorithm::Sha512, b"y"));
        for (subject, referrer) in [(short, long), (long, short)] {
            let key = Key::Referrer(&repository, &subject, &referrer).to_bytes();
            assert_eq!(Key::read_referrer(&key), Some(referrer));
            assert_eq!(Key::read_referrer(&key[..key.len() - 1]), None);
        }
        assert_eq!((Key::read_pointer(b"t"), Key::read_referrer(b"s")), (None, None));
    }

    #[test]
    fn a_blobs_key_tells_its_digest() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let digest = Digest::of(algorithm, b"x");
            assert_eq!(blob_of(&Key::Blob(&digest).to_bytes()), Some(digest));
            assert_eq!(blob_of(&Key::Draft(&digest).to_bytes()), None);
            assert_eq!(blob_of(&Key::Blob(&digest).to_bytes()[..20]), None);
        }
    }
}
