//! `rm`: removes images from the cache, with the content that only they need.

use serde::{Deserialize, Serialize};

use crate::cache::{Cache, RemovalReport, RemovalTarget};

use super::protocol::OpsError;
use super::reference::{self, ImageReference};

/// Result for one reference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedImage {
    /// Complete reference.
    pub reference: String,
    /// Removed content.
    #[serde(flatten)]
    pub removed: RemovalReport,
}

/// Report of `rm`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveReport {
    /// One result for each reference, in the same order.
    pub images: Vec<RemovedImage>,
}

/// Removes images. Removes none if one of them is not cached.
pub async fn remove(cache: &Cache, references: &[String]) -> Result<RemoveReport, OpsError> {
    if references.is_empty() {
        return Err(OpsError::Invalid("no reference is given".to_owned()));
    }
    let mut targets = Vec::new();
    for text in references {
        let reference = reference::parse(cache, text)?;
        let target = target(cache, &reference).await?;
        targets.push((reference, target));
    }
    let mut report = RemoveReport::default();
    for (reference, target) in targets {
        let removed = cache.remove(&reference.repository, target).await?;
        tracing::info!(reference = %reference, bytes = removed.bytes, "removed by the operator");
        report.images.push(RemovedImage { reference: reference.to_string(), removed });
    }
    Ok(report)
}

async fn target(cache: &Cache, reference: &ImageReference) -> Result<RemovalTarget, OpsError> {
    let not_cached = || OpsError::NotCached(format!("{reference} is not cached"));
    let ImageReference { repository, tag, digest } = reference.clone();
    let (fact, is_cached) = cache
        .view(move |view| {
            let fact = tag.map(|tag| view.tag(&repository, &tag)).transpose()?.flatten();
            let is_cached =
                digest.map(|digest| view.manifest(&repository, &digest)).transpose()?.flatten().is_some();
            Ok((fact, is_cached))
        })
        .await?;
    match (&reference.tag, reference.digest) {
        (Some(tag), None) => fact.map(|_| RemovalTarget::Tag(tag.clone())).ok_or_else(not_cached),
        // With a tag and a digest, the tag must name the digest.
        (Some(tag), Some(digest)) => {
            let matches = fact.is_some_and(|fact| fact.digest == digest);
            if matches { Ok(RemovalTarget::Tag(tag.clone())) } else { Err(not_cached()) }
        }
        (None, Some(digest)) if is_cached => Ok(RemovalTarget::Manifest(digest)),
        (None, _) => Err(not_cached()),
    }
}
