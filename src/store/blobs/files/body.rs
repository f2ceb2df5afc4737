//! Open file for reading: content, or the written part of a draft.

use std::fs::File;
use std::io::{ErrorKind, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use crate::clock::Timestamp;
use crate::oci::{Digest, Hasher};
use crate::store::error::{StoreError, is_unreadable};

use super::buffers::PIECE;
use super::folder::{Files, failed, time_of};
use super::handle::FileHandle;

/// Open file, which can be read to its end whatever happens to its name. Clones share it.
#[derive(Clone, Debug)]
pub(in crate::store) struct FileBody(Arc<OpenFile>);

#[derive(Debug)]
struct OpenFile {
    files: Files,
    digest: Digest,
    handle: FileHandle,
    /// Expected length and time of content while it is read; `None` for a draft.
    kept: Option<ExpectedFile>,
}

#[derive(Clone, Copy, Debug)]
struct ExpectedFile {
    size: u64,
    stored_at: Timestamp,
}

impl Files {
    /// Opens content. Missing or changed content is damaged. A file that differs only in its time is read and hashed: a copy
    /// of the whole folder may have lost the times.
    pub(in crate::store) fn open(
        &self,
        digest: &Digest,
        size: u64,
        stored_at: Timestamp,
    ) -> Result<FileBody, StoreError> {
        let path = self.content(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            // Too many open files are not a defect of this file.
            Err(error) if is_busy(&error) => return Err(failed(&path)(error)),
            Err(error) => {
                tracing::debug!(%digest, %error, "cannot open a file of a blob");
                return Err(StoreError::Damaged(*digest));
            }
        };
        let found = file.metadata().map_err(failed(&path))?;
        let body = FileBody(Arc::new(OpenFile {
            files: self.clone(),
            digest: *digest,
            handle: FileHandle::open(file),
            kept: Some(ExpectedFile { size, stored_at }),
        }));
        if !self.is_kept(&found, size, stored_at) {
            if !found.is_file() || found.len() != size {
                return Err(StoreError::Damaged(*digest));
            }
            body.verify(size, stored_at)?;
        }
        Ok(body)
    }
}

/// Returns true if the process or the system is out of resources, so that the file itself may be right.
fn is_busy(error: &std::io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM))
}

impl FileBody {
    /// Creates the body of a draft that has no file yet.
    pub(super) fn of_draft(files: &Files, digest: &Digest) -> Self {
        let handle = FileHandle::none();
        Self(Arc::new(OpenFile { files: files.clone(), digest: *digest, handle, kept: None }))
    }

    /// Returns the handle of the file.
    pub(super) fn handle(&self) -> &FileHandle {
        &self.0.handle
    }

    /// Closes the file of a draft that waits, if it may be closed. The next read opens it again.
    pub(in crate::store) fn park(&self) {
        self.0.handle.park();
    }

    /// Returns the file, and opens it again if it is parked. A file that is gone or was replaced is damage.
    pub(super) fn file(&self) -> Result<Option<Arc<File>>, StoreError> {
        let OpenFile { files, digest, handle, .. } = &*self.0;
        handle.get().map_err(|error| {
            if is_busy(&error) {
                return failed(&files.content(digest))(error);
            }
            tracing::debug!(%digest, %error, "cannot open the file of a draft again");
            StoreError::Damaged(*digest)
        })
    }

    /// Hashes a whole file that another program may have written to, and restores its time if the bytes are right.
    fn verify(&self, size: u64, stored_at: Timestamp) -> Result<(), StoreError> {
        let OpenFile { files, digest, .. } = &*self.0;
        let _turn = files.0.verifying.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_unchanged().is_ok() {
            // Another reader has verified the file in the meantime.
            return Ok(());
        }
        let mut hasher = Hasher::new(digest.algorithm());
        self.hash(size, &mut hasher)?;
        let damaged = || StoreError::Damaged(*digest);
        let file = self.file()?.ok_or_else(damaged)?;
        if hasher.finish() != *digest {
            return Err(damaged());
        }
        tracing::info!(%digest, "the modification time of a file had changed, its bytes are right");
        file.set_modified(time_of(stored_at)).map_err(failed(&files.content(digest)))
    }

