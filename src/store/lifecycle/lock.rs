//! Lock of the store's folder: one process at a time uses a store.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::store::error::StoreError;
use crate::store::index::trees::TREE;

const LOCK: &str = "lock";
/// Interval of attempts to lock a folder that this process still uses.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// Exclusive lock of a folder, released when this is dropped.
#[derive(Debug)]
pub(in crate::store) struct FolderLock {
    /// Locked file. The operating system releases the lock when the process ends, however it ends.
    _file: File,
}

impl FolderLock {
    /// Locks a folder, and creates it if it does not exist.
    pub(in crate::store) fn acquire(path: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(path).map_err(failed(path))?;
        Self::acquire_existing(path)
    }

    /// Locks an existing folder.
    pub(in crate::store) fn acquire_existing(path: &Path) -> Result<Self, StoreError> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path.join(LOCK));
        let file = file.map_err(failed(path))?;
        try_lock(&file, path)?;
        // sled locks its own file, also in a process whose lock file was removed from the folder. The lock of sled is tested
        // first, because sled reads other files before it and may fail on them.
        match OpenOptions::new().write(true).open(path.join(TREE).join("db")) {
            Ok(db) => try_lock(&db, path)?,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            // The error of sled has more details.
            Err(_) => {}
        }
        Ok(Self { _file: file })
    }

    /// Locks a folder, and waits up to `deadline` for operations of this process that still use it.
    pub(in crate::store) fn acquire_within(path: &Path, deadline: Duration) -> Result<Self, StoreError> {
        let end = Instant::now() + deadline;
        loop {
            match Self::acquire(path) {
                Err(StoreError::Locked(_)) if Instant::now() < end => std::thread::sleep(RETRY_INTERVAL),
                acquired => return acquired,
            }
        }
    }
}

/// Space that must be free before a store is opened again: what sled may write to open, and a reserve for new content.
const PROBE_SIZE: usize = 16 << 20;
/// Size of one write of the probe.
const PROBE_STEP: usize = 1 << 20;

/// Writes a file to a folder, synchronises it and removes it. Blocks on the disk.
pub(in crate::store) fn probe(path: &Path) -> std::io::Result<()> {
    fs::create_dir_all(path)?;
    let name = path.join("probe");
    let probed = File::create(&name).and_then(|mut file| {
        // Random bytes: a file system with compression stores anything else in no space.
        let step: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(PROBE_STEP).collect();
        for _ in 0..PROBE_SIZE / PROBE_STEP {
            file.write_all(&step)?;
        }
        file.sync_all()
    });
    let removed = fs::remove_file(&name);
    probed.and(removed)
}

fn try_lock(file: &File, path: &Path) -> Result<(), StoreError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked(path.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(path)(source)),
    }
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    |source| StoreError::Folder { path: path.to_owned(), source }
}
