//! Content as sources send it, unverified, and its limits.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::document_budget::DocumentMemory;
use super::error::SourceError;
use super::gunzip::Gunzip;
use crate::oci::{Digest, manifest};

/// Default of the largest manifest in bytes: the limit of containerd. Several clients refuse more than 4 MiB.
pub const MANIFEST_MAX: usize = manifest::SIZE_DEFAULT as usize;

/// Largest list of tags or referrers in bytes, all pages together.
pub const LIST_MAX: usize = 16 * 1024 * 1024;

/// Largest number of tags in a list.
pub const TAGS_MAX: usize = 100_000;

/// Description of a manifest without its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManifestHead {
    /// Announced digest, a hint only.
    pub digest: Option<Digest>,
    /// Announced size in bytes.
    pub size: Option<u64>,
    /// Announced media type, as sent.
    pub content_type: Option<String>,
}

/// Manifest as it was sent.
#[derive(Debug)]
pub struct UnverifiedManifest {
    /// Content, with any transfer encoding undone.
    pub body: Bytes,
    /// Announced media type, as sent.
    pub content_type: Option<String>,
    /// Announced digest, a hint only.
    pub digest: Option<Digest>,
    /// Memory of the manifest until it is stored; `None` for a manifest that a local source has read.
    pub memory: Option<DocumentMemory>,
}

/// Range of bytes of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// Offset of the first byte.
    pub first: u64,
    /// Offset of the last byte; `None` for the end of the blob.
    pub last: Option<u64>,
}

impl ByteRange {
    /// The whole blob.
    pub const ALL: Self = Self::from(0);

    /// Returns the range from `first` to the end of the blob.
    pub const fn from(first: u64) -> Self {
        Self { first, last: None }
    }

    /// Returns true if this is the whole blob.
    pub fn is_all(self) -> bool {
        self == Self::ALL
    }
}

/// Bytes of a blob while they arrive.
#[async_trait]
pub trait Chunks: Send {
    /// Returns the next chunk, never empty; `None` at the regular end. Dropping the future loses no bytes.
    async fn next(&mut self) -> Result<Option<Bytes>, SourceError>;
}

/// Part of a source that sent a body, to be told if the content was wrong.
pub trait BlobSender: Send + Sync + fmt::Debug {
    /// Notes that the bytes sent for `digest` do not match it. The source asks its other places first the next time.
    fn report_mismatch(&self, digest: &Digest);
}

/// Opened blob, or a range of it.
pub struct BlobBody {
    /// Offset of the first byte in the blob: the beginning of the range, or 0 if the source ignored the range.
    pub offset: u64,
    /// Size of the whole blob in bytes, if known.
    pub total: Option<u64>,
    /// True if the bytes are labelled as gzip-encoded. Then offset and size are those of the encoded bytes. These may
    /// be the blob, if it is a gzip file itself, or need [`BlobBody::decoded`].
    pub gzip: bool,
    /// Receiver of a report if the content was wrong; `None` if the source has a single place.
    pub sender: Option<Arc<dyn BlobSender>>,
    chunks: Box<dyn Chunks>,
    gunzip: Option<Gunzip>,
}

impl BlobBody {
    /// Creates a body that begins at `offset`, of a blob of `total` bytes.
    pub fn new(offset: u64, total: Option<u64>, chunks: impl Chunks + 'static) -> Self {
        Self { offset, total, gzip: false, sender: None, chunks: Box::new(chunks), gunzip: None }
    }

    /// Returns the body labelled as gzip-encoded or not.
    #[must_use]
    pub fn labelled_gzip(self, gzip: bool) -> Self {
        Self { gzip, ..self }
    }

    /// Returns the body with the gzip encoding undone; it must begin at the blob's first byte. Its size is unknown
    /// until its end.
    #[must_use]
    pub fn decoded(self) -> Self {
        Self { total: None, gzip: false, gunzip: Some(Gunzip::new()), ..self }
    }

    /// Returns the body as sent by `sender`, with its chunks passed through `wrap`.
    #[must_use]
    pub fn sent_by(
        self,
        sender: Arc<dyn BlobSender>,
        wrap: impl FnOnce(Box<dyn Chunks>) -> Box<dyn Chunks>,
    ) -> Self {
        Self { sender: Some(sender), chunks: wrap(self.chunks), ..self }
    }

    /// Returns the next chunk, never empty; `None` at the regular end. Dropping the future loses no bytes.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, SourceError> {
        loop {
            if let Some(piece) = self.gunzip.as_mut().map(Gunzip::piece).transpose()?.flatten() {
                return Ok(Some(piece));
            }
            let chunk = self.chunks.next().await?;
            match (&mut self.gunzip, chunk) {
                (None, chunk) => return Ok(chunk),
                (Some(gunzip), Some(chunk)) => gunzip.feed(chunk),
                (Some(gunzip), None) => return gunzip.end(),
            }
        }
    }
}

impl fmt::Debug for BlobBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobBody")
            .field("offset", &self.offset)
            .field("total", &self.total)
            .finish_non_exhaustive()
    }
}
