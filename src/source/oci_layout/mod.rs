//! OCI image layout on disk as a source (image-spec, image-layout.md).
//!
//! Tools name a descriptor by a bare tag, by `repository:tag` or by a whole reference. A bare tag does not name a
//! repository, so it counts only in the folder of a single repository, `ROOT/NAME`. In a layout at the root, which all
//! repositories share, a bare tag would put any image under any name.
//!
//! Paths consist of parsed names and digests only. Files are read off the async threads, blobs chunk by chunk.

mod lists;

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant as StdInstant;

use async_trait::async_trait;
use bytes::Bytes;
use oci_spec::image::Descriptor;
use tokio::time::Instant;

use super::content::{BlobBody, ByteRange, Chunks, MANIFEST_MAX, ManifestHead, UnverifiedManifest};
use super::contract::Source;
use super::document_budget::Counted;
use super::error::SourceError;
use crate::clock;
use crate::layout::{IMAGE_NAME, INDEX_MAX, LayoutFile, LayoutReadError, LayoutReader};
use crate::oci::{Digest, Name, Reference, Referrers, Tag, UpstreamName};
use crate::telemetry::Metrics;

/// Bytes of a blob that are read at once.
const CHUNK: u64 = 256 * 1024;
/// Annotation with the tag or reference of an image (image-spec, annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Registry whose official images have a shorter name.
const DOCKER_HUB: &str = "docker.io";

/// Folder with one OCI image layout, or with one for each repository.
#[derive(Clone, Debug)]
pub struct OciLayout {
    upstream: UpstreamName,
    root: PathBuf,
    metrics: Arc<Metrics>,
    /// Largest manifest in bytes.
    manifest_max: u64,
}

/// Opened blob or manifest.
struct OpenedFile {
    file: File,
    path: PathBuf,
    size: u64,
    digest: Digest,
    content_type: Option<String>,
}

#[async_trait]
impl Source for OciLayout {
    async fn head(
        &self,
        name: &Name,
        reference: &Reference,
        _accept: &str,
        _deadline: Option<Instant>,
    ) -> Result<Option<ManifestHead>, SourceError> {
        let (name, reference) = (name.clone(), reference.clone());
        let found = self.run("HEAD", move |layout| layout.find(&name, &reference)).await?;
        Ok(Some(ManifestHead {
            digest: Some(found.digest),
            size: Some(found.size),
            content_type: found.content_type,
        }))
    }

    async fn manifest(
        &self,
        name: &Name,
        reference: &Reference,
        _accept: &str,
        _deadline: Option<Instant>,
    ) -> Result<UnverifiedManifest, SourceError> {
        let (name, reference) = (name.clone(), reference.clone());
        self.run("GET", move |layout| layout.read_manifest(&name, &reference)).await
    }

    async fn blob_size(
        &self,
        name: &Name,
        digest: &Digest,
        _deadline: Option<Instant>,
    ) -> Result<Option<u64>, SourceError> {
        let (name, digest) = (name.clone(), *digest);
        self.run("HEAD", move |layout| Ok(Some(open(&layout.folder(&name)?.layout, digest, None)?.size)))
            .await
    }

    async fn blob(
        &self,
        name: &Name,
        digest: &Digest,
        range: ByteRange,
        _deadline: Option<Instant>,
    ) -> Result<BlobBody, SourceError> {
        let (name, digest) = (name.clone(), *digest);
        self.run("GET", move |layout| {
            let found = open(&layout.folder(&name)?.layout, digest, None)?;
            let is_reversed = range.last.is_some_and(|last| last < range.first);
            if !range.is_all() && (range.first >= found.size || is_reversed) {
                return Err(SourceError::RangeNotSatisfiable);
            }
            let end = range.last.map_or(found.size, |last| last.saturating_add(1).min(found.size));
            let chunks = FileChunks {
                file: Arc::new(found.file),
                path: found.path.into(),
                next: range.first,
                end,
                upstream: layout.upstream.clone(),
                metrics: Arc::clone(&layout.metrics),
            };
            Ok(BlobBody::new(range.first, Some(found.size), chunks))
        })
        .await
    }

    async fn tags(&self, name: &Name, _deadline: Option<Instant>) -> Result<Vec<Tag>, SourceError> {
        let name = name.clone();
        self.run("GET", move |layout| layout.read_tags(&name)).await
    }

