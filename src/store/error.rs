//! Errors of the store.

use std::io::ErrorKind;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::oci::Digest;

/// Error of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has locked the folder.
    #[error("the store in {} is in use by another process; stop it or choose another folder with --data", .0.display())]
    Locked(PathBuf),
    /// The folder cannot be created or written.
    #[error("the store folder {} cannot be used: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// The folder contains a store with other settings.
    #[error("the store in {} cannot be opened: {reason}", path.display())]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// Difference, and the remedy.
        reason: String,
    },
    /// The files of the store are damaged, or have an unknown format.
    #[error(
        "the store in {} cannot be opened: {reason}; restore it, move it away, or set store.on_corruption = \"set-aside\"",
        path.display()
    )]
    Corrupt {
        /// The folder.
        path: PathBuf,
        /// Defect of the files.
        reason: String,
    },
    /// The bytes of stored content are missing or wrong.
    #[error("stored content {0} is damaged")]
    Damaged(Digest),
    /// The store could not be opened, or is being opened again.
    #[error("the store is not open")]
    Closed,
    /// The database panicked because it found an impossible state.
    #[error("the database of the store panicked; see the log")]
    Panicked,
    /// The content is larger than the room that the store has for it.
    #[error(
        "the store has no room for it: it is larger than one download may take, or nothing more is evictable; raise \
         store.max_size or free space on the disk"
    )]
    NoRoom,
    /// A file of a blob or draft cannot be read or written.
    #[error("the file {} of the store cannot be used: {source}", path.display())]
    File {
        /// The file, or its folder.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// A fact cannot be decoded.
    #[error("a stored fact cannot be decoded: {0}")]
    Fact(String),
    /// The database failed.
    #[error("the store failed: {0}")]
    Database(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl StoreError {
    /// Returns true if the disk or the database fails, rather than this one operation.
    pub fn is_disk_failure(&self) -> bool {
        match self {
            Self::Folder { source, .. } => is_disk_io_error(source),
            Self::File { .. } | Self::Database(_) | Self::Closed | Self::Panicked => true,
            Self::Locked(_)
            | Self::Foreign { .. }
            | Self::Corrupt { .. }
            | Self::Damaged(_)
            | Self::NoRoom
            | Self::Fact(_) => false,
        }
    }
}

/// Returns true if a disk is full or broken. A folder with wrong permissions is neither.
fn is_disk_io_error(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
        || is_unreadable(error)
}

/// Returns true if the device could not read or write (EIO): its data may be lost.
pub(in crate::store) fn is_unreadable(error: &std::io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::IO)
}
