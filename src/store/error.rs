//! Errors of the store.

use std::io::ErrorKind;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::oci::Digest;

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the folder.
    #[error("the store in {} is in use by another larder; stop it or choose another folder with --data", .0.display())]
    Locked(PathBuf),
    /// The folder cannot be made or written.
    #[error("the store's folder {} cannot be used: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The folder holds a store of another make.
    #[error("the store in {} cannot be opened: {reason}", path.display())]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// What differs, and the remedy.
        reason: String,
    },
    /// The folder holds a store whose files are not as they were written, or of a format that nobody here knows.
    #[error(
        "the store in {} does not open: {reason}; restore it, move it away, or set store.on_corruption = \"set-aside\"",
        path.display()
    )]
    Corrupt {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Something that a fact promises is not there, or does not read.
    #[error("stored content {0} is damaged")]
    Damaged(Digest),
    /// The store could not be opened, or is being opened anew.
    #[error("the store is not open")]
    Closed,
    /// sled met something that it takes to be impossible, and panicked over it.
    #[error("the store gave up in the middle of its work")]
    GaveUp,
    /// A file of a blob cannot be read or written.
    #[error("the store's file {} cannot be used: {source}", path.display())]
    File {
        /// The file, or its folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A fact does not decode.
    #[error("a stored fact does not decode: {0}")]
    Fact(String),
    /// sled failed.
    #[error("the store failed: {0}")]
    Sled(#[from] sled::Error),
}

impl StoreError {
    /// Whether the disk, or what lies on it, keeps the store from working, and not what it was asked.
    pub fn is_disk_failure(&self) -> bool {
        match self {
            Self::Folder { source, .. } => is_disk_io_error(source),
            Self::File { .. } | Self::Sled(_) | Self::Closed | Self::GaveUp => true,
            Self::Locked(_)
            | Self::Foreign { .. }
            | Self::Corrupt { .. }
            | Self::Damaged(_)
            | Self::Fact(_) => false,
        }
    }
}

/// Whether a disk is full or broken, in contrast to a folder that nobody set up as it should be.
fn is_disk_io_error(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
        || is_unreadable(error)
}

/// Whether a device could not read or write what it was asked for (EIO): what was there may be lost.
pub(in crate::store) fn is_unreadable(error: &std::io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::IO)
}