    async fn referrers(
        &self,
        name: &Name,
        subject: &Digest,
        _deadline: Option<Instant>,
    ) -> Result<Counted<Referrers>, SourceError> {
        let (name, subject) = (name.clone(), *subject);
        let list = self.run("GET", move |layout| layout.read_referrers(&name, &subject)).await?;
        Ok(Counted::new(list, None))
    }
}

impl OciLayout {
    /// Creates a source over the folder `root` that replaces the registry `upstream`. Does not open the folder.
    pub fn new(upstream: UpstreamName, root: PathBuf, metrics: Arc<Metrics>) -> Self {
        Self { upstream, root, metrics, manifest_max: MANIFEST_MAX as u64 }
    }

    /// Returns the source with another limit on the size of a manifest.
    #[must_use]
    pub fn with_manifest_max(self, manifest_max: u64) -> Self {
        Self { manifest_max, ..self }
    }

    /// Returns the folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn read_manifest(&self, name: &Name, reference: &Reference) -> Result<UnverifiedManifest, SourceError> {
        let mut found = self.find(name, reference)?;
        let limit = self.manifest_max;
        if found.size > limit {
            return Err(SourceError::Invalid(format!("the manifest is larger than {limit} bytes")));
        }
        let mut body = Vec::new();
        // The file may have grown since its size was read.
        let read = (&mut found.file).take(limit).read_to_end(&mut body);
        read.map_err(|error| unreadable(&found.path, &error))?;
        self.metrics.fetched(self.upstream.as_str(), "manifest", body.len() as u64);
        Ok(UnverifiedManifest {
            body: body.into(),
            content_type: found.content_type,
            digest: Some(found.digest),
            memory: None,
        })
    }

    /// Runs `work` on a thread that may block, and counts it like a request.
    async fn run<T: Send + 'static>(
        &self,
        method: &'static str,
        work: impl FnOnce(&Self) -> Result<T, SourceError> + Send + 'static,
    ) -> Result<T, SourceError> {
        let layout = self.clone();
        let started = StdInstant::now();
        let result = blocking(move || work(&layout)).await;
        let status = match &result {
            Ok(_) => Some(200),
            Err(SourceError::NotFound | SourceError::NoReferrers { .. }) => Some(404),
            Err(SourceError::RangeNotSatisfiable) => Some(416),
            Err(_) => None,
        };
        let took = started.elapsed();
        self.metrics.upstream_request(self.upstream.as_str(), method, status, took);
        tracing::debug!(
            upstream = %self.upstream,
            method,
            status,
            error = result.as_ref().err().map(tracing::field::display),
            ms = clock::millis(took),
            "read the image layout"
        );
        result
    }

    /// Returns the folder of a repository: its own one below the root, or the root.
    fn folder(&self, name: &Name) -> Result<RepositoryFolder, SourceError> {
        if !self.root.is_dir() {
            tracing::warn!(upstream = %self.upstream, folder = %self.root.display(), "the folder of the image layout does not exist");
            return Err(SourceError::Unreachable("its folder does not exist; see the log".to_owned()));
        }
        let layout = LayoutReader::new(self.root.join(name.as_str()));
        let own = layout.exists();
        Ok(RepositoryFolder { layout: if own { layout } else { LayoutReader::new(&self.root) }, own })
    }

    /// Opens the manifest that a reference names.
    fn find(&self, name: &Name, reference: &Reference) -> Result<OpenedFile, SourceError> {
        let folder = self.folder(name)?;
        let index = folder.layout.index()?;
        let descriptors = index.as_ref().map_or(&[][..], |index| index.manifests().as_slice());
        match reference {
            Reference::Tag(tag) => {
                let mut descriptor = descriptors.iter().find(|it| self.is_named(it, name, tag));
                if folder.own && descriptor.is_none() {
                    descriptor = descriptors.iter().find(|it| annotation(it, REF_NAME) == Some(tag.as_str()));
                }
                let descriptor = descriptor.ok_or(SourceError::NotFound)?;
                let digest = descriptor.digest().to_string().parse().map_err(|error| {
                    SourceError::Invalid(format!(
                        "index.json has an invalid digest for {name}:{tag}: {error}"
                    ))
                })?;
                open(&folder.layout, digest, Some(descriptor))
            }
            Reference::Digest(digest) => {
                let text = digest.to_string();
                let descriptor = descriptors.iter().find(|it| it.digest().to_string() == text);
                open(&folder.layout, *digest, descriptor)
            }
        }
    }

    /// Returns true if a descriptor is annotated with the name of this repository and the tag.
    fn is_named(&self, descriptor: &Descriptor, name: &Name, tag: &Tag) -> bool {
        let is = |text: &str| {
            let text =
                text.strip_prefix(self.upstream.as_str()).and_then(|it| it.strip_prefix('/')).unwrap_or(text);
            let Some((found, found_tag)) = text.rsplit_once(':') else { return false };
            let official = || {
                self.upstream.as_str() == DOCKER_HUB && name.as_str().strip_prefix("library/") == Some(found)
            };
            found_tag == tag.as_str() && (found == name.as_str() || official())
        };
        annotation(descriptor, REF_NAME).is_some_and(is)
            // containerd always writes a whole reference.
            || annotation(descriptor, IMAGE_NAME).is_some_and(|text| *text == format!("{}/{name}:{tag}", self.upstream))
    }
}

