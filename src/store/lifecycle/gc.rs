//! What is left of content that has gone, and of fills that never ended: found and removed.

use std::collections::HashSet;
use std::ops::AddAssign;
use std::sync::PoisonError;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::oci::Digest;

use crate::store::engine::{Engine, readable};
use crate::store::error::StoreError;
use crate::store::index::fact::DraftFact;
use crate::store::index::fact::TagFact;
use crate::store::index::inventory::DraftUsage;
use crate::store::index::key::{self, Key};

/// What was removed, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// Tags, and lists of referrers, whose manifest is gone.
    pub pointers: u64,
    /// Rights of repositories to content that is neither held nor needed by a manifest held.
    pub links: u64,
    /// Other facts about content that is gone.
    pub remarks: u64,
    /// Bytes of manifests without the fact that makes them one.
    pub documents: u64,
    /// Blobs of which a removal left bytes.
    #[serde(rename = "remains")]
    pub leftovers: u64,
    /// Drafts that nobody has gone on with.
    pub drafts: u64,
}

impl Collected {
    /// Each number with its name.
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
    /// Removes facts that lead to nothing. `needed` tells what a manifest held needs; pointers that were confirmed
    /// after `before` (milliseconds since 1970) stay, because their manifest may be on its way.
    pub(in crate::store) fn collect_facts(
        &self,
        needed: impl Fn(&Digest) -> bool,
        before: Timestamp,
    ) -> Result<Collected, StoreError> {
        let mut collected = Collected::default();
        let mut bare = HashSet::new();
        for prefix in Key::pointers() {
            for item in self.database.facts()?.scan_prefix(prefix) {
                let (key, value) = item?;
                let fact = readable::<TagFact>(&value);
                let leads = match fact {
                    Some(fact) => fact.checked_at >= before || self.holds_manifest(&fact.digest)?,
                    None => false,
                };
                if !leads && self.remove_unchanged(&key, &value)? {
                    collected.pointers += 1;
                    bare.extend(Key::read_tagged_repository(&key));
                }
            }
        }
        self.remove_untagged_from_catalog(bare)?;
        for item in self.database.facts()?.scan_prefix(Key::links()).keys() {
            let key = item?;
            let Some((_, digest)) = Key::read_link(&key) else { continue };
            if !needed(&digest) && !self.holds(&digest)? {
                self.database.facts()?.remove(&key)?;
                collected.links += 1;
            }
        }
        for prefix in Key::remarks() {
            for item in self.database.facts()?.scan_prefix(prefix).keys() {
                let key = item?;
                let digest = key::digest(key.strip_prefix(prefix).unwrap_or_default());
                if !matches!(digest, Some(digest) if self.holds(&digest)?) {
                    self.database.facts()?.remove(&key)?;
                    collected.remarks += 1;
                }
            }
        }
        for item in self.database.facts()?.scan_prefix(Key::referrers()).keys() {
            let key = item?;
            if !matches!(Key::read_referrer(&key), Some(referrer) if self.holds_manifest(&referrer)?) {
                self.database.facts()?.remove(&key)?;
                collected.remarks += 1;
            }
        }
        collected.documents = self.collect_documents()?;
        Ok(collected)
    }

    /// Removes the bytes of manifests that have no fact.
    fn collect_documents(&self) -> Result<u64, StoreError> {
        let mut found = HashSet::new();
        for key in self.database.documents()?.keys() {
            found.extend(key::page_of(&key?));
        }
        let mut removed = 0;
        for digest in found {
            // A document that is being kept has its bytes before its fact.
            let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
            if !self.holds_manifest(&digest)? {
                self.database.documents()?.remove(&digest)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// The blobs of which bytes are left that must go.
    pub(in crate::store) fn leftovers(&self) -> Result<Vec<Digest>, StoreError> {
        let mut found = Vec::new();
        for item in self.database.facts()?.scan_prefix(Key::drafts()) {
            let (key, value) = item?;
            if readable::<DraftFact>(&value).is_none_or(|fact| fact.condemned) {
                found.extend(key::digest(key.strip_prefix(Key::drafts()).unwrap_or_default()));
            }
        }
        Ok(found)
    }

    /// Removes what is left of a blob that is not held and that nobody fills.
    pub(in crate::store) fn remove_leftovers(&self, digest: &Digest) -> Result<(), StoreError> {
        let _names = self.blobs.names();
        if self.database.facts()?.contains_key(Key::Blob(digest).to_bytes())? {
            return Ok(());
        }
        self.blobs.remove_content(digest)?;
        self.database.facts()?.remove(Key::Draft(digest).to_bytes())?;
        Ok(())
    }

    /// The drafts that have files, also those of running fills.
    pub(in crate::store) fn drafts(&self) -> Result<Vec<DraftUsage>, StoreError> {
        self.blobs.drafts()
    }

    /// Removes a draft that nobody fills.
    pub(in crate::store) fn remove_draft(&self, digest: &Digest) -> Result<(), StoreError> {
        self.blobs.remove_draft(digest)
    }

    fn holds_manifest(&self, digest: &Digest) -> Result<bool, StoreError> {
        Ok(self.database.facts()?.contains_key(Key::Manifest(digest).to_bytes())?)
    }

    /// Whether a manifest or blob is held.
    pub(in crate::store) fn holds(&self, digest: &Digest) -> Result<bool, StoreError> {
        Ok(self.holds_manifest(digest)?
            || self.database.facts()?.contains_key(Key::Blob(digest).to_bytes())?)
    }

    /// Removes a fact unless somebody has changed it meanwhile.
    fn remove_unchanged(&self, key: &[u8], value: &[u8]) -> Result<bool, StoreError> {
        Ok(self.database.facts()?.compare_and_swap(key, Some(value), None::<&[u8]>)?.is_ok())
    }
}
