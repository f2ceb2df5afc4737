//! A file that is being read: content, or a draft as far as it is written.

use std::fs::File;
use std::io::{ErrorKind, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, PoisonError};

use bytes::Bytes;
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use crate::clock::Timestamp;
use crate::oci::{Digest, Hasher};
use crate::store::error::is_unreadable;

use super::buffers::PIECE;
use super::{Files, StoreError, failed, time_of};

/// A file that is open, so that it can be read to its end whatever happens to its name. Clones share it.
#[derive(Clone, Debug)]
pub(in crate::store) struct FileBody(Arc<Opened>);

#[derive(Debug)]
struct Opened {
    files: Files,
    digest: Digest,
    /// A draft's file is made when there is something to put into it.
    file: OnceLock<File>,
    /// What content must look like from outside for as long as it is read.
    kept: Option<Kept>,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    size: u64,
    stored_at: Timestamp,
}

impl Files {
    /// Opens content. What is not there, or not as it was kept, is damaged. A file whose time alone is another is read
    /// and hashed: a copy of the whole folder may have lost the times.
    pub(in crate::store) fn open(
        &self,
        digest: &Digest,
        size: u64,
        stored_at: Timestamp,
    ) -> Result<FileBody, StoreError> {
        let path = self.content(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            // Too many open files say nothing of this one.
            Err(error) if is_busy(&error) => return Err(failed(&path)(error)),
            Err(error) => {
                tracing::debug!(%digest, %error, "a file cannot be opened");
                return Err(StoreError::Damaged(*digest));
            }
        };
        let found = file.metadata().map_err(failed(&path))?;
        let body = FileBody(Arc::new(Opened {
            files: self.clone(),
            digest: *digest,
            file: file.into(),
            kept: Some(Kept { size, stored_at }),
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

/// Whether it is not the file that an error is about.
fn is_busy(error: &std::io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM))
}

impl FileBody {
    /// A draft's body; its file comes later.
    pub(super) fn of_draft(files: &Files, digest: &Digest) -> Self {
        Self(Arc::new(Opened { files: files.clone(), digest: *digest, file: OnceLock::new(), kept: None }))
    }

    /// Gives a draft its file.
    pub(super) fn set_file(&self, file: File) {
        // The one writer of a draft does this once.
        let _ = self.0.file.set(file);
    }

    /// The file, once there is one.
    pub(super) fn file(&self) -> Option<&File> {
        self.0.file.get()
    }

    /// Hashes all of a file that somebody may have written to, and gives it its time back if it is right.
    fn verify(&self, size: u64, stored_at: Timestamp) -> Result<(), StoreError> {
        let Opened { files, digest, .. } = &*self.0;
        let _turn = files.0.verifying.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_unchanged().is_ok() {
            // Another reader has done it in the meantime.
            return Ok(());
        }
        let mut hasher = Hasher::new(digest.algorithm());
        self.hash(size, &mut hasher)?;
        let damaged = || StoreError::Damaged(*digest);
        let file = self.file().ok_or_else(damaged)?;
        if hasher.finish() != *digest {
            return Err(damaged());
        }
        tracing::info!(%digest, "a file's time had changed; its bytes are right");
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

    /// A whole piece, or what there is up to `end`.
    fn piece(&self, at: u64, end: u64) -> Result<Bytes, StoreError> {
        let Opened { files, digest, .. } = &*self.0;
        let damaged = || StoreError::Damaged(*digest);
        let file = self.file().ok_or_else(damaged)?;
        let mut buffer = files.0.buffers.take(usize::try_from(end - at).unwrap_or(PIECE));
        let room = buffer.room();
        match file.read_exact_at(room, at) {
            Ok(()) => {
                let length = room.len();
                Ok(buffer.into_bytes(length))
            }
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(damaged()),
            Err(error) if is_unreadable(&error) => {
                // A bad spot of the disk: what was there is lost, and can be fetched again.
                tracing::error!(%digest, %error, "a file cannot be read");
                Err(damaged())
            }
            Err(error) => Err(failed(&files.content(digest))(error)),
        }
    }

    /// What the system has in memory of the start of `range`.
    pub(in crate::store) fn read_now(&self, range: Range<u64>) -> Option<Bytes> {
        let Opened { files, .. } = &*self.0;
        let file = self.file()?;
        if range.start >= range.end || !self.comes_by_itself() {
            return None;
        }
        let mut buffer = files.0.buffers.take(usize::try_from(range.end - range.start).unwrap_or(PIECE));
        let read = preadv2(file, &mut [IoSliceMut::new(buffer.room())], range.start, ReadWriteFlags::NOWAIT);
        match read {
            // What is wrong with a file that ends too early, or was written to, is for `read` to say.
            Ok(length @ 1..) => self.is_unchanged().ok().map(|()| buffer.into_bytes(length)),
            Ok(0) | Err(Errno::AGAIN | Errno::INTR | Errno::IO) => None,
            Err(error) => {
                tracing::debug!(%error, "files are read on threads of their own from here on");
                files.0.reads_now.store(false, Ordering::Relaxed);
                None
            }
        }
    }

    pub(in crate::store) fn comes_by_itself(&self) -> bool {
        self.0.files.0.reads_now.load(Ordering::Relaxed)
    }

    /// Content that somebody has written to since it was opened must not go out as if it were whole.
    fn is_unchanged(&self) -> Result<(), StoreError> {
        let Opened { files, digest, kept, .. } = &*self.0;
        let (Some(kept), Some(file)) = (kept, self.file()) else { return Ok(()) };
        let found = file.metadata().map_err(failed(&files.content(digest)))?;
        if files.is_kept(&found, kept.size, kept.stored_at) {
            return Ok(());
        }
        Err(StoreError::Damaged(*digest))
    }
}
