//! Answer to a request for a manifest.

use std::sync::Arc;
use std::time::Duration;

use crate::cache::error::CacheError;
use crate::cache::memory::CachedManifest;
use crate::telemetry::Outcome;

/// Manifest to serve, with the outcome of the request.
#[derive(Clone, Debug)]
pub struct ManifestAnswer {
    /// Manifest or index.
    pub manifest: Arc<CachedManifest>,
    /// Outcome of the request.
    pub outcome: Outcome,
    /// Time since the upstream last confirmed the tag; `None` for a request by digest.
    pub age: Option<Duration>,
    /// Reason why a stale tag could not be revalidated; `None` unless the answer is stale.
    pub stale: Option<CacheError>,
}

impl ManifestAnswer {
    /// Creates the answer to a request by digest, which has no age.
    pub(in crate::cache) fn immutable(manifest: Arc<CachedManifest>, outcome: Outcome) -> Self {
        Self { manifest, outcome, age: None, stale: None }
    }
}
