//! Verification of manifests by digest. The size in a descriptor is a hint and decides nothing.

use crate::oci::{Algorithm, Digest, Repository};
use crate::source::UnverifiedManifest;
use crate::telemetry::Metrics;

use super::error::CacheError;

/// Compares a manifest with the expected digest.
pub(super) fn verify_manifest(
    metrics: &Metrics,
    repository: &Repository,
    answer: &UnverifiedManifest,
    digest: &Digest,
) -> Result<(), CacheError> {
    let actual = computed_digest(answer, digest.algorithm());
    if actual == *digest {
        return Ok(());
    }
    let reason = format!("{digest} was requested, the body is {actual}");
    metrics.verify_failure(repository.upstream.as_str(), "manifest");
    tracing::warn!(%repository, %reason, "manifest does not match its digest; it is not stored");
    Err(CacheError::Mismatch(reason))
}

/// Computes the digest under which a manifest is stored that was requested by tag.
pub(super) fn digest_of(answer: &UnverifiedManifest) -> Digest {
    computed_digest(answer, answer.digest.map_or(Algorithm::Sha256, |digest| digest.algorithm()))
}

fn computed_digest(answer: &UnverifiedManifest, algorithm: Algorithm) -> Digest {
    Digest::of(algorithm, &answer.body)
}
