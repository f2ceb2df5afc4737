//! Report of an export.

use serde::{Deserialize, Serialize};

use crate::oci::Digest;
use crate::ops::size_check::WrongSize;

/// Report of an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Export)]
pub struct ExportReport {
    /// Complete reference.
    pub reference: String,
    /// Complete name in the archive. `None` for an image without a tag.
    pub name: Option<String>,
    /// Digest of the image in the archive.
    pub digest: Digest,
    /// Media type.
    pub media_type: String,
    /// Platforms in the archive.
    pub platforms: Vec<String>,
    /// True if the archive has all content that the index lists.
    pub complete: bool,
    /// Manifests in the archive, indexes included.
    pub manifests: u64,
    /// Blobs in the archive.
    pub blobs: u64,
    /// Bytes of manifests and blobs.
    pub bytes: u64,
    /// Blobs that were not cached at the start.
    pub fetched: u64,
    /// Reason why the upstream did not confirm the tag.
    pub stale: Option<String>,
    /// Sizes in descriptors that contradict the cached content. Some clients refuse such an image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wrong_sizes: Vec<WrongSize>,
    /// Manifests whose lists of referrers are not known. The archive does not state their referrers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown_referrers: Vec<Digest>,
}
