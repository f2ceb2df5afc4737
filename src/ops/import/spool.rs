//! Temporary file for JSON documents, until `index.json` shows which of them are manifests.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use bytes::Bytes;

use crate::oci::Digest;
use crate::ops::protocol::OpsError;

/// Maximum length of the file in bytes.
const BYTES_MAX: u64 = 1 << 30;

/// Documents in an unnamed file, which the system removes when it is closed.
#[derive(Debug)]
pub(super) struct Spool {
    file: File,
    end: u64,
    /// Offset and length of each document.
    positions: HashMap<Digest, (u64, usize)>,
}

impl Spool {
    /// Creates the file in a folder.
    pub(super) fn in_folder(folder: &Path) -> io::Result<Self> {
        Ok(Self { file: tempfile::tempfile_in(folder)?, end: 0, positions: HashMap::new() })
    }

    /// Adds a document. The caller has verified its digest.
    pub(super) fn add(&mut self, digest: &Digest, body: &[u8]) -> io::Result<()> {
        if self.positions.contains_key(digest) {
            return Ok(());
        }
        if self.end + body.len() as u64 > BYTES_MAX {
            return Err(io::Error::other(format!("more than {BYTES_MAX} bytes of manifests")));
        }
        self.file.write_all(body)?;
        self.positions.insert(*digest, (self.end, body.len()));
        self.end += body.len() as u64;
        Ok(())
    }

    /// Returns true if there is a document.
    pub(super) fn contains(&self, digest: &Digest) -> bool {
        self.positions.contains_key(digest)
    }

    /// Returns a document.
    pub(super) fn get(&self, digest: &Digest) -> io::Result<Option<Bytes>> {
        let Some((at, length)) = self.positions.get(digest) else { return Ok(None) };
        let mut body = vec![0; *length];
        self.file.read_exact_at(&mut body, *at)?;
        Ok(Some(body.into()))
    }
}

/// Converts an error of the file.
pub(super) fn spool_failed(error: &std::io::Error) -> OpsError {
    OpsError::Content(format!("the temporary file for manifests in the store folder cannot be used: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn spool_returns_documents_and_leaves_no_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut spool = Spool::in_folder(folder.path()).expect("a file");
        let digest = |text: &str| Digest::of(Algorithm::Sha256, text.as_bytes());
        for text in ["{}", "{\"a\":1}", "{}"] {
            spool.add(&digest(text), text.as_bytes()).expect("kept");
        }
        assert_eq!(spool.get(&digest("{\"a\":1}")).expect("read").as_deref(), Some(&b"{\"a\":1}"[..]));
        assert_eq!(spool.get(&digest("{}")).expect("read").as_deref(), Some(&b"{}"[..]));
        assert_eq!(spool.get(&digest("x")).expect("read"), None);
        assert_eq!(spool.end, 9);
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
    }
}
