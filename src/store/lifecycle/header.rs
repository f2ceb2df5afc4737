//! Header of a store: format, geometry, which can never change, and kind of blob store.
//!
//! A header of an earlier format is migrated format by format when it is read ([`STEPS`]), and written when the store is
//! open. The format changes if an earlier version would read the store wrongly. To change it, add one to [`FORMAT`], and add
//! a step that converts the TOML of the header. Other changes are made when the store is opened, where [`Header::found`] has
//! the earlier format, and must be repeatable after a crash. Facts have versions of their own (`fact.rs`).

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::schema::BlobStoreKind;

use crate::store::error::StoreError;

pub(in crate::store) const FILE: &str = "header.toml";
const FORMAT: u32 = 2;

/// Migration of a header to the next format; the first is from format 1 to format 2.
type Step = fn(&mut toml::Table);
const STEPS: [Step; FORMAT as usize - 1] = [
    // Format 2 has an identity, which is created when a store without one is opened.
    |_| {},
];

/// Sizes of pages and segments. They never change, because sled cannot change the segments of an existing database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Geometry {
    /// Bytes of a blob per sled value.
    pub page_size: usize,
    /// Unit of allocation of sled on disk, a power of two.
    pub segment_size: usize,
}

impl Geometry {
    /// Geometry of new stores. CONTRIBUTING.md has the measurement.
    pub const CHOSEN: Self = Self { page_size: 64 << 10, segment_size: 4 << 20 };

    /// Returns true if sled accepts the sizes, and stores pages inside its segments.
    fn is_usable(self) -> bool {
        self.segment_size.is_power_of_two()
            && (256..=16 << 20).contains(&self.segment_size)
            && (1..=self.segment_size).contains(&self.page_size)
    }
}

/// Header in the store's folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::store) struct Header {
    format: u32,
    /// Format of the header on disk.
    #[serde(skip)]
    found: u32,
    /// Identity that sled also stores. A database with another identity, or with none, has lost its content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::store) identity: Option<u32>,
    /// Kind of blob store.
    pub(in crate::store) blobs: BlobStoreKind,
    /// Kind of blob store that may still have some of the blobs, during a conversion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::store) moving_from: Option<BlobStoreKind>,
    #[serde(flatten)]
    pub(in crate::store) geometry: Geometry,
}

impl Header {
    /// Creates the header of a new store.
    pub(in crate::store) fn new(blobs: BlobStoreKind, geometry: Geometry) -> Self {
        Self { format: FORMAT, found: FORMAT, identity: None, blobs, moving_from: None, geometry }
    }

    /// Reads the header in `folder`, and migrates it to the current format; `None` if there is no store.
    pub(in crate::store) fn read(folder: &Path) -> Result<Option<Self>, StoreError> {
        let corrupt = |reason: String| StoreError::Corrupt { path: folder.to_owned(), reason };
        let text = match fs::read_to_string(folder.join(FILE)) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::IsADirectory) => {
                return Err(corrupt(format!("its {FILE} does not read: {error}")));
            }
            Err(source) => return Err(StoreError::Folder { path: folder.to_owned(), source }),
        };
        let table = text.parse().map_err(|error: toml::de::Error| error.message().to_owned());
        let header = table.and_then(|table| Self::from_table(table, &STEPS));
        header.map(Some).map_err(|reason| corrupt(format!("its {FILE} does not read: {reason}")))
    }

    fn from_table(mut table: toml::Table, steps: &[Step]) -> Result<Self, String> {
        let latest = u32::try_from(steps.len() + 1).unwrap_or(u32::MAX);
        let format = table.get("format").and_then(toml::Value::as_integer);
        let found = format.and_then(|format| u32::try_from(format).ok()).filter(|format| *format > 0);
        let found = found.ok_or("it names no format")?;
        if found > latest {
            return Err(format!(
                "it has format {found}, which a newer version of larder wrote; this version reads formats up to {latest}"
            ));
        }
        for step in steps.iter().skip(found as usize - 1) {
            step(&mut table);
        }
        table.insert("format".to_owned(), i64::from(latest).into());
        let header: Self = table.try_into().map_err(|error| error.message().to_owned())?;
        if !header.geometry.is_usable() {
            return Err(format!("{:?} is impossible", header.geometry));
        }
        Ok(Self { found, ..header })
    }

    /// Returns true if the header on disk has an earlier format.
    pub(in crate::store) fn was_earlier(&self) -> bool {
        self.found < self.format
    }

    /// Writes the header to `folder`.
    pub(in crate::store) fn write(&self, folder: &Path) -> Result<(), StoreError> {
        let text = toml::to_string(self)
            .map_err(|error| StoreError::Foreign { path: folder.to_owned(), reason: error.to_string() })?;
        write_whole(&folder.join(FILE), &text)
            .map_err(|source| StoreError::Folder { path: folder.to_owned(), source })
    }

    /// Returns an error if the store has blobs in another kind of blob store than `wanted`.
    pub(in crate::store) fn require(&self, wanted: BlobStoreKind, folder: &Path) -> Result<(), StoreError> {
        let (current, wanted) = (self.blobs.as_str(), wanted.as_str());
        let reason = if let Some(from) = self.moving_from {
            let from = from.as_str();
            format!(
                "the conversion of its blobs from {from} to {current} was interrupted; finish it with `larder store convert --to {current}`"
            )
        } else if current != wanted {
            format!(
                "its blobs are in {current}, but store.blobs is {wanted}; set store.blobs = \"{current}\", or convert them with \
                 `larder store convert --to {wanted}`"
            )
        } else {
            return Ok(());
        };
        Err(StoreError::Foreign { path: folder.to_owned(), reason })
    }
}

