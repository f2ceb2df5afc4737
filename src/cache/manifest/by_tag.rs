//! Requests for a tag to the upstream: HEAD to detect a moved tag, GET to fetch the new manifest.

use std::sync::Arc;

use crate::cache::error::CacheError;
use crate::cache::manifest::by_digest::{Children, Manifests};
use crate::cache::memory::CachedManifest;
use crate::cache::verify::{digest_of, verify_manifest};
use crate::oci::media::UPSTREAM_ACCEPT;
use crate::oci::{Digest, Reference, Repository};
use crate::source::{Source as _, UnverifiedManifest};
use crate::store::TagKey;
use crate::telemetry::Metrics;
use crate::upstream::Upstream;

/// One request for a tag to its upstream.
pub(super) struct TagRequest<'a> {
    manifests: &'a Arc<Manifests>,
    metrics: &'a Metrics,
    upstream: &'a Upstream,
    key: &'a TagKey,
    accept: &'a str,
}

impl<'a> TagRequest<'a> {
    pub(super) fn new(
        manifests: &'a Arc<Manifests>,
        metrics: &'a Metrics,
        upstream: &'a Upstream,
        key: &'a TagKey,
    ) -> Self {
        let accept = key.variant.as_deref().unwrap_or(UPSTREAM_ACCEPT);
        Self { manifests, metrics, upstream, key, accept }
    }

    /// Returns the manifest that the tag points at. With a known manifest one HEAD is sent first, and a GET only if the tag
    /// has moved.
    pub(super) async fn send(
        &self,
        known: Option<&Arc<CachedManifest>>,
    ) -> Result<Arc<CachedManifest>, CacheError> {
        let mut announced = None;
        if let Some(known) = known {
            let name = &self.key.repository.name;
            let head = match self.upstream.head(name, &self.reference(), self.accept, None).await {
                Err(error) if error.may_be_about_head() => None,
                head => head?,
            };
            announced = head.and_then(|head| head.digest);
            if announced == Some(known.digest) {
                return Ok(Arc::clone(known));
            }
        }
        self.fetch(announced).await
    }

    fn reference(&self) -> Reference {
        Reference::Tag(self.key.tag.clone())
    }

    /// Gets the manifest by tag, and verifies it against the digest that the upstream announced.
    async fn fetch(&self, announced: Option<Digest>) -> Result<Arc<CachedManifest>, CacheError> {
        let repository = &self.key.repository;
        let answer = self.upstream.manifest(&repository.name, &self.reference(), self.accept, None).await?;
        let digest = digest_of(&answer).await?;
        // The header of the GET is newer: the tag may have moved after the HEAD.
        let announced = answer.digest.or(announced).unwrap_or(digest);
        if announced == digest {
            return self.manifests.keep(repository, digest, answer).await;
        }
        tracing::warn!(
            %repository, tag = %self.key.tag, %announced, %digest,
            "upstream announced another digest than it sent; requesting both by digest"
        );
        self.fetch_contradicted(answer, digest, announced).await
    }

    /// Decides between two digests: Docker Hub has sent a child manifest under the digest of its index.
    ///
    /// The upstream is asked by digest, first for the announced manifest and then for the one that it sent. For a variant
    /// the order is reversed, because the client accepts the types of the manifest that was sent. A manifest that the
    /// upstream does not have under its own digest is damaged and is refused.
    async fn fetch_contradicted(
        &self,
        answer: UnverifiedManifest,
        digest: Digest,
        announced: Digest,
    ) -> Result<Arc<CachedManifest>, CacheError> {
        let repository = &self.key.repository;
        let is_variant = self.key.variant.is_some();
        if is_variant {
            if let Some(manifest) = self.manifests.get_stored(repository, &digest).await? {
                return Ok(manifest);
            }
            if self.is_confirmed(repository, &digest, &answer).await {
                return self.manifests.keep(repository, digest, answer).await;
            }
        }
        if let Ok((manifest, _)) = self.manifests.fetch(repository, &announced, Children::Prefetch).await {
            return Ok(manifest);
        }
        if !is_variant && self.is_confirmed(repository, &digest, &answer).await {
            return self.manifests.keep(repository, digest, answer).await;
        }
        verify_manifest(self.metrics, repository, &answer, &announced).await?;
        Err(CacheError::Mismatch(format!("{digest} is not the digest that was announced")))
    }

    /// Returns true if the upstream sends the same bytes for the digest of the answer.
    async fn is_confirmed(
        &self,
        repository: &Repository,
        digest: &Digest,
        answer: &UnverifiedManifest,
    ) -> bool {
        let reference = Reference::Digest(*digest);
        let by_digest = self.upstream.manifest(&repository.name, &reference, self.accept, None).await;
        by_digest.is_ok_and(|by_digest| by_digest.body == answer.body)
    }
}
