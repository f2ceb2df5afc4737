//! Keys of facts, and their bytes. No other file encodes a key.
//!
//! Numbers are big-endian, so that byte order is numeric order. A text that is not at the end of a key is terminated by a
//! zero byte, which no name contains, so that no key is the prefix of another by accident.

use crate::oci::{Algorithm, Digest, Repository, UpstreamName};
use crate::store::index::pointer::{Pointer, TagKey};

/// Key of a fact.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) enum Key<'a> {
    /// Tag of a repository.
    Tag(&'a Repository, &'a str),
    /// Variant of a tag, for clients that accept only these media types.
    Variant(&'a Repository, &'a str, &'a str),
    /// Repository with a tag.
    Repository(&'a UpstreamName, &'a str),
    /// Link from a repository to a digest.
    Link(&'a Repository, &'a Digest),
    /// Stored manifest.
    Manifest(&'a Digest),
    /// Stored blob.
    Blob(&'a Digest),
    /// Last access to a manifest or blob.
    Access(&'a Digest),
    /// Last verification of a manifest or blob.
    Verified(&'a Digest),
    /// Blob with leftovers: bytes that are wrong, or an incomplete copy.
    Leftover(&'a Digest),
    /// Index in the prefetch queue.
    Prefetch(&'a Repository, &'a Digest),
    /// List of the referrers of a manifest.
    Referrers(&'a Repository, &'a Digest),
    /// Content that an upstream has delivered.
    Delivered(&'a Digest, &'a UpstreamName),
    /// Stored manifest that refers to a subject.
    Referrer(&'a Repository, &'a Digest, &'a Digest),
    /// Absence of a pointer of this kind that belongs to a manifest. Earlier versions ignore such keys.
    Absence(&'a Repository, &'a Digest, &'a str),
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
    /// Returns the prefix of all manifest facts.
    pub(in crate::store) const fn manifests() -> &'static [u8] {
        b"m"
    }

    /// Returns the prefix of all blob facts.
    pub(in crate::store) const fn blobs() -> &'static [u8] {
        b"b"
    }

    /// The prefixes of all facts of pointers: tags, their variants, lists of referrers.
    pub(in crate::store) const fn pointers() -> [&'static [u8]; 3] {
        [b"t", b"v", b"f"]
    }

    /// Returns the prefix of all tags.
    pub(in crate::store) const fn tags() -> &'static [u8] {
        b"t"
    }

    /// Returns the prefix of all facts of the kind [`Key::Referrer`].
    pub(in crate::store) const fn referrers() -> &'static [u8] {
        b"s"
    }

    /// Returns the prefix of all absences.
    pub(in crate::store) const fn absences() -> &'static [u8] {
        b"n"
    }

    /// Returns the bytes of the key for the absence of a pointer; `None` if the absence is not kept.
    pub(in crate::store) fn absence_of(pointer: &Pointer) -> Option<Vec<u8>> {
        let (subject, kind) = pointer.subject()?;
        Some(Key::Absence(pointer.repository(), &subject, kind).to_bytes())
    }

    /// Reads the repository and the subject of a key of the kind [`Key::Absence`].
    pub(in crate::store) fn read_absence(key: &[u8]) -> Option<(Repository, Digest)> {
        let (repository, rest) = read_repository(key.strip_prefix(Self::absences())?)?;
        Some((repository, digest(split_digest(rest)?.0)?))
    }

    /// Returns the prefixes of facts that have no meaning without their content.
    pub(in crate::store) const fn remarks() -> [&'static [u8]; 2] {
        [b"a", b"c"]
    }

    /// Returns the prefix of all facts of the kind [`Key::Delivered`].
    pub(in crate::store) const fn deliveries() -> &'static [u8] {
        b"p"
    }

    /// Returns the key of the mark that deliveries are recorded.
    pub(in crate::store) const fn deliveries_mark() -> &'static [u8] {
        b"q"
    }

    /// Reads the digest of a key of the kind [`Key::Delivered`].
    pub(in crate::store) fn read_delivered(key: &[u8]) -> Option<Digest> {
        digest(split_digest(key.strip_prefix(Self::deliveries())?)?.0)
    }

    /// Returns the prefix of all links.
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

    /// Reads the key of the kind [`Key::Referrer`]: the manifest that refers.
    pub(in crate::store) fn read_referrer(key: &[u8]) -> Option<Digest> {
        let (_, digests) = read_repository(key.strip_prefix(Self::referrers())?)?;
        let (_, referrer) = split_digest(digests)?;
        digest(referrer)
    }

    /// Returns the prefix of all links of a repository.
    pub(in crate::store) fn links_of(repository: &Repository) -> Vec<u8> {
        let mut key = Self::links().to_vec();
        push_repository(&mut key, repository);
        key
    }

    /// Returns the prefix of all variants of a tag.
    pub(in crate::store) fn variants_of(repository: &Repository, tag: &str) -> Vec<u8> {
        let mut key = vec![b'v'];
        push_repository(&mut key, repository);
        push_text(&mut key, tag);
        key
    }

    /// Returns the prefix of the prefetch queue.
    pub(in crate::store) const fn prefetches() -> &'static [u8] {
        b"w"
    }

    /// Reads the key of an index in the prefetch queue.
    pub(in crate::store) fn read_prefetch(key: &[u8]) -> Option<(Repository, Digest)> {
        let (repository, index) = read_repository(key.strip_prefix(Self::prefetches())?)?;
        Some((repository, digest(index)?))
    }

    /// Returns the prefix of all facts of the kind [`Key::Referrer`] about one manifest.
    pub(in crate::store) fn referrers_of(repository: &Repository, subject: &Digest) -> Vec<u8> {
        let mut key = vec![b's'];
        push_repository(&mut key, repository);
        push_digest(&mut key, subject);
        key
    }

    /// Returns the prefix of all blobs with leftovers.
    pub(in crate::store) const fn leftovers() -> &'static [u8] {
        b"d"
    }

    /// Returns the bytes of the key.
    pub(in crate::store) fn to_bytes(self) -> Vec<u8> {
        match self {
            Self::Tag(repository, tag) => of_repository(Self::tags(), repository, tag.as_bytes()),
            Self::Variant(repository, tag, types) => {
                let mut key = Self::variants_of(repository, tag);
                key.extend_from_slice(types.as_bytes());
                key
            }
            Self::Repository(upstream, name) => {
                let mut key = b"r".to_vec();
                push_text(&mut key, upstream.as_str());
                key.extend_from_slice(name.as_bytes());
                key
            }
            Self::Link(repository, digest) => with_digest(Self::links_of(repository), digest),
            Self::Manifest(digest) => with_digest(Self::manifests().to_vec(), digest),
            Self::Blob(digest) => with_digest(Self::blobs().to_vec(), digest),
            Self::Access(digest) => with_digest(b"a".to_vec(), digest),
            Self::Verified(digest) => with_digest(b"c".to_vec(), digest),
            Self::Leftover(digest) => with_digest(Self::leftovers().to_vec(), digest),
            Self::Prefetch(repository, digest) => {
                with_digest(of_repository(Self::prefetches(), repository, b""), digest)
            }
            Self::Delivered(digest, upstream) => {
                let mut key = with_digest(Self::deliveries().to_vec(), digest);
                key.extend_from_slice(upstream.as_str().as_bytes());
                key
            }
            Self::Referrers(repository, subject) => {
                with_digest(of_repository(b"f", repository, b""), subject)
            }
            Self::Referrer(repository, subject, referrer) => {
                with_digest(Self::referrers_of(repository, subject), referrer)
            }
            Self::Absence(repository, subject, kind) => {
                let mut key = with_digest(of_repository(Self::absences(), repository, b""), subject);
                key.extend_from_slice(kind.as_bytes());
                key
            }
        }
    }
}

