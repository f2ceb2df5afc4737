//! Streaming reader of tar archives from untrusted senders, plain or compressed with gzip.
//!
//! The `tar` crate parses the fields of a header. Its iterator over entries is not used, because it reads extended
//! headers of any length into memory.

use std::io::{self, Cursor, ErrorKind, Read};

use flate2::read::MultiGzDecoder;
use tar::{EntryType, Header, PaxExtensions};

/// Size of the blocks of a tar in bytes.
const BLOCK: u64 = 512;
/// Longest name or list of attributes in bytes.
const EXTENSION_MAX: u64 = 64 << 10;
/// Bytes that are read after the end of an archive. Some programs pad the archive to their write size.
const REST_MAX: u64 = 1 << 20;
/// First bytes of compressed data, name of the compression, and command to decompress it.
const COMPRESSIONS: [(&[u8], &str, &str); 3] = [
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd -dc"),
    (b"\xfd7zXZ\0", "xz", "xz -dc"),
    (b"BZh", "bzip2", "bzip2 -dc"),
];

/// Reason why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The archive is compressed, but not with gzip.
    #[error(
        "the archive is compressed with {0}; give it as a plain tar or with gzip, as in `{1} FILE | larder import -`"
    )]
    Compressed(&'static str, &'static str),
    /// The data is not a tar archive.
    #[error("the data is not a tar archive: {0}")]
    NotTar(&'static str),
    /// The archive is malformed or too large.
    #[error("the archive is refused: {0}")]
    Refused(String),
    /// The data cannot be read, or ends too early.
    #[error("the archive cannot be read: {0}")]
    Source(#[from] io::Error),
}

/// Type of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A file. Its content can be read from the archive.
    File,
    /// A folder.
    Folder,
    /// A link, a device, or another type without content.
    Other,
}

/// Entry of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TarEntry {
    /// Path without a leading `./`. Never absolute, and never leads out of the archive.
    pub path: String,
    /// Type of the entry.
    pub kind: EntryKind,
    /// Length of the content in bytes.
    pub size: u64,
}

/// Reader of a tar archive. `read` returns the content of the current entry.
pub struct TarReader {
    source: Box<dyn Read + Send>,
    /// Unread bytes of the current entry's content.
    left: u64,
    /// Bytes after the content up to the next block.
    padding: u64,
    /// True after the first valid header.
    has_header: bool,
}

impl std::fmt::Debug for TarReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TarReader").field("left", &self.left).finish_non_exhaustive()
    }
}

impl TarReader {
    /// Opens an archive. Reads its first block to detect compression.
    pub fn open(mut source: impl Read + Send + 'static) -> Result<Self, ArchiveError> {
        let mut start = Vec::new();
        source.by_ref().take(BLOCK).read_to_end(&mut start)?;
        if start.is_empty() {
            return Err(ArchiveError::NotTar("it is empty"));
        }
        for (magic, name, command) in COMPRESSIONS {
            if start.starts_with(magic) {
                return Err(ArchiveError::Compressed(name, command));
            }
        }
        let compressed = start.starts_with(b"\x1f\x8b");
        let whole = Cursor::new(start).chain(source);
        let source: Box<dyn Read + Send> =
            if compressed { Box::new(MultiGzDecoder::new(whole)) } else { Box::new(whole) };
        Ok(Self { source, left: 0, padding: 0, has_header: false })
    }

