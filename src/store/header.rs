//! The store's header: how bytes are cut up, which can never change, and where those of blobs are.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::schema::BlobStore;

use super::StoreError;

const FILE: &str = "header.toml";
const FORMAT: u32 = 1;

/// How bytes are cut up. Fixed for the life of a store: sled cannot change its segments afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Geometry {
    /// Bytes of a blob per sled value.
    pub page_size: usize,
    /// sled's unit of allocation on disk, a power of two.
    pub segment_size: usize,
}

impl Geometry {
    /// What new stores get. CONTRIBUTING.md has the measurement that chose it.
    pub const CHOSEN: Self = Self { page_size: 64 << 10, segment_size: 4 << 20 };
}

/// What a store's folder says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    format: u32,
    /// Where the bytes of blobs are.
    pub(super) blobs: BlobStore,
    /// Where some of them may still be: they are being moved, or somebody was interrupted at it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) moving_from: Option<BlobStore>,
    #[serde(flatten)]
    pub(super) geometry: Geometry,
}

impl Header {
    /// The header of a new store.
    pub(super) fn new(blobs: BlobStore, geometry: Geometry) -> Self {
        Self { format: FORMAT, blobs, moving_from: None, geometry }
    }

    /// The header in `folder`; `None` where no store is.
    pub(super) fn read(folder: &Path) -> Result<Option<Self>, StoreError> {
        let foreign = |reason: String| StoreError::Foreign { path: folder.to_owned(), reason };
        let text = match fs::read_to_string(folder.join(FILE)) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::Folder { path: folder.to_owned(), source }),
        };
        let header: Self = toml::from_str(&text).map_err(|error| {
            foreign(format!("{FILE} does not read ({}); move the folder away", error.message()))
        })?;
        if header.format != FORMAT {
            let reason = format!("it has format {}, this larder reads format {FORMAT}", header.format);
            return Err(foreign(reason));
        }
        Ok(Some(header))
    }

    /// Writes the header of the store in `folder`.
    pub(super) fn write(&self, folder: &Path) -> Result<(), StoreError> {
        let text = toml::to_string(self)
            .map_err(|error| StoreError::Foreign { path: folder.to_owned(), reason: error.to_string() })?;
        write_whole(&folder.join(FILE), &text)
            .map_err(|source| StoreError::Folder { path: folder.to_owned(), source })
    }

    /// Refuses a store whose bytes are not all where `wanted` says.
    pub(super) fn require(&self, wanted: BlobStore, folder: &Path) -> Result<(), StoreError> {
        let (held, wanted) = (self.blobs.as_str(), wanted.as_str());
        let reason = if let Some(from) = self.moving_from {
            let from = from.as_str();
            format!(
                "its blobs were being moved from {from} to {held}; end that with `larder store convert --to {held}`"
            )
        } else if held != wanted {
            format!(
                "its blobs are in {held}, store.blobs says {wanted}; set store.blobs = \"{held}\", or move them with \
                 `larder store convert --to {wanted}`"
            )
        } else {
            return Ok(());
        };
        Err(StoreError::Foreign { path: folder.to_owned(), reason })
    }
}

/// A header is there whole or not at all, even across a power loss.
fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    let draft = path.with_extension("toml.new");
    let mut file = fs::File::create(&draft)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    path.parent().map_or(Ok(()), |folder| fs::File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header {
        format: FORMAT,
        blobs: BlobStore::Files,
        moving_from: None,
        geometry: Geometry { page_size: 8192, segment_size: 524_288 },
    };

    #[test]
    fn a_header_reads_as_it_was_written() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(Header::read(folder.path()).expect("a look"), None);
        for header in [HEADER, Header { moving_from: Some(BlobStore::Sled), ..HEADER }] {
            header.write(folder.path()).expect("written");
            assert_eq!(Header::read(folder.path()).expect("a look"), Some(header));
        }
    }

    #[test]
    fn another_format_is_refused_with_a_reason() {
        let folder = tempfile::tempdir().expect("a folder");
        Header { format: 99, ..HEADER }.write(folder.path()).expect("written");
        let error = Header::read(folder.path()).expect_err("refused").to_string();
        assert!(error.contains("format 99"), "{error}");
        fs::write(folder.path().join(FILE), "form").expect("written");
        assert!(Header::read(folder.path()).is_err());
    }

    #[test]
    fn bytes_that_are_elsewhere_are_refused_with_the_remedy() {
        let refused = |header: Header, wanted| {
            header.require(wanted, Path::new("/x")).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(refused(HEADER, BlobStore::Files), "");
        let error = refused(HEADER, BlobStore::Sled);
        assert!(error.contains("store.blobs = \"files\"") && error.contains("convert --to sled"), "{error}");
        let halfway = Header { moving_from: Some(BlobStore::Sled), ..HEADER };
        for wanted in [BlobStore::Sled, BlobStore::Files] {
            let error = refused(halfway, wanted);
            assert!(error.contains("larder store convert --to files"), "{error}");
        }
    }
}
