//! Inventory of stored content and drafts.

use std::collections::HashSet;

use crate::clock::Timestamp;
use crate::oci::Digest;

use crate::store::blobs::files::DraftUsage;
use crate::store::engine::Engine;
use crate::store::error::StoreError;
use crate::store::index::fact::{AccessFact, BlobFact, Fact, ManifestFact, TagFact, VerifiedFact, readable};
use crate::store::index::key::{self, Key};

/// Stored manifest or blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentEntry {
    /// Digest.
    pub digest: Digest,
    /// Length in bytes.
    pub size: u64,
    /// Last recorded access, or the time at which it was stored.
    pub last: Timestamp,
    /// Last verification, or the time at which it was stored.
    pub verified: Timestamp,
}

impl Engine {
    /// Returns all stored manifests.
    pub(in crate::store) fn stored_manifests(&self) -> Result<Vec<ContentEntry>, StoreError> {
        self.entries(Key::manifests(), |fact: &ManifestFact| (fact.size, fact.stored_at))
    }

    /// Returns all stored blobs.
    pub(in crate::store) fn stored_blobs(&self) -> Result<Vec<ContentEntry>, StoreError> {
        self.entries(Key::blobs(), |fact: &BlobFact| (fact.size, fact.stored_at))
    }

    fn entries<F: Fact>(
        &self,
        prefix: &[u8],
        size_and_time: impl Fn(&F) -> (u64, Timestamp),
    ) -> Result<Vec<ContentEntry>, StoreError> {
        let mut found = Vec::new();
        for item in self.database.facts()?.scan_prefix(prefix) {
            let (key, value) = item?;
            let digest = key.strip_prefix(prefix).and_then(key::digest);
            let (Some(digest), Some(fact)) = (digest, readable::<F>(&value)) else { continue };
            let (size, stored_at) = size_and_time(&fact);
            let access = self.fact::<AccessFact>(&Key::Access(&digest))?;
            let verified = self.fact::<VerifiedFact>(&Key::Verified(&digest))?;
            found.push(ContentEntry {
                digest,
                size,
                last: access.map_or(stored_at, |access| access.last.max(stored_at)),
                verified: verified.map_or(stored_at, |verified| verified.at.max(stored_at)),
            });
        }
        Ok(found)
    }

    /// Removes all pointers to `manifests`, their entries as referrers, and the absences that belong to them. Content stays.
    pub(in crate::store) fn remove_pointers_to(&self, manifests: &HashSet<Digest>) -> Result<(), StoreError> {
        let mut untagged = HashSet::new();
        for prefix in Key::pointers() {
            for item in self.database.facts()?.scan_prefix(prefix) {
                let (key, value) = item?;
                if readable::<TagFact>(&value).is_some_and(|fact| manifests.contains(&fact.digest)) {
                    self.database.facts()?.remove(&key)?;
                    untagged.extend(Key::read_tagged_repository(&key));
                }
            }
        }
        self.remove_untagged_from_catalog(untagged)?;
        for item in self.database.facts()?.scan_prefix(Key::referrers()).keys() {
            let key = item?;
            if Key::read_referrer(&key).is_some_and(|referrer| manifests.contains(&referrer)) {
                self.database.facts()?.remove(&key)?;
            }
        }
        self.remove_absences_of(manifests)
    }

    /// Returns all drafts that have a file, including those of running fills.
    pub(in crate::store) fn drafts(&self) -> Result<Vec<DraftUsage>, StoreError> {
        self.blobs.files().drafts()
    }
}
