//! The store's folder, taken for one larder at a time.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::path::Path;

use crate::store::error::StoreError;
use crate::store::index::database::TREE;

const LOCK: &str = "lock";

/// A folder that nobody else uses for as long as this lives.
#[derive(Debug)]
pub(in crate::store) struct Folder {
    /// Locked, which ends with the process, however that ends.
    _lock: File,
}

impl Folder {
    /// Takes a folder, making it if it is not there.
    pub(in crate::store) fn take(path: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(path).map_err(failed(path))?;
        Self::take_existing(path)
    }

    /// Takes a folder that is there.
    pub(in crate::store) fn take_existing(path: &Path) -> Result<Self, StoreError> {
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

/// How much room there must be before a store is tried again: what sled may write to open, and some for what comes.
const ROOM: usize = 16 << 20;
/// How much of it is written at a time.
const PIECE: usize = 1 << 20;

/// Writes something into a folder and removes it again. Waits for the disk.
pub(in crate::store) fn probe(path: &Path) -> std::io::Result<()> {
    fs::create_dir_all(path)?;
    let name = path.join("probe");
    let probed = File::create(&name).and_then(|mut file| {
        // Of a file system that compresses, anything else would take no room.
        let piece: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(PIECE).collect();
        for _ in 0..ROOM / PIECE {
            file.write_all(&piece)?;
        }
        file.sync_all()
    });
    let removed = fs::remove_file(&name);
    probed.and(removed)
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