    /// Returns the next entry, or `None` at the end.
    pub fn entry(&mut self) -> Result<Option<TarEntry>, ArchiveError> {
        let (mut path, mut size) = (None, None);
        loop {
            self.skip()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let stated = header.entry_size().map_err(|_| refused("a size is not a number"))?;
            match header.entry_type() {
                EntryType::GNULongName => {
                    self.enter(stated)?;
                    let mut name = self.extension(stated)?;
                    while name.pop_if(|last| *last == 0).is_some() {}
                    path = Some(name);
                }
                EntryType::XHeader => {
                    self.enter(stated)?;
                    for attribute in PaxExtensions::new(&self.extension(stated)?) {
                        let attribute = attribute.map_err(|_| refused("an attribute is malformed"))?;
                        match attribute.key_bytes() {
                            b"path" => path = Some(attribute.value_bytes().to_owned()),
                            b"size" => {
                                let number = attribute.value().ok().and_then(|text| text.parse().ok());
                                size = Some(number.ok_or_else(|| refused("a size is not a number"))?);
                            }
                            _ => {}
                        }
                    }
                }
                EntryType::XGlobalHeader | EntryType::GNULongLink => self.enter(stated)?,
                kind => {
                    let path = path.take().unwrap_or_else(|| header.path_bytes().into_owned());
                    let path = inside(&String::from_utf8_lossy(&path))?;
                    let size = size.take().unwrap_or(stated);
                    let kind = match kind {
                        EntryType::Regular | EntryType::Continuous => EntryKind::File,
                        EntryType::Directory => EntryKind::Folder,
                        _ => EntryKind::Other,
                    };
                    // Links have no content, but some programs state the size of their target.
                    let content = !matches!(header.entry_type(), EntryType::Link | EntryType::Symlink);
                    self.enter(if content { size } else { 0 })?;
                    return Ok(Some(TarEntry { path, kind, size }));
                }
            }
        }
    }

    /// Starts content of `size` bytes.
    fn enter(&mut self, size: u64) -> Result<(), ArchiveError> {
        if size > i64::MAX as u64 {
            return Err(refused(&format!("an entry states {size} bytes")));
        }
        (self.left, self.padding) = (size, size.next_multiple_of(BLOCK) - size);
        Ok(())
    }

    /// Reads an extended header.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        if size > EXTENSION_MAX {
            return Err(refused(&format!("a header states {size} bytes")));
        }
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Skips the rest of the current entry.
    fn skip(&mut self) -> Result<(), ArchiveError> {
        let rest = self.left + std::mem::take(&mut self.padding);
        self.left = 0;
        let skipped = io::copy(&mut (&mut self.source).take(rest), &mut io::sink())?;
        if skipped < rest { Err(truncated().into()) } else { Ok(()) }
    }

    /// Reads the next header, or returns `None` at the end mark.
    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        let mut block = [0; 512];
        match self.source.read_exact(&mut block) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof && !self.has_header => {
                return Err(ArchiveError::NotTar("it is too short"));
            }
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Err(truncated().into()),
            read => read?,
        }
        if block.iter().all(|byte| *byte == 0) {
            // Read the rest, so that the sender does not fail on a closed connection. Its content does not matter.
            let _ = io::copy(&mut (&mut self.source).take(REST_MAX), &mut io::sink());
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block);
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        let field: u32 = block[148..156].iter().map(|byte| u32::from(*byte)).sum();
        if header.cksum().ok() != Some(sum - field + 8 * u32::from(b' ')) {
            return Err(if self.has_header {
                refused("a header has a wrong checksum")
            } else {
                ArchiveError::NotTar("the first header is invalid")
            });
        }
        self.has_header = true;
        Ok(Some(header.clone()))
    }
}

impl Read for TarReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        match self.source.read(&mut buffer[..most])? {
            0 => Err(truncated()),
            read => {
                self.left -= read as u64;
                Ok(read)
            }
        }
    }
}

fn truncated() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "it is truncated")
}

fn refused(why: &str) -> ArchiveError {
    ArchiveError::Refused(why.to_owned())
}

