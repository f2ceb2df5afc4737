//! A draft's file, as its one writer sees it.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, IoSlice, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::time::SystemTime;

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::oci::Digest;

use super::body::FileBody;
use super::{Files, StoreError, failed, make_folder, remove, sync_folder, time_of};

/// How much is gathered for one write.
const WRITE: usize = 512 << 10;
/// Pieces of one write: the system takes no more at once (`IOV_MAX`).
const PIECES: usize = 1024;

/// The file of a draft, which grows at its end.
#[derive(Debug)]
pub(in crate::store) struct FileDraft {
    files: Files,
    digest: Digest,
    body: FileBody,
    /// What waits to be written, as it came.
    waiting: Vec<Bytes>,
    waiting_bytes: usize,
    written: u64,
    /// The file's time when it was last seen to be ours: after each write of our own.
    stamp: Option<SystemTime>,
}

impl Files {
    /// The draft of a digest, new or left by an earlier writer. Content of that name is what a crash kept from getting
    /// its fact, or its fact was lost: it is a draft again. Whoever calls this holds the names.
    pub(in crate::store) fn draft(&self, digest: &Digest) -> Result<FileDraft, StoreError> {
        self.demote(digest)?;
        let path = self.growing(digest);
        let body = FileBody::of_draft(self, digest);
        let (mut written, waiting, mut stamp) = (0, Vec::new(), None);
        match OpenOptions::new().read(true).append(true).open(&path) {
            Ok(file) => {
                let found = file.metadata().map_err(failed(&path))?;
                (written, stamp) = (found.len(), found.modified().ok());
                body.set_file(file);
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(failed(&path)(error)),
        }
        Ok(FileDraft {
            files: self.clone(),
            digest: *digest,
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
        &self.digest
    }

    /// How many bytes can be read back.
    pub(in crate::store) fn written(&self) -> u64 {
        self.written
    }

    /// How many bytes there are.
    pub(in crate::store) fn length(&self) -> u64 {
        self.written + self.waiting_bytes as u64
    }

    /// Whether there is a file, which a draft of a few bytes never needs where its content is elsewhere.
    pub(in crate::store) fn has_file(&self) -> bool {
        self.body.file().is_some()
    }

    /// The same bytes for readers, as far as they are written.
    pub(in crate::store) fn body(&self) -> FileBody {
        self.body.clone()
    }

    /// Adds bytes; they are written in few and large steps, from where they came to, and can be read back when `written`
    /// counts them.
    pub(in crate::store) fn append(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        if bytes.is_empty() {
            // An empty piece looks like a file that takes nothing.
            return Ok(());
        }
        self.waiting_bytes += bytes.len();
        self.waiting.push(bytes);
        if self.waiting_bytes >= WRITE || self.waiting.len() >= PIECES {
            self.complete()?;
        }
        Ok(())
    }

    /// Writes what waits.
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
            // Nobody can use the last free bytes as long as half a blob lies on them.
            self.files.remove_draft(&self.digest)?;
        }
        written
    }

    fn write(&mut self) -> Result<(), StoreError> {
        self.is_ours()?;
        let path = self.files.growing(&self.digest);
        let mut file = self.file()?;
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

    /// The file, made if there is none yet.
    fn file(&self) -> Result<&File, StoreError> {
        let path = self.files.growing(&self.digest);
        if self.body.file().is_none() {
            let open = || OpenOptions::new().read(true).append(true).create(true).open(&path);
            let made = match open() {
                // Somebody has removed the folder.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let folder = path.parent().unwrap_or(&path);
                    make_folder(folder).map_err(failed(folder))?;
                    open()
                }
                opened => opened,
            };
            self.body.set_file(made.map_err(failed(&path))?);
        }
        // It was set right above if it was not set before.
        self.body.file().ok_or_else(|| failed(&path)(ErrorKind::NotFound.into()))
    }

    /// Hands on all bytes, those that wait to be written included.
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
        // Nor while it was copied.
        self.is_ours()?;
        self.waiting.iter().cloned().try_for_each(to)
    }

    /// Refuses a file to which somebody else wrote, as far as its length and its time show that: what was hashed as it
    /// came is not what lies there.
    pub(in crate::store) fn is_ours(&self) -> Result<(), StoreError> {
        let Some(file) = self.body.file() else { return Ok(()) };
        let draft = self.files.growing(&self.digest);
        let found = file.metadata().map_err(failed(&draft))?;
        if found.len() != self.written || found.modified().ok() != self.stamp {
            remove(&draft)?;
            return Err(StoreError::Damaged(self.digest));
        }
        Ok(())
    }

    /// Waits until the bytes are on the disk, then until they are there under the name of content. Every fill does this
    /// for itself, on its own thread: the file system's journal groups those that come together, and does so better
    /// than one thread that goes through them.
    pub(in crate::store) fn commit(&mut self, stored_at: Timestamp) -> Result<(), StoreError> {
        let (draft, content) = (self.files.growing(&self.digest), self.files.content(&self.digest));
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
            // The name may have been given to another file, or to none.
            let named = fs::symlink_metadata(&draft).map_err(failed(&draft))?;
            if (named.dev(), named.ino()) != (found.dev(), found.ino()) {
                return Err(StoreError::Damaged(self.digest));
            }
            fs::rename(&draft, &content).map_err(failed(&draft))?;
            self.files.0.disk.came(&found);
        }
        sync_folder(folder).map_err(failed(folder))
    }
}
