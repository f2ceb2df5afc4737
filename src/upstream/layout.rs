//! An OCI image layout folder in the place of a registry (image-spec, image-layout.md).
//!
//! Tools name a descriptor by a bare tag, by `repository:tag` or by a whole reference. A bare tag says nothing of its
//! repository, so it counts only in a folder that is one repository's own, `ROOT/NAME`; in a layout at the root, which
//! all repositories share, it would put any image under any name.
//!
//! Paths are made of parsed names and digests only. Files are read off the async threads, blobs piece by piece.

mod lists;

use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use oci_spec::image::{Descriptor, ImageIndex};

use super::error::UpstreamError;
use super::{Document, Head, MANIFEST_MAX};
use crate::oci::{Digest, Name, Reference, Tag, UpstreamName};
use crate::telemetry::Metrics;

/// Bytes of a blob read at once.
const CHUNK: u64 = 256 * 1024;
/// No index.json is larger.
const INDEX_MAX: u64 = 16 * 1024 * 1024;
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const IMAGE_NAME: &str = "io.containerd.image.name";
/// The one registry whose official images go by a shorter name.
const DOCKER_HUB: &str = "docker.io";

/// A folder of images.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    upstream: UpstreamName,
    root: PathBuf,
    metrics: Arc<Metrics>,
}

/// An opened blob or manifest.
struct Found {
    file: File,
    path: PathBuf,
    size: u64,
    digest: Digest,
    content_type: Option<String>,
}

impl Layout {
    pub(crate) fn new(upstream: UpstreamName, root: PathBuf, metrics: Arc<Metrics>) -> Self {
        Self { upstream, root, metrics }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) async fn head_manifest(
        &self,
        name: &Name,
        reference: &Reference,
    ) -> Result<Head, UpstreamError> {
        let (name, reference) = (name.clone(), reference.clone());
        let found = self.run("HEAD", move |layout| layout.find(&name, &reference)).await?;
        Ok(Head { digest: Some(found.digest), size: Some(found.size), content_type: found.content_type })
    }

    pub(crate) async fn get_manifest(
        &self,
        name: &Name,
        reference: &Reference,
    ) -> Result<Document, UpstreamError> {
        let (name, reference) = (name.clone(), reference.clone());
        self.run("GET", move |layout| {
            let mut found = layout.find(&name, &reference)?;
            if found.size > MANIFEST_MAX as u64 {
                return Err(UpstreamError::Invalid(format!(
                    "the manifest is larger than {MANIFEST_MAX} bytes"
                )));
            }
            let mut body = Vec::new();
            // The file may have grown since it was measured.
            let limit = MANIFEST_MAX as u64;
            (&mut found.file)
                .take(limit)
                .read_to_end(&mut body)
                .map_err(|error| local(&found.path, &error))?;
            layout.metrics.fetched(layout.upstream.as_str(), "manifest", body.len() as u64);
            Ok(Document { body: body.into(), content_type: found.content_type, digest: Some(found.digest) })
        })
        .await
    }

    pub(crate) async fn head_blob(&self, name: &Name, digest: &Digest) -> Result<u64, UpstreamError> {
        let (name, digest) = (name.clone(), *digest);
        self.run("HEAD", move |layout| Ok(open(&layout.folder(&name)?.path, digest, None)?.size)).await
    }

    /// The blob's length, and its bytes between `from` and `to`.
    pub(crate) async fn get_blob(
        &self,
        name: &Name,
        digest: &Digest,
        from: u64,
        to: Option<u64>,
    ) -> Result<(u64, Body), UpstreamError> {
        let (name, digest) = (name.clone(), *digest);
        self.run("GET", move |layout| {
            let found = open(&layout.folder(&name)?.path, digest, None)?;
            let ranged = from > 0 || to.is_some();
            if ranged && (from >= found.size || to.is_some_and(|to| to < from)) {
                return Err(UpstreamError::RangeNotSatisfiable);
            }
            let end = to.map_or(found.size, |to| to.saturating_add(1).min(found.size));
            let (upstream, metrics) = (layout.upstream.clone(), Arc::clone(&layout.metrics));
            let (file, path) = (Arc::new(found.file), found.path.into());
            Ok((found.size, Body { file, path, at: from, end, upstream, metrics }))
        })
        .await
    }

