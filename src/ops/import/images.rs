//! Imports the images of an archive: each manifest after its content, the tag last.

use bytes::Bytes;

use super::names::ImportTarget;
use super::spool::{Spool, spool_failed};
use crate::cache::{ImportError, Importer};
use crate::oci::index_walk::{IndexWalk, WalkStep};
use crate::oci::{Descriptor, Digest, Manifest, MediaType, Referrers, Repository, Tag};
use crate::ops::protocol::OpsError;

/// Image that was stored.
#[derive(Clone, Debug)]
pub(super) struct StoredImage {
    pub(super) repository: Repository,
    pub(super) tag: Option<Tag>,
    pub(super) digest: Digest,
}

/// Received blobs, and the spool with documents that may be manifests.
pub(super) struct Images<'a> {
    pub(super) importer: &'a mut Importer,
    pub(super) spool: &'a Spool,
}

/// Manifest that is stored after everything below it.
struct OpenManifest {
    digest: Digest,
    read: Manifest,
    body: Bytes,
}

impl Images<'_> {
    /// Imports an entry of the archive's index into its repository.
    pub(super) fn import(&mut self, target: ImportTarget) -> Result<StoredImage, OpsError> {
        let ImportTarget { digest, size, media_type, repository, tag, referrers } = target;
        let media_type = media_type.as_deref().and_then(MediaType::new);
        let (platform, os_version, attests) = (None, None, None);
        let root = Descriptor { digest, size, media_type, platform, os_version, foreign: false, attests };
        self.import_tree(&repository, root)?;
        for (subject, list) in referrers {
            self.import_referrers(&repository, &subject, list.as_ref())?;
        }
        if let Some(tag) = &tag {
            self.importer.tag(&repository, tag, &digest)?;
        }
        Ok(StoredImage { repository, tag, digest })
    }

    /// Imports the list of referrers of a manifest, and the artifacts in it that the archive has.
    fn import_referrers(
        &mut self,
        repository: &Repository,
        subject: &Digest,
        list: Option<&Digest>,
    ) -> Result<(), OpsError> {
        let Some(digest) = list else { return Ok(self.importer.referrers(repository, subject, None)?) };
        let body = self.spool.get(digest).map_err(|error| spool_failed(&error))?;
        let list = body.as_deref().and_then(Referrers::read).ok_or_else(|| {
            OpsError::Content(format!("the archive lacks {digest}, the list of referrers of {subject}"))
        })?;
        for artifact in list.iter().filter_map(|referrer| referrer.digest().parse::<Digest>().ok()) {
            if self.spool.contains(&artifact) {
                let (size, media_type, platform, os_version) = (None, None, None, None);
                let (digest, foreign, attests) = (artifact, false, None);
                let root = Descriptor { digest, size, media_type, platform, os_version, foreign, attests };
                self.import_tree(repository, root)?;
            }
        }
        Ok(self.importer.referrers(repository, subject, Some(&list))?)
    }

    /// Imports a manifest and everything below it.
    fn import_tree(&mut self, repository: &Repository, root: Descriptor) -> Result<(), OpsError> {
        let root_digest = root.digest;
        let mut walk = IndexWalk::new(root);
        let mut open: Vec<OpenManifest> = Vec::new();
        while let Some(step) = walk.step() {
            match step {
                WalkStep::Enter(item) if item.descriptor.foreign => {}
                WalkStep::Enter(item) if item.repeated => {
                    self.check_repeated(repository, &item.descriptor)?;
                }
                WalkStep::Enter(item) => {
                    let is_root = item.descriptor.digest == root_digest && open.is_empty();
                    if let Some(manifest) = self.find(repository, &item.descriptor, is_root)? {
                        walk.visit(&manifest.read, manifest.body.len() as u64);
                        open.push(manifest);
                    }
                }
                WalkStep::Leave(_) => {
                    let Some(manifest) = open.pop() else { continue };
                    self.store_manifest(repository, manifest)?;
                }
            }
        }
        match walk.limit() {
            Some(limit) => Err(OpsError::Content(format!("{root_digest} cannot be imported: {limit}"))),
            None => Ok(()),
        }
    }

    /// Checks the stated size of a manifest that another descriptor names too.
    fn check_repeated(&self, repository: &Repository, wanted: &Descriptor) -> Result<(), OpsError> {
        self.document(repository, &wanted.digest)?
            .map_or(Ok(()), |body| check_size(wanted, body.len() as u64))
    }

    /// Finds the manifest of a descriptor. Returns `None` for a blob, and for a child that is not in the archive.
    fn find(
        &mut self,
        repository: &Repository,
        wanted: &Descriptor,
        is_root: bool,
    ) -> Result<Option<OpenManifest>, OpsError> {
        let digest = wanted.digest;
        let is_manifest_type = wanted.media_type.as_ref().is_some_and(|it| it.kind().is_some());
        let Some(body) = self.document(repository, &digest)? else {
            // Some build caches are indexes of blobs.
            let upstream = &repository.upstream;
            let size = if is_manifest_type { None } else { self.importer.blob_size(upstream, &digest)? };
            return match size {
                Some(size) => check_size(wanted, size).map(|()| None),
                // A child may be left out on purpose. The report lists what is missing.
                None if !is_root => Ok(None),
                None => Err(OpsError::Content(format!(
                    "index.json in the archive lists {digest}, which is not in the archive"
                ))),
            };
        };
        check_size(wanted, body.len() as u64)?;
        let media_type = wanted.media_type.as_ref().map(MediaType::as_str);
        match Manifest::read(&body, media_type) {
            Ok(read) => Ok(Some(OpenManifest { digest, read, body })),
            Err(_) if !is_manifest_type && !is_root => {
                self.importer.blob(&digest, body.len() as u64, &mut &*body)?;
                Ok(None)
            }
            Err(reason) => Err(ImportError::Document { digest: digest.into(), reason }.into()),
        }
    }

    /// Stores a manifest, after its blobs. Its children are stored already.
    fn store_manifest(&mut self, repository: &Repository, manifest: OpenManifest) -> Result<(), OpsError> {
        let OpenManifest { digest, read, body } = manifest;
        for blob in read.blobs.iter().filter(|blob| !blob.foreign) {
            self.store_blob(repository, &digest, blob)?;
        }
        self.importer.manifest(repository, &digest, &read, body)?;
        Ok(())
    }

    /// Returns a document that was received, or is stored and was delivered by the upstream of the repository.
    fn document(&self, repository: &Repository, digest: &Digest) -> Result<Option<Bytes>, OpsError> {
        if let Some(body) = self.spool.get(digest).map_err(|error| spool_failed(&error))? {
            return Ok(Some(body));
        }
        Ok(self.importer.stored_manifest(&repository.upstream, digest)?.map(|stored| stored.body))
    }

    /// Stores a blob that is still in the spool, and checks that the blob exists.
    fn store_blob(
        &mut self,
        repository: &Repository,
        manifest: &Digest,
        wanted: &Descriptor,
    ) -> Result<(), OpsError> {
        let digest = &wanted.digest;
        if let Some(body) = self.spool.get(digest).map_err(|error| spool_failed(&error))? {
            self.importer.blob(digest, body.len() as u64, &mut &*body)?;
        }
        match self.importer.blob_size(&repository.upstream, digest)? {
            Some(size) => check_size(wanted, size),
            // A layer that was left out by mistake looks the same as a truncated archive.
            None => Err(OpsError::Content(format!(
                "the archive lacks {digest}, which its manifest {manifest} needs, and the content is not cached"
            ))),
        }
    }
}

/// Compares a length with the one in a descriptor.
fn check_size(wanted: &Descriptor, size: u64) -> Result<(), OpsError> {
    match wanted.size {
        Some(stated) if stated != size => Err(OpsError::Content(format!(
            "{} has {size} bytes in the archive, but its descriptor states {stated}",
            wanted.digest
        ))),
        _ => Ok(()),
    }
}