/// Folder of the layout that contains a repository.
struct RepositoryFolder {
    layout: LayoutReader,
    /// True if the layout contains this repository only.
    own: bool,
}

fn annotation<'d>(descriptor: &'d Descriptor, key: &str) -> Option<&'d str> {
    descriptor.annotations().as_ref()?.get(key).map(String::as_str)
}

fn open(
    layout: &LayoutReader,
    digest: Digest,
    descriptor: Option<&Descriptor>,
) -> Result<OpenedFile, SourceError> {
    let LayoutFile { file, path, size } = layout.open(&digest)?.ok_or(SourceError::NotFound)?;
    let content_type = descriptor.map(|descriptor| descriptor.media_type().to_string());
    Ok(OpenedFile { file, path, size, digest, content_type })
}

/// Logs the error, and returns one without the path, which clients must not see.
impl From<LayoutReadError> for SourceError {
    fn from(error: LayoutReadError) -> Self {
        match error {
            LayoutReadError::Read { path, source } => unreadable(&path, &source),
            LayoutReadError::TooLarge(_) => {
                Self::Invalid(format!("its index.json is larger than {INDEX_MAX} bytes"))
            }
            LayoutReadError::Index { path, source } => {
                tracing::warn!(path = %path.display(), error = %source, "index.json is no valid image index");
                Self::Invalid("its index.json is no valid image index".to_owned())
            }
        }
    }
}

/// Logs why a file cannot be read, and returns an error without the path, which clients must not see.
fn unreadable(path: &Path, error: &io::Error) -> SourceError {
    tracing::warn!(path = %path.display(), %error, "a file of the image layout cannot be read");
    SourceError::Local("a file of its layout cannot be read; see the log".to_owned())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => {
            tracing::warn!(%error, "reading the image layout was aborted");
            Err(SourceError::Local("reading its layout was aborted".to_owned()))
        }
    }
}

/// Chunks of a blob in a file. Each is read at its own offset, so that a cancelled read loses no bytes.
#[derive(Debug)]
struct FileChunks {
    file: Arc<File>,
    path: Arc<Path>,
    /// Offset of the next chunk.
    next: u64,
    /// Offset after the last byte.
    end: u64,
    upstream: UpstreamName,
    metrics: Arc<Metrics>,
}

#[async_trait]
impl Chunks for FileChunks {
    async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        let left = self.end.saturating_sub(self.next);
        if left == 0 {
            return Ok(None);
        }
        let (file, path, offset) = (Arc::clone(&self.file), Arc::clone(&self.path), self.next);
        let size = usize::try_from(left.min(CHUNK)).unwrap_or(usize::MAX);
        let chunk = blocking(move || {
            let mut chunk = vec![0; size];
            let read = file.read_at(&mut chunk, offset).map_err(|error| unreadable(&path, &error))?;
            chunk.truncate(read);
            Ok(chunk)
        })
        .await?;
        if chunk.is_empty() {
            return Err(SourceError::Interrupted("the file became shorter".to_owned()));
        }
        self.next += chunk.len() as u64;
        self.metrics.fetched(self.upstream.as_str(), "blob", chunk.len() as u64);
        Ok(Some(chunk.into()))
    }
}
