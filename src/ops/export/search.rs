//! Finds the manifests and blobs of an export, and their lengths.

use std::collections::HashSet;
use std::future::poll_fn;

use backon::Retryable as _;

use crate::cache::{Cache, CacheError};
use crate::oci::index_walk::{BYTES_MAX, IndexWalk, WalkItem, WalkLimit};
use crate::oci::media::ManifestKind;
use crate::oci::{Descriptor, Digest, Manifest, Reference};
use crate::store::StoreError;

use super::plan::{Plan, PlannedBlob, PlannedDocument};
use crate::ops::image_tree::{CONFIG_MAX, platform_in};
use crate::ops::platform::{Platform, choose_children};
use crate::ops::protocol::OpsError;
use crate::ops::reference::ImageReference;
use crate::ops::size_check::wrong_sizes;
use crate::ops::warm::{backoff, manifest};

/// Search for the content of an export.
pub(super) struct Search<'a> {
    pub(super) cache: &'a Cache,
    pub(super) reference: &'a ImageReference,
    pub(super) platforms: &'a [(String, Platform)],
    pub(super) offline: bool,
    /// True to include the artifacts that refer to the image.
    pub(super) referrers: bool,
}

/// Content below an index.
#[derive(Default)]
pub(super) struct Below {
    pub(super) indexes: Vec<PlannedDocument>,
    pub(super) children: Vec<Descriptor>,
}

