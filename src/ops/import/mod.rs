//! `import`: stores the images of an OCI layout in a tar, as if they had been pulled.
//!
//! The tar is read once, as a stream. A blob is stored as soon as it is verified, without a link to a repository. A
//! document that may be a manifest waits in a temporary file until `index.json` is known. Then manifests are stored,
//! each after its content, and tags last. No path of the archive is used as a path on disk.

mod images;
mod names;
mod spool;

use std::collections::HashMap;
use std::io::Read as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cache::{Cache, CacheView, Importer};
use crate::layout::{
    ArchiveError, ChannelReader, DOCKER_FILE, EntryKind, INDEX_FILE, INDEX_MAX, MANIFEST_MAX, MARKER_FILE,
    TarEntry, TarReader, digest_of_path,
};
use crate::oci::{Digest, Repository};
use crate::store::StoreError;

use self::images::{Images, StoredImage};
use self::names::ImportTarget;
use self::spool::{Spool, spool_failed};
use super::completeness::MissingPart;
use super::image_tree::{ContentPart, ImageTree};
use super::operations::Operations;
use super::protocol::{ImportRequest, OpsError};
use super::reference;

/// Largest marker file in bytes.
const MARKER_MAX: u64 = 4096;

/// Result for one image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Imported)]
pub struct ImportedImage {
    /// Complete reference.
    pub reference: String,
    /// Digest of the image.
    pub digest: Digest,
    /// Media type of the image.
    pub media_type: Option<String>,
    /// Platforms with all content in the cache.
    pub platforms: Vec<String>,
    /// True if all content is in the cache.
    pub complete: bool,
    /// Cached manifests, indexes included.
    pub manifests: u64,
    /// Cached blobs.
    pub blobs: u64,
    /// Bytes of these manifests and blobs.
    pub bytes: u64,
    /// Content that is neither in the archive nor in the cache.
    pub missing: Vec<MissingPart>,
}

/// Result of an import.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Import)]
pub struct ImportReport {
    /// True if all content of all images is in the cache.
    pub complete: bool,
    /// Blobs that were not in the cache before.
    pub new_blobs: u64,
    /// Bytes of these blobs.
    pub new_bytes: u64,
    /// One result for each image, in the order of `index.json`.
    pub images: Vec<ImportedImage>,
}

/// Imports the archive that `archive` reads.
pub async fn import(
    operations: &Operations,
    request: ImportRequest,
    archive: ChannelReader,
) -> Result<ImportReport, OpsError> {
    let cache = operations.cache();
    let into =
        request.repository.as_deref().map(|name| reference::repository_foreign(cache, name)).transpose()?;
    let (owned, folder) = (cache.clone(), operations.config().store.path.clone());
    // A task of its own, so that the import finishes even if the client disconnects.
    let import = tokio::task::spawn_blocking(move || import_archive(&owned, into.as_ref(), &folder, archive));
    let (stored, new) = match import.await {
        Ok(result) => result?,
        Err(_) => return Err(OpsError::Cache(StoreError::Panicked.into())),
    };
    let images = cache.view(move |view| stored.iter().map(|image| row(&view, image)).collect()).await?;
    let images: Vec<ImportedImage> = images;
    for image in &images {
        tracing::info!(reference = image.reference, digest = %image.digest, complete = image.complete, "imported");
    }
    let complete = images.iter().all(|image| image.complete);
    Ok(ImportReport { complete, new_blobs: new.0, new_bytes: new.1, images })
}

/// State of an import while the archive is read.
struct ArchiveImport<'a> {
    cache: &'a Cache,
    into: Option<&'a Repository>,
    archive: TarReader,
    importer: Importer,
    spool: Spool,
    index: Option<Vec<ImportTarget>>,
    /// True if the archive has the file of docker before version 25.
    docker: bool,
}

/// Reads the archive and stores its images. Returns them with the number and bytes of new blobs. Blocks.
fn import_archive(
    cache: &Cache,
    into: Option<&Repository>,
    folder: &Path,
    archive: ChannelReader,
) -> Result<(Vec<StoredImage>, (u64, u64)), OpsError> {
    let importer = cache.importer()?;
    let spool = Spool::in_folder(folder).map_err(|error| {
        OpsError::Content(format!("cannot create a temporary file in {}: {error}", folder.display()))
    })?;
    let archive = TarReader::open(archive)?;
    let mut reading = ArchiveImport { cache, into, archive, importer, spool, index: None, docker: false };
    while let Some(entry) = reading.archive.entry()? {
        reading.entry(&entry)?;
    }
    let ArchiveImport { mut importer, spool, index, docker, .. } = reading;
    let Some(index) = index else {
        return Err(OpsError::Content(if docker {
            "the archive was written by docker before version 25 and has no OCI layout; convert it with \
             `skopeo copy docker-archive:FILE oci-archive:NEW.tar:NAME:TAG`, or save it with docker 25 or newer"
                .to_owned()
        } else {
            "the archive has no OCI layout: there is no index.json at its top level".to_owned()
        }));
    };
    let mut images = Images { importer: &mut importer, spool: &spool };
    let mut stored = Vec::new();
    for target in index {
        stored.push(images.import(target)?);
    }
    let new = importer.added();
    Ok((stored, new))
}

