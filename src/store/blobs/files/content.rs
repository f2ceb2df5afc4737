//! Blobs as files (`store.blobs = "files"`).

use std::ops::Range;
use std::sync::{Arc, MutexGuard};

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::oci::Digest;
use crate::store::blobs::{BlobBytes, Blobs, ReadBlob, SpaceModel, copy_verified};
use crate::store::error::StoreError;
use crate::store::index::trees::Trees;

use super::body::FileBody;
use super::draft::FileDraft;
use super::draft_files::DraftKey;
use super::folder::{Files, FoundFile};

/// Unit of allocation of common file systems.
const BLOCK_SIZE: u64 = 4096;

/// Blob store in files. A draft becomes content when it is renamed.
#[derive(Debug)]
pub(in crate::store) struct FileBlobs(Files);

impl FileBlobs {
    pub(in crate::store) fn new(files: Files) -> Self {
        Self(files)
    }
}

impl Blobs for FileBlobs {
    fn space_model(&self) -> SpaceModel {
        SpaceModel::Separate { block_size: BLOCK_SIZE }
    }

    fn files(&self) -> &Files {
        &self.0
    }

    fn prepare(&self) -> Result<(), StoreError> {
        self.0.prepare_content()?;
        self.0.prepare_drafts()
    }

    fn lock_names(&self) -> Option<MutexGuard<'_, ()>> {
        Some(self.0.names())
    }

    fn open(&self, digest: &Digest, size: u64, stored_at: Timestamp) -> Result<BlobBytes, StoreError> {
        Ok(Arc::new(self.0.open(digest, size, stored_at)?))
    }

    fn open_now(&self, _digest: &Digest) -> Option<BlobBytes> {
        None
    }

    fn commit(&self, draft: &mut FileDraft, stored_at: Timestamp, _trees: &Trees) -> Result<(), StoreError> {
        draft.commit(stored_at)
    }

    fn import(
        &self,
        from: &dyn ReadBlob,
        digest: &Digest,
        size: u64,
        stored_at: Timestamp,
    ) -> Result<bool, StoreError> {
        self.0.remove_content(digest)?;
        let key = DraftKey::unowned(digest);
        self.0.remove_draft(&key)?;
        let mut draft = self.0.draft(&key)?;
        if copy_verified(from, digest, size, |piece| draft.append(piece))? {
            draft.commit(stored_at)?;
            Ok(true)
        } else {
            draft.remove()?;
            Ok(false)
        }
    }

    fn is_complete(&self, digest: &Digest, size: u64, stored_at: Timestamp) -> Result<bool, StoreError> {
        // Only a verified file has the name of content.
        match self.0.open(digest, size, stored_at) {
            Ok(_) => Ok(true),
            Err(StoreError::Damaged(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn remove(&self, digest: &Digest) -> Result<(), StoreError> {
        self.0.remove_content(digest)
    }

    fn remove_damaged(&self, digest: &Digest) -> Result<bool, StoreError> {
        self.0.remove_damaged(digest)?;
        Ok(true)
    }

    fn list(&self) -> Result<Option<Vec<FoundFile>>, StoreError> {
        Ok(Some(self.0.list()?))
    }

    fn size_on_disk(&self) -> Result<u64, StoreError> {
        self.0.size_on_disk()
    }

    fn trees(&self) -> &'static [&'static str] {
        &[]
    }

    fn remove_all(&self) -> Result<(), StoreError> {
        self.0.remove_all_content()
    }
}

impl ReadBlob for FileBody {
    fn read(&self, range: Range<u64>, step: u64) -> Result<Vec<Bytes>, StoreError> {
        if range.start >= range.end {
            return Ok(Vec::new());
        }
        Self::read(self, range, step)
    }

    fn read_now(&self, range: Range<u64>) -> Option<Bytes> {
        Self::read_now(self, range)
    }

    fn has_read_ahead(&self) -> bool {
        Self::has_read_ahead(self)
    }
}