impl Search<'_> {
    /// Finds the content, and fetches the manifests that are not cached.
    pub(super) async fn plan(&self) -> Result<Plan, OpsError> {
        let (mut root, stale) = self.root().await?;
        let (mut below, mut other_content, mut complete) = (Vec::new(), Vec::new(), true);
        if root.is_index() {
            let Below { indexes, mut children } = self.below(&root).await?;
            let mut wanted = self.wanted(&children);
            if let Err(OpsError::NoPlatform { .. }) = &wanted {
                self.read_platforms(&mut children).await?;
                wanted = self.wanted(&children);
            }
            let wanted = wanted?;
            if let ([only], false) = (&*wanted, self.platforms.is_empty()) {
                // A single image is exported without its index.
                root = self.child(only).await?.ok_or_else(|| self.missing(vec![only.digest]))?;
            } else {
                let all: HashSet<Digest> = children.iter().map(|child| child.digest).collect();
                let wanted = with_attestations(wanted, &children);
                complete = wanted.len() == all.len();
                below = indexes;
                other_content = self.documents(wanted, &mut below).await?;
            }
        } else {
            self.check_platform(&root).await?;
        }
        let images = below.iter().filter(|document| !document.is_index()).map(|document| document.digest);
        let subjects: Vec<Digest> = std::iter::once(root.digest).chain(images).collect();
        let (referrers, artifacts) = self.planned_referrers(subjects).await?;
        let mut own: HashSet<Digest> =
            std::iter::once(&root).chain(&below).map(|document| document.digest).collect();
        below.extend(artifacts.into_iter().filter(|artifact| own.insert(artifact.digest)));
        let blobs = self.blobs(&root, &below, other_content).await?;
        let mut plan = Plan { root, below, blobs, referrers, complete, stale, wrong_sizes: Vec::new() };
        let documents: Vec<Manifest> = plan.documents().filter_map(PlannedDocument::read).collect();
        plan.wrong_sizes = wrong_sizes(self.cache, &self.reference.repository, documents.into_iter()).await?;
        Ok(plan)
    }

    /// Adds the manifests of the wanted children, and returns the children that are not manifests.
    pub(super) async fn documents(
        &self,
        wanted: Vec<Descriptor>,
        documents: &mut Vec<PlannedDocument>,
    ) -> Result<Vec<Descriptor>, OpsError> {
        let (mut other_content, mut missing) = (Vec::new(), Vec::new());
        let mut bytes = documents.iter().map(|it| it.body.len()).sum::<usize>();
        for child in wanted {
            match self.child(&child).await {
                Ok(Some(document)) => {
                    bytes += document.body.len();
                    self.check_bytes(bytes)?;
                    documents.push(document);
                }
                Ok(None) => other_content.push(child),
                // The error lists everything that is missing.
                Err(OpsError::Missing { missing: more, .. }) => missing.extend(more),
                Err(error) => return Err(error),
            }
        }
        if missing.is_empty() { Ok(other_content) } else { Err(self.missing(missing)) }
    }

    /// Checks the length of all manifests, which are in memory together.
    fn check_bytes(&self, bytes: usize) -> Result<(), OpsError> {
        if bytes as u64 <= BYTES_MAX {
            return Ok(());
        }
        let reference = self.reference;
        Err(OpsError::Content(format!("the manifests of {reference} exceed {BYTES_MAX} bytes")))
    }

    /// Reads the platforms that the index does not state from the configs of the images.
    async fn read_platforms(&self, children: &mut [Descriptor]) -> Result<(), OpsError> {
        for child in children.iter_mut().filter(|child| child.platform.is_none()) {
            let manifest = match self.child(child).await {
                Ok(manifest) => manifest.and_then(|manifest| manifest.read()),
                Err(OpsError::Missing { .. }) => None,
                Err(error) => return Err(error),
            };
            let Some(config) = manifest.and_then(|read| read.blobs.first().map(|config| config.digest))
            else {
                continue;
            };
            child.platform = self.config(&config).await?.as_deref().and_then(platform_in);
        }
        Ok(())
    }

    /// Finds the manifest of the reference. Of a reference with a tag and a digest, clients use the digest.
    async fn root(&self) -> Result<(PlannedDocument, Option<String>), OpsError> {
        let ImageReference { repository, tag, digest } = self.reference;
        let wanted = match (tag, digest) {
            (_, Some(digest)) => Reference::Digest(*digest),
            (Some(tag), None) => Reference::Tag(tag.clone()),
            (None, None) => {
                return Err(OpsError::Invalid("the reference has neither a tag nor a digest".to_owned()));
            }
        };
        let not_cached = || {
            let reference = self.reference;
            OpsError::NotCached(format!(
                "{reference} is not cached; leave out --offline, or fetch it with `larder warm`"
            ))
        };
        let (document, stale) = if self.offline {
            let cached = match &wanted {
                Reference::Digest(digest) => Some(*digest),
                Reference::Tag(tag) => {
                    let (repository, tag) = (repository.clone(), tag.clone());
                    let fact = self.cache.view(move |view| view.tag(&repository, &tag)).await?;
                    fact.map(|fact| fact.digest)
                }
            };
            let digest = cached.ok_or_else(not_cached)?;
            (self.cached(&digest, None).await?.ok_or_else(not_cached)?, None)
        } else {
            let found = manifest(self.cache, repository, &wanted).await?;
            let stale = found.stale.as_ref().map(ToString::to_string);
            let document = &found.manifest;
            let (digest, media_type) = (document.digest, document.media_type.clone());
            (PlannedDocument { digest, media_type, body: document.body.clone(), platform: None }, stale)
        };
        Ok((document, stale))
    }

    /// Returns a cached manifest.
    async fn cached(
        &self,
        digest: &Digest,
        platform: Option<String>,
    ) -> Result<Option<PlannedDocument>, OpsError> {
        let (repository, digest) = (self.reference.repository.clone(), *digest);
        let found = self.cache.view(move |view| view.manifest(&repository, &digest)).await?;
        Ok(found.map(|found| PlannedDocument {
            digest,
            media_type: found.media_type,
            body: found.body,
            platform,
        }))
    }

    /// Finds a child of an index. Returns `None` if it is not a manifest.
    pub(super) async fn child(&self, child: &Descriptor) -> Result<Option<PlannedDocument>, OpsError> {
        let Descriptor { digest, platform, .. } = child.clone();
        if !child.is_manifest() {
            return Ok(None);
        }
        let known = child.media_type.as_ref().is_some_and(|it| it.kind().is_some());
        if let Some(document) = self.cached(&digest, platform.clone()).await? {
            return Ok(Some(document));
        }
        if self.offline {
            return if known { Err(self.missing(vec![digest])) } else { Ok(None) };
        }
        match manifest(self.cache, &self.reference.repository, &Reference::Digest(digest)).await {
            Ok(found) => {
                let (media_type, body) = (found.manifest.media_type.clone(), found.manifest.body.clone());
                Ok(Some(PlannedDocument { digest, media_type, body, platform }))
            }
            // Some build caches are indexes of blobs.
            Err(CacheError::NotFound) if !known => Ok(None),
            Err(CacheError::NotFound) => Err(OpsError::Content(format!(
                "{} lists {digest} ({}), which the upstream does not have; select platforms with --platform",
                self.reference,
                child.platform.as_deref().unwrap_or("no platform"),
            ))),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn missing(&self, missing: Vec<Digest>) -> OpsError {
        OpsError::Missing { reference: self.reference.to_string(), missing }
    }

    /// Finds everything below an index: nested indexes and other children.
    pub(super) async fn below(&self, root: &PlannedDocument) -> Result<Below, OpsError> {
        let mut below = Below::default();
        let Some(index) = root.read() else { return Ok(below) };
        let mut walk = IndexWalk::below(root.digest, &index);
        while let Some(WalkItem { descriptor: child, repeated }) = walk.next() {
            // An index may list one manifest for several platforms.
            if repeated && child.platform.is_none() || child.foreign {
                continue;
            }
            if child.media_type.as_ref().is_none_or(|it| it.kind() != Some(ManifestKind::Index)) {
                below.children.push(child);
            } else if !repeated {
                let index = self.child(&child).await?.ok_or_else(|| self.missing(vec![child.digest]))?;
                if let Some(nested) = index.read() {
                    walk.visit(&nested, index.body.len() as u64);
                }
                below.indexes.push(index);
            }
        }
        match walk.limit() {
            Some(limit @ (WalkLimit::Count | WalkLimit::Bytes)) => {
                Err(OpsError::Content(format!("{} cannot be exported: {limit}", self.reference)))
            }
            Some(WalkLimit::Depth) | None => Ok(below),
        }
    }

    /// Returns the wanted children without duplicates.
    fn wanted(&self, children: &[Descriptor]) -> Result<Vec<Descriptor>, OpsError> {
        let positions = choose_children(self.reference, self.platforms, children)?;
        let mut seen = HashSet::new();
        let chosen = positions.into_iter().filter_map(|position| children.get(position));
        Ok(chosen.filter(|child| seen.insert(child.digest)).cloned().collect())
    }

    /// Returns the blobs of the manifests, with their sizes.
    async fn blobs(
        &self,
        root: &PlannedDocument,
        below: &[PlannedDocument],
        other_content: Vec<Descriptor>,
    ) -> Result<Vec<PlannedBlob>, OpsError> {
        let (mut wanted, mut seen) = (other_content, HashSet::new());
        for document in std::iter::once(root).chain(below) {
            seen.insert(document.digest);
            let Some(read) = document.read() else { continue };
            if let Some(digest) = read.unsupported.first().filter(|_| !document.is_index()) {
                return Err(OpsError::Content(format!(
                    "{digest} cannot be exported: its digest cannot be verified"
                )));
            }
            wanted.extend(read.blobs);
        }
        // Clients get foreign layers from their own addresses.
        wanted.retain(|blob| !blob.foreign && seen.insert(blob.digest));
        let sizes = self.sizes(&wanted).await?;
        let missing: Vec<Digest> = wanted
            .iter()
            .zip(&sizes)
            .filter(|(_, size)| size.is_none())
            .map(|(blob, _)| blob.digest)
            .collect();
        if self.offline && !missing.is_empty() {
            return Err(self.missing(missing));
        }
        let mut blobs = Vec::new();
        for (blob, cached) in wanted.iter().zip(sizes) {
            let (digest, size) = (blob.digest, cached.or(blob.size));
            let size = if let Some(size) = size {
                size
            } else {
                // No descriptor states the size, so the blob is fetched first.
                self.cache.fetch_blob(&self.reference.repository, &digest, |_| {}).await?;
                let found = self.cache.blob(&self.reference.repository, &digest).await?;
                found.size.ok_or(CacheError::Interrupted)?
            };
            blobs.push(PlannedBlob { digest, size, cached: cached.is_some() });
        }
        Ok(blobs)
    }

    /// Returns the length of each blob that is cached.
    async fn sizes(&self, wanted: &[Descriptor]) -> Result<Vec<Option<u64>>, OpsError> {
        let (repository, digests) = (self.reference.repository.clone(), wanted.iter().map(|it| it.digest));
        let digests: Vec<Digest> = digests.collect();
        let sizes = self.cache.view(move |view| {
            digests.iter().map(|digest| view.blob(&repository, digest)).collect::<Result<_, StoreError>>()
        });
        Ok(sizes.await?)
    }

    /// Checks that a single image is for one of the wanted platforms. Its config states its platform.
    async fn check_platform(&self, image: &PlannedDocument) -> Result<(), OpsError> {
        let config = image.read().and_then(|read| read.blobs.first().map(|config| config.digest));
        let (Some(config), Some((text, _))) = (config, self.platforms.first()) else { return Ok(()) };
        let Some(available) = self.config(&config).await?.as_deref().and_then(platform_in) else {
            return Ok(());
        };
        let fits = |platform: &Platform| platform.choose(std::iter::once(Some(available.as_str()))).is_some();
        if self.platforms.iter().any(|(_, platform)| fits(platform)) {
            return Ok(());
        }
        let (reference, wanted) = (self.reference.to_string(), text.clone());
        Err(OpsError::NoPlatform { reference, wanted, available: vec![available] })
    }

    /// Reads a config. Returns `None` if it is too large, or missing and `offline` is set.
    async fn config(&self, digest: &Digest) -> Result<Option<Vec<u8>>, OpsError> {
        let (repository, wanted) = (self.reference.repository.clone(), *digest);
        if self.offline {
            let body = self.cache.view(move |view| view.read_blob(&repository, &wanted, CONFIG_MAX)).await?;
            return Ok(body.map(Into::into));
        }
        let attempt = || self.cache.blob(&repository, &wanted);
        let blob = attempt.retry(backoff()).when(CacheError::is_retryable).await?;
        let (mut reader, _) = self.cache.reader(&repository, digest, blob, None).await?;
        let mut body = Vec::new();
        while let Some(chunk) = poll_fn(|cx| reader.poll_next(cx)).await {
            body.extend_from_slice(&chunk?);
            if body.len() as u64 > CONFIG_MAX {
                return Ok(None);
            }
        }
        Ok(Some(body))
    }
}

/// Adds the attestations of the wanted children of an index.
fn with_attestations(mut wanted: Vec<Descriptor>, children: &[Descriptor]) -> Vec<Descriptor> {
    let mut seen: HashSet<Digest> = wanted.iter().map(|child| child.digest).collect();
    let subjects = seen.clone();
    let attests = |child: &&Descriptor| child.attests.as_ref().is_some_and(|it| subjects.contains(it));
    let attestations = children.iter().filter(attests).filter(|child| seen.insert(child.digest));
    wanted.extend(attestations.cloned());
    wanted
}
