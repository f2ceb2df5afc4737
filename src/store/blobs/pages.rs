//! Blobs as pages in sled (`store.blobs = "sled"`).

use std::ops::Range;
use std::sync::{Arc, MutexGuard};

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::oci::Digest;
use crate::store::blobs::files::{FileDraft, Files, FoundFile};
use crate::store::blobs::{BlobBytes, Blobs, ReadBlob, SpaceModel, copy_verified};
use crate::store::error::StoreError;
use crate::store::index::database::Database;
use crate::store::index::trees::{PAGES, Trees};

/// Blob store in pages of sled.
#[derive(Debug)]
pub(in crate::store) struct PageBlobs {
    database: Database,
    files: Files,
}

/// Bytes of one blob. Looks up the database for each read, because it may be opened again in between.
#[derive(Debug)]
struct PageBytes {
    database: Database,
    digest: Digest,
}

impl PageBlobs {
    pub(in crate::store) fn new(database: Database, files: Files) -> Self {
        Self { database, files }
    }

    fn bytes(&self, digest: &Digest) -> PageBytes {
        PageBytes { database: self.database.clone(), digest: *digest }
    }
}

impl Blobs for PageBlobs {
    fn space_model(&self) -> SpaceModel {
        SpaceModel::Shared
    }

    fn files(&self) -> &Files {
        &self.files
    }

    fn prepare(&self) -> Result<(), StoreError> {
        self.files.prepare_drafts()
    }

    fn lock_names(&self) -> Option<MutexGuard<'_, ()>> {
        // Pages have no names: the one fill of a digest writes and removes them.
        None
    }

    fn open(&self, digest: &Digest, _size: u64, _stored_at: Timestamp) -> Result<BlobBytes, StoreError> {
        Ok(Arc::new(self.bytes(digest)))
    }

    fn open_now(&self, digest: &Digest) -> Option<BlobBytes> {
        Some(Arc::new(self.bytes(digest)))
    }

    fn commit(&self, draft: &mut FileDraft, _stored_at: Timestamp, trees: &Trees) -> Result<(), StoreError> {
        let mut writer = trees.pages.writer(draft.digest(), draft.length());
        draft.copy(|piece| writer.append(piece))?;
        writer.complete()
    }

    fn import(
        &self,
        from: &dyn ReadBlob,
        digest: &Digest,
        size: u64,
        _stored_at: Timestamp,
    ) -> Result<bool, StoreError> {
        let trees = self.database.trees()?;
        trees.pages.remove(digest)?;
        let mut writer = trees.pages.writer(digest, size);
        if copy_verified(from, digest, size, |piece| writer.append(piece))? {
            writer.complete()?;
            trees.flush()?;
            Ok(true)
        } else {
            trees.pages.remove(digest)?;
            Ok(false)
        }
    }

    fn is_complete(&self, digest: &Digest, size: u64, _stored_at: Timestamp) -> Result<bool, StoreError> {
        copy_verified(&self.bytes(digest), digest, size, |_| Ok(()))
    }

    fn remove(&self, digest: &Digest) -> Result<(), StoreError> {
        self.database.pages()?.remove(digest)
    }

    fn remove_damaged(&self, _digest: &Digest) -> Result<bool, StoreError> {
        // The removal of many pages is slow.
        Ok(false)
    }

    fn list(&self) -> Result<Option<Vec<FoundFile>>, StoreError> {
        Ok(None)
    }

    fn size_on_disk(&self) -> Result<u64, StoreError> {
        Ok(0)
    }

    fn trees(&self) -> &'static [&'static str] {
        &[PAGES]
    }

    fn remove_all(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

impl ReadBlob for PageBytes {
    fn read(&self, range: Range<u64>, step: u64) -> Result<Vec<Bytes>, StoreError> {
        if range.start >= range.end {
            return Ok(Vec::new());
        }
        self.database.pages_after_reopen()?.read(&self.digest, range, step)
    }

    fn read_now(&self, _range: Range<u64>) -> Option<Bytes> {
        None
    }

    fn has_read_ahead(&self) -> bool {
        false
    }
}
