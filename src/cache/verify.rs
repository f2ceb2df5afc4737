//! Verification of manifests by digest and size.

use crate::oci::{Algorithm, Digest, Repository};
use crate::source::UnverifiedManifest;
use crate::telemetry::Metrics;

use super::error::CacheError;

/// Compares a manifest with the expected digest, and with the size that its descriptor announced.
pub(super) fn verify_manifest(
    metrics: &Metrics,
    repository: &Repository,
    answer: &UnverifiedManifest,
    digest: &Digest,
    size: Option<u64>,
) -> Result<(), CacheError> {
    let actual = computed_digest(answer, digest.algorithm());
    let length = answer.body.len() as u64;
    let reason = if actual != *digest {
        format!("{digest} was requested, the body is {actual}")
    } else if let Some(size) = size.filter(|size| *size != length) {
        format!("{digest} has {length} bytes, its descriptor says {size}")
    } else {
        return Ok(());
    };
    metrics.verify_failure(repository.upstream.as_str(), "manifest");
    tracing::warn!(%repository, %reason, "manifest does not match its digest or size; it is not stored");
    Err(CacheError::Mismatch(reason))
}

/// Computes the digest under which a manifest is stored that was requested by tag.
pub(super) fn digest_of(answer: &UnverifiedManifest) -> Digest {
    computed_digest(answer, answer.digest.map_or(Algorithm::Sha256, |digest| digest.algorithm()))
}

fn computed_digest(answer: &UnverifiedManifest, algorithm: Algorithm) -> Digest {
    Digest::of(algorithm, &answer.body)
}