impl ArchiveImport<'_> {
    fn entry(&mut self, entry: &TarEntry) -> Result<(), OpsError> {
        let content = digest_of_path(&entry.path);
        if content.is_none() && ![INDEX_FILE, MARKER_FILE, DOCKER_FILE].contains(&&*entry.path) {
            // Other files are ignored.
            return Ok(());
        }
        if entry.kind != EntryKind::File {
            return Err(OpsError::Content(format!("`{}` in the archive is not a file", entry.path)));
        }
        match (content, &*entry.path) {
            (Some(digest), _) => self.content(&digest, entry.size),
            (None, INDEX_FILE) => {
                if self.index.is_some() {
                    return Err(OpsError::Content("index.json is in the archive twice".to_owned()));
                }
                let text = self.read_all(entry, INDEX_MAX)?;
                // Names are checked now, so that an archive with a wrong name is refused before its blobs are sent.
                self.index = Some(names::read(self.cache, self.into, &text)?);
                Ok(())
            }
            (None, DOCKER_FILE) => {
                self.docker = true;
                Ok(())
            }
            (None, _) => {
                let text = self.read_all(entry, MARKER_MAX)?;
                let marker: Value = serde_json::from_slice(&text).unwrap_or_default();
                match marker["imageLayoutVersion"].as_str() {
                    Some(version) if version.starts_with("1.") => Ok(()),
                    _ => Err(OpsError::Content(
                        "oci-layout in the archive has an unsupported version of the layout; 1.0.0 is supported".to_owned(),
                    )),
                }
            }
        }
    }

    fn read_all(&mut self, entry: &TarEntry, max: u64) -> Result<Vec<u8>, OpsError> {
        let TarEntry { path, size, .. } = entry;
        if *size > max {
            return Err(OpsError::Content(format!(
                "{path} in the archive has {size} bytes, more than {max}"
            )));
        }
        let mut bytes = Vec::new();
        self.archive.read_to_end(&mut bytes).map_err(ArchiveError::from)?;
        Ok(bytes)
    }

    fn content(&mut self, digest: &Digest, size: u64) -> Result<(), OpsError> {
        // Only what may be a manifest is read as a whole.
        let mut body = vec![0; usize::from(size > 0)];
        self.archive.read_exact(&mut body).map_err(ArchiveError::from)?;
        let is_document = body.iter().all(|first| *first == b'{' || first.is_ascii_whitespace());
        if size > MANIFEST_MAX || !is_document {
            return Ok(self.importer.blob(digest, size, &mut body.as_slice().chain(&mut self.archive))?);
        }
        self.archive.read_to_end(&mut body).map_err(ArchiveError::from)?;
        if !body.trim_ascii_start().starts_with(b"{") {
            return Ok(self.importer.blob(digest, size, &mut &*body)?);
        }
        if Digest::of(digest.algorithm(), &body) != *digest {
            return Err(crate::cache::ImportError::Mismatch((*digest).into()).into());
        }
        self.spool.add(digest, &body).map_err(|error| spool_failed(&error))
    }
}

impl From<ArchiveError> for OpsError {
    fn from(error: ArchiveError) -> Self {
        Self::Content(error.to_string())
    }
}

/// Compares an imported image with the content of the cache.
fn row(view: &CacheView<'_>, image: &StoredImage) -> Result<ImportedImage, StoreError> {
    let StoredImage { repository, tag, digest } = image;
    let reference = match tag {
        Some(tag) => format!("{repository}:{tag}"),
        None => format!("{repository}@{digest}"),
    };
    let mut row = ImportedImage {
        reference,
        digest: *digest,
        media_type: None,
        platforms: Vec::new(),
        complete: false,
        manifests: 0,
        blobs: 0,
        bytes: 0,
        missing: Vec::new(),
    };
    let Some(tree) = ImageTree::below(view, repository, digest)? else { return Ok(row) };
    row.media_type = Some(tree.document.media_type.to_string());
    let complete = tree.images.iter().filter(|image| image.is_image() && image.is_complete());
    row.platforms = complete.filter_map(|image| image.platform.clone()).collect();
    let root = ContentPart {
        digest: *digest,
        size: Some(tree.document.body.len() as u64),
        stated_size: None,
        media_type: row.media_type.clone(),
        cached: true,
        foreign: false,
    };
    let mut parts: HashMap<Digest, (&str, Option<&str>, &ContentPart)> =
        HashMap::from([(*digest, ("manifest", None, &root))]);
    for image in &tree.images {
        let platform = image.platform.as_deref();
        parts.entry(image.manifest.digest).or_insert(("manifest", platform, &image.manifest));
        for blob in image.blobs.iter().filter(|blob| !blob.foreign) {
            parts.entry(blob.digest).or_insert(("blob", platform, blob));
        }
    }
    for index in &tree.indexes {
        parts.entry(index.digest).or_insert(("manifest", None, index));
    }
    for blob in tree.blobs.iter().filter(|blob| !blob.foreign) {
        parts.entry(blob.digest).or_insert(("blob", None, blob));
    }
    for (kind, platform, part) in parts.into_values() {
        // An entry without a media type may be a blob.
        let blob = if part.cached { None } else { view.blob(repository, &part.digest)? };
        if !part.cached && blob.is_none() {
            let (platform, kind) = (platform.map(str::to_owned), kind.to_owned());
            row.missing.push(MissingPart { platform, kind, part: part.clone() });
            continue;
        }
        row.bytes += blob.or(part.size).unwrap_or_default();
        if kind == "manifest" && blob.is_none() { row.manifests += 1 } else { row.blobs += 1 }
    }
    row.missing.sort_by(|a, b| (&a.platform, a.part.digest).cmp(&(&b.platform, b.part.digest)));
    row.complete = row.missing.is_empty();
    Ok(row)
}
