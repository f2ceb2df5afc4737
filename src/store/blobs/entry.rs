//! Stored blob: its entry, and its open bytes.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::oci::Digest;
use crate::store::blobs::{BlobBytes, Blobs};
use crate::store::error::StoreError;
use crate::store::index::fact::BlobFact;

/// Entry of a complete and verified blob.
#[derive(Clone, Debug)]
pub struct BlobEntry {
    pub(in crate::store) digest: Digest,
    /// Fact at the time of the look-up. A later fill of the same digest writes a different fact.
    pub(in crate::store) fact: BlobFact,
    pub(in crate::store) blobs: Arc<dyn Blobs>,
}

impl BlobEntry {
    /// Returns the blob's digest.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Returns the blob's size in bytes.
    pub fn size(&self) -> u64 {
        self.fact.size
    }

    /// Opens the blob for reading. Returns [`StoreError::Damaged`] if the bytes are missing, or if a change is visible
    /// without reading them. Blocks.
    pub fn open(&self) -> Result<OpenBlob, StoreError> {
        let bytes = self.blobs.open(&self.digest, self.fact.size, self.fact.stored_at)?;
        Ok(OpenBlob(Arc::new(OpenEntry { entry: self.clone(), bytes })))
    }

    /// Opens the blob if that does not block.
    pub fn open_now(&self) -> Option<OpenBlob> {
        let bytes = self.blobs.open_now(&self.digest)?;
        Some(OpenBlob(Arc::new(OpenEntry { entry: self.clone(), bytes })))
    }
}

/// Blob that is open for reading. Clones share the open bytes.
#[derive(Clone, Debug)]
pub struct OpenBlob(Arc<OpenEntry>);

#[derive(Debug)]
struct OpenEntry {
    entry: BlobEntry,
    bytes: BlobBytes,
}

impl OpenBlob {
    /// Returns the entry of the blob.
    pub fn entry(&self) -> &BlobEntry {
        &self.0.entry
    }

    /// Reads from `range.start` up to about `step` bytes, and never past `range.end`. Blocks.
    ///
    /// May return fewer bytes than asked for; no bytes at all mean the end of the range.
    pub fn read(&self, range: Range<u64>, step: u64) -> Result<Vec<Bytes>, StoreError> {
        self.0.bytes.read(range.start..range.end.min(self.entry().size()), step)
    }

    /// Reads the start of `range`, a few hundred KiB at most, if it is in the page cache of the operating system. Does not
    /// block. After `None`, use [`read`](Self::read).
    pub fn read_now(&self, range: Range<u64>) -> Option<Bytes> {
        self.0.bytes.read_now(range.start..range.end.min(self.entry().size()))
    }

    /// Returns true if the operating system reads ahead, so that `read_now` usually finds the next bytes.
    pub fn has_read_ahead(&self) -> bool {
        self.0.bytes.has_read_ahead()
    }
}