/// Creates the key of something in a repository.
fn of_repository(prefix: &[u8], repository: &Repository, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(128);
    key.extend_from_slice(prefix);
    push_repository(&mut key, repository);
    key.extend_from_slice(rest);
    key
}

fn with_digest(mut key: Vec<u8>, digest: &Digest) -> Vec<u8> {
    push_digest(&mut key, digest);
    key
}

/// Returns the digest of a blob's fact, from its key.
pub(in crate::store) fn blob_of(key: &[u8]) -> Option<Digest> {
    digest(key.strip_prefix(Key::blobs())?)
}

/// Returns the prefix of all pages of a digest.
pub(in crate::store) fn pages_of(digest: &Digest) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + 64 + 8);
    push_digest(&mut key, digest);
    key
}

/// Returns the key of one page.
pub(in crate::store) fn page(digest: &Digest, number: u64) -> Vec<u8> {
    let mut key = pages_of(digest);
    key.extend_from_slice(&number.to_be_bytes());
    key
}

/// Returns the digest of the key of a page.
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
    key.push(digest.algorithm().code());
    key.extend_from_slice(digest.as_bytes());
}

/// Splits off what `push_repository` wrote.
fn read_repository(key: &[u8]) -> Option<(Repository, &[u8])> {
    let mut parts = key.splitn(3, |byte| *byte == 0);
    let mut text = || std::str::from_utf8(parts.next()?).ok();
    let (upstream, name) = (text()?.parse().ok()?, text()?.parse().ok()?);
    Some((Repository { upstream, name }, parts.next()?))
}

