//! `warm`: fetches images before anybody asks for them. What is held stays as it is, and what an interrupted fetch left is
//! gone on with.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::cache::{Cache, CacheError, CachedManifest, ManifestAnswer};
use crate::oci::media::ManifestKind;
use crate::oci::{Accept, Descriptor, Digest, Manifest, Reference, Repository};

use super::OpsError;
use super::platform::{NO_IMAGE, Platform};
use super::progress::{ProgressPiece, ProgressReporter};
use super::reference::{self, ImageReference};

/// Images at once.
const IMAGES: usize = 4;
/// Blobs at once, over all images.
const BLOBS: usize = 8;
/// Deeper than any walk below an index goes.
const DEPTH_MAX: u32 = 8;
/// More manifests than any walk brings in.
const COUNT_MAX: usize = 1024;

/// What is to be fetched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = Warm)]
pub struct WarmSpec {
    /// The references.
    #[schema(required = true)]
    pub references: Vec<String>,
    /// Of an index the platforms that are wanted; none is all of them.
    pub platforms: Vec<String>,
}

/// What became of one reference.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmedImage {
    /// The reference, in full.
    pub reference: String,
    /// What it stands for.
    pub digest: Option<Digest>,
    /// The platforms that were wanted of it.
    pub platforms: Vec<String>,
    /// Manifests that are held now, indexes included.
    pub manifests: u64,
    /// Blobs that are held now.
    pub blobs: u64,
    /// Bytes of these blobs.
    pub bytes: u64,
    /// Of these blobs, those that had to be fetched.
    pub fetched: u64,
    /// Why the tag could not be confirmed at its upstream, if it could not: then what it last stood for is held.
    pub stale: Option<String>,
    /// Why not all of it is held; none if all is.
    pub error: Option<String>,
}

/// What became of all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmReport {
    /// Whether everything is held.
    pub complete: bool,
    /// One for each reference, in their order.
    pub images: Vec<WarmedImage>,
}

/// Fetches images, several at once.
pub async fn warm(cache: &Cache, ask: WarmSpec, reporter: &ProgressReporter) -> Result<WarmReport, OpsError> {
    let mut named: Vec<ImageReference> = Vec::new();
    for text in &ask.references {
        let next = reference::parse(cache, text)?;
        if !named.contains(&next) {
            named.push(next);
        }
    }
    if named.is_empty() {
        return Err(OpsError::Invalid("no reference is named".to_owned()));
    }
    let platforms: Vec<(String, Platform)> = ask
        .platforms
        .iter()
        .map(|text| Ok((text.clone(), Platform::parse(text)?)))
        .collect::<Result<_, OpsError>>()?;
    let platforms = Arc::new(platforms);
    reporter.expect(named.len());
    let (images, blobs) = (Arc::new(Semaphore::new(IMAGES)), Arc::new(Semaphore::new(BLOBS)));
    let mut work = JoinSet::new();
    for (place, named) in named.into_iter().enumerate() {
        let image = ImageWarmer {
            cache: cache.clone(),
            named,
            platforms: Arc::clone(&platforms),
            blobs: Arc::clone(&blobs),
        };
        let (images, reporter) = (Arc::clone(&images), reporter.clone());
        work.spawn(async move {
            let _turn = images.acquire().await;
            (place, image.warm(&reporter).await)
        });
    }
    let mut rows = work.join_all().await;
    rows.sort_by_key(|(place, _)| *place);
    let images: Vec<WarmedImage> = rows.into_iter().map(|(_, row)| row).collect();
    Ok(WarmReport { complete: images.iter().all(|row| row.error.is_none()), images })
}

/// One reference on its way in.
struct ImageWarmer {
    cache: Cache,
    named: ImageReference,
    platforms: Arc<Vec<(String, Platform)>>,
    blobs: Arc<Semaphore>,
}

impl ImageWarmer {
    async fn warm(&self, reporter: &ProgressReporter) -> WarmedImage {
        let mut row = WarmedImage { reference: self.named.to_string(), ..WarmedImage::default() };
        let piece = Arc::new(reporter.begin(row.reference.clone()));
        if let Err(error) = self.bring(&mut row, &piece).await {
            tracing::warn!(reference = row.reference, %error, "an image could not be fetched ahead");
            row.error = Some(error.to_string());
        }
        row
    }

