//! Holds a document against what was promised of it.

use crate::oci::{Algorithm, Digest, Repository};
use crate::source::UnverifiedManifest;

use crate::cache::core::Shared;
use crate::cache::error::CacheError;

/// Holds a body against the digest, and the size, that were promised.
pub(in crate::cache) fn check(
    shared: &Shared,
    repository: &Repository,
    answer: &UnverifiedManifest,
    digest: &Digest,
    size: Option<u64>,
) -> Result<(), CacheError> {
    let found = Digest::of(digest.algorithm(), &answer.body);
    let length = answer.body.len() as u64;
    let reason = if found != *digest {
        format!("{digest} was asked for, the body is {found}")
    } else if let Some(size) = size.filter(|size| *size != length) {
        format!("{digest} has {length} bytes, its descriptor says {size}")
    } else {
        return Ok(());
    };
    shared.metrics.verify_failure(repository.upstream.as_str(), "manifest");
    tracing::warn!(%repository, %reason, "a manifest did not verify");
    Err(CacheError::Mismatch(reason))
}

/// The digest that a body is kept under when no digest was asked for.
pub(in crate::cache) fn digest_of(answer: &UnverifiedManifest) -> Digest {
    let algorithm = answer.digest.map_or(Algorithm::Sha256, |digest| digest.algorithm());
    Digest::of(algorithm, &answer.body)
}
