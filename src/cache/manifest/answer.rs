//! The answer to a request for a manifest.

use std::sync::Arc;
use std::time::Duration;

use crate::cache::error::CacheError;
use crate::cache::memory::CachedManifest;
use crate::telemetry::Outcome;

/// A manifest to serve, and how the cache came by it.
#[derive(Clone, Debug)]
pub struct ManifestAnswer {
    /// The document.
    pub document: Arc<CachedManifest>,
    /// What the cache did.
    pub outcome: Outcome,
    /// For a tag: how long ago the upstream last confirmed it.
    pub age: Option<Duration>,
    /// For a stale tag: why the upstream was not asked successfully.
    pub stale: Option<CacheError>,
}
