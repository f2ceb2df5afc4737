//! `inspect`: shows a cached index, manifest or config, and the missing parts of the image.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cache::{Cache, CacheView};
use crate::clock::Timestamp;
use crate::oci::Digest;
use crate::store::StoreError;

use super::completeness::{MissingPart, Needs, complete_images};
use super::image_tree::{ContentPart, ImageTree, PlatformImage};
use super::list::{PlatformRow, TagFreshness};
use super::platform::Platform;
use super::protocol::{InspectQuery, OpsError};
use super::reference::{self, ImageReference};

/// Largest image config in bytes.
const CONFIG_MAX: u64 = 4 << 20;

/// Report of `inspect`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Inspection)]
pub struct InspectReport {
    /// Complete reference.
    pub reference: String,
    /// Digest of the shown document.
    pub digest: Digest,
    /// Media type.
    pub media_type: Option<String>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Index that contains the document.
    pub index: Option<Digest>,
    /// Platform of the document.
    pub platform: Option<String>,
    /// Time at which the upstream last confirmed the tag.
    pub checked_at: Option<Timestamp>,
    /// Freshness of the tag.
    pub freshness: TagFreshness,
    /// True if a pull of the document needs no upstream.
    pub complete: bool,
    /// Summary of cached and missing content.
    pub says: String,
    /// Platforms of the index.
    pub platforms: Vec<PlatformRow>,
    /// Blobs of the manifest.
    pub blobs: Vec<ContentPart>,
    /// Limit that ended the walk over the index. The index has more content than the report shows.
    #[serde(default)]
    #[schema(required = true)]
    pub limit: Option<String>,
    /// Missing content of the document.
    pub missing: Vec<ContentPart>,
    /// Known referrers of the document, such as signatures and attestations.
    #[serde(default)]
    #[schema(required = true)]
    pub referrers: Vec<ReferrerRow>,
    /// The shown document. `None` if it is not cached or not JSON.
    #[schema(required = true)]
    pub document: Option<Value>,
    /// Bytes of the document as text.
    pub raw: Option<String>,
}

/// Referrer of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Referrer)]
pub struct ReferrerRow {
    /// Digest.
    pub digest: String,
    /// Artifact type, if stated.
    pub artifact_type: Option<String>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// True if the manifest is cached.
    #[serde(rename = "held")]
    pub cached: bool,
}

/// Document to show.
struct Shown {
    digest: Digest,
    media_type: Option<String>,
    size: Option<u64>,
    body: Option<Bytes>,
}

/// Shows a cached document. Fetches and converts nothing.
pub async fn inspect(cache: &Cache, query: InspectQuery) -> Result<InspectReport, OpsError> {
    let reference = reference::parse(cache, &query.reference)?;
    let platform = query.platform.as_deref().map(Platform::parse).transpose()?;
    if query.index && (platform.is_some() || query.config) {
        return Err(OpsError::Invalid(
            "`index` selects all platforms and no config; leave out `index`, or `platform` and `config`"
                .to_owned(),
        ));
    }
    cache.view(move |view| Ok(inspect_cached(&view, &reference, &query, platform.as_ref()))).await?
}

fn store(error: StoreError) -> OpsError {
    OpsError::Cache(error.into())
}

fn not_cached(what: impl std::fmt::Display) -> OpsError {
    OpsError::NotCached(format!("{what} is not cached; fetch it with `larder warm`"))
}

fn inspect_cached(
    view: &CacheView<'_>,
    reference: &ImageReference,
    query: &InspectQuery,
    platform: Option<&Platform>,
) -> Result<InspectReport, OpsError> {
    let (tree, digest, wanted_image) = root(view, reference, query)?;
    let image = match platform {
        Some(platform) => {
            let position = platform.choose(tree.images.iter().map(|image| image.platform.as_deref()));
            // Only the config states the platform of a single image, and the config may not be cached.
            let only =
                (!tree.is_index && tree.images.iter().all(|image| image.platform.is_none())).then_some(0);
            let image = position.or(only).and_then(|position| tree.images.get(position));
            Some(image.ok_or_else(|| OpsError::NoPlatform {
                reference: reference.to_string(),
                wanted: query.platform.clone().unwrap_or_default(),
                available: tree.platforms(),
            })?)
        }
        None if !tree.is_index => tree.images.first(),
        None => None,
    };
    if query.index && !tree.is_index {
        return Err(OpsError::Invalid(format!("{reference} is a manifest, not an index")));
    }
    if query.config && image.is_none() {
        let available = tree.platforms().join(", ");
        return Err(OpsError::Invalid(format!(
            "{reference} is an index; select the platform of the config: {available}"
        )));
    }
    let shown = shown(view, reference, query, &tree, digest, image)?;
    if let (Some(wanted), Some(found)) = (wanted_image, &shown.media_type)
        && !wanted.iter().any(|wanted| wanted.eq_ignore_ascii_case(found))
    {
        return Err(OpsError::NoMediaType {
            reference: reference.to_string(),
            wanted: wanted.join(" or "),
            available: vec![found.clone()],
        });
    }
    let referrers = if query.config { Vec::new() } else { referrers(view, reference, &shown.digest)? };
    Ok(InspectReport { referrers, ..report(view, reference, &tree, digest, image, shown)? })
}

