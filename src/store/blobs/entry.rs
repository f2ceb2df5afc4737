//! A stored blob: found, opened, read, taken out of service.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::oci::{Digest, Repository};

use crate::store::blobs::{BlobBody, Blobs};
use crate::store::engine::{Engine, readable, transact};
use crate::store::error::StoreError;
use crate::store::index::fact::{BlobFact, DraftFact, Fact as _, LinkFact};
use crate::store::index::key::Key;

/// A blob that is held whole and verified.
#[derive(Clone, Debug)]
pub struct BlobEntry {
    digest: Digest,
    /// As it was looked up: another fill of the same digest makes another fact.
    fact: BlobFact,
    blobs: Blobs,
}

impl BlobEntry {
    /// The blob's digest.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The blob's size in bytes.
    pub fn size(&self) -> u64 {
        self.fact.size
    }

    /// Opens the blob for reading. One whose bytes are missing, or are not as they were kept as far as that shows from
    /// outside, is [`StoreError::Damaged`].
    pub fn open(&self) -> Result<OpenBlob, StoreError> {
        let body = self.blobs.open(&self.digest, self.fact.size, self.fact.stored_at)?;
        Ok(OpenBlob(Arc::new(Opened { entry: self.clone(), body })))
    }

    /// As `open`, where that needs no disk. Needs no blocking thread.
    pub fn open_now(&self) -> Option<OpenBlob> {
        let body = self.blobs.open_now(&self.digest)?;
        Some(OpenBlob(Arc::new(Opened { entry: self.clone(), body })))
    }
}

/// A blob that is being read. It can be read to its end even if it leaves the store in the meantime. Clones share what
/// is open.
#[derive(Clone, Debug)]
pub struct OpenBlob(Arc<Opened>);

#[derive(Debug)]
struct Opened {
    entry: BlobEntry,
    body: BlobBody,
}

impl OpenBlob {
    /// What was opened.
    pub fn entry(&self) -> &BlobEntry {
        &self.0.entry
    }

    /// Reads from `range.start` up to about `step` bytes, and never past `range.end`.
    ///
    /// Fewer bytes than asked for is normal; none means that the range is at its end.
    pub fn read(&self, range: Range<u64>, step: u64) -> Result<Vec<Bytes>, StoreError> {
        self.0.body.read(range.start..range.end.min(self.entry().size()), step)
    }

    /// What the system has in memory of the start of `range`, a few hundred KiB at most. Needs no blocking thread.
    /// `None` where [`read`](Self::read) must be used.
    pub fn read_now(&self, range: Range<u64>) -> Option<Bytes> {
        self.0.body.read_now(range.start..range.end.min(self.entry().size()))
    }

    /// Whether `read_now` is likely to find what comes next, so that nobody need read it ahead.
    pub fn comes_by_itself(&self) -> bool {
        self.0.body.comes_by_itself()
    }
}

impl Engine {
    /// A blob by digest: something to read from.
    pub(in crate::store) fn blob(&self, digest: &Digest) -> Result<Option<BlobEntry>, StoreError> {
        let fact = self.fact::<BlobFact>(&Key::Blob(digest))?;
        Ok(fact.map(|fact| BlobEntry { digest: *digest, fact, blobs: self.blobs.clone() }))
    }

    /// Takes a blob that turned out to be damaged out of service, in one atomic step: its fact goes, and what is left
    /// of its bytes is condemned, to be removed before the next fill begins. A blob that was filled anew since
    /// `damaged` was looked up stays.
    pub(in crate::store) fn mark_corrupt(&self, damaged: &BlobEntry) -> Result<(), StoreError> {
        let digest = damaged.digest();
        let condemned = DraftFact { condemned: true }.encode();
        let _names = self.blobs.names();
        let gone = transact(&self.database.facts()?, |facts| {
            let held = facts.get(Key::Blob(digest).to_bytes())?;
            if held.as_deref().and_then(readable::<BlobFact>) != Some(damaged.fact) {
                return Ok(false);
            }
            facts.remove(Key::Blob(digest).to_bytes())?;
            facts.insert(Key::Draft(digest).to_bytes(), condemned.as_slice())?;
            Ok(true)
        })?;
        if gone {
            self.counters.blobs.fetch_sub(1, Ordering::Relaxed);
            self.counters.content.fetch_sub(damaged.size(), Ordering::Relaxed);
            if self.blobs.remove_damaged(digest)? {
                self.database.facts()?.remove(Key::Draft(digest).to_bytes())?;
            }
        }
        Ok(())
    }

    /// Makes the blob of a finished draft visible, together with its link, in one atomic step: in the `facts` beside
    /// which its bytes are.
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
            facts.remove(Key::Draft(digest).to_bytes())?;
            if let Some(repository) = repository {
                facts.insert(Key::Link(repository, digest).to_bytes(), link.as_slice())?;
            }
            let held = facts.insert(Key::Blob(digest).to_bytes(), blob.as_slice())?;
            // One that does not decode was not counted either.
            Ok(held.as_deref().and_then(readable::<BlobFact>).is_none())
        })?;
        if new {
            self.counters.blobs.fetch_add(1, Ordering::Relaxed);
            self.counters.content.fetch_add(size, Ordering::Relaxed);
        }
        Ok(())
    }
}
