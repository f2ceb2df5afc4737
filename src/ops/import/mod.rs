//! `import`: images from an OCI layout in a tar, as if they had been pulled.
//!
//! The tar is read once, as it comes. Blobs are kept as soon as they verify, for nobody; what may be a manifest waits in a
//! file without a name until `index.json` says what it is. Then come manifests, each after what it points at, and at last
//! tags. Nothing in the archive is ever used as a path.

mod images;
mod names;
mod spool;

use std::collections::HashMap;
use std::io::Read as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cache::{Cache, CacheView, Importer};
use crate::oci::{Digest, Repository, Tag};
use crate::store::StoreError;

use self::images::Images;
use self::names::Wanted;
use self::spool::Spool;
use super::channel_reader::ChannelReader;
use super::check::MissingPart;
use super::image_tree::{ContentPart, ImageTree};
use super::query::{Pairs, target};
use super::tar_reader::{ArchiveError, EntryKind, TarEntry, TarReader};
use super::tar_writer::{self, DOCKER, INDEX, MARKER};
use super::{Operations, OpsError, reference};

/// No manifest is larger.
const DOCUMENT_MAX: u64 = 4 << 20;
/// No index.json is larger.
const INDEX_MAX: u64 = 16 << 20;
/// A longer marker of a layout says something else.
const MARKER_MAX: u64 = 4096;

/// How an archive is to be taken in.
#[derive(Clone, Debug, Default, PartialEq, Eq, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ImportRequest {
    /// The repository that its images go to, whatever they are called in it.
    #[param(rename = "as")]
    pub repository: Option<String>,
}

impl ImportRequest {
    /// Where this is, as a path of the admin API.
    pub const PATH: &str = "/import";

    /// Path and query.
    pub fn target(&self) -> String {
        target(Self::PATH, self.repository.clone().map(|name| ("as", name)).into_iter().collect())
    }

    /// Reads the query that `target` wrote.
    pub fn read(query: &str) -> Result<Self, OpsError> {
        let mut pairs = Pairs::of(query);
        let ask = Self { repository: pairs.one("as")? };
        pairs.end().map(|()| ask)
    }
}

/// What became of one image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Imported)]
pub struct ImportedImage {
    /// The reference, in full.
    pub reference: String,
    /// What it stands for.
    pub digest: Digest,
    /// Its media type.
    pub media_type: Option<String>,
    /// The platforms of which everything is held.
    pub platforms: Vec<String>,
    /// Whether everything of it is held.
    pub complete: bool,
    /// Manifests of it that are held, indexes included.
    pub manifests: u64,
    /// Blobs of it that are held.
    pub blobs: u64,
    /// Bytes of both.
    pub bytes: u64,
    /// What was not in the archive, and is not held either.
    pub missing: Vec<MissingPart>,
}

/// What became of an archive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Import)]
pub struct ImportReport {
    /// Whether everything of all images is held.
    pub complete: bool,
    /// Blobs that were not held before, and their bytes.
    pub new_blobs: u64,
    /// Bytes of them.
    pub new_bytes: u64,
    /// One for each, in the order of the archive's index.
    pub images: Vec<ImportedImage>,
}

/// Takes an archive in, as it is read from `pipe`.
pub async fn import(
    operations: &Operations,
    ask: ImportRequest,
    pipe: ChannelReader,
) -> Result<ImportReport, OpsError> {
    let cache = operations.cache();
    let into =
        ask.repository.as_deref().map(|name| reference::repository_foreign(cache, name)).transpose()?;
    let (owned, folder) = (cache.clone(), operations.config().store.path.clone());
    // A task of the runtime's own: what has come in is put right whatever becomes of who asked.
    let taking = tokio::task::spawn_blocking(move || take(&owned, into.as_ref(), &folder, pipe));
    let (taken, new) = match taking.await {
        Ok(taken) => taken?,
        Err(_) => return Err(OpsError::Cache(StoreError::GaveUp.into())),
    };
    let images = cache.view(move |held| taken.iter().map(|taken| row(&held, taken)).collect()).await?;
    let images: Vec<ImportedImage> = images;
    for image in &images {
        tracing::info!(reference = image.reference, digest = %image.digest, complete = image.complete, "imported");
    }
    let complete = images.iter().all(|image| image.complete);
    Ok(ImportReport { complete, new_blobs: new.0, new_bytes: new.1, images })
}

/// Something that came in.
#[derive(Clone, Debug)]
struct Taken {
    repository: Repository,
    tag: Option<Tag>,
    digest: Digest,
}

/// An archive while it is read.
struct Reading<'a> {
    cache: &'a Cache,
    into: Option<&'a Repository>,
    archive: TarReader,
    importer: Importer,
    spool: Spool,
    index: Option<Vec<Wanted>>,
    /// Whether it has what docker's older versions write.
    docker: bool,
}