    /// Hashes the first `length` bytes.
    pub(in crate::store) fn hash(&self, length: u64, hasher: &mut Hasher) -> Result<(), StoreError> {
        let mut at = 0;
        while at < length {
            let piece = self.piece(at, length)?;
            at += piece.len() as u64;
            hasher.update(&piece);
        }
        Ok(())
    }

    /// Reads from `range.start` up to about `step` bytes, in pieces.
    pub(in crate::store) fn read(&self, range: Range<u64>, step: u64) -> Result<Vec<Bytes>, StoreError> {
        let end = range.end.min(range.start.saturating_add(step));
        let mut found = Vec::new();
        let mut at = range.start;
        while at < end {
            let piece = self.piece(at, end)?;
            at += piece.len() as u64;
            found.push(piece);
        }
        self.is_unchanged()?;
        Ok(found)
    }

    /// Reads one piece, or less if `end` is nearer.
    fn piece(&self, at: u64, end: u64) -> Result<Bytes, StoreError> {
        let OpenFile { files, digest, .. } = &*self.0;
        let damaged = || StoreError::Damaged(*digest);
        let file = self.file()?.ok_or_else(damaged)?;
        let mut buffer = files.0.buffers.take(usize::try_from(end - at).unwrap_or(PIECE));
        let room = buffer.room();
        match file.read_exact_at(room, at) {
            Ok(()) => {
                let length = room.len();
                Ok(buffer.into_bytes(length))
            }
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(damaged()),
            Err(error) if is_unreadable(&error) => {
                // A defect of the disk: the bytes are lost, and can be fetched again.
                tracing::error!(%digest, %error, "cannot read a file of a blob");
                Err(damaged())
            }
            Err(error) => Err(failed(&files.content(digest))(error)),
        }
    }

    /// Reads the start of `range` if it is in the page cache of the operating system. Does not block.
    pub(in crate::store) fn read_now(&self, range: Range<u64>) -> Option<Bytes> {
        let OpenFile { files, .. } = &*self.0;
        let file = self.0.handle.get_open()?;
        if range.start >= range.end || !self.has_read_ahead() {
            return None;
        }
        let mut buffer = files.0.buffers.take(usize::try_from(range.end - range.start).unwrap_or(PIECE));
        let read =
            preadv2(&*file, &mut [IoSliceMut::new(buffer.room())], range.start, ReadWriteFlags::NOWAIT);
        match read {
            // `read` reports a file that is too short or was changed.
            Ok(length @ 1..) => self.is_unchanged().ok().map(|()| buffer.into_bytes(length)),
            Ok(0) | Err(Errno::AGAIN | Errno::INTR | Errno::IO) => None,
            Err(error) => {
                tracing::debug!(%error, "reads from the page cache are not supported; files are read on blocking threads");
                files.0.reads_now.store(false, Ordering::Relaxed);
                None
            }
        }
    }

    /// Returns true if `read_now` usually finds the next bytes.
    pub(in crate::store) fn has_read_ahead(&self) -> bool {
        self.0.files.0.reads_now.load(Ordering::Relaxed)
    }

    /// Returns an error if another program has written to content since it was opened.
    fn is_unchanged(&self) -> Result<(), StoreError> {
        let OpenFile { files, digest, kept, .. } = &*self.0;
        let (Some(kept), Some(file)) = (kept, self.file()?) else { return Ok(()) };
        let found = file.metadata().map_err(failed(&files.content(digest)))?;
        if files.is_kept(&found, kept.size, kept.stored_at) {
            return Ok(());
        }
        Err(StoreError::Damaged(*digest))
    }
}
