//! Reads an OCI image layout in a folder.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use oci_spec::image::ImageIndex;

use super::format::{INDEX_FILE, INDEX_MAX, blob_path};
use crate::oci::Digest;

/// Reason why a layout cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LayoutReadError {
    /// A file cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// `index.json` is too large.
    #[error("{} is longer than {INDEX_MAX} bytes", .0.display())]
    TooLarge(PathBuf),
    /// `index.json` is not an image index.
    #[error("{} is not a valid image index: {source}", path.display())]
    Index {
        /// Path of the file.
        path: PathBuf,
        /// Error of the parser.
        source: serde_json::Error,
    },
}

/// Open blob or manifest of a layout.
#[derive(Debug)]
pub struct LayoutFile {
    /// File, at its start.
    pub file: File,
    /// Path of the file.
    pub path: PathBuf,
    /// Length in bytes.
    pub size: u64,
}

impl LayoutFile {
    /// Reads the whole file, or returns `None` if it is longer than `limit` bytes.
    pub fn read_up_to(self, limit: u64) -> Result<Option<Bytes>, LayoutReadError> {
        if self.size > limit {
            return Ok(None);
        }
        let Self { file, path, .. } = self;
        read_up_to(&file, limit).map_err(|source| LayoutReadError::Read { path, source })
    }
}

/// Reader of the layout in a folder.
#[derive(Clone, Debug)]
pub struct LayoutReader {
    folder: PathBuf,
}

impl LayoutReader {
    /// Creates a reader. Does not open the folder.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Returns the folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns true if the folder contains an `index.json`.
    pub fn exists(&self) -> bool {
        self.index_path().is_file()
    }

    /// Reads `index.json`, byte for byte. Returns `None` if it does not exist.
    pub fn index_bytes(&self) -> Result<Option<Bytes>, LayoutReadError> {
        let path = self.index_path();
        let text = match File::open(&path).and_then(|file| read_up_to(&file, INDEX_MAX)) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(LayoutReadError::Read { path, source }),
        };
        text.map(Some).ok_or(LayoutReadError::TooLarge(path))
    }

    /// Reads and parses `index.json`. Returns `None` if it does not exist.
    pub fn index(&self) -> Result<Option<ImageIndex>, LayoutReadError> {
        let Some(text) = self.index_bytes()? else { return Ok(None) };
        let index = serde_json::from_slice(&text);
        index.map(Some).map_err(|source| LayoutReadError::Index { path: self.index_path(), source })
    }

    /// Opens a blob or manifest. Returns `None` if there is no such file.
    pub fn open(&self, digest: &Digest) -> Result<Option<LayoutFile>, LayoutReadError> {
        let path = self.folder.join(blob_path(digest));
        let opened = File::open(&path).and_then(|file| file.metadata().map(|metadata| (file, metadata)));
        match opened {
            Ok((file, metadata)) if metadata.is_file() => {
                Ok(Some(LayoutFile { file, path, size: metadata.len() }))
            }
            Ok(_) => Ok(None),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(source) => Err(LayoutReadError::Read { path, source }),
        }
    }

    fn index_path(&self) -> PathBuf {
        self.folder.join(INDEX_FILE)
    }
}

/// Reads a file to its end, or returns `None` if it is longer than `limit` bytes.
fn read_up_to(file: &File, limit: u64) -> io::Result<Option<Bytes>> {
    let mut text = Vec::new();
    file.take(limit + 1).read_to_end(&mut text)?;
    Ok((text.len() as u64 <= limit).then(|| text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn reader_finds_only_what_exists() {
        let folder = tempfile::tempdir().expect("a folder");
        let reader = LayoutReader::new(folder.path());
        let digest = Digest::of(Algorithm::Sha256, b"blob");
        assert!(!reader.exists());
        assert!(reader.index().expect("read").is_none());
        assert!(reader.open(&digest).expect("read").is_none());

        std::fs::create_dir_all(folder.path().join("blobs/sha256")).expect("a folder");
        std::fs::write(folder.path().join(blob_path(&digest)), "blob").expect("written");
        let open = || reader.open(&digest).expect("read").expect("a blob");
        assert_eq!(open().size, 4);
        assert_eq!(open().read_up_to(4).expect("read").as_deref(), Some(&b"blob"[..]));
        assert_eq!(open().read_up_to(3).expect("read"), None);
    }

    #[test]
    fn reader_rejects_an_index_that_is_none() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join(INDEX_FILE), "[]").expect("written");
        let reader = LayoutReader::new(folder.path());
        assert!(reader.exists());
        assert!(matches!(reader.index(), Err(LayoutReadError::Index { .. })));
        std::fs::write(folder.path().join(INDEX_FILE), r#"{"schemaVersion":2,"manifests":[]}"#)
            .expect("written");
        assert!(reader.index().expect("read").is_some());
    }
}