/// Root of the image that a reference names, its digest, and the media types that the selected image must have.
type Root<'a> = (ImageTree, Digest, Option<Vec<&'a str>>);

fn root<'a>(
    view: &CacheView<'_>,
    reference: &ImageReference,
    query: &'a InspectQuery,
) -> Result<Root<'a>, OpsError> {
    let ImageReference { repository, tag, digest } = reference;
    let mut digests = Vec::new();
    match (digest, tag) {
        (Some(digest), _) => digests.push(*digest),
        (None, Some(tag)) => {
            digests.extend(view.tag(repository, tag).map_err(store)?.map(|fact| fact.digest));
            let variants = view.variants(repository, tag).map_err(store)?;
            digests.extend(variants.into_iter().map(|(_, fact)| fact.digest));
        }
        (None, None) => {}
    }
    let types = query.types();
    let mut available = Vec::new();
    let through_index = query.platform.is_some();
    for digest in digests {
        let Some(tree) = ImageTree::below(view, repository, &digest).map_err(store)? else { continue };
        let own = tree.document.media_type.to_string();
        let fits = types.is_empty() || types.iter().any(|it| it.eq_ignore_ascii_case(&own));
        // With a platform, the types apply to its manifest. They do not apply to a config.
        if fits || query.config || (through_index && tree.is_index) {
            let for_image = (!types.is_empty() && !query.config).then_some(types);
            return Ok((tree, digest, for_image));
        }
        available.push(own);
    }
    if available.is_empty() {
        return Err(not_cached(reference));
    }
    available.dedup();
    Err(OpsError::NoMediaType { reference: reference.to_string(), wanted: types.join(" or "), available })
}

fn shown(
    view: &CacheView<'_>,
    reference: &ImageReference,
    query: &InspectQuery,
    tree: &ImageTree,
    digest: Digest,
    image: Option<&PlatformImage>,
) -> Result<Shown, OpsError> {
    let Some(image) = image else {
        let document = &tree.document;
        return Ok(Shown {
            digest,
            media_type: Some(document.media_type.to_string()),
            size: Some(document.body.len() as u64),
            body: Some(document.body.clone()),
        });
    };
    if query.config {
        let config = image
            .blobs
            .first()
            .ok_or_else(|| not_cached(format_args!("the manifest {}", image.manifest.digest)))?;
        let body = view.read_blob(&reference.repository, &config.digest, CONFIG_MAX).map_err(store)?;
        let body = body.ok_or_else(|| not_cached(format_args!("the config {}", config.digest)))?;
        let (digest, media_type, size) = (config.digest, config.media_type.clone(), config.size);
        return Ok(Shown { digest, media_type, size, body: Some(body) });
    }
    let ContentPart { digest, media_type, size, .. } = image.manifest.clone();
    let body = view.manifest(&reference.repository, &digest).map_err(store)?.map(|document| document.body);
    Ok(Shown { digest, media_type, size, body })
}

fn referrers(
    view: &CacheView<'_>,
    reference: &ImageReference,
    subject: &Digest,
) -> Result<Vec<ReferrerRow>, OpsError> {
    let known = view.referrers(&reference.repository, subject).map_err(store)?;
    let rows = known.iter().map(|referrer| {
        let cached = match referrer.digest().parse::<Digest>() {
            Ok(digest) => view.manifest(&reference.repository, &digest)?.is_some(),
            Err(_) => false,
        };
        Ok(ReferrerRow {
            digest: referrer.digest().to_owned(),
            artifact_type: referrer.artifact_type().map(str::to_owned),
            size: referrer.size(),
            cached,
        })
    });
    rows.collect::<Result<_, StoreError>>().map_err(store)
}

