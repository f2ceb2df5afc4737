//! The headers of a tar that holds an OCI layout. Made by hand, and not by a program's clock or user: the same content
//! gives the same archive.

use bytes::{BufMut as _, Bytes, BytesMut};
use tar::{EntryType, Header};

use crate::oci::Digest;

use super::tar_reader::BLOCK;

/// The marker of a layout, and what is in it.
pub const MARKER: (&str, &str) = ("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
/// Where a layout tells what is in it.
pub const INDEX: &str = "index.json";
/// Where an archive tells docker's older versions what is in it.
pub const DOCKER: &str = "manifest.json";
/// What follows the last entry.
pub const END: [u8; 1024] = [0; 1024];
/// A longer path goes in front of its entry, as one of its own.
const PATH_MAX: usize = 100;

/// Where a layout keeps content.
pub fn path_of(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

/// The digest of what is kept there; `None` if nothing is.
pub fn digest_at(path: &str) -> Option<Digest> {
    let (algorithm, hex) = path.strip_prefix("blobs/")?.split_once('/')?;
    format!("{algorithm}:{hex}").parse().ok()
}

/// What stands in front of a file's content.
pub fn file(path: &str, size: u64) -> Bytes {
    let mut bytes = BytesMut::new();
    if path.len() > PATH_MAX {
        bytes.put_slice(header("././@LongLink", EntryType::GNULongName, path.len() as u64 + 1).as_bytes());
        bytes.put_slice(path.as_bytes());
        bytes.put_u8(0);
        let filling = filling(path.len() as u64 + 1);
        bytes.put_slice(filling);
    }
    bytes.put_slice(header(path, EntryType::Regular, size).as_bytes());
    bytes.freeze()
}

/// What follows a file's content.
pub fn filling(size: u64) -> &'static [u8] {
    let length = usize::try_from(size.next_multiple_of(BLOCK) - size).unwrap_or_default();
    END.get(..length).unwrap_or_default()
}

/// Bytes that a file takes in an archive.
pub fn length(path: &str, size: u64) -> u64 {
    (file(path, size).len() as u64).saturating_add(size.next_multiple_of(BLOCK))
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
    use crate::oci::Algorithm;

    #[test]
    fn what_is_packed_can_be_read() {
        let paths =
            [Algorithm::Sha256, Algorithm::Sha512].map(|algorithm| path_of(&Digest::of(algorithm, b"x")));
        let mut bytes = Vec::new();
        for path in &paths {
            let begin = bytes.len() as u64;
            bytes.extend(file(path, 3));
            bytes.extend(b"abc");
            bytes.extend(filling(3));
            assert_eq!(bytes.len() as u64 - begin, length(path, 3));
        }
        bytes.extend(END);
        let mut tar = tar::Archive::new(bytes.as_slice());
        let mut entries = tar.entries().expect("entries");
        for path in &paths {
            let mut entry = entries.next().expect("an entry").expect("read");
            assert_eq!(entry.path().expect("a path").to_str(), Some(path.as_str()));
            let mut text = String::new();
            entry.read_to_string(&mut text).expect("content");
            assert_eq!(text, "abc");
            assert_eq!(
                digest_at(path),
                Some(Digest::of(
                    if path.contains("512") { Algorithm::Sha512 } else { Algorithm::Sha256 },
                    b"x"
                ))
            );
        }
        assert!(entries.next().is_none());
    }

    #[test]
    fn what_is_large_has_its_size() {
        let size = 20_u64 << 30;
        let bytes = file("blobs/sha256/x", size);
        assert_eq!(Header::from_byte_slice(&bytes).entry_size().expect("a size"), size);
        assert_eq!(filling(512), b"");
        assert_eq!(filling(513).len(), 511);
    }

    #[test]
    fn only_content_has_a_digest() {
        for path in ["index.json", "blobs/sha256", "blobs/sha256/x", "blobs/md5/00", "blobs/sha256/../x"] {
            assert_eq!(digest_at(path), None, "{path}");
        }
    }
}
