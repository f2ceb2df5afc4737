//! Writer of a draft's file.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, IoSlice, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::oci::Digest;

use super::body::FileBody;
use super::draft_files::DraftKey;
use super::folder::{Files, failed, make_folder, remove, sync_folder, time_of};
use crate::store::error::StoreError;

/// Bytes that are collected for one write.
const WRITE: usize = 512 << 10;
/// Largest number of pieces in one write (`IOV_MAX`).
const PIECES: usize = 1024;

/// File of a draft, which grows at its end.
#[derive(Debug)]
pub(in crate::store) struct FileDraft {
    files: Files,
    key: DraftKey,
    body: FileBody,
    /// Bytes that are not written yet.
    waiting: Vec<Bytes>,
    waiting_bytes: usize,
    written: u64,
    /// Modification time of the file after the latest write of this writer.
    stamp: Option<SystemTime>,
}

impl Files {
    /// Opens a draft, or creates it. The caller has locked the names.
    pub(in crate::store) fn draft(&self, key: &DraftKey) -> Result<FileDraft, StoreError> {
        let path = self.growing(key);
        let body = FileBody::of_draft(self, &key.digest);
        let (mut written, waiting, mut stamp) = (0, Vec::new(), None);
        match OpenOptions::new().read(true).append(true).open(&path) {
            Ok(file) => {
                let found = file.metadata().map_err(failed(&path))?;
                (written, stamp) = (found.len(), found.modified().ok());
                body.handle().set(file);
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(failed(&path)(error)),
        }
        Ok(FileDraft {
            files: self.clone(),
            key: key.clone(),
            body,
            waiting,
            waiting_bytes: 0,
            written,
            stamp,
        })
    }
}

impl FileDraft {
    pub(in crate::store) fn digest(&self) -> &Digest {
        &self.key.digest
    }

    /// Returns the number of bytes that are written.
    pub(in crate::store) fn written(&self) -> u64 {
        self.written
    }

    /// Returns the number of bytes, including those that are not written yet.
    pub(in crate::store) fn length(&self) -> u64 {
        self.written + self.waiting_bytes as u64
    }

    /// Returns the number of bytes that are not written yet.
    pub(in crate::store) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Returns true if the draft has a file. A small draft whose content is stored elsewhere never needs a file.
    pub(in crate::store) fn has_file(&self) -> bool {
        self.body.handle().exists()
    }

    /// Permits to close the file while the complete draft waits. Nothing removes or renames the file meanwhile.
    pub(in crate::store) fn permit_parking(&self) {
        self.body.handle().permit_parking(self.files.growing(&self.key));
    }

    /// Opens the file for good, if it is closed: what follows may rename or remove it, and readers continue with it.
    pub(in crate::store) fn unpark(&self) -> Result<(), StoreError> {
        self.body.file()?;
        self.body.handle().unpark().map_err(failed(&self.files.growing(&self.key)))
    }

    /// Returns the written bytes for readers.
    pub(in crate::store) fn body(&self) -> FileBody {
        self.body.clone()
    }

    /// Appends bytes. They are written in few large steps without a copy, and are readable when `written` counts them.
    pub(in crate::store) fn append(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        if bytes.is_empty() {
            // A write of an empty piece returns 0, like a write to a full file.
            return Ok(());
        }
        self.waiting_bytes += bytes.len();
        self.waiting.push(bytes);
        if self.waiting_bytes >= WRITE || self.waiting.len() >= PIECES {
            self.complete()?;
        }
        Ok(())
    }

    /// Moves all bytes that are not written yet into memory of exactly their size, and returns them. The network delivers
    /// small parts of large buffers, which would stay allocated.
    pub(in crate::store) fn compact(&mut self) -> Bytes {
        let bytes = Bytes::from(self.waiting.concat());
        self.waiting = vec![bytes.clone()];
        bytes
    }

    /// Removes the file. Open readers are not disturbed.
    pub(in crate::store) fn remove(&self) -> Result<(), StoreError> {
        self.files.remove_draft(&self.key)
    }