fn report(
    view: &CacheView<'_>,
    reference: &ImageReference,
    tree: &ImageTree,
    root: Digest,
    image: Option<&PlatformImage>,
    shown: Shown,
) -> Result<InspectReport, OpsError> {
    let fact = match (&reference.tag, &reference.digest) {
        (Some(tag), None) => view.tag(&reference.repository, tag).map_err(store)?.map(|fact| (tag, fact)),
        _ => None,
    };
    let status = fact.and_then(|(tag, fact)| view.tag_status(&reference.repository, tag, &fact));
    let needs = image.map_or_else(|| Needs::of(tree, &[]), |image| Needs::of_image(tree, image));
    let complete = needs.is_complete();
    let missing = needs.missing.into_iter().filter(|missing| !missing.is_list());
    let missing: Vec<ContentPart> = missing.map(|missing| missing.part).collect();
    let text = shown.body.as_deref().and_then(|body| std::str::from_utf8(body).ok());
    Ok(InspectReport {
        reference: reference.to_string(),
        digest: shown.digest,
        media_type: shown.media_type,
        size: shown.size,
        index: (tree.is_index && image.is_some()).then_some(root),
        platform: image.and_then(|image| image.platform.clone()),
        checked_at: fact.map(|(_, fact)| fact.checked_at),
        freshness: match (reference.digest.is_some(), status) {
            (true, _) => TagFreshness::Immutable,
            (false, Some(status)) => status.freshness.into(),
            (false, None) => TagFreshness::Expired,
        },
        complete,
        says: summary(tree, image),
        platforms: PlatformRow::of_tree(tree),
        blobs: image.map_or_else(|| tree.blobs.clone(), |image| image.blobs.clone()),
        limit: tree.limit.map(|limit| limit.to_string()),
        missing,
        referrers: Vec::new(),
        document: text.and_then(|text| serde_json::from_str(text).ok()),
        raw: text.map(str::to_owned),
    })
}

/// Returns the summary of cached and missing content.
fn summary(tree: &ImageTree, image: Option<&PlatformImage>) -> String {
    let images = tree.images.iter().zip(complete_images(tree)).filter(|(image, _)| image.is_image());
    let images: Vec<(&PlatformImage, bool)> = images.collect();
    let complete: Vec<&str> =
        images.iter().filter(|(_, complete)| *complete).map(|(image, _)| name(image)).collect();
    let Some(image) = image else {
        let manifests = images.iter().filter(|(image, _)| image.manifest.cached).count();
        let limit = tree.limit.map(|limit| format!("; the index is not shown completely: {limit}"));
        if images.is_empty() && !tree.blobs.is_empty() {
            let (cached, all) = (tree.blobs.iter().filter(|blob| blob.cached).count(), tree.blobs.len());
            return format!("{cached} of {all} blobs of the index are cached{}", limit.unwrap_or_default());
        }
        let names = match complete.len() {
            0 => "none".to_owned(),
            all if all == images.len() => "all".to_owned(),
            _ => complete.join(", "),
        };
        return format!(
            "the index is cached with {manifests} of {all} manifests; complete: {names}{}",
            limit.unwrap_or_default(),
            all = images.len(),
        );
    };
    let (own, needs) = (name(image), Needs::of_image(tree, image));
    let state = state(image, &needs);
    if needs.is_complete() || !tree.is_index {
        return format!("{own}: {state}");
    }
    let others = if complete.is_empty() { "none".to_owned() } else { complete.join(", ") };
    format!("{own}: {state}; complete: {others}")
}

fn name(image: &PlatformImage) -> &str {
    image.platform.as_deref().unwrap_or("the image")
}

/// Returns the summary of one image, of which a pull has these needs.
fn state(image: &PlatformImage, needs: &Needs) -> String {
    if !image.manifest.cached {
        return "its manifest is not cached".to_owned();
    }
    if let Some(digest) = image.unsupported.first() {
        return format!("{digest} cannot be cached: its digest cannot be verified");
    }
    let missing: Vec<&ContentPart> = image.blobs.iter().filter(|blob| !blob.cached).collect();
    if missing.is_empty() && needs.is_complete() {
        return "complete".to_owned();
    }
    if missing.is_empty() {
        return match &needs.reason {
            Some(reason) => reason.clone(),
            None if needs.missing.iter().all(MissingPart::is_list) => {
                "complete, but the upstream has not been asked for its referrers".to_owned()
            }
            None => "parts of its attestations are not cached".to_owned(),
        };
    }
    let bytes: u64 = missing.iter().filter_map(|part| part.size).sum();
    let bytes = bytesize::ByteSize(bytes).display().iec();
    format!("{} of its {} blobs ({bytes}) are not cached", missing.len(), image.blobs.len())
}
