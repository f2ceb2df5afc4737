//! Verification of manifests by digest. The size in a descriptor is a hint and decides nothing.

use tokio::time::Instant;

use crate::oci::{Algorithm, Digest, Repository};
use crate::source::{SourceError, UnverifiedManifest, WAIT_MAX, process};
use crate::telemetry::Metrics;

use super::error::CacheError;

/// Compares a manifest with the expected digest.
pub(super) async fn verify_manifest(
    metrics: &Metrics,
    repository: &Repository,
    answer: &UnverifiedManifest,
    digest: &Digest,
) -> Result<(), CacheError> {
    let actual = computed_digest(answer, digest.algorithm()).await?;
    if actual == *digest {
        return Ok(());
    }
    let reason = format!("{digest} was requested, the body is {actual}");
    metrics.verify_failure(repository.upstream.as_str(), "manifest");
    tracing::warn!(%repository, %reason, "manifest does not match its digest; it is not stored");
    Err(CacheError::Mismatch(reason))
}

/// Computes the digest under which a manifest is stored that was requested by tag.
pub(super) async fn digest_of(answer: &UnverifiedManifest) -> Result<Digest, CacheError> {
    let algorithm = answer.digest.map_or(Algorithm::Sha256, |digest| digest.algorithm());
    Ok(computed_digest(answer, algorithm).await?)
}

async fn computed_digest(answer: &UnverifiedManifest, algorithm: Algorithm) -> Result<Digest, SourceError> {
    let (size, body) = (answer.body.len(), answer.body.clone());
    let hash = move || Digest::of(algorithm, &body);
    match &answer.memory {
        Some(memory) => memory.process(size, Instant::now() + WAIT_MAX, hash).await,
        None => process(size, hash).await,
    }
}