/// Normalises a path, and refuses one that leads out of the archive.
fn inside(path: &str) -> Result<String, ArchiveError> {
    let leads_out = path.starts_with('/') || path.split('/').any(|part| part == "..");
    if leads_out || path.contains('\0') {
        let shown: String = path.chars().filter(|c| !c.is_control()).take(100).collect();
        return Err(ArchiveError::Refused(format!("`{shown}` leads out of the archive")));
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn tar(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, content) in entries {
            let mut header = Header::new_gnu();
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, path, *content).expect("appended");
        }
        tar.into_inner().expect("a tar")
    }

    /// Returns a header with any content.
    fn header(path: &str, kind: EntryType, size: u64) -> Vec<u8> {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_cksum();
        header.as_bytes().to_vec()
    }

    fn read(bytes: Vec<u8>) -> Result<Vec<(String, EntryKind, Vec<u8>)>, ArchiveError> {
        let mut archive = TarReader::open(Cursor::new(bytes))?;
        let mut found = Vec::new();
        while let Some(entry) = archive.entry()? {
            let mut content = Vec::new();
            archive.read_to_end(&mut content)?;
            found.push((entry.path, entry.kind, content));
        }
        Ok(found)
    }

    #[track_caller]
    fn is_refused(bytes: Vec<u8>, why: &str) {
        let error = read(bytes).expect_err("refused").to_string();
        assert!(error.contains(why), "{error}");
    }

    #[test]
    fn tar_reader_returns_entries_with_content() {
        let long = "a/".repeat(80) + "b";
        let bytes = tar(&[("./x", b"one"), (&long, &[7; 1000]), ("empty", b"")]);
        let wanted = vec![
            ("x".to_owned(), EntryKind::File, b"one".to_vec()),
            (long, EntryKind::File, vec![7; 1000]),
            ("empty".to_owned(), EntryKind::File, Vec::new()),
        ];
        assert_eq!(read(bytes.clone()).expect("read"), wanted);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&bytes).expect("written");
        assert_eq!(read(gzip.finish().expect("compressed")).expect("read"), wanted);
    }

    #[test]
    fn tar_reader_skips_unread_content() {
        let mut archive =
            TarReader::open(Cursor::new(tar(&[("a", &[1; 700]), ("b", b"two")]))).expect("a tar");
        archive.entry().expect("read").expect("a");
        let mut some = [0; 10];
        archive.read_exact(&mut some).expect("read");
        assert_eq!(archive.entry().expect("read").expect("b").path, "b");
        assert_eq!(archive.entry().expect("read"), None);
    }

    #[test]
    fn tar_reader_applies_pax_attributes() {
        let mut attributes = Vec::new();
        for (key, value) in [("path", "blobs/sha512/long"), ("size", "3"), ("mtime", "1.5")] {
            // The length of a record includes its own digits.
            let length = key.len() + value.len() + 3;
            let length = length
                + if length + 2 > 99 {
                    3
                } else if length + 1 > 9 {
                    2
                } else {
                    1
                };
            attributes.extend(format!("{length} {key}={value}\n").into_bytes());
        }
        let mut bytes = header("x", EntryType::XHeader, attributes.len() as u64);
        attributes.resize(attributes.len().next_multiple_of(512), 0);
        bytes.extend(attributes);
        bytes.extend(header("short", EntryType::Regular, 0));
        bytes.extend(b"abc");
        bytes.resize(bytes.len().next_multiple_of(512) + 1024, 0);
        let found = read(bytes).expect("read");
        assert_eq!(found, [("blobs/sha512/long".to_owned(), EntryKind::File, b"abc".to_vec())]);
    }

    #[test]
    fn tar_reader_refuses_malformed_archives() {
        let whole = tar(&[("a", &[1; 700]), ("b", b"two")]);
        for cut in [512 + 100, 512 + 1024, 512 + 1024 + 200] {
            is_refused(whole[..cut].to_vec(), "truncated");
        }
        let mut changed = whole.clone();
        changed[512 + 1024 + 3] = b'!';
        is_refused(changed, "checksum");
        is_refused(header("a", EntryType::Regular, u64::MAX), "states");
        for kind in [EntryType::GNULongName, EntryType::XHeader] {
            is_refused(header("a", kind, 10 << 30), "states 10737418240 bytes");
        }
        for path in ["../a", "/etc/passwd", "blobs/../../a"] {
            is_refused(header(path, EntryType::Regular, 0), "leads out of the archive");
        }
        let mut lies = header("a", EntryType::Regular, 5000);
        lies.resize(4096, 1);
        is_refused(lies, "truncated");
    }

    #[test]
    fn tar_reader_names_the_format_of_other_data() {
        is_refused(Vec::new(), "it is empty");
        is_refused(b"short".to_vec(), "too short");
        is_refused(vec![b'x'; 2048], "the first header is invalid");
        is_refused(b"\x28\xb5\x2f\xfd rest".to_vec(), "zstd -dc FILE");
        is_refused(b"\x1f\x8b no gzip".to_vec(), "cannot be read");
    }

    #[test]
    fn tar_reader_gives_links_no_content() {
        let mut bytes = header("blobs/sha256/x", EntryType::Symlink, 700);
        bytes.extend(header("dir/", EntryType::Directory, 0));
        bytes.resize(bytes.len() + 1024, 0);
        let found = read(bytes).expect("read");
        assert_eq!((found[0].1, found[1].1), (EntryKind::Other, EntryKind::Folder));
    }
}
