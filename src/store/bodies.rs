//! Where the bytes of blobs and drafts live: in pages of a sled tree, or in files.
//!
//! Everything in which the two kinds of store differ stands behind these three enums; facts, links, tags and manifests
//! are in sled in both.

use std::ops::Range;
use std::sync::{MutexGuard, RwLockReadGuard};

use bytes::Bytes;

use crate::oci::{Digest, Hasher};

use super::StoreError;
use super::files::{FileBody, FileDraft, Files};
use super::pages::{PagedDraft, Pages};

/// The bytes of all blobs and drafts; clones share them.
#[derive(Clone, Debug)]
pub(super) enum Bodies {
    /// `store.blobs = "sled"`.
    Pages(Pages),
    /// `store.blobs = "files"`.
    Files(Files),
}

impl Bodies {
    /// Held while something is taken over, kept or removed under its name, so that none of these comes between the
    /// steps of another. Pages have no names: they are taken over and removed by the one fill there is of a digest.
    pub(super) fn names(&self) -> Option<MutexGuard<'_, ()>> {
        match self {
            Self::Pages(_) => None,
            Self::Files(files) => Some(files.names()),
        }
    }

    /// Held while a verified draft becomes content.
    pub(super) fn settling(&self) -> Option<RwLockReadGuard<'_, ()>> {
        match self {
            Self::Pages(_) => None,
            Self::Files(files) => Some(files.settling()),
        }
    }

    /// Waits until no verified draft is on its way to becoming content.
    pub(super) fn settle(&self) {
        if let Self::Files(files) = self {
            files.settle();
        }
    }

    /// The bytes of a blob, to be read. For a file this looks whether it is still the one that was kept.
    pub(super) fn open(&self, digest: &Digest, size: u64, stored_at: u64) -> Result<Body, StoreError> {
        match self {
            Self::Pages(pages) => Ok(Body::Pages(pages.clone(), *digest)),
            Self::Files(files) => Ok(Body::File(files.open(digest, size, stored_at)?)),
        }
    }

    /// As `open`, where that needs no disk.
    pub(super) fn open_now(&self, digest: &Digest) -> Option<Body> {
        match self {
            Self::Pages(pages) => Some(Body::Pages(pages.clone(), *digest)),
            Self::Files(_) => None,
        }
    }

    /// The bytes of a draft, to be added to. Whoever calls this holds the names.
    pub(super) fn draft(&self, facts: &sled::Tree, digest: &Digest) -> Result<Growing, StoreError> {
        match self {
            Self::Pages(pages) => Ok(Growing::Pages(pages.draft(facts, digest))),
            Self::Files(files) => Ok(Growing::File(files.draft(digest)?)),
        }
    }

    /// Removes all bytes of a digest. Whoever calls this holds the names.
    pub(super) fn remove(&self, digest: &Digest) -> Result<(), StoreError> {
        match self {
            Self::Pages(pages) => pages.remove(digest),
            Self::Files(files) => files.remove(digest),
        }
    }

    /// Removes damaged bytes if that is quickly done, and tells whether it was: many pages take their time. Whoever calls
    /// this holds the names.
    pub(super) fn remove_damaged(&self, digest: &Digest) -> Result<bool, StoreError> {
        match self {
            Self::Pages(_) => Ok(false),
            Self::Files(files) => files.remove_damaged(digest).map(|()| true),
        }
    }

    /// Bytes on disk beside sled's own.
    pub(super) fn size_on_disk(&self) -> Result<u64, StoreError> {
        match self {
            Self::Pages(_) => Ok(0),
            Self::Files(files) => files.size_on_disk(),
        }
    }
}

/// The growing bytes of a draft, as their one writer sees them.
#[derive(Debug)]
pub(super) enum Growing {
    Pages(PagedDraft),
    File(FileDraft),
}

impl Growing {
    /// Takes over what an earlier writer left, and hashes it. `marked` tells whether a fact speaks of a draft: without
    /// it pages are what a removal has not come to yet, while a file is there or not.
    pub(super) fn take_over(&mut self, marked: bool) -> Result<Hasher, StoreError> {
        match self {
            Self::Pages(draft) => draft.take_over(marked),
            Self::File(draft) => draft.take_over(),
        }
    }

    /// How many bytes can be read back.
    pub(super) fn written(&self) -> u64 {
        match self {
            Self::Pages(draft) => draft.written(),
            Self::File(draft) => draft.written(),
        }
    }

    /// The same bytes for readers, as far as they are written.
    pub(super) fn body(&self) -> Body {
        match self {
            Self::Pages(draft) => draft.body(),
            Self::File(draft) => Body::File(draft.body()),
        }
    }

    /// Adds `bytes`. They can be read back when `written` counts them. `total` is the length of all, where known.
    pub(super) fn append(&mut self, bytes: Bytes, total: Option<u64>) -> Result<(), StoreError> {
        match self {
            Self::Pages(draft) => draft.append(bytes, total),
            Self::File(draft) => draft.append(bytes),
        }
    }

    /// Writes what `append` kept back, if it can be taken over.
    pub(super) fn flush(&mut self) -> Result<(), StoreError> {
        match self {
            // A page that is not full cannot be told from the last one.
            Self::Pages(_) => Ok(()),
            Self::File(draft) => draft.complete(),
        }
    }

    /// Writes what `append` kept back: nothing comes after it.
    pub(super) fn complete(&mut self, total: u64) -> Result<(), StoreError> {
        match self {
            Self::Pages(draft) => draft.complete(total),
            Self::File(draft) => draft.complete(),
        }
    }

    /// Whether `settle` waits for the disk.
    pub(super) fn settles_slowly(&self) -> bool {
        matches!(self, Self::File(_))
    }

    /// Sees to it that a fact may point at these bytes, which are all there. sled keeps its own order; a file must be
    /// on the disk, under its name.
    pub(super) fn settle(&mut self, stored_at: u64) -> Result<(), StoreError> {
        match self {
            Self::Pages(_) => Ok(()),
            Self::File(draft) => draft.settle(stored_at),
        }
    }
}

/// Bytes to be read: a blob's, or those of a draft that are written. Clones share what is open.
#[derive(Clone, Debug)]
pub(super) enum Body {
    Pages(Pages, Digest),
    File(FileBody),
}

impl Body {
    /// Reads from `range.start` up to about `step` bytes, and never past `range.end`.
    pub(super) fn read(&self, range: Range<u64>, step: u64) -> Result<Vec<Bytes>, StoreError> {
        if range.start >= range.end {
            return Ok(Vec::new());
        }
        match self {
            Self::Pages(pages, digest) => pages.read(digest, range, step),
            Self::File(file) => file.read(range, step),
        }
    }

    /// What the system has in memory of the start of `range`. Needs no blocking thread.
    pub(super) fn read_now(&self, range: Range<u64>) -> Option<Bytes> {
        match self {
            Self::Pages(..) => None,
            Self::File(file) => file.read_now(range),
        }
    }

    /// Whether `read_now` is likely to find what comes next, so that nobody need read it ahead.
    pub(super) fn comes_by_itself(&self) -> bool {
        match self {
            Self::Pages(..) => false,
            Self::File(file) => file.comes_by_itself(),
        }
    }
}
