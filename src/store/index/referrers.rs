//! Stored manifests that refer to another manifest.

use crate::oci::{Digest, Repository};

use crate::store::engine::Engine;
use crate::store::error::StoreError;
use crate::store::index::key::{self, Key};

impl Engine {
    /// Returns up to `limit` stored manifests that refer to `subject`. Some of them may have been removed since.
    pub(in crate::store) fn referrers(
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