fn take(
    cache: &Cache,
    into: Option<&Repository>,
    folder: &Path,
    pipe: ChannelReader,
) -> Result<(Vec<Taken>, (u64, u64)), OpsError> {
    let importer = cache.importer()?;
    let spool = Spool::in_folder(folder).map_err(|error| {
        OpsError::Content(format!("a file for manifests cannot be made in {}: {error}", folder.display()))
    })?;
    let archive = TarReader::open(pipe)?;
    let mut reading = Reading { cache, into, archive, importer, spool, index: None, docker: false };
    while let Some(entry) = reading.archive.entry()? {
        reading.entry(&entry)?;
    }
    let Reading { mut importer, spool, index, docker, .. } = reading;
    let Some(index) = index else {
        return Err(OpsError::Content(if docker {
            "the archive is one of an older `docker save`, which has no OCI layout in it; make one with \
             `skopeo copy docker-archive:FILE oci-archive:NEW.tar:NAME:TAG`, or save it with docker 25 or newer"
                .to_owned()
        } else {
            "the archive holds no OCI layout: there is no index.json at its top".to_owned()
        }));
    };
    let mut images = Images { importer: &mut importer, spool: &spool };
    let mut taken = Vec::new();
    for wanted in index {
        taken.push(images.take(wanted)?);
    }
    let new = importer.added();
    Ok((taken, new))
}

impl Reading<'_> {
    fn entry(&mut self, entry: &TarEntry) -> Result<(), OpsError> {
        let content = tar_writer::digest_at(&entry.path);
        if content.is_none() && ![INDEX, MARKER.0, DOCKER].contains(&&*entry.path) {
            // Whatever else somebody put into it is never looked at.
            return Ok(());
        }
        if entry.kind != EntryKind::File {
            return Err(OpsError::Content(format!("`{}` in the archive is no file", entry.path)));
        }
        match (content, &*entry.path) {
            (Some(digest), _) => self.content(&digest, entry.size),
            (None, INDEX) => {
                if self.index.is_some() {
                    return Err(OpsError::Content("index.json stands in the archive twice".to_owned()));
                }
                let text = self.whole(entry, INDEX_MAX)?;
                // Names are judged here, so that what would be refused is not sent in vain.
                self.index = Some(names::read(self.cache, self.into, &text)?);
                Ok(())
            }
            (None, DOCKER) => {
                self.docker = true;
                Ok(())
            }
            (None, _) => {
                let text = self.whole(entry, MARKER_MAX)?;
                let marker: Value = serde_json::from_slice(&text).unwrap_or_default();
                match marker["imageLayoutVersion"].as_str() {
                    Some(version) if version.starts_with("1.") => Ok(()),
                    _ => Err(OpsError::Content(
                        "oci-layout in the archive names no version of the layout that is known here; 1.0.0 is".to_owned(),
                    )),
                }
            }
        }
    }

    fn whole(&mut self, entry: &TarEntry, most: u64) -> Result<Vec<u8>, OpsError> {
        let TarEntry { path, size, .. } = entry;
        if *size > most {
            return Err(OpsError::Content(format!(
                "{path} in the archive has {size} bytes; {most} are the most"
            )));
        }
        let mut bytes = Vec::new();
        self.archive.read_to_end(&mut bytes).map_err(ArchiveError::from)?;
        Ok(bytes)
    }

    fn content(&mut self, digest: &Digest, size: u64) -> Result<(), OpsError> {
        if size > DOCUMENT_MAX {
            return Ok(self.importer.blob(digest, size, &mut self.archive)?);
        }
        let mut body = Vec::new();
        self.archive.read_to_end(&mut body).map_err(ArchiveError::from)?;
        if !body.trim_ascii_start().starts_with(b"{") {
            return Ok(self.importer.blob(digest, size, &mut &*body)?);
        }
        if Digest::of(digest.algorithm(), &body) != *digest {
            return Err(crate::cache::ImportError::Mismatch((*digest).into()).into());
        }
        self.spool.keep(digest, &body).map_err(|error| spoiled(&error))
    }
}

fn spoiled(error: &std::io::Error) -> OpsError {
    OpsError::Content(format!("the file for manifests in the store's folder cannot be used: {error}"))
}

impl From<ArchiveError> for OpsError {
    fn from(error: ArchiveError) -> Self {
        Self::Content(error.to_string())
    }
}

/// What is held of something that came in.
fn row(held: &CacheView<'_>, taken: &Taken) -> Result<ImportedImage, StoreError> {
    let Taken { repository, tag, digest } = taken;
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
    let Some(tree) = ImageTree::below(held, repository, digest)? else { return Ok(row) };
    row.media_type = Some(tree.document.media_type.to_string());
    let whole = tree.images.iter().filter(|image| image.is_image() && image.is_complete());
    row.platforms = whole.filter_map(|image| image.platform.clone()).collect();
    let root = ContentPart {
        digest: *digest,
        size: Some(tree.document.body.len() as u64),
        media_type: row.media_type.clone(),
        held: true,
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
    for (kind, platform, part) in parts.into_values() {
        // Some caches of builders are indexes of blobs.
        let blob = if part.held { None } else { held.blob(repository, &part.digest)? };
        if !part.held && blob.is_none() {
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