/// Splits off the first of several digests.
fn split_digest(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let algorithm = Algorithm::from_code(*bytes.first()?)?;
    bytes.split_at_checked(1 + algorithm.size())
}

/// Reads what `push_digest` wrote.
pub(in crate::store) fn digest(bytes: &[u8]) -> Option<Digest> {
    let (algorithm, raw) = bytes.split_first()?;
    Digest::from_bytes(Algorithm::from_code(*algorithm)?, raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefetch_key_reads_back() {
        let repository = Repository {
            upstream: "reg.test:5000".parse().expect("a name"),
            name: "org/app".parse().expect("a name"),
        };
        for algorithm in Algorithm::ALL.iter().copied() {
            let digest = Digest::of(algorithm, b"x");
            let key = Key::Prefetch(&repository, &digest).to_bytes();
            assert_eq!(Key::read_prefetch(&key), Some((repository.clone(), digest)));
            assert_eq!(Key::read_prefetch(&key[..key.len() - 1]), None);
        }
        assert_eq!(Key::read_prefetch(b"w"), None);
    }

    #[test]
    fn key_order_is_the_order_of_names_and_numbers() {
        let digest = Digest::of(Algorithm::Sha256, b"x");
        assert!(page(&digest, 255) < page(&digest, 256));
        assert!(page(&digest, u64::from(u32::MAX)) < page(&digest, u64::from(u32::MAX) + 1));
        let repository = |name: &str| Repository {
            upstream: "docker.io".parse().expect("a name"),
            name: name.parse().expect("a name"),
        };
        let (a, ab) = (repository("a"), repository("a/b"));
        // The tags of a repository are separate from those of a repository with a longer name.
        let prefix = Key::Tag(&a, "").to_bytes();
        assert!(!Key::Tag(&ab, "x").to_bytes().starts_with(&prefix));
        assert!(Key::Tag(&a, "1").to_bytes() < Key::Tag(&a, "10").to_bytes());
    }

    #[test]
    fn digest_reads_back_from_a_key() {
        for algorithm in Algorithm::ALL.iter().copied() {
            let mut key = Vec::new();
            push_digest(&mut key, &Digest::of(algorithm, b"x"));
            assert_eq!(digest(&key), Some(Digest::of(algorithm, b"x")));
            assert_eq!(digest(&key[..key.len() - 1]), None);
        }
        assert_eq!(digest(&[]), None);
        assert_eq!(digest(&[9, 0]), None);
    }

    #[test]
    fn pointer_and_referrer_keys_read_back() {
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
    fn absence_key_has_its_subject() {
        let repository = Repository {
            upstream: "docker.io".parse().expect("a name"),
            name: "a/b".parse().expect("a name"),
        };
        let subject = Digest::of(Algorithm::Sha256, b"x");
        let tag = |text: String| Pointer::tag(&repository, &text.parse().expect("a tag"));
        let list = Pointer::Referrers(repository.clone(), subject);
        let tags =
            ["", ".sig", ".att", ".sbom"].map(|suffix| tag(format!("sha256-{}{suffix}", subject.hex())));
        let mut keys = Vec::new();
        for pointer in tags.iter().chain([&list]) {
            let key = Key::absence_of(pointer).expect("a key");
            assert_eq!(Key::read_absence(&key), Some((repository.clone(), subject)), "{pointer:?}");
            assert_eq!(Key::read_pointer(&key), None, "no tag");
            keys.push(key);
        }
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 5);
        for other in ["latest".to_owned(), format!("sha256-{}.txt", subject.hex())] {
            assert_eq!(Key::absence_of(&tag(other)), None);
        }
        assert_eq!(tags[0].refuted_absences().collect::<Vec<_>>(), [tags[0].clone(), list.clone()]);
        assert_eq!(list.refuted_absences().collect::<Vec<_>>(), [list]);
        assert_eq!(tag("latest".to_owned()).refuted_absences().count(), 0);
    }

    #[test]
    fn blob_key_has_its_digest() {
        for algorithm in Algorithm::ALL.iter().copied() {
            let digest = Digest::of(algorithm, b"x");
            assert_eq!(blob_of(&Key::Blob(&digest).to_bytes()), Some(digest));
            assert_eq!(blob_of(&Key::Leftover(&digest).to_bytes()), None);
            assert_eq!(blob_of(&Key::Blob(&digest).to_bytes()[..20]), None);
        }
    }
}
