//! `check`: would a pull succeed if the upstream were gone, and if not, what is missing?

use serde::{Deserialize, Serialize};

use crate::cache::{Cache, CacheView};
use crate::oci::Digest;
use crate::store::StoreError;

use super::OpsError;
use super::platform::Platform;
use super::reference::{self, Named};
use super::tree::{Image, Part, Tree};

/// What is to be checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Ask {
    /// The references.
    #[param(rename = "reference", required = true)]
    pub references: Vec<String>,
    /// The platforms that would be pulled; none is all that an index has.
    #[param(rename = "platform")]
    pub platforms: Vec<String>,
}

/// What a pull of one reference would meet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Verdict {
    /// The reference, in full.
    pub reference: String,
    /// What it stands for.
    pub digest: Option<Digest>,
    /// The platforms that were looked at.
    pub platforms: Vec<String>,
    /// Whether the pull would succeed.
    pub pullable: bool,
    /// Why it would not, other than for what is missing.
    pub reason: Option<String>,
    /// What is missing.
    pub missing: Vec<Missing>,
}

/// Something that a pull would lack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Missing {
    /// For which platform, as far as that is stated.
    pub platform: Option<String>,
    /// `manifest` or `blob`.
    #[schema(pattern = "^(manifest|blob)$")]
    pub kind: String,
    /// What.
    #[serde(flatten)]
    pub part: Part,
}

/// What pulls would meet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Verdicts)]
pub struct Report {
    /// Whether all would succeed.
    pub pullable: bool,
    /// One for each reference, in their order.
    pub images: Vec<Verdict>,
}

/// Checks whether everything is held that pulls need. Asks no upstream.
pub async fn check(cache: &Cache, ask: Ask) -> Result<Report, OpsError> {
    if ask.references.is_empty() {
        return Err(OpsError::Invalid("no reference is named".to_owned()));
    }
    let named: Vec<Named> =
        ask.references.iter().map(|text| reference::parse(cache, text)).collect::<Result<_, _>>()?;
    let platforms: Vec<(String, Platform)> = ask
        .platforms
        .iter()
        .map(|text| Ok((text.clone(), Platform::parse(text)?)))
        .collect::<Result<_, OpsError>>()?;
    let images = cache
        .view(move |held| {
            named.iter().map(|named| verdict(&held, named, &platforms)).collect::<Result<Vec<_>, _>>()
        })
        .await?;
    Ok(Report { pullable: images.iter().all(|verdict| verdict.pullable), images })
}

fn verdict(
    held: &CacheView<'_>,
    named: &Named,
    platforms: &[(String, Platform)],
) -> Result<Verdict, StoreError> {
    let mut verdict = Verdict {
        reference: named.to_string(),
        digest: named.digest,
        platforms: Vec::new(),
        pullable: false,
        reason: None,
        missing: Vec::new(),
    };
    if let (Some(tag), None) = (&named.tag, named.digest) {
        let Some(fact) = held.tag(&named.repository, tag)? else {
            verdict.reason = Some("the tag is not held".to_owned());
            return Ok(verdict);
        };
        verdict.digest = Some(fact.digest);
        if held.tag_status(&named.repository, tag, &fact).is_none_or(|standing| !standing.served_offline) {
            verdict.reason =
                Some("the tag is too old to be served without its upstream (stale_if_error)".to_owned());
        }
    }
    let Some(digest) = verdict.digest else { return Ok(verdict) };
    let Some(tree) = Tree::below(held, &named.repository, &digest)? else {
        let part = Part { digest, size: None, media_type: None, held: false, foreign: false };
        verdict.missing.push(Missing { platform: None, kind: "manifest".to_owned(), part });
        return Ok(verdict);
    };
    for image in wanted(&tree, platforms, &mut verdict) {
        verdict.platforms.extend(image.platform.clone());
        verdict.missing.extend(image.missing().map(|part| Missing {
            platform: image.platform.clone(),
            kind: if part.digest == image.manifest.digest { "manifest" } else { "blob" }.to_owned(),
            part: part.clone(),
        }));
    }
    if platforms.is_empty() {
        verdict.missing.extend(tree.indexes.iter().filter(|index| !index.held).map(|index| Missing {
            platform: None,
            kind: "manifest".to_owned(),
            part: index.clone(),
        }));
    }
    verdict.pullable = verdict.missing.is_empty() && verdict.reason.is_none();
    Ok(verdict)
}

/// The images of a tree that would be pulled.
fn wanted<'a>(tree: &'a Tree, platforms: &[(String, Platform)], verdict: &mut Verdict) -> Vec<&'a Image> {
    // A single image is pulled whatever platform it is for; clients only warn.
    if platforms.is_empty() || !tree.is_index {
        return tree.images.iter().filter(|image| image.is_image()).collect();
    }
    let mut found: Vec<&Image> = Vec::new();
    for (text, platform) in platforms {
        if let Some(place) = platform.choose(tree.images.iter().map(|image| image.platform.as_deref())) {
            found.extend(tree.images.get(place));
        } else {
            let there = tree.platforms().join(", ");
            verdict.reason = Some(format!("it has no image for {text}; there are: {there}"));
        }
    }
    found.dedup_by_key(|image| image.manifest.digest);
    found
}
