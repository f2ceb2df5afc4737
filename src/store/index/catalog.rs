//! What the store knows of repositories and their tags, for whoever wants to see all of it.

use std::collections::HashSet;

use crate::oci::{Digest, Repository, Tag};

use crate::store::index::fact::ManifestFact;
use crate::store::index::key::Key;
use crate::store::{Store, StoreError, TagFact, readable};

impl Store {
    /// Every tag held, of one repository or of all, with what it stands for; in byte order.
    pub fn tagged(&self, only: Option<&Repository>) -> Result<Vec<(Repository, Tag, TagFact)>, StoreError> {
        let prefix = only.map_or_else(|| b"t".to_vec(), |repository| Key::Tag(repository, "").to_bytes());
        let mut found = Vec::new();
        for item in self.database.facts()?.scan_prefix(prefix) {
            let (key, value) = item?;
            let named =
                Key::read_tag(&key).and_then(|(repository, tag)| Some((repository, tag.parse().ok()?)));
            if let (Some((repository, tag)), Some(fact)) = (named, readable::<TagFact>(&value)) {
                found.push((repository, tag, fact));
            }
        }
        Ok(found)
    }

    /// What a tag stands for to clients that accept only some types: the types, and the fact.
    pub fn variants(&self, repository: &Repository, tag: &Tag) -> Result<Vec<(String, TagFact)>, StoreError> {
        let prefix = Key::variants_of(repository, tag.as_str());
        let mut found = Vec::new();
        for item in self.database.facts()?.scan_prefix(&prefix) {
            let (key, value) = item?;
            let types = key.strip_prefix(&*prefix).map(|types| String::from_utf8_lossy(types).into_owned());
            if let (Some(types), Some(fact)) = (types, readable::<TagFact>(&value)) {
                found.push((types, fact));
            }
        }
        Ok(found)
    }

    /// Every manifest held that a repository is linked to, of one repository or of all.
    pub fn linked_manifests(
        &self,
        only: Option<&Repository>,
    ) -> Result<Vec<(Repository, Digest)>, StoreError> {
        let prefix = only.map_or_else(|| Key::links().to_vec(), Key::links_of);
        let mut found = Vec::new();
        for item in self.database.facts()?.scan_prefix(prefix).keys() {
            let Some((repository, digest)) = Key::read_link(&item?) else { continue };
            if self.fact::<ManifestFact>(&Key::Manifest(&digest))?.is_some() {
                found.push((repository, digest));
            }
        }
        Ok(found)
    }

    /// Everything that another repository than this one is linked to.
    pub fn linked_elsewhere(&self, repository: &Repository) -> Result<HashSet<Digest>, StoreError> {
        let mut found = HashSet::new();
        for item in self.database.facts()?.scan_prefix(Key::links()).keys() {
            let link = Key::read_link(&item?);
            found.extend(link.filter(|(other, _)| other != repository).map(|(_, digest)| digest));
        }
        Ok(found)
    }

    /// Takes a repository's right to content that is gone.
    pub fn unlink<'a>(
        &self,
        repository: &Repository,
        digests: impl Iterator<Item = &'a Digest>,
    ) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for digest in digests {
            batch.remove(Key::Link(repository, digest).to_bytes());
        }
        self.database.facts()?.apply_batch(batch)?;
        Ok(())
    }
}
