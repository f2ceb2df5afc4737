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

/// Answer to a request for a tag or a list of referrers.
#[derive(Clone, Debug)]
pub(in crate::cache) enum PointerAnswer {
    /// The manifest or list that the pointer points at.
    Present(ManifestAnswer),
    /// The upstream does not have it.
    Absent(AbsenceAnswer),
}

/// Confirmed absence, with the outcome of the request.
#[derive(Clone, Debug)]
pub(in crate::cache) struct AbsenceAnswer {
    /// Outcome of the request.
    pub(in crate::cache) outcome: Outcome,
    /// Time since the upstream last confirmed the absence, if it is kept.
    pub(in crate::cache) age: Option<Duration>,
    /// Reason why a stale absence could not be revalidated; `None` unless the answer is stale.
    pub(in crate::cache) stale: Option<CacheError>,
}

impl PointerAnswer {
    /// Returns the manifest, or the error for an absence.
    pub(in crate::cache) fn into_manifest(self) -> Result<ManifestAnswer, CacheError> {
        match self {
            Self::Present(answer) => Ok(answer),
            Self::Absent(AbsenceAnswer { stale: None, .. }) => Err(CacheError::NotFound),
            Self::Absent(AbsenceAnswer { age, stale: Some(reason), .. }) => {
                Err(CacheError::StaleAbsence { age: age.unwrap_or_default(), reason: Arc::new(reason) })
            }
        }
    }
}

impl ManifestAnswer {
    /// Creates the answer to a request by digest, which has no age.
    pub(in crate::cache) fn immutable(manifest: Arc<CachedManifest>, outcome: Outcome) -> Self {
        Self { manifest, outcome, age: None, stale: None }
    }
}
