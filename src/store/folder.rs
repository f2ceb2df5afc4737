//! The store's folder, taken for one larder at a time.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::path::Path;

use super::StoreError;
use super::opening::TREE;

const LOCK: &str = "lock";

/// A folder that nobody else uses for as long as this lives.
#[derive(Debug)]
pub(super) struct Folder {
    /// Locked, which ends with the process, however that ends.
    _lock: File,
}

impl Folder {
    /// Takes a folder, making it if it is not there.
    pub(super) fn take(path: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(path).map_err(failed(path))?;
        Self::take_existing(path)
    }

    /// Takes a folder that is there.
    pub(super) fn take_existing(path: &Path) -> Result<Self, StoreError> {
        let file = path.join(LOCK);
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(&file);
        let lock = lock.map_err(failed(path))?;
        locked(&lock, path)?;
        // sled has a lock of its own, which is held too by who still uses a folder from which the file above was
        // removed. It is asked for now because sled reads other files first, and may fail over them.
        match OpenOptions::new().write(true).open(path.join(TREE).join("db")) {
            Ok(db) => locked(&db, path)?,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            // sled will say it better.
            Err(_) => {}
        }
        Ok(Self { _lock: lock })
    }
}

fn locked(file: &File, path: &Path) -> Result<(), StoreError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked(path.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(path)(source)),
    }
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    |source| StoreError::Folder { path: path.to_owned(), source }
}
