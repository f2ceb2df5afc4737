//! `inspect`: shows a cached index, manifest or config, and what of the image is missing.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cache::{Cache, CacheView};
use crate::clock::Timestamp;
use crate::oci::Digest;
use crate::store::StoreError;

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
    /// Whole reference.
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
    /// Whether the tag has to be asked for again.
    pub freshness: TagFreshness,
    /// True if a pull of the document needs no upstream.
    pub complete: bool,
    /// Summary of cached and missing content.
    pub says: String,
    /// Platforms of the index.
    pub platforms: Vec<PlatformRow>,
    /// Blobs of the manifest.
    pub blobs: Vec<ContentPart>,
    /// Missing content of the document.
    pub missing: Vec<ContentPart>,
    /// Known referrers of the document, such as signatures and attestations.
    #[serde(default)]
    #[schema(required = true)]
    pub referrers: Vec<ReferrerRow>,
    /// What is shown, as JSON; none if it is not held, or no JSON.
    #[schema(required = true)]
    pub document: Option<Value>,
    /// The same, byte for byte.
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
    pub held: bool,
}

/// Document to show.
struct Shown {
    digest: Digest,
    media_type: Option<String>,
    size: Option<u64>,
    body: Option<Bytes>,
}

/// Shows a cached document. Fetches and converts nothing.
pub async fn inspect(cache: &Cache, ask: InspectQuery) -> Result<InspectReport, OpsError> {
    let named = reference::parse(cache, &ask.reference)?;
    let platform = ask.platform.as_deref().map(Platform::parse).transpose()?;
    if ask.index && (platform.is_some() || ask.config) {
        return Err(OpsError::Invalid(
            "an index is for all platforms and has no config; leave out either `index` or the others"
                .to_owned(),
        ));
    }
    cache.view(move |held| Ok(found(&held, &named, &ask, platform.as_ref()))).await?
}

fn store(error: StoreError) -> OpsError {
    OpsError::Cache(error.into())
}

fn not_held(what: impl std::fmt::Display) -> OpsError {
    OpsError::NotHeld(format!("{what} is not held; `larder warm` fetches it"))
}

fn found(
    held: &CacheView<'_>,
    named: &ImageReference,
    ask: &InspectQuery,
    platform: Option<&Platform>,
) -> Result<InspectReport, OpsError> {
    let (tree, digest, wanted_image) = root(held, named, ask)?;
    let image = match platform {
        Some(platform) => {
            let place = platform.choose(tree.images.iter().map(|image| image.platform.as_deref()));
            // The platform of a single image is known by its config, which need not be held.
            let only =
                (!tree.is_index && tree.images.iter().all(|image| image.platform.is_none())).then_some(0);
            let image = place.or(only).and_then(|place| tree.images.get(place));
            Some(image.ok_or_else(|| OpsError::NoPlatform {
                reference: named.to_string(),
                wanted: ask.platform.clone().unwrap_or_default(),
                there: tree.platforms(),
            })?)
        }
        None if !tree.is_index => tree.images.first(),
        None => None,
    };
    if ask.index && !tree.is_index {
        return Err(OpsError::Invalid(format!("{named} is one manifest, not an index")));
    }
    if ask.config && image.is_none() {
        let there = tree.platforms().join(", ");
        return Err(OpsError::Invalid(format!(
            "{named} is an index; name the platform whose config is wanted: {there}"
        )));
    }
    let shown = shown(held, named, ask, &tree, digest, image)?;
    if let (Some(wanted), Some(found)) = (wanted_image, &shown.media_type)
        && !wanted.iter().any(|wanted| wanted.eq_ignore_ascii_case(found))
    {
        return Err(OpsError::NoMediaType {
            reference: named.to_string(),
            wanted: wanted.join(" or "),
            there: vec![found.clone()],
        });
    }
    let referrers = if ask.config { Vec::new() } else { referrers(held, named, &shown.digest)? };
    Ok(InspectReport { referrers, ..report(held, named, &tree, digest, image, shown)? })
}

/// The document that a reference stands for to who wants these types. If the types are those of images, and it is an
/// index, they are for the image to have.
type Root<'a> = (ImageTree, Digest, Option<Vec<&'a str>>);

fn root<'a>(
    held: &CacheView<'_>,
    named: &ImageReference,
    ask: &'a InspectQuery,
) -> Result<Root<'a>, OpsError> {
    let ImageReference { repository, tag, digest } = named;
    let mut digests = Vec::new();
    match (digest, tag) {
        (Some(digest), _) => digests.push(*digest),
        (None, Some(tag)) => {
            digests.extend(held.tag(repository, tag).map_err(store)?.map(|fact| fact.digest));
            let variants = held.variants(repository, tag).map_err(store)?;
            digests.extend(variants.into_iter().map(|(_, fact)| fact.digest));
        }
        (None, None) => {}
    }
    let types = ask.types();
    let mut there = Vec::new();
    let through_index = ask.platform.is_some();
    for digest in digests {
        let Some(tree) = ImageTree::below(held, repository, &digest).map_err(store)? else { continue };
        let own = tree.document.media_type.to_string();
        let fits = types.is_empty() || types.iter().any(|it| it.eq_ignore_ascii_case(&own));
        // With a platform the types are those of its manifest, and a config's type is its own affair.
        if fits || ask.config || (through_index && tree.is_index) {
            let for_image = (!types.is_empty() && !ask.config).then_some(types);
            return Ok((tree, digest, for_image));
        }
        there.push(own);
    }
    if there.is_empty() {
        return Err(not_held(named));
    }
    there.dedup();
    Err(OpsError::NoMediaType { reference: named.to_string(), wanted: types.join(" or "), there })
}

