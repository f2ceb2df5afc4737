//! The contract between the cache and everything that it can fetch content from.

use std::fmt;

use async_trait::async_trait;
use tokio::time::Instant;

use super::content::{BlobBody, ByteRange, ManifestHead, UnverifiedManifest};
use super::document_budget::Counted;
use super::error::SourceError;
use crate::oci::{Digest, Name, Reference, Referrers, Tag, UnverifiableDigest};

/// Place that content can be fetched from: a registry, an image layout on disk.
///
/// # Guarantees
///
/// * **Nothing is verified.** A body may be wrong, and an announced digest is only a hint. The caller compares content
///   with its digest. No method checks it, except to choose between several senders.
/// * **Sizes and offsets** are bytes of the body as it is sent.
/// * **Errors** have the meaning that [`SourceError`] documents, whatever protocol is behind the source.
///   [`SourceError::NotFound`] is definite: the source was asked, and it does not have the content. If several places
///   were asked, all of them said so.
/// * **Retries** within one call are the source's own ([`SourceError::is_retryable`]). An interrupted body is not
///   resumed: the caller asks for the rest with a range.
/// * **Deadline**: the latest time for the answer, which is the first byte that can be read, or the error. After it,
///   the source's own idle time-out applies to a body. `None` means the source's own time-out. A source that
///   reads local files may ignore it.
/// * **Cancellation**: dropping the future ends the work and loses nothing but this answer.
#[async_trait]
pub trait Source: Send + Sync + fmt::Debug {
    /// Returns the digest, size and media type that the source announces for a manifest, without its content.
    ///
    /// `None`: the source cannot tell without sending the manifest, for example because the registry does not support
    /// `HEAD`. `accept` lists media types as the header `Accept` does (RFC 9110, section 12.5.1); a source that has one
    /// representation only ignores it. See distribution-spec, "Checking if content exists in the registry".
    async fn head(
        &self,
        name: &Name,
        reference: &Reference,
        accept: &str,
        deadline: Option<Instant>,
    ) -> Result<Option<ManifestHead>, SourceError>;

    /// Fetches a whole manifest of at most [`MANIFEST_MAX`](super::MANIFEST_MAX) bytes, or what the source is configured for.
    ///
    /// A larger one is [`SourceError::Invalid`], one that ends early is [`SourceError::Interrupted`]. See
    /// distribution-spec, "Pulling manifests".
    async fn manifest(
        &self,
        name: &Name,
        reference: &Reference,
        accept: &str,
        deadline: Option<Instant>,
    ) -> Result<UnverifiedManifest, SourceError>;

    /// Returns the size of a blob; `None` if the source has the blob and does not state its size.
    async fn blob_size(
        &self,
        name: &Name,
        digest: &Digest,
        deadline: Option<Instant>,
    ) -> Result<Option<u64>, SourceError>;

    /// Opens a blob, or a range of it.
    ///
    /// The body begins at `range.first`, or at byte 0 if the source ignores ranges ([`BlobBody::offset`] says which),
    /// and ends at the end of the blob or at `range.last`, whichever comes first. A range that begins at or after the
    /// end of the blob is [`SourceError::RangeNotSatisfiable`]; the whole of an empty blob is an empty body. See
    /// distribution-spec, "Pulling blobs", and RFC 9110, section 14.
    async fn blob(
        &self,
        name: &Name,
        digest: &Digest,
        range: ByteRange,
        deadline: Option<Instant>,
    ) -> Result<BlobBody, SourceError>;

    /// Opens a whole blob by a digest that cannot be verified. Most sources have no such blobs.
    async fn unverifiable_blob(
        &self,
        _name: &Name,
        _digest: &UnverifiableDigest,
        _deadline: Option<Instant>,
    ) -> Result<BlobBody, SourceError> {
        Err(SourceError::NotFound)
    }

    /// Returns all tags of a repository in no particular order, at most [`TAGS_MAX`](super::TAGS_MAX).
    ///
    /// The list is complete or an error: a missing tag would read as one that does not exist. Names that are no valid
    /// tags are left out, because clients cannot pull them. See distribution-spec, "Listing Tags".
    async fn tags(&self, name: &Name, deadline: Option<Instant>) -> Result<Vec<Tag>, SourceError>;

    /// Returns all manifests that refer to `subject`, of any artifact type.
    ///
    /// The caller holds the memory of the list until it has processed it.
    ///
    /// The list is complete or an error. A source that keeps no such lists returns [`SourceError::NoReferrers`]; then
    /// the list may exist under its fallback tag. See distribution-spec, "Listing Referrers".
    async fn referrers(
        &self,
        name: &Name,
        subject: &Digest,
        deadline: Option<Instant>,
    ) -> Result<Counted<Referrers>, SourceError>;
}
