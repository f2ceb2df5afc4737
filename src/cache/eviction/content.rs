//! Kinds and sums of cached content, as the eviction index and its users name them.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::oci::{Digest, Manifest};

/// Kind of cached content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::cache) enum ContentKind {
    Manifest,
    Blob,
}

/// Content taken out of the index, to be deleted from the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cache) struct Victim {
    pub(in crate::cache) digest: Digest,
    pub(in crate::cache) kind: ContentKind,
    /// Bytes on disk.
    pub(in crate::cache) size: u64,
}

impl Victim {
    pub(in crate::cache) fn is_manifest(&self) -> bool {
        self.kind == ContentKind::Manifest
    }
}

/// Summary of the index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::cache) struct IndexStats {
    /// Last access of the least recently used entry.
    pub(in crate::cache) oldest_access: Option<Timestamp>,
    /// Bytes of blobs that no cached manifest needs.
    pub(in crate::cache) unneeded_bytes: u64,
}

/// Number and size of manifests and blobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Manifests and indexes.
    pub manifests: u64,
    /// Blobs.
    pub blobs: u64,
    /// Bytes of both.
    pub bytes: u64,
}

impl Totals {
    pub(super) fn add(&mut self, kind: ContentKind, size: u64) {
        match kind {
            ContentKind::Manifest => self.manifests += 1,
            ContentKind::Blob => self.blobs += 1,
        }
        self.bytes = self.bytes.saturating_add(size);
    }
}

/// Cached content, divided by whether a tag or a list of referrers leads to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reachability {
    /// Content that a tag, or a list of referrers, leads to.
    pub reachable: Totals,
    /// Other content: pulled by digest, or left behind by a tag that moved.
    pub unreachable: Totals,
}

/// Returns the digests without which a manifest cannot be pulled: its config and layers, or an index's children.
pub(in crate::cache) fn dependencies(manifest: &Manifest) -> impl Iterator<Item = Digest> {
    manifest.children.iter().chain(&manifest.blobs).filter(|it| !it.foreign).map(|it| it.digest)
}
