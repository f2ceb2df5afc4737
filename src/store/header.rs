//! The store's header: what was fixed when the folder was made and can never change after.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

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

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: u32,
    blobs: String,
    #[serde(flatten)]
    geometry: Geometry,
}

/// The geometry of the store in `folder`; a folder without a store gets `wanted`.
pub(super) fn read_or_write(folder: &Path, wanted: Geometry) -> Result<Geometry, StoreError> {
    let path = folder.join(FILE);
    let foreign = |reason: String| StoreError::Foreign { path: folder.to_owned(), reason };
    match fs::read_to_string(&path) {
        Ok(text) => {
            let header: Header = toml::from_str(&text).map_err(|error| {
                foreign(format!("{FILE} does not read ({}); move the folder away", error.message()))
            })?;
            if header.format != FORMAT || header.blobs != "sled" {
                return Err(foreign(format!(
                    "it has format {} with blobs in {}, this larder reads format {FORMAT} with blobs in sled",
                    header.format, header.blobs
                )));
            }
            Ok(header.geometry)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let header = Header { format: FORMAT, blobs: "sled".to_owned(), geometry: wanted };
            let text = toml::to_string(&header).map_err(|error| foreign(error.to_string()))?;
            write_whole(&path, &text)
                .map_err(|source| StoreError::Folder { path: folder.to_owned(), source })?;
            Ok(wanted)
        }
        Err(source) => Err(StoreError::Folder { path: folder.to_owned(), source }),
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

    #[test]
    fn the_first_geometry_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = Geometry { page_size: 8192, segment_size: 524_288 };
        assert_eq!(read_or_write(folder.path(), first).expect("a header"), first);
        assert_eq!(read_or_write(folder.path(), Geometry::CHOSEN).expect("a header"), first);
    }

    #[test]
    fn another_format_is_refused_with_a_reason() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(
            folder.path().join(FILE),
            "format = 99\nblobs = \"sled\"\npage_size = 1\nsegment_size = 1\n",
        )
        .expect("written");
        let error = read_or_write(folder.path(), Geometry::CHOSEN).expect_err("refused").to_string();
        assert!(error.contains("format 99"), "{error}");
        fs::write(folder.path().join(FILE), "form").expect("written");
        assert!(read_or_write(folder.path(), Geometry::CHOSEN).is_err());
    }
}
