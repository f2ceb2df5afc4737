//! Headers of a tar archive. They contain no time and no user: the same content gives the same archive.

use bytes::{BufMut as _, Bytes, BytesMut};
use tar::{EntryType, Header};

/// Size of the blocks of a tar in bytes.
const BLOCK: u64 = 512;
/// End of an archive, after the last entry.
pub const TAR_END: [u8; 1024] = [0; 1024];
/// Longest path in a header. A longer path is an entry of its own before the file.
const PATH_MAX: usize = 100;

/// Returns the bytes before the content of a file.
pub fn file_header(path: &str, size: u64) -> Bytes {
    let mut bytes = BytesMut::new();
    if path.len() > PATH_MAX {
        bytes.put_slice(header("././@LongLink", EntryType::GNULongName, path.len() as u64 + 1).as_bytes());
        bytes.put_slice(path.as_bytes());
        bytes.put_u8(0);
        bytes.put_slice(padding(path.len() as u64 + 1));
    }
    bytes.put_slice(header(path, EntryType::Regular, size).as_bytes());
    bytes.freeze()
}

/// Returns the bytes after the content of a file of `size` bytes.
pub fn padding(size: u64) -> &'static [u8] {
    let length = usize::try_from(size.next_multiple_of(BLOCK) - size).unwrap_or_default();
    TAR_END.get(..length).unwrap_or_default()
}

/// Returns the bytes that a file takes in an archive, header and padding included.
pub fn entry_length(path: &str, size: u64) -> u64 {
    (file_header(path, size).len() as u64).saturating_add(size.next_multiple_of(BLOCK))
}

fn header(path: &str, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    let name = &path.as_bytes()[..path.len().min(PATH_MAX)];
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    header
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::layout::format::blob_path;
    use crate::oci::{Algorithm, Digest};

    #[test]
    fn tar_entries_can_be_read_by_another_reader() {
        let paths =
            [Algorithm::Sha256, Algorithm::Sha512].map(|algorithm| blob_path(&Digest::of(algorithm, b"x")));
        let mut bytes = Vec::new();
        for path in &paths {
            let begin = bytes.len() as u64;
            bytes.extend(file_header(path, 3));
            bytes.extend(b"abc");
            bytes.extend(padding(3));
            assert_eq!(bytes.len() as u64 - begin, entry_length(path, 3));
        }
        bytes.extend(TAR_END);
        let mut tar = tar::Archive::new(bytes.as_slice());
        let mut entries = tar.entries().expect("entries");
        for path in &paths {
            let mut entry = entries.next().expect("an entry").expect("read");
            assert_eq!(entry.path().expect("a path").to_str(), Some(path.as_str()));
            let mut text = String::new();
            entry.read_to_string(&mut text).expect("content");
            assert_eq!(text, "abc");
        }
        assert!(entries.next().is_none());
    }

    #[test]
    fn header_states_a_large_size() {
        let size = 20_u64 << 30;
        let bytes = file_header("blobs/sha256/x", size);
        assert_eq!(Header::from_byte_slice(&bytes).entry_size().expect("a size"), size);
        assert_eq!(padding(512), b"");
        assert_eq!(padding(513).len(), 511);
    }
}