    /// Writes all collected bytes.
    pub(in crate::store) fn complete(&mut self) -> Result<(), StoreError> {
        if self.waiting_bytes == 0 {
            return Ok(());
        }
        let written = self.write();
        if let Err(StoreError::File { source, .. }) = &written
            && matches!(
                source.kind(),
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
            )
        {
            // An incomplete blob must not occupy the last free bytes.
            self.remove()?;
        }
        written
    }

    fn write(&mut self) -> Result<(), StoreError> {
        self.is_ours()?;
        let path = self.files.growing(&self.key);
        let opened = self.file()?;
        let mut file = &*opened;
        let mut pieces: Vec<_> = self.waiting.iter().map(|bytes| IoSlice::new(bytes)).collect();
        let mut left = pieces.as_mut_slice();
        while !left.is_empty() {
            match file.write_vectored(left) {
                Ok(0) => return Err(failed(&path)(ErrorKind::WriteZero.into())),
                Ok(length) => IoSlice::advance_slices(&mut left, length),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(&path)(error)),
            }
        }
        self.stamp = file.metadata().and_then(|found| found.modified()).ok();
        self.written += self.waiting_bytes as u64;
        self.waiting_bytes = 0;
        self.waiting.clear();
        Ok(())
    }

    /// Returns the file, and creates it if necessary.
    fn file(&self) -> Result<Arc<File>, StoreError> {
        let path = self.files.growing(&self.key);
        if !self.has_file() {
            let open = || OpenOptions::new().read(true).append(true).create(true).open(&path);
            let made = match open() {
                // Another program has removed the folder.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let folder = path.parent().unwrap_or(&path);
                    make_folder(folder).map_err(failed(folder))?;
                    open()
                }
                opened => opened,
            };
            self.body.handle().set(made.map_err(failed(&path))?);
        }
        // The file was set above.
        self.body.file()?.ok_or_else(|| failed(&path)(ErrorKind::NotFound.into()))
    }

    /// Passes all bytes to `to`, including those that are not written yet.
    pub(in crate::store) fn copy(
        &self,
        mut to: impl FnMut(Bytes) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.is_ours()?;
        let mut at = 0;
        while at < self.written {
            for piece in self.body.read(at..self.written, WRITE as u64)? {
                at += piece.len() as u64;
                to(piece)?;
            }
        }
        // Check again: the file may have changed during the copy.
        self.is_ours()?;
        self.waiting.iter().cloned().try_for_each(to)
    }

    /// Returns an error if another program has written to the file, judging by length and time: then the hashed bytes are not
    /// the bytes in the file.
    pub(in crate::store) fn is_ours(&self) -> Result<(), StoreError> {
        let Some(file) = self.body.file()? else { return Ok(()) };
        let draft = self.files.growing(&self.key);
        let found = file.metadata().map_err(failed(&draft))?;
        if found.len() != self.written || found.modified().ok() != self.stamp {
            remove(&draft)?;
            return Err(StoreError::Damaged(self.key.digest));
        }
        Ok(())
    }

    /// Makes content of the draft: synchronises its bytes, renames it, and synchronises the folder. Each fill does this on a
    /// thread of its own, because the journal of the file system groups concurrent calls better than one thread.
    pub(in crate::store) fn commit(&mut self, stored_at: Timestamp) -> Result<(), StoreError> {
        let (draft, content) = (self.files.growing(&self.key), self.files.content(&self.key.digest));
        self.complete()?;
        self.is_ours()?;
        let file = self.file()?;
        if self.files.keeps_times() {
            file.set_modified(time_of(stored_at)).map_err(failed(&draft))?;
        }
        file.sync_all().map_err(failed(&draft))?;
        let found = file.metadata().map_err(failed(&draft))?;
        let folder = content.parent().unwrap_or(&content);
        {
            let _names = self.files.names();
            make_folder(folder).map_err(failed(folder))?;
            // Another program may have replaced or removed the file.
            let named = fs::symlink_metadata(&draft).map_err(failed(&draft))?;
            if (named.dev(), named.ino()) != (found.dev(), found.ino()) {
                return Err(StoreError::Damaged(self.key.digest));
            }
            fs::rename(&draft, &content).map_err(failed(&draft))?;
            self.files.0.disk.add(&found);
        }
        sync_folder(folder).map_err(failed(folder))
    }
}
