//! What may be a manifest, until it is known whether it is one.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use bytes::Bytes;

use crate::oci::Digest;

/// More than the manifests, configs and statements of any archive take.
const BYTES_MAX: u64 = 1 << 30;

/// Documents in a file that has no name and goes with this.
#[derive(Debug)]
pub(super) struct Spool {
    file: File,
    end: u64,
    places: HashMap<Digest, (u64, usize)>,
}

impl Spool {
    pub(super) fn in_folder(folder: &Path) -> io::Result<Self> {
        Ok(Self { file: tempfile::tempfile_in(folder)?, end: 0, places: HashMap::new() })
    }

    /// Keeps a document, which is that of its digest.
    pub(super) fn keep(&mut self, digest: &Digest, body: &[u8]) -> io::Result<()> {
        if self.places.contains_key(digest) {
            return Ok(());
        }
        if self.end + body.len() as u64 > BYTES_MAX {
            return Err(io::Error::other(format!("it would hold more than {BYTES_MAX} bytes")));
        }
        self.file.write_all(body)?;
        self.places.insert(*digest, (self.end, body.len()));
        self.end += body.len() as u64;
        Ok(())
    }

    /// A document that was kept.
    pub(super) fn get(&self, digest: &Digest) -> io::Result<Option<Bytes>> {
        let Some((at, length)) = self.places.get(digest) else { return Ok(None) };
        let mut body = vec![0; *length];
        self.file.read_exact_at(&mut body, *at)?;
        Ok(Some(body.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn documents_come_back_and_nothing_is_left() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut spool = Spool::in_folder(folder.path()).expect("a file");
        let digest = |text: &str| Digest::of(Algorithm::Sha256, text.as_bytes());
        for text in ["{}", "{\"a\":1}", "{}"] {
            spool.keep(&digest(text), text.as_bytes()).expect("kept");
        }
        assert_eq!(spool.get(&digest("{\"a\":1}")).expect("read").as_deref(), Some(&b"{\"a\":1}"[..]));
        assert_eq!(spool.get(&digest("{}")).expect("read").as_deref(), Some(&b"{}"[..]));
        assert_eq!(spool.get(&digest("x")).expect("read"), None);
        assert_eq!(spool.end, 9);
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
    }
}
