//! All that is held, for whoever decides what stays: found, noted as asked for, removed.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use crate::clock::Timestamp;
use crate::oci::Digest;

use crate::store::engine::{Engine, readable, transact};
use crate::store::error::StoreError;
use crate::store::index::fact::TagFact;
use crate::store::index::fact::{AccessFact, BlobFact, DraftFact, Fact, ManifestFact, VerifiedFact};
use crate::store::index::key::{self, Key};

/// A manifest or blob that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentEntry {
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// When it was last noted as asked for, or came in, in milliseconds since 1970.
    pub last: Timestamp,
    /// When it was last held against its digest, in milliseconds since 1970.
    pub verified: Timestamp,
}

/// A draft that has a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DraftUsage {
    /// Its digest.
    pub digest: Digest,
    /// Bytes that it takes on disk.
    pub bytes: u64,
    /// When something was last added to it, in milliseconds since 1970.
    pub changed: Timestamp,
}

impl Engine {
    /// Every manifest held.
    pub(in crate::store) fn held_manifests(&self) -> Result<Vec<ContentEntry>, StoreError> {
        self.holdings(Key::manifests(), |fact: &ManifestFact| (fact.size, fact.stored_at))
    }

    /// Every blob held.
    pub(in crate::store) fn held_blobs(&self) -> Result<Vec<ContentEntry>, StoreError> {
        self.holdings(Key::blobs(), |fact: &BlobFact| (fact.size, fact.stored_at))
    }

    fn holdings<F: Fact>(
        &self,
        prefix: &[u8],
        tell: impl Fn(&F) -> (u64, Timestamp),
    ) -> Result<Vec<ContentEntry>, StoreError> {
        let mut found = Vec::new();
        for item in self.database.facts()?.scan_prefix(prefix) {
            let (key, value) = item?;
            let digest = key.strip_prefix(prefix).and_then(key::digest);
            let (Some(digest), Some(fact)) = (digest, readable::<F>(&value)) else { continue };
            let (size, stored_at) = tell(&fact);
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

    /// Removes every tag and list that stands for one of `manifests`, and that they refer to others. Content stays.
    pub(in crate::store) fn forget_pointers(&self, manifests: &HashSet<Digest>) -> Result<(), StoreError> {
        let mut bare = HashSet::new();
        for prefix in Key::pointers() {
            for item in self.database.facts()?.scan_prefix(prefix) {
                let (key, value) = item?;
                if readable::<TagFact>(&value).is_some_and(|fact| manifests.contains(&fact.digest)) {
                    self.database.facts()?.remove(&key)?;
                    bare.extend(Key::read_tagged_repository(&key));
                }
            }
        }
        self.remove_untagged_from_catalog(bare)?;
        for item in self.database.facts()?.scan_prefix(Key::referrers()).keys() {
            let key = item?;
            if Key::read_referrer(&key).is_some_and(|referrer| manifests.contains(&referrer)) {
                self.database.facts()?.remove(&key)?;
            }
        }
        Ok(())
    }

    /// Removes a blob that nobody reads or fills. Its fact goes first, so that a crash leaves no half of it.
    pub(in crate::store) fn remove_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        let condemned = DraftFact { condemned: true }.encode();
        let _names = self.blobs.names();
        let gone = transact(&self.database.facts()?, |facts| {
            facts.remove(Key::Access(digest).to_bytes())?;
            facts.remove(Key::Verified(digest).to_bytes())?;
            facts.insert(Key::Draft(digest).to_bytes(), condemned.as_slice())?;
            facts.remove(Key::Blob(digest).to_bytes())
        })?;
        if let Some(fact) = gone.as_deref().and_then(readable::<BlobFact>) {
            self.counters.blobs.fetch_sub(1, Ordering::Relaxed);
            self.counters.content.fetch_sub(fact.size, Ordering::Relaxed);
        }
        self.blobs.remove_content(digest)?;
        self.database.facts()?.remove(Key::Draft(digest).to_bytes())?;
        Ok(())
    }
}