    async fn bring(&self, row: &mut WarmedImage, piece: &Arc<ProgressPiece>) -> Result<(), OpsError> {
        let found = self.root().await?;
        row.stale = found.stale.as_ref().map(ToString::to_string);
        row.digest = Some(found.manifest.digest);
        row.manifests = 1;
        let mut blobs = Vec::new();
        for manifest in self.manifests(&found.manifest, row).await? {
            blobs.extend(read(&manifest).map(|read| read.blobs).unwrap_or_default());
        }
        let mut seen = HashSet::new();
        blobs.retain(|blob| !blob.foreign && seen.insert(blob.digest));
        piece.expect(blobs.iter().filter_map(|blob| blob.size).sum());
        let mut work = JoinSet::new();
        for blob in blobs {
            let (cache, repository) = (self.cache.clone(), self.named.repository.clone());
            let (turns, piece) = (Arc::clone(&self.blobs), Arc::clone(piece));
            work.spawn(async move {
                let _turn = turns.acquire().await;
                let brought = bring(&cache, &repository, &blob, &piece).await;
                (blob, brought)
            });
        }
        let mut failed = None;
        while let Some(ended) = work.join_next().await {
            let Ok((blob, brought)) = ended else { continue };
            match brought {
                Ok(fetched) => {
                    row.blobs += 1;
                    row.bytes += blob.size.unwrap_or_default();
                    row.fetched += u64::from(fetched);
                }
                Err(CacheError::Store(error)) => {
                    failed = Some(OpsError::Content(format!("{} could not be kept: {error}", blob.digest)));
                }
                Err(error) => failed = Some(OpsError::Content(format!("{}: {error}", blob.digest))),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// The document that the reference stands for. Where it names both, the tag is asked for, and held against the digest.
    async fn root(&self) -> Result<ManifestAnswer, OpsError> {
        let ImageReference { repository, tag, digest } = &self.named;
        let reference = match (tag, digest) {
            (Some(tag), _) => Reference::Tag(tag.clone()),
            (None, Some(digest)) => Reference::Digest(*digest),
            (None, None) => return Err(OpsError::Invalid("a reference has a tag or a digest".to_owned())),
        };
        let found = manifest(&self.cache, repository, &reference).await?;
        match digest {
            Some(wanted) if found.manifest.digest != *wanted => Err(OpsError::Content(format!(
                "the tag stands for {}, not for {wanted}",
                found.manifest.digest
            ))),
            _ => Ok(found),
        }
    }

    /// The manifests of the wanted platforms.
    async fn manifests(
        &self,
        root: &Arc<CachedManifest>,
        row: &mut WarmedImage,
    ) -> Result<Vec<Arc<CachedManifest>>, OpsError> {
        if root.media_type.kind() != Some(ManifestKind::Index) {
            return Ok(vec![Arc::clone(root)]);
        }
        let children = self.children(root, row).await?;
        let mut found = Vec::new();
        for place in self.wanted(&children)? {
            let Some(child) = children.get(place) else { continue };
            row.platforms.extend(child.platform.clone().filter(|platform| platform != NO_IMAGE));
            let reference = Reference::Digest(child.digest);
            found.push(manifest(&self.cache, &self.named.repository, &reference).await?.manifest);
            row.manifests += 1;
        }
        Ok(found)
    }

    /// All that an index points at and that is no index, those in nested ones included.
    async fn children(
        &self,
        root: &Arc<CachedManifest>,
        row: &mut WarmedImage,
    ) -> Result<Vec<Descriptor>, OpsError> {
        let (mut found, mut seen) = (Vec::new(), HashSet::from([root.digest]));
        let mut left = vec![(Arc::clone(root), 1)];
        while let Some((index, depth)) = left.pop() {
            for child in read(&index).map(|read| read.children).unwrap_or_default() {
                if !seen.insert(child.digest) && child.platform.is_none() || found.len() >= COUNT_MAX {
                    continue;
                }
                let nested =
                    child.media_type.as_ref().is_some_and(|it| it.kind() == Some(ManifestKind::Index));
                if nested && depth < DEPTH_MAX {
                    let reference = Reference::Digest(child.digest);
                    let document = manifest(&self.cache, &self.named.repository, &reference).await?.manifest;
                    row.manifests += 1;
                    left.push((document, depth + 1));
                } else if !nested {
                    found.push(child);
                }
            }
        }
        Ok(found)
    }

    /// The places of the children that are wanted.
    fn wanted(&self, children: &[Descriptor]) -> Result<Vec<usize>, OpsError> {
        if self.platforms.is_empty() {
            return Ok((0..children.len()).collect());
        }
        let mut places = Vec::new();
        for (text, platform) in self.platforms.iter() {
            let place = platform.choose(children.iter().map(|child| child.platform.as_deref()));
            let place = place.ok_or_else(|| OpsError::NoPlatform {
                reference: self.named.to_string(),
                wanted: text.clone(),
                there: children
                    .iter()
                    .filter_map(|child| child.platform.clone())
                    .filter(|it| it != NO_IMAGE)
                    .collect(),
            })?;
            if !places.contains(&place) {
                places.push(place);
            }
        }
        Ok(places)
    }
}

fn read(document: &CachedManifest) -> Option<Manifest> {
    Manifest::read(&document.body, Some(document.media_type.as_str())).ok()
}

/// Nobody waits in front of a screen for an answer within ten seconds: what is slow is asked again a few times.
pub(super) fn patience() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(500))
        .with_max_delay(Duration::from_secs(10))
        .with_max_times(4)
        .with_jitter()
}

pub(super) async fn manifest(
    cache: &Cache,
    repository: &Repository,
    reference: &Reference,
) -> Result<ManifestAnswer, CacheError> {
    let anything = HeaderMap::new();
    let attempt = || cache.manifest(repository, reference, Accept::from_headers(&anything));
    attempt.retry(patience()).when(CacheError::is_retryable).await
}

/// Brings a blob, and tells of each byte once, however often it has to be begun again. Returns whether it was fetched.
async fn bring(
    cache: &Cache,
    repository: &Repository,
    blob: &Descriptor,
    piece: &ProgressPiece,
) -> Result<bool, CacheError> {
    let told = std::sync::atomic::AtomicU64::new(0);
    let attempt = || {
        cache.fetch_blob(repository, &blob.digest, |there| {
            let before = told.fetch_max(there, std::sync::atomic::Ordering::Relaxed);
            piece.done(there.saturating_sub(before));
        })
    };
    attempt.retry(patience()).when(CacheError::is_retryable).await
}
