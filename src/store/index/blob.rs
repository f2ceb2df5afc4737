//! Blobs: the facts that make their bytes content, and their leftovers.

use std::sync::atomic::Ordering;

use crate::clock::Timestamp;
use crate::oci::{Digest, Repository};
use crate::store::blobs::entry::BlobEntry;
use crate::store::engine::Engine;
use crate::store::error::StoreError;
use crate::store::index::fact::{BlobFact, Fact as _, LeftoverFact, LinkFact, readable};
use crate::store::index::key::{self, Key};
use crate::store::index::transaction::transact;

impl Engine {
    /// Returns the entry of a blob.
    pub(in crate::store) fn blob(&self, digest: &Digest) -> Result<Option<BlobEntry>, StoreError> {
        let fact = self.fact::<BlobFact>(&Key::Blob(digest))?;
        Ok(fact.map(|fact| BlobEntry { digest: *digest, fact, blobs: self.blobs.clone() }))
    }

    /// Removes the fact of a damaged blob and marks its bytes as leftovers, in one atomic step. A blob that was filled again
    /// since `damaged` was read stays.
    pub(in crate::store) fn mark_corrupt(&self, damaged: &BlobEntry) -> Result<(), StoreError> {
        let digest = damaged.digest();
        let leftover = LeftoverFact { must_remove: true }.encode();
        let _names = self.blobs.lock_names();
        let removed = transact(&self.database.facts()?, |facts| {
            let stored = facts.get(Key::Blob(digest).to_bytes())?;
            if stored.as_deref().and_then(readable::<BlobFact>) != Some(damaged.fact) {
                return Ok(false);
            }
            facts.remove(Key::Blob(digest).to_bytes())?;
            facts.insert(Key::Leftover(digest).to_bytes(), leftover.as_slice())?;
            Ok(true)
        })?;
        if removed {
            self.counters.blobs.fetch_sub(1, Ordering::Relaxed);
            self.counters.content.fetch_sub(damaged.size(), Ordering::Relaxed);
            if self.blobs.remove_damaged(digest)? {
                self.database.facts()?.remove(Key::Leftover(digest).to_bytes())?;
            }
        }
        Ok(())
    }

    /// Makes a blob visible, together with its link and its delivery, in one atomic step. `facts` belong to the database that has the bytes.
    pub(in crate::store) fn commit_blob(
        &self,
        facts: &sled::Tree,
        repository: Option<&Repository>,
        digest: &Digest,
        size: u64,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let blob = BlobFact { size, stored_at: now }.encode();
        let link = LinkFact { size: Some(size) }.encode();
        let new = transact(facts, |facts| {
            facts.remove(Key::Leftover(digest).to_bytes())?;
            if let Some(repository) = repository {
                facts.insert(Key::Link(repository, digest).to_bytes(), link.as_slice())?;
                facts.insert(Key::Delivered(digest, &repository.upstream).to_bytes(), &[][..])?;
            }
            let stored = facts.insert(Key::Blob(digest).to_bytes(), blob.as_slice())?;
            // A fact that cannot be decoded was not counted.
            Ok(stored.as_deref().and_then(readable::<BlobFact>).is_none())
        })?;
        if new {
            self.counters.blobs.fetch_add(1, Ordering::Relaxed);
            self.counters.content.fetch_add(size, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Removes a blob that has no reader and no fill. Its fact is removed first, so that a crash never leaves a part of the
    /// blob as content.
    pub(in crate::store) fn remove_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        let leftover = LeftoverFact { must_remove: true }.encode();
        let _names = self.blobs.lock_names();
        let removed = transact(&self.database.facts()?, |facts| {
            facts.remove(Key::Access(digest).to_bytes())?;
            facts.remove(Key::Verified(digest).to_bytes())?;
            facts.insert(Key::Leftover(digest).to_bytes(), leftover.as_slice())?;
            facts.remove(Key::Blob(digest).to_bytes())
        })?;
        if let Some(fact) = removed.as_deref().and_then(readable::<BlobFact>) {
            self.counters.blobs.fetch_sub(1, Ordering::Relaxed);
            self.counters.content.fetch_sub(fact.size, Ordering::Relaxed);
        }
        self.blobs.remove(digest)?;
        self.database.facts()?.remove(Key::Leftover(digest).to_bytes())?;
        Ok(())
    }

    /// Returns the blobs that have leftovers.
    pub(in crate::store) fn leftovers(&self) -> Result<Vec<Digest>, StoreError> {
        let mut found = Vec::new();
        for item in self.database.facts()?.scan_prefix(Key::leftovers()) {
            let (key, value) = item?;
            if readable::<LeftoverFact>(&value).is_none_or(|fact| fact.must_remove) {
                found.extend(key::digest(key.strip_prefix(Key::leftovers()).unwrap_or_default()));
            }
        }
        Ok(found)
    }

    /// Removes the leftovers of a blob that has no fill.
    pub(in crate::store) fn remove_leftovers(&self, digest: &Digest) -> Result<(), StoreError> {
        let _names = self.blobs.lock_names();
        if self.database.facts()?.contains_key(Key::Blob(digest).to_bytes())? {
            return Ok(());
        }
        self.blobs.remove(digest)?;
        self.database.facts()?.remove(Key::Leftover(digest).to_bytes())?;
        Ok(())
    }
}
