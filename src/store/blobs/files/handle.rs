//! Handle of a file that may be closed while nothing needs it, and is opened again at its next use.
//!
//! Verified drafts may wait long for their commit, and there may be thousands of them: they must not use up the open files of
//! the process.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// Handle of one file.
#[derive(Debug)]
pub(super) struct FileHandle(Mutex<State>);

#[derive(Debug)]
struct State {
    file: Handle,
    /// Path while the file may be closed.
    path: Option<PathBuf>,
}

#[derive(Debug)]
enum Handle {
    /// A draft has no file until its first write.
    None,
    Open(Arc<File>),
    Parked(Identity),
}

/// Identity of a closed file: another file of the same name, or one that was written to, differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    length: u64,
    modified: Option<SystemTime>,
}

impl Identity {
    fn of(found: &Metadata) -> Self {
        Self { device: found.dev(), inode: found.ino(), length: found.len(), modified: found.modified().ok() }
    }
}

impl FileHandle {
    /// Creates the handle of a file that does not exist yet.
    pub(super) fn none() -> Self {
        Self::new(Handle::None)
    }

    /// Creates the handle of an open file.
    pub(super) fn open(file: File) -> Self {
        Self::new(Handle::Open(Arc::new(file)))
    }

    fn new(file: Handle) -> Self {
        Self(Mutex::new(State { file, path: None }))
    }

    /// Sets the file, once it exists.
    pub(super) fn set(&self, file: File) {
        self.state().file = Handle::Open(Arc::new(file));
    }

    /// Returns true if the file exists, open or not.
    pub(super) fn exists(&self) -> bool {
        !matches!(self.state().file, Handle::None)
    }

    /// Returns the file if it is open.
    pub(super) fn get_open(&self) -> Option<Arc<File>> {
        match &self.state().file {
            Handle::Open(file) => Some(Arc::clone(file)),
            Handle::None | Handle::Parked(_) => None,
        }
    }

    /// Returns the file, and opens it if it is closed. Fails if the file is gone or is another one. Blocks.
    pub(super) fn get(&self) -> io::Result<Option<Arc<File>>> {
        let mut state = self.state();
        let parked = match &state.file {
            Handle::None => return Ok(None),
            Handle::Open(file) => return Ok(Some(Arc::clone(file))),
            Handle::Parked(parked) => *parked,
        };
        let file = Arc::new(File::open(state.path.as_ref().ok_or(ErrorKind::NotFound)?)?);
        if Identity::of(&file.metadata()?) != parked {
            return Err(io::Error::new(ErrorKind::InvalidData, "the file was replaced"));
        }
        state.file = Handle::Open(Arc::clone(&file));
        Ok(Some(file))
    }

    /// Permits to close the file, which stays at `path` until this is revoked.
    pub(super) fn permit_parking(&self, path: PathBuf) {
        self.state().path = Some(path);
    }

    /// Opens the file if it is closed, and keeps it open from now on. Blocks.
    pub(super) fn unpark(&self) -> io::Result<()> {
        self.get()?;
        let mut state = self.state();
        // Another thread may have closed the file in between.
        while matches!(state.file, Handle::Parked(_)) {
            drop(state);
            self.get()?;
            state = self.state();
        }
        state.path = None;
        Ok(())
    }

    /// Closes the file, if that is permitted. Reads in progress are not disturbed.
    pub(super) fn park(&self) {
        let mut state = self.state();
        let (Handle::Open(file), Some(_)) = (&state.file, &state.path) else { return };
        if let Ok(found) = file.metadata() {
            state.file = Handle::Parked(Identity::of(&found));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code under this lock can panic in the middle of a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt as _;

    use super::*;

    fn parked(content: &str) -> (FileHandle, tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("draft");
        fs::write(&path, content).expect("written");
        let handle = FileHandle::open(File::open(&path).expect("opened"));
        handle.park();
        assert!(handle.get_open().is_some(), "parking is not permitted yet");
        handle.permit_parking(path.clone());
        handle.park();
        assert!(handle.get_open().is_none() && handle.exists());
        (handle, folder, path)
    }

    fn read(file: &File) -> String {
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, 0).expect("read");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    #[test]
    fn parked_file_is_opened_again_and_stays_open_until_it_is_parked() {
        let (handle, _folder, path) = parked("text");
        assert_eq!(read(&handle.get().expect("opened").expect("a file")), "text");
        let reader = handle.get_open().expect("open");
        handle.park();
        assert!(handle.get_open().is_none());
        assert_eq!(read(&reader), "text", "a reader is not disturbed");
        handle.unpark().expect("opened");
        fs::remove_file(path).expect("removed");
        handle.park();
        assert_eq!(read(&handle.get_open().expect("open for good")), "text");
    }

    #[test]
    fn file_that_was_changed_while_it_was_parked_is_refused() {
        let (handle, _folder, path) = parked("text");
        fs::write(&path, "longer text").expect("written");
        assert!(handle.get().is_err() && handle.unpark().is_err());
        let (handle, folder, path) = parked("text");
        fs::write(folder.path().join("other"), "text").expect("written");
        fs::rename(folder.path().join("other"), &path).expect("renamed");
        assert!(handle.get().is_err());
        fs::remove_file(path).expect("removed");
        assert!(handle.get().is_err());
        assert!(FileHandle::none().get().expect("no error").is_none());
    }
}
