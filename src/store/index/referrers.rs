//! What refers to a manifest: the list as its upstream last gave it, and the manifests that were kept here.
//!
//! Both belong to one repository. A list is a manifest in the store, under its own digest; the fact that points at it
//! gives no right to anything in it.

use crate::oci::{Digest, Repository};

use crate::store::index::fact::Fact as _;
use crate::store::index::key::{self, Key};
use crate::store::{Store, StoreError, TagFact};

impl Store {
    /// What is known of the list of a manifest's referrers.
    pub fn referrers_list(
        &self,
        repository: &Repository,
        subject: &Digest,
    ) -> Result<Option<TagFact>, StoreError> {
        self.fact(&Key::Referrers(repository, subject))
    }

    /// Sets where the list of a manifest's referrers is; the document must be there already.
    pub fn put_referrers_list(
        &self,
        repository: &Repository,
        subject: &Digest,
        fact: &TagFact,
    ) -> Result<(), StoreError> {
        self.database.facts()?.insert(Key::Referrers(repository, subject).to_bytes(), fact.encode())?;
        Ok(())
    }

    /// Forgets where the list of a manifest's referrers is.
    pub fn remove_referrers_list(&self, repository: &Repository, subject: &Digest) -> Result<(), StoreError> {
        self.database.facts()?.remove(Key::Referrers(repository, subject).to_bytes())?;
        Ok(())
    }

    /// Notes that a manifest, which must be there already, refers to another, which need not.
    pub fn put_referrer(
        &self,
        repository: &Repository,
        subject: &Digest,
        referrer: &Digest,
    ) -> Result<(), StoreError> {
        self.database.facts()?.insert(Key::Referrer(repository, subject, referrer).to_bytes(), &[][..])?;
        Ok(())
    }

    /// Up to `limit` manifests that were kept for the repository and refer to another. They may have gone since.
    pub fn referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
        limit: usize,
    ) -> Result<Vec<Digest>, StoreError> {
        let prefix = Key::referrers_of(repository, subject);
        let mut found = Vec::new();
        for item in self.database.facts()?.scan_prefix(&prefix).take(limit) {
            let (key, _) = item?;
            found.extend(key::digest(&key[prefix.len()..]));
        }
        Ok(found)
    }
}
