//! Contract of a blob store: the bytes of blobs, by digest.
//!
//! A new kind of blob store implements [`Blobs`] in a file of this folder, is created in `kind.rs`, has a name in
//! `config/schema.rs`, and passes the tests in `contract.rs`.

#[cfg(test)]
mod contract;
pub(in crate::store) mod entry;
pub(in crate::store) mod files;
pub(in crate::store) mod kind;
pub(in crate::store) mod pages;

use std::fmt::Debug;
use std::ops::Range;
use std::sync::{Arc, MutexGuard};

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::oci::{Digest, Hasher};
use crate::store::blobs::files::draft::FileDraft;
use crate::store::blobs::files::folder::{Files, FoundFile};
use crate::store::error::StoreError;
use crate::store::index::trees::Trees;

/// Bytes that are read at a time to copy or verify a blob.
const COPY_STEP: u64 = 1 << 20;

/// Way in which a store uses and frees disk space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpaceModel {
    /// Every blob has space of its own in whole blocks of this many bytes. A draft becomes content in place, and a removal
    /// frees its space at once.
    Separate {
        /// Unit of allocation in bytes.
        block_size: u64,
    },
    /// All content shares files that never shrink. A draft is copied to become content, and a removal only makes space for
    /// later content.
    Shared,
}

/// Storage of the bytes of blobs.
///
/// * Content is complete and verified: [`commit`](Self::commit) and [`import`](Self::import) are the only ways in.
/// * Content that was committed is on disk before the caller writes a fact that points at it, or is recovered together
///   with that fact.
/// * Bytes that are missing, or were changed by another program, read as [`StoreError::Damaged`].
/// * An open blob can be read to its end after it was removed from a store of the model [`SpaceModel::Separate`].
pub(in crate::store) trait Blobs: Debug + Send + Sync {
    /// Returns the way in which content uses disk space.
    fn space_model(&self) -> SpaceModel;

    /// Returns the files of the drafts. Drafts are files in every kind: they grow as fast as the network delivers.
    fn files(&self) -> &Files;

    /// Prepares the store's folder.
    fn prepare(&self) -> Result<(), StoreError>;

    /// Locks the names of content, where content has names: while they are locked, no other thread commits, opens a
    /// draft of, or removes content.
    fn lock_names(&self) -> Option<MutexGuard<'_, ()>>;

    /// Opens a blob. Detects damage as far as it is visible without reading all bytes.
    fn open(&self, digest: &Digest, size: u64, stored_at: Timestamp) -> Result<BlobBytes, StoreError>;

    /// Opens a blob if that does not block.
    fn open_now(&self, digest: &Digest) -> Option<BlobBytes>;

    /// Makes content of a complete draft. `trees` are those to which the caller writes the blob's fact.
    fn commit(&self, draft: &mut FileDraft, stored_at: Timestamp, trees: &Trees) -> Result<(), StoreError>;

    /// Copies a blob of another store, and verifies it. Returns false, and stores nothing, if the bytes are wrong.
    fn import(
        &self,
        from: &dyn ReadBlob,
        digest: &Digest,
        size: u64,
        stored_at: Timestamp,
    ) -> Result<bool, StoreError>;

    /// Returns true if a blob is stored and complete.
    fn is_complete(&self, digest: &Digest, size: u64, stored_at: Timestamp) -> Result<bool, StoreError>;

    /// Removes a blob, or a part of one. The caller has locked the names.
    fn remove(&self, digest: &Digest) -> Result<(), StoreError>;

    /// Removes a damaged blob if that is fast, and returns true if so. The caller has locked the names.
    fn remove_damaged(&self, digest: &Digest) -> Result<bool, StoreError>;

    /// Lists all content. `None` if content and facts are recovered together, so that they cannot differ after a crash.
    fn list(&self) -> Result<Option<Vec<FoundFile>>, StoreError>;

    /// Returns the bytes on disk of content outside of the database.
    fn size_on_disk(&self) -> Result<u64, StoreError>;

    /// Returns the trees of the database that contain nothing but content of this blob store.
    fn trees(&self) -> &'static [&'static str];

    /// Removes all content outside of the database.
    fn remove_all(&self) -> Result<(), StoreError>;
}

/// Open bytes of a blob; clones share them.
pub(in crate::store) type BlobBytes = Arc<dyn ReadBlob>;

/// Bytes that can be read by range.
pub(in crate::store) trait ReadBlob: Debug + Send + Sync {
    /// Reads from `range.start` up to about `step` bytes, and never past `range.end`.
    fn read(&self, range: Range<u64>, step: u64) -> Result<Vec<Bytes>, StoreError>;

    /// Reads the start of `range` if it is in the page cache of the operating system. Does not block.
    fn read_now(&self, range: Range<u64>) -> Option<Bytes>;

    /// Returns true if the operating system reads ahead, so that `read_now` usually finds the next bytes.
    fn has_read_ahead(&self) -> bool;
}

/// Passes all bytes of a blob to `to`. Returns true if they match the digest.
pub(in crate::store) fn copy_verified(
    from: &dyn ReadBlob,
    digest: &Digest,
    size: u64,
    mut to: impl FnMut(Bytes) -> Result<(), StoreError>,
) -> Result<bool, StoreError> {
    let mut hasher = Hasher::new(digest.algorithm());
    let mut offset = 0;
    while offset < size {
        let pieces = match from.read(offset..size, COPY_STEP) {
            Ok(pieces) => pieces,
            Err(StoreError::Damaged(_)) => return Ok(false),
            Err(error) => return Err(error),
        };
        for piece in pieces {
            offset += piece.len() as u64;
            hasher.update(&piece);
            to(piece)?;
        }
    }
    Ok(hasher.finish() == *digest)
}
