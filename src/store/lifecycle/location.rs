//! Location of a store on disk, and the settings with which it is opened.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use crate::config::schema::{BlobStoreKind, OnCorruption};
use crate::store::error::StoreError;
use crate::store::index::trees::TREE;
use crate::store::lifecycle::header::Geometry;
use crate::store::lifecycle::lock::FolderLock;

/// Location and settings of a store, for the first open and for each open after it.
#[derive(Debug)]
pub(in crate::store) struct Location {
    pub(in crate::store) path: PathBuf,
    pub(in crate::store) kind: BlobStoreKind,
    /// Geometry of a new store.
    pub(in crate::store) geometry: Geometry,
    pub(in crate::store) cache_memory: u64,
    pub(in crate::store) on_corruption: OnCorruption,
    /// Resources of the open store. Locked while the store is opened or closed.
    pub(in crate::store) open: Mutex<Option<OpenFolder>>,
}

/// Lock and database file of an open store.
#[derive(Debug)]
pub(in crate::store) struct OpenFolder {
    pub(in crate::store) _lock: FolderLock,
    pub(in crate::store) database: FileId,
}

/// Device and inode of a file.
pub(in crate::store) type FileId = (u64, u64);

impl Location {
    /// Returns the path of the database file.
    pub(in crate::store) fn database_file(&self) -> PathBuf {
        self.path.join(TREE).join("db")
    }

    /// Returns the bytes that are free on the disk for the user of this process.
    pub(in crate::store) fn free_space(&self) -> Result<u64, StoreError> {
        let path = &self.path;
        let failed = |error: Errno| StoreError::Folder { path: path.clone(), source: error.into() };
        let found = rustix::fs::statvfs(path).map_err(failed)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    /// Locks the resources of the open store.
    pub(in crate::store) fn open_folder(&self) -> MutexGuard<'_, Option<OpenFolder>> {
        // The value is set and removed as a whole.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the device and inode of a file.
pub(in crate::store) fn file_id(path: &Path) -> std::io::Result<FileId> {
    let found = std::fs::metadata(path)?;
    Ok((found.dev(), found.ino()))
}
