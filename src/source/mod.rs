//! Places that content can be fetched from: the contract [`Source`], its errors and types, and the OCI image layout.
//!
//! A source sends unverified bytes. The cache verifies each of them by its digest, so no source has to be trusted.
//! The registries over HTTP are in [`upstream`](crate::upstream), which adds routing, health and quota.

mod content;
mod contract;
mod document_budget;
mod error;
mod fallback;
#[cfg(test)]
mod fuzz;
pub(crate) mod gunzip;
mod oci_layout;

pub use content::{
    BlobBody, BlobSender, ByteRange, Chunks, LIST_MAX, MANIFEST_MAX, ManifestHead, TAGS_MAX,
    UnverifiedManifest,
};
pub use contract::Source;
pub use document_budget::{
    Counted, DocumentBudget, DocumentMemory, DocumentTurn, SMALL_DOCUMENT, WAIT_MAX, process,
};
pub use error::{Denial, SourceError};
pub use fallback::open_blob;
pub use oci_layout::OciLayout;
