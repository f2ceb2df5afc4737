//! `check`: reports whether pulls would succeed without the upstream, and what is missing.

use serde::{Deserialize, Serialize};

use crate::cache::{Cache, CacheView};
use crate::oci::Digest;
use crate::store::StoreError;

use super::artifacts::{Artifacts, SignatureStatus};
use super::completeness::{MissingPart, Needs};
use super::image_tree::ImageTree;
use super::platform::Platform;
use super::protocol::{CheckQuery, OpsError};
use super::reference::{self, ImageReference};
use super::size_check::WrongSize;

/// Result for one reference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Verdict)]
pub struct CheckVerdict {
    /// Complete reference.
    pub reference: String,
    /// Digest of the image.
    pub digest: Option<Digest>,
    /// Checked platforms.
    pub platforms: Vec<String>,
    /// True if the pull would succeed.
    pub pullable: bool,
    /// Reason why the pull would fail, other than missing content.
    pub reason: Option<String>,
    /// Missing content.
    pub missing: Vec<MissingPart>,
    /// Sizes in descriptors that contradict the content. Some clients refuse such an image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wrong_sizes: Vec<WrongSize>,
    /// Signatures and other artifacts that refer to the image. A pull does not need them. None if the image is not cached.
    #[serde(default)]
    #[schema(required = true)]
    pub signatures: Option<SignatureStatus>,
}

/// Report of `check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Verdicts)]
pub struct CheckReport {
    /// True if all pulls would succeed.
    pub pullable: bool,
    /// One result for each reference, in the same order.
    pub images: Vec<CheckVerdict>,
}

/// Checks that all content that pulls need is cached. Contacts no upstream.
pub async fn check(cache: &Cache, query: CheckQuery) -> Result<CheckReport, OpsError> {
    if query.references.is_empty() {
        return Err(OpsError::Invalid("no reference is given".to_owned()));
    }
    let references: Vec<ImageReference> =
        query.references.iter().map(|text| reference::parse(cache, text)).collect::<Result<_, _>>()?;
    let platforms: Vec<(String, Platform)> = query
        .platforms
        .iter()
        .map(|text| Ok((text.clone(), Platform::parse(text)?)))
        .collect::<Result<_, OpsError>>()?;
    let images = cache
        .view(move |view| {
            references
                .iter()
                .map(|reference| verdict(&view, reference, &platforms))
                .collect::<Result<Vec<_>, _>>()
        })
        .await?;
    Ok(CheckReport { pullable: images.iter().all(|verdict| verdict.pullable), images })
}

fn verdict(
    view: &CacheView<'_>,
    reference: &ImageReference,
    platforms: &[(String, Platform)],
) -> Result<CheckVerdict, StoreError> {
    let mut verdict = CheckVerdict {
        reference: reference.to_string(),
        digest: reference.digest,
        platforms: Vec::new(),
        pullable: false,
        reason: None,
        missing: Vec::new(),
        wrong_sizes: Vec::new(),
        signatures: None,
    };
    if let (Some(tag), None) = (&reference.tag, reference.digest) {
        let Some(fact) = view.tag(&reference.repository, tag)? else {
            verdict.reason = Some("the tag is not cached".to_owned());
            return Ok(verdict);
        };
        verdict.digest = Some(fact.digest);
        if view.tag_status(&reference.repository, tag, &fact).is_none_or(|status| !status.served_offline) {
            verdict.reason =
                Some("the tag is too old to be served without its upstream (stale_if_error)".to_owned());
        }
    }
    let Some(digest) = verdict.digest else { return Ok(verdict) };
    let Some(tree) = ImageTree::below(view, &reference.repository, &digest)? else {
        verdict.missing.push(MissingPart::manifest(digest));
        return Ok(verdict);
    };
    let needs = Needs::of(&tree, platforms);
    let images = needs.images.iter().filter(|image| image.is_image());
    verdict.platforms = images.filter_map(|image| image.platform.clone()).collect();
    verdict.signatures = Some(Artifacts::of(view, &reference.repository, &tree, &needs)?.status());
    verdict.pullable = needs.is_complete() && verdict.reason.is_none();
    verdict.missing = needs.missing;
    verdict.wrong_sizes = needs.wrong_sizes;
    verdict.reason = verdict.reason.or(needs.reason);
    Ok(verdict)
}
