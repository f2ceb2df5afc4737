//! From what came in to images: each manifest after all that it points at, the tag last.

use std::collections::HashSet;

use bytes::Bytes;

use super::names::Wanted;
use super::spool::Spool;
use super::{Taken, spoiled};
use crate::cache::{ImportError, Importer};
use crate::oci::{Descriptor, Digest, Manifest, MediaType, Repository};
use crate::ops::OpsError;

/// Deeper than any walk below an index goes.
const DEPTH_MAX: u32 = 8;
/// More manifests than any walk brings in.
const COUNT_MAX: usize = 4096;

/// What came in, and where what may be a manifest is.
pub(super) struct Images<'a> {
    pub(super) importer: &'a mut Importer,
    pub(super) spool: &'a Spool,
}

impl Images<'_> {
    /// Takes an entry of the archive's index into its repository.
    pub(super) fn take(&mut self, wanted: Wanted) -> Result<Taken, OpsError> {
        let Wanted { digest, size, media_type, repository, tag } = wanted;
        let media_type = media_type.as_deref().and_then(MediaType::new);
        let root = Descriptor { digest, size, media_type, platform: None, foreign: false };
        let mut seen = HashSet::new();
        if !self.manifest(&repository, &root, &mut seen, 1)? {
            return Err(OpsError::Content(format!(
                "index.json in the archive points at {digest}, which is not in it"
            )));
        }
        if let Some(tag) = &tag {
            self.importer.tag(&repository, tag, &digest)?;
        }
        Ok(Taken { repository, tag, digest })
    }

    /// Takes a manifest with all below it. Returns whether it is there at all.
    fn manifest(
        &mut self,
        repository: &Repository,
        wanted: &Descriptor,
        seen: &mut HashSet<Digest>,
        depth: u32,
    ) -> Result<bool, OpsError> {
        let digest = &wanted.digest;
        if seen.len() >= COUNT_MAX || depth > DEPTH_MAX {
            return Err(OpsError::Content(format!(
                "{digest} is nested too deep, or one of too many: {DEPTH_MAX} levels and {COUNT_MAX} manifests are the most"
            )));
        }
        let known = wanted.media_type.as_ref().is_some_and(|it| it.kind().is_some());
        let Some(body) = self.document(digest)? else {
            // Some caches of builders are indexes of blobs.
            let size = if known { None } else { self.importer.blob_size(digest)? };
            return size.map_or(Ok(false), |size| fits(wanted, size).map(|()| true));
        };
        fits(wanted, body.len() as u64)?;
        if !seen.insert(*digest) {
            return Ok(true);
        }
        let media_type = wanted.media_type.as_ref().map(MediaType::as_str);
        let read = match Manifest::read(&body, media_type) {
            Ok(read) => read,
            Err(_) if !known && depth > 1 => {
                self.importer.blob(digest, body.len() as u64, &mut &*body)?;
                return Ok(true);
            }
            Err(reason) => {
                return Err(ImportError::Document { digest: (*digest).into(), reason }.into());
            }
        };
        for child in read.children.iter().filter(|child| !child.foreign) {
            // What is not there may have been left out on purpose; the report tells.
            self.manifest(repository, child, seen, depth + 1)?;
        }
        for blob in read.blobs.iter().filter(|blob| !blob.foreign) {
            self.blob(digest, blob)?;
        }
        self.importer.manifest(repository, digest, &read, body)?;
        Ok(true)
    }

    /// A document that came in, or is held.
    fn document(&self, digest: &Digest) -> Result<Option<Bytes>, OpsError> {
        if let Some(body) = self.spool.get(digest).map_err(|error| spoiled(&error))? {
            return Ok(Some(body));
        }
        Ok(self.importer.stored_manifest(digest)?.map(|held| held.body))
    }

    /// A blob has come in, is held, or was taken for what may be a manifest.
    fn blob(&mut self, manifest: &Digest, wanted: &Descriptor) -> Result<(), OpsError> {
        let digest = &wanted.digest;
        if let Some(body) = self.spool.get(digest).map_err(|error| spoiled(&error))? {
            self.importer.blob(digest, body.len() as u64, &mut &*body)?;
        }
        match self.importer.blob_size(digest)? {
            Some(size) => fits(wanted, size),
            // A layer that is left out by mistake looks the same as one that was cut off.
            None => Err(OpsError::Content(format!(
                "the archive lacks {digest}, which the manifest {manifest} in it needs, and it is not held either"
            ))),
        }
    }
}

/// Holds a length against what a descriptor says of it.
fn fits(wanted: &Descriptor, size: u64) -> Result<(), OpsError> {
    match wanted.size {
        Some(said) if said != size => Err(OpsError::Content(format!(
            "{} has {size} bytes in the archive, its descriptor says {said}",
            wanted.digest
        ))),
        _ => Ok(()),
    }
}