    /// Runs `work` where it may block, and counts it like a request.
    async fn run<T: Send + 'static>(
        &self,
        method: &'static str,
        work: impl FnOnce(&Self) -> Result<T, UpstreamError> + Send + 'static,
    ) -> Result<T, UpstreamError> {
        let layout = self.clone();
        let started = Instant::now();
        let result = blocking(move || work(&layout)).await;
        let status = match &result {
            Ok(_) => Some(200),
            Err(UpstreamError::NotFound | UpstreamError::NoReferrers { .. }) => Some(404),
            Err(UpstreamError::RangeNotSatisfiable) => Some(416),
            Err(_) => None,
        };
        let took = started.elapsed();
        self.metrics.upstream_request(self.upstream.as_str(), method, status, took);
        tracing::debug!(
            upstream = %self.upstream,
            method,
            status,
            error = result.as_ref().err().map(tracing::field::display),
            ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            "looked into the layout"
        );
        result
    }

    /// The layout that a repository is in: its own folder below the root, or the root.
    fn folder(&self, name: &Name) -> Result<Folder, UpstreamError> {
        if !self.root.is_dir() {
            tracing::warn!(upstream = %self.upstream, folder = %self.root.display(), "the layout's folder is not there");
            return Err(UpstreamError::Unreachable("its folder is not there; the log says which".to_owned()));
        }
        let path = self.root.join(name.as_str());
        let own = path.join("index.json").is_file();
        Ok(Folder { path: if own { path } else { self.root.clone() }, own })
    }

    fn find(&self, name: &Name, reference: &Reference) -> Result<Found, UpstreamError> {
        let folder = self.folder(name)?;
        let index = read_index(&folder.path.join("index.json"))?;
        let descriptors = index.as_ref().map_or(&[][..], |index| index.manifests().as_slice());
        match reference {
            Reference::Tag(tag) => {
                let mut descriptor = descriptors.iter().find(|it| self.is_named(it, name, tag));
                if folder.own && descriptor.is_none() {
                    descriptor = descriptors.iter().find(|it| annotation(it, REF_NAME) == Some(tag.as_str()));
                }
                let descriptor = descriptor.ok_or(UpstreamError::NotFound)?;
                let digest = descriptor.digest().to_string().parse().map_err(|error| {
                    UpstreamError::Invalid(format!(
                        "index.json names a digest for {name}:{tag} that is none: {error}"
                    ))
                })?;
                open(&folder.path, digest, Some(descriptor))
            }
            Reference::Digest(digest) => {
                let text = digest.to_string();
                let descriptor = descriptors.iter().find(|it| it.digest().to_string() == text);
                open(&folder.path, *digest, descriptor)
            }
        }
    }

    /// Whether a descriptor bears the name of just this repository, with the tag.
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
            // containerd's is always a whole reference.
            || annotation(descriptor, IMAGE_NAME).is_some_and(|text| *text == format!("{}/{name}:{tag}", self.upstream))
    }
}

/// Where a repository's layout is.
struct Folder {
    path: PathBuf,
    /// Whether it is that repository's alone.
    own: bool,
}

fn annotation<'d>(descriptor: &'d Descriptor, key: &str) -> Option<&'d str> {
    descriptor.annotations().as_ref()?.get(key).map(String::as_str)
}

fn open(folder: &Path, digest: Digest, descriptor: Option<&Descriptor>) -> Result<Found, UpstreamError> {
    let path = folder.join("blobs").join(digest.algorithm().as_str()).join(digest.hex());
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Err(UpstreamError::NotFound);
        }
        Err(error) => return Err(local(&path, &error)),
    };
    let metadata = file.metadata().map_err(|error| local(&path, &error))?;
    if !metadata.is_file() {
        return Err(UpstreamError::NotFound);
    }
    let content_type = descriptor.map(|descriptor| descriptor.media_type().to_string());
    Ok(Found { file, path, size: metadata.len(), digest, content_type })
}

fn read_index(path: &Path) -> Result<Option<ImageIndex>, UpstreamError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(local(path, &error)),
    };
    let mut text = Vec::new();
    file.take(INDEX_MAX + 1).read_to_end(&mut text).map_err(|error| local(path, &error))?;
    if text.len() as u64 > INDEX_MAX {
        return Err(UpstreamError::Invalid(format!("its index.json is larger than {INDEX_MAX} bytes")));
    }
    serde_json::from_slice(&text).map(Some).map_err(|error| {
        tracing::warn!(path = %path.display(), %error, "an index.json is no image index");
        UpstreamError::Invalid("its index.json is no image index".to_owned())
    })
}

/// Where things are on this machine, and what is wrong with them there, is for the log.
fn local(path: &Path, error: &io::Error) -> UpstreamError {
    tracing::warn!(path = %path.display(), %error, "a file of the layout cannot be read");
    UpstreamError::Local("a file of its layout cannot be read; the log says which".to_owned())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, UpstreamError> + Send + 'static,
) -> Result<T, UpstreamError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => {
            tracing::warn!(%error, "reading the layout was given up");
            Err(UpstreamError::Local("reading its layout was given up".to_owned()))
        }
    }
}

/// The bytes of a blob in a file. Each piece is read at its own position, so that giving up on one loses nothing.
#[derive(Debug)]
pub(crate) struct Body {
    file: Arc<File>,
    path: Arc<Path>,
    at: u64,
    end: u64,
    upstream: UpstreamName,
    metrics: Arc<Metrics>,
}

impl Body {
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        let left = self.end.saturating_sub(self.at);
        if left == 0 {
            return Ok(None);
        }
        let (file, path, at) = (Arc::clone(&self.file), Arc::clone(&self.path), self.at);
        let size = usize::try_from(left.min(CHUNK)).unwrap_or(usize::MAX);
        let chunk = blocking(move || {
            let mut chunk = vec![0; size];
            let read = file.read_at(&mut chunk, at).map_err(|error| local(&path, &error))?;
            chunk.truncate(read);
            Ok(chunk)
        })
        .await?;
        if chunk.is_empty() {
            return Err(UpstreamError::Interrupted("the file became shorter".to_owned()));
        }
        self.at += chunk.len() as u64;
        self.metrics.fetched(self.upstream.as_str(), "blob", chunk.len() as u64);
        Ok(Some(chunk.into()))
    }
}