/// Writes a file atomically, also across a power loss.
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
        found: FORMAT,
        identity: None,
        blobs: BlobStoreKind::Files,
        moving_from: None,
        geometry: Geometry { page_size: 8192, segment_size: 524_288 },
    };

    #[test]
    fn header_reads_back() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(Header::read(folder.path()).expect("a look"), None);
        let halfway = Header { moving_from: Some(BlobStoreKind::Sled), ..HEADER };
        for header in [HEADER, halfway, Header { identity: Some(u32::MAX), ..HEADER }] {
            header.write(folder.path()).expect("written");
            assert_eq!(Header::read(folder.path()).expect("a look"), Some(header));
        }
    }

    #[test]
    fn unreadable_header_is_corrupt() {
        let folder = tempfile::tempdir().expect("a folder");
        let whole = toml::to_string(&HEADER).expect("text");
        for text in [
            "",
            "form",
            &whole[..whole.len() / 2],
            &whole.replace("format = 2", "format = 99"),
            &whole.replace("format = 2", "format = 0"),
            &whole.replace("format = 2", "format = \"2\""),
            &whole.replace("8192", "0"),
            &whole.replace("524288", "524287"),
            &format!("{whole}more = 1"),
        ] {
            fs::write(folder.path().join(FILE), text).expect("written");
            let error = Header::read(folder.path()).expect_err("corrupt");
            assert!(matches!(error, StoreError::Corrupt { .. }), "{text}: {error}");
        }
        fs::write(folder.path().join(FILE), [0xff, 0xfe]).expect("written");
        assert!(matches!(Header::read(folder.path()), Err(StoreError::Corrupt { .. })));
        Header { format: 99, ..HEADER }.write(folder.path()).expect("written");
        let error = Header::read(folder.path()).expect_err("corrupt").to_string();
        assert!(error.contains("format 99") && error.contains("newer version of larder"), "{error}");
    }

    #[test]
    fn header_of_format_1_is_migrated() {
        let folder = tempfile::tempdir().expect("a folder");
        // As written before format 2.
        let text = "format = 1\nblobs = \"files\"\npage_size = 8192\nsegment_size = 524288\n";
        fs::write(folder.path().join(FILE), text).expect("written");
        let header = Header::read(folder.path()).expect("a look").expect("a header");
        assert_eq!(header, Header { found: 1, ..HEADER });
        assert!(header.was_earlier());
        header.write(folder.path()).expect("written");
        assert_eq!(Header::read(folder.path()).expect("a look"), Some(HEADER));
    }

    #[test]
    fn migrations_run_one_after_the_other() {
        let steps: [Step; 3] = [
            |table| drop(table.insert("blobs".to_owned(), "files".into())),
            |table| {
                let pages = table.remove("page").expect("what format 2 had");
                table.insert("page_size".to_owned(), pages);
            },
            |table| drop(table.insert("segment_size".to_owned(), 524_288.into())),
        ];
        for text in [
            "format = 1\npage = 8192",
            "format = 2\npage = 8192\nblobs = \"files\"",
            "format = 3\npage_size = 8192\nblobs = \"files\"",
            "format = 4\npage_size = 8192\nblobs = \"files\"\nsegment_size = 524288",
        ] {
            let header = Header::from_table(text.parse().expect("TOML"), &steps).expect("a header");
            assert_eq!(Header { found: FORMAT, format: FORMAT, ..header }, HEADER, "{text}");
        }
        let newer = Header::from_table("format = 5".parse().expect("TOML"), &steps);
        assert!(newer.is_err_and(|reason| reason.contains("formats up to 4")));
    }

    #[test]
    fn other_kind_is_refused_with_the_remedy() {
        let refused = |header: Header, wanted| {
            header.require(wanted, Path::new("/x")).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(refused(HEADER, BlobStoreKind::Files), "");
        let error = refused(HEADER, BlobStoreKind::Sled);
        assert!(error.contains("store.blobs = \"files\"") && error.contains("convert --to sled"), "{error}");
        let halfway = Header { moving_from: Some(BlobStoreKind::Sled), ..HEADER };
        for wanted in [BlobStoreKind::Sled, BlobStoreKind::Files] {
            let error = refused(halfway, wanted);
            assert!(error.contains("larder store convert --to files"), "{error}");
        }
    }
}
