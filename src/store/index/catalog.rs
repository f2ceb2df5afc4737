//! Look-ups of pointers, names, links and the prefetch queue.

use crate::oci::{Digest, Repository, UpstreamName};
use crate::store::engine::Engine;
use crate::store::error::StoreError;
use crate::store::index::fact::{LinkFact, TagFact, readable};
use crate::store::index::key::Key;
use crate::store::index::pointer::{Pointer, PointerScope};

impl Engine {
    /// Returns the fact of a pointer.
    pub(in crate::store) fn pointer(&self, pointer: &Pointer) -> Result<Option<TagFact>, StoreError> {
        self.fact(&Key::from(pointer))
    }

    /// Returns all pointers of a scope with their facts. Pointers that cannot be decoded are skipped.
    pub(in crate::store) fn pointers(
        &self,
        scope: PointerScope<'_>,
    ) -> Result<Vec<(Pointer, TagFact)>, StoreError> {
        let prefixes: Vec<Vec<u8>> = match scope {
            PointerScope::All => Key::pointers().map(<[u8]>::to_vec).to_vec(),
            PointerScope::Tags(None) => vec![Key::tags().to_vec()],
            PointerScope::Tags(Some(repository)) => vec![Key::Tag(repository, "").to_bytes()],
            PointerScope::Variants(repository, tag) => vec![Key::variants_of(repository, tag.as_str())],
        };
        let mut found = Vec::new();
        for prefix in prefixes {
            for item in self.database.facts()?.scan_prefix(prefix) {
                let (key, value) = item?;
                if let (Some(pointer), Some(fact)) = (Key::read_pointer(&key), readable::<TagFact>(&value)) {
                    found.push((pointer, fact));
                }
            }
        }
        Ok(found)
    }

    /// Returns up to `limit` tags of a repository that sort after `last`, in byte order.
    pub(in crate::store) fn tags(
        &self,
        repository: &Repository,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, StoreError> {
        let prefix = Key::Tag(repository, "").to_bytes();
        let from = Key::Tag(repository, last.unwrap_or_default()).to_bytes();
        self.names_from(&prefix, &from, last.is_some(), limit)
    }

    /// Returns up to `limit` repositories of an upstream that have a tag and sort after `last`, in byte order.
    pub(in crate::store) fn repositories(
        &self,
        upstream: &UpstreamName,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, StoreError> {
        let prefix = Key::Repository(upstream, "").to_bytes();
        let from = Key::Repository(upstream, last.unwrap_or_default()).to_bytes();
        self.names_from(&prefix, &from, last.is_some(), limit)
    }

    /// Returns up to `limit` names after a prefix, from the key `from` on, or after it.
    fn names_from(
        &self,
        prefix: &[u8],
        from: &[u8],
        after: bool,
        limit: usize,
    ) -> Result<Vec<String>, StoreError> {
        let mut found = Vec::new();
        for item in self.database.facts()?.range(from..) {
            let (key, _) = item?;
            let Some(rest) = key.strip_prefix(prefix) else { break };
            if after && *key == *from {
                continue;
            }
            if found.len() == limit {
                break;
            }
            found.push(String::from_utf8_lossy(rest).into_owned());
        }
        Ok(found)
    }

    /// Returns the link from a repository to a digest.
    pub(in crate::store) fn linked(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<LinkFact>, StoreError> {
        self.fact(&Key::Link(repository, digest))
    }

    /// Returns true if an upstream has delivered the bytes of a digest.
    pub(in crate::store) fn is_delivered(
        &self,
        upstream: &UpstreamName,
        digest: &Digest,
    ) -> Result<bool, StoreError> {
        Ok(self.database.facts()?.contains_key(Key::Delivered(digest, upstream).to_bytes())?)
    }

    /// Returns the links of one repository, or of all repositories, for which `keep` returns true.
    pub(in crate::store) fn links(
        &self,
        only: Option<&Repository>,
        mut keep: impl FnMut(&Repository, &Digest) -> bool,
    ) -> Result<Vec<(Repository, Digest)>, StoreError> {
        let prefix = only.map_or_else(|| Key::links().to_vec(), Key::links_of);
        let mut found = Vec::new();
        for item in self.database.facts()?.scan_prefix(prefix).keys() {
            found.extend(Key::read_link(&item?).filter(|(repository, digest)| keep(repository, digest)));
        }
        Ok(found)
    }

    /// Returns all indexes in the prefetch queue.
    pub(in crate::store) fn prefetch_queue(&self) -> Result<Vec<(Repository, Digest)>, StoreError> {
        let mut found = Vec::new();
        for item in self.database.facts()?.scan_prefix(Key::prefetches()) {
            found.extend(Key::read_prefetch(&item?.0));
        }
        Ok(found)
    }
}