fn shown(
    held: &CacheView<'_>,
    named: &ImageReference,
    ask: &InspectQuery,
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
    if ask.config {
        let config = image
            .blobs
            .first()
            .ok_or_else(|| not_held(format_args!("the manifest {}", image.manifest.digest)))?;
        let body = held.read_blob(&named.repository, &config.digest, CONFIG_MAX).map_err(store)?;
        let body = body.ok_or_else(|| not_held(format_args!("the config {}", config.digest)))?;
        let (digest, media_type, size) = (config.digest, config.media_type.clone(), config.size);
        return Ok(Shown { digest, media_type, size, body: Some(body) });
    }
    let ContentPart { digest, media_type, size, .. } = image.manifest.clone();
    let body = held.manifest(&named.repository, &digest).map_err(store)?.map(|document| document.body);
    Ok(Shown { digest, media_type, size, body })
}

fn referrers(
    held: &CacheView<'_>,
    named: &ImageReference,
    subject: &Digest,
) -> Result<Vec<ReferrerRow>, OpsError> {
    let known = held.referrers(&named.repository, subject).map_err(store)?;
    let rows = known.iter().map(|referrer| {
        let there = match referrer.digest().parse::<Digest>() {
            Ok(digest) => held.manifest(&named.repository, &digest)?.is_some(),
            Err(_) => false,
        };
        Ok(ReferrerRow {
            digest: referrer.digest().to_owned(),
            artifact_type: referrer.artifact_type().map(str::to_owned),
            size: referrer.size(),
            held: there,
        })
    });
    rows.collect::<Result<_, StoreError>>().map_err(store)
}

fn report(
    held: &CacheView<'_>,
    named: &ImageReference,
    tree: &ImageTree,
    root: Digest,
    image: Option<&PlatformImage>,
    shown: Shown,
) -> Result<InspectReport, OpsError> {
    let fact = match (&named.tag, &named.digest) {
        (Some(tag), None) => held.tag(&named.repository, tag).map_err(store)?.map(|fact| (tag, fact)),
        _ => None,
    };
    let standing = fact.and_then(|(tag, fact)| held.tag_status(&named.repository, tag, &fact));
    let missing: Vec<ContentPart> = match image {
        Some(image) => image.missing().cloned().collect(),
        None => tree
            .images
            .iter()
            .filter(|image| image.is_image())
            .flat_map(PlatformImage::missing)
            .cloned()
            .collect(),
    };
    let text = shown.body.as_deref().and_then(|body| std::str::from_utf8(body).ok());
    Ok(InspectReport {
        reference: named.to_string(),
        digest: shown.digest,
        media_type: shown.media_type,
        size: shown.size,
        index: (tree.is_index && image.is_some()).then_some(root),
        platform: image.and_then(|image| image.platform.clone()),
        checked_at: fact.map(|(_, fact)| fact.checked_at),
        freshness: match (named.digest.is_some(), standing) {
            (true, _) => TagFreshness::Immutable,
            (false, Some(standing)) => standing.freshness.into(),
            (false, None) => TagFreshness::Expired,
        },
        complete: missing.is_empty(),
        says: says(tree, image),
        platforms: tree.images.iter().map(PlatformRow::from).collect(),
        blobs: image.map(|image| image.blobs.clone()).unwrap_or_default(),
        missing,
        referrers: Vec::new(),
        document: text.and_then(|text| serde_json::from_str(text).ok()),
        raw: text.map(str::to_owned),
    })
}

/// Returns the summary of cached and missing content.
fn says(tree: &ImageTree, image: Option<&PlatformImage>) -> String {
    let Some(image) = image else {
        let images: Vec<&PlatformImage> = tree.images.iter().filter(|image| image.is_image()).collect();
        let complete = images.iter().filter(|image| image.is_complete()).count();
        let manifests = images.iter().filter(|image| image.manifest.held).count();
        return format!(
            "the index is held with {manifests} of {all} manifests; held whole: {}",
            if complete == 0 { "none".to_owned() } else { names(&images, complete, images.len()) },
            all = images.len(),
        );
    };
    let own = name(image);
    let state = state(image);
    let whole: Vec<&PlatformImage> =
        tree.images.iter().filter(|it| it.is_image() && it.is_complete()).collect();
    if image.is_complete() || !tree.is_index {
        return format!("{own}: {state}");
    }
    let others =
        if whole.is_empty() { "no platform".to_owned() } else { names(&whole, whole.len(), usize::MAX) };
    format!("{own}: {state}; held whole: {others}")
}

fn name(image: &PlatformImage) -> &str {
    image.platform.as_deref().unwrap_or("the image")
}

fn names(images: &[&PlatformImage], complete: usize, all: usize) -> String {
    if complete == all {
        return "all".to_owned();
    }
    let names: Vec<&str> =
        images.iter().filter(|image| image.is_complete()).map(|image| name(image)).collect();
    names.join(", ")
}

/// Returns the summary of one image.
pub fn state(image: &PlatformImage) -> String {
    if !image.manifest.held {
        return "its manifest is not held".to_owned();
    }
    let missing: Vec<&ContentPart> = image.blobs.iter().filter(|blob| !blob.held).collect();
    if missing.is_empty() {
        return "held whole".to_owned();
    }
    let bytes: u64 = missing.iter().filter_map(|part| part.size).sum();
    let bytes = bytesize::ByteSize(bytes).display().iec();
    format!("its manifest is held, {} of its {} blobs ({bytes}) are not", missing.len(), image.blobs.len())
}
