//! Where the bytes of blobs and drafts live. A draft is a file; content is that file under another name, or pages of a
//! sled tree that it was copied into.
//!
//! Everything in which the two kinds of store differ stands behind these two enums; facts, links, tags and manifests
//! are in sled in both.

pub(in crate::store) mod entry;
pub(in crate::store) mod files;

use std::ops::Range;
use std::sync::MutexGuard;

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::oci::Digest;

use crate::store::blobs::files::{FileBody, FileDraft, Files, Found};
use crate::store::error::StoreError;
use crate::store::index::database::Database;
use crate::store::index::inventory::DraftUsage;
use crate::store::index::page_tree::Pages;

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

/// The bytes of all blobs and drafts; clones share them.
#[derive(Clone, Debug)]
pub(in crate::store) enum Blobs {
    /// `store.blobs = "sled"`: content is in pages, drafts are files.
    Pages(Database, Files),
    /// `store.blobs = "files"`.
    Files(Files),
}

impl Blobs {
    /// Held while content is taken over, kept or removed under its name, so that none of these comes between the steps
    /// of another. Pages have no names: they are written and removed by the one fill there is of a digest.
    pub(in crate::store) fn names(&self) -> Option<MutexGuard<'_, ()>> {
        match self {
            Self::Pages(..) => None,
            Self::Files(files) => Some(files.names()),
        }
    }

    pub(in crate::store) fn files(&self) -> &Files {
        let (Self::Pages(_, files) | Self::Files(files)) = self;
        files
    }

    /// Returns the way in which content uses disk space.
    pub(in crate::store) fn space_model(&self) -> SpaceModel {
        match self {
            Self::Pages(..) => SpaceModel::Shared,
            // File systems allocate blocks of this size.
            Self::Files(_) => SpaceModel::Separate { block_size: 4096 },
        }
    }

    /// Whether a draft must be copied to become content.
    pub(in crate::store) fn are_copied(&self) -> bool {
        matches!(self, Self::Pages(..))
    }

    /// The bytes of a blob, to be read. For a file this looks whether it is still the one that was kept.
    pub(in crate::store) fn open(
        &self,
        digest: &Digest,
        size: u64,
        stored_at: Timestamp,
    ) -> Result<BlobBody, StoreError> {
        match self {
            Self::Pages(database, _) => Ok(BlobBody::Pages(database.clone(), *digest)),
            Self::Files(files) => Ok(BlobBody::File(files.open(digest, size, stored_at)?)),
        }
    }

    /// As `open`, where that needs no disk.
    pub(in crate::store) fn open_now(&self, digest: &Digest) -> Option<BlobBody> {
        match self {
            Self::Pages(database, _) => Some(BlobBody::Pages(database.clone(), *digest)),
            Self::Files(_) => None,
        }
    }

    /// The bytes of a draft, to be added to. Whoever calls this holds the names.
    pub(in crate::store) fn draft(&self, digest: &Digest) -> Result<FileDraft, StoreError> {
        self.files().draft(digest)
    }

    /// Sees to it that a fact may point at the bytes of a draft, which are all there. sled keeps its own order; a file
    /// must be on the disk, under its name.
    pub(in crate::store) fn commit(
        &self,
        draft: &mut FileDraft,
        stored_at: Timestamp,
        pages: &Pages,
    ) -> Result<(), StoreError> {
        match self {
            Self::Pages(..) => {
                let mut writer = pages.writer(draft.digest(), draft.length());
                draft.copy(|piece| writer.append(piece))?;
                writer.complete()
            }
            Self::Files(_) => draft.commit(stored_at),
        }
    }

    /// Removes the bytes of content. Whoever calls this holds the names.
    pub(in crate::store) fn remove_content(&self, digest: &Digest) -> Result<(), StoreError> {
        match self {
            Self::Pages(database, _) => database.pages()?.remove(digest),
            Self::Files(files) => files.remove_content(digest),
        }
    }

    /// Removes damaged content if that is quickly done, and tells whether it was: many pages take their time. Whoever
    /// calls this holds the names.
    pub(in crate::store) fn remove_damaged(&self, digest: &Digest) -> Result<bool, StoreError> {
        match self {
            Self::Pages(..) => Ok(false),
            Self::Files(files) => files.remove_damaged(digest).map(|()| true),
        }
    }

    /// Removes the bytes of a draft.
    pub(in crate::store) fn remove_draft(&self, digest: &Digest) -> Result<(), StoreError> {
        self.files().remove_draft(digest)
    }

    /// All drafts.
    pub(in crate::store) fn drafts(&self) -> Result<Vec<DraftUsage>, StoreError> {
        let drafted =
            |found: &Found| DraftUsage { digest: found.digest, bytes: found.disk, changed: found.changed };
        Ok(self.files().drafts()?.iter().map(drafted).collect())
    }

    /// Bytes on disk beside sled's own.
    pub(in crate::store) fn size_on_disk(&self) -> Result<u64, StoreError> {
        self.files().size_on_disk()
    }
}

/// Bytes to be read: a blob's, or those of a draft that are written. Clones share what is open.
#[derive(Clone, Debug)]
pub(in crate::store) enum BlobBody {
    Pages(Database, Digest),
    File(FileBody),
}

impl BlobBody {
    /// Reads from `range.start` up to about `step` bytes, and never past `range.end`.
    pub(in crate::store) fn read(&self, range: Range<u64>, step: u64) -> Result<Vec<Bytes>, StoreError> {
        if range.start >= range.end {
            return Ok(Vec::new());
        }
        match self {
            Self::Pages(database, digest) => database.pages_soon()?.read(digest, range, step),
            Self::File(file) => file.read(range, step),
        }
    }

    /// What the system has in memory of the start of `range`. Needs no blocking thread.
    pub(in crate::store) fn read_now(&self, range: Range<u64>) -> Option<Bytes> {
        match self {
            Self::Pages(..) => None,
            Self::File(file) => file.read_now(range),
        }
    }

    /// Whether `read_now` is likely to find what comes next, so that nobody need read it ahead.
    pub(in crate::store) fn comes_by_itself(&self) -> bool {
        match self {
            Self::Pages(..) => false,
            Self::File(file) => file.comes_by_itself(),
        }
    }
}
