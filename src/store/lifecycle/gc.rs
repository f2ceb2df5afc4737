//! Garbage collection: removes facts and bytes that removed content has left.

use std::collections::HashSet;
use std::ops::AddAssign;
use std::sync::PoisonError;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::oci::Digest;

use crate::store::engine::Engine;
use crate::store::error::StoreError;
use crate::store::index::absence::UNOWNED_MAX;
use crate::store::index::fact::{TagFact, readable};
use crate::store::index::key::{self, Key};

/// Number of removed objects, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// Tags and lists of referrers without a manifest.
    pub pointers: u64,
    /// Links to content that is not stored and that no stored manifest needs.
    pub links: u64,
    /// Other facts about removed content.
    pub remarks: u64,
    /// Bytes of manifests without a fact.
    pub documents: u64,
    /// Blobs with leftovers of an interrupted copy or removal.
    #[serde(rename = "remains")]
    pub leftovers: u64,
    /// Abandoned drafts.
    pub drafts: u64,
}

impl Collected {
    /// Returns each number with its name in the API and in metrics.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("pointers", self.pointers),
            ("links", self.links),
            ("remarks", self.remarks),
            ("documents", self.documents),
            ("remains", self.leftovers),
            ("drafts", self.drafts),
        ]
        .into_iter()
    }
}

impl AddAssign for Collected {
    fn add_assign(&mut self, other: Self) {
        self.pointers += other.pointers;
        self.links += other.links;
        self.remarks += other.remarks;
        self.documents += other.documents;
        self.leftovers += other.leftovers;
        self.drafts += other.drafts;
    }
}

impl Engine {
    /// Removes facts that lead to no content. `needed` returns true for content that a stored manifest needs. Pointers that
    /// were confirmed after `before` stay, because their manifest may still be on its way.
    pub(in crate::store) fn collect_facts(
        &self,
        needed: impl Fn(&Digest) -> bool,
        before: Timestamp,
    ) -> Result<Collected, StoreError> {
        let pointers = self.collect_pointers(before)?;
        let mut collected = Collected { pointers, ..Collected::default() };
        for item in self.database.facts()?.scan_prefix(Key::links()).keys() {
            let key = item?;
            let Some((_, digest)) = Key::read_link(&key) else { continue };
            if !needed(&digest) && !self.has_content(&digest)? {
                self.database.facts()?.remove(&key)?;
                collected.links += 1;
            }
        }
        for prefix in Key::remarks() {
            for item in self.database.facts()?.scan_prefix(prefix).keys() {
                let key = item?;
                let digest = key::digest(key.strip_prefix(prefix).unwrap_or_default());
                if !matches!(digest, Some(digest) if self.has_content(&digest)?) {
                    self.database.facts()?.remove(&key)?;
                    collected.remarks += 1;
                }
            }
        }
        for item in self.database.facts()?.scan_prefix(Key::deliveries()).keys() {
            let key = item?;
            if !matches!(Key::read_delivered(&key), Some(digest) if self.has_content(&digest)?) {
                self.database.facts()?.remove(&key)?;
                collected.remarks += 1;
            }
        }
        for item in self.database.facts()?.scan_prefix(Key::referrers()).keys() {
            let key = item?;
            if !matches!(Key::read_referrer(&key), Some(referrer) if self.has_manifest(&referrer)?) {
                self.database.facts()?.remove(&key)?;
                collected.remarks += 1;
            }
        }
        collected.remarks += self.collect_absences(UNOWNED_MAX)?;
        collected.documents = self.collect_documents()?;
        Ok(collected)
    }

    /// Removes pointers without a manifest. Returns their number.
    fn collect_pointers(&self, before: Timestamp) -> Result<u64, StoreError> {
        let (mut removed, mut untagged) = (0, HashSet::new());
        for prefix in Key::pointers() {
            for item in self.database.facts()?.scan_prefix(prefix) {
                let (key, value) = item?;
                let fact = readable::<TagFact>(&value);
                let is_live = match fact {
                    Some(fact) => fact.checked_at >= before || self.has_manifest(&fact.digest)?,
                    None => false,
                };
                if !is_live && self.remove_unchanged(&key, &value)? {
                    removed += 1;
                    untagged.extend(Key::read_tagged_repository(&key));
                }
            }
        }
        self.remove_untagged_from_catalog(untagged)?;
        Ok(removed)
    }

    /// Removes the bytes of manifests that have no fact. Returns the number of manifests.
    fn collect_documents(&self) -> Result<u64, StoreError> {
        let mut found = HashSet::new();
        for key in self.database.documents()?.keys() {
            found.extend(key::page_of(&key?));
        }
        let mut removed = 0;
        for digest in found {
            // The bytes of a manifest are written before its fact.
            let _lock = self.manifest_lock.lock().unwrap_or_else(PoisonError::into_inner);
            if !self.has_manifest(&digest)? {
                self.database.documents()?.remove(&digest)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    pub(in crate::store) fn has_manifest(&self, digest: &Digest) -> Result<bool, StoreError> {
        Ok(self.database.facts()?.contains_key(Key::Manifest(digest).to_bytes())?)
    }

    /// Returns true if a manifest or blob is stored.
    fn has_content(&self, digest: &Digest) -> Result<bool, StoreError> {
        Ok(self.has_manifest(digest)? || self.database.facts()?.contains_key(Key::Blob(digest).to_bytes())?)
    }

    /// Removes a fact, unless it has changed since it was read.
    fn remove_unchanged(&self, key: &[u8], value: &[u8]) -> Result<bool, StoreError> {
        Ok(self.database.facts()?.compare_and_swap(key, Some(value), None::<&[u8]>)?.is_ok())
    }
}
