//! Manifests by digest: from memory, from the store, or fetched from an upstream and verified.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use crate::cache::access::Access;
use crate::cache::deadline::{in_time, joined};
use crate::cache::error::CacheError;
use crate::cache::eviction::content::dependencies;
use crate::cache::flight::Flights;
use crate::cache::manifest::answer::ManifestAnswer;
use crate::cache::manifest::inline::store_inline_blobs;
use crate::cache::memory::{AbsenceKey, CachedManifest};
use crate::cache::prefetch_queue::PrefetchQueue;
use crate::cache::rules::Rules;
use crate::cache::storage::Storage;
use crate::cache::verify::verify_manifest;
use crate::oci::media::{ManifestKind, UPSTREAM_ACCEPT};
use crate::oci::{Digest, Manifest, Reference, Repository};
use crate::source::{SMALL_DOCUMENT, Source as _, UnverifiedManifest, WAIT_MAX, process};
use crate::store::{Change, LinkFact, StoreError, StoreSession, StoredManifest};
use crate::telemetry::Outcome;

/// Manifests by digest. A manifest is immutable, so freshness does not apply.
#[derive(Debug)]
pub(in crate::cache) struct Manifests {
    storage: Arc<Storage>,
    rules: Arc<Rules>,
    access: Access,
    flights: Flights<(Repository, Digest), Arc<CachedManifest>>,
    prefetch_queue: Arc<PrefetchQueue>,
}

/// Handling of the children of an index that was fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cache) enum Children {
    /// Queue the index for prefetch.
    Prefetch,
    /// The caller walks the index itself, within its own bounds.
    ByCaller,
}

/// State of a digest in the store, as seen from one repository.
#[derive(Default)]
struct StoredState {
    link: Option<LinkFact>,
    /// Stored manifest, if the repository's upstream has delivered it.
    manifest: Option<Arc<CachedManifest>>,
}

impl Manifests {
    pub(in crate::cache) fn new(
        storage: &Arc<Storage>,
        rules: &Arc<Rules>,
        prefetch_queue: &Arc<PrefetchQueue>,
    ) -> Self {
        Self {
            storage: Arc::clone(storage),
            rules: Arc::clone(rules),
            access: Access::new(storage, rules),
            flights: Flights::default(),
            prefetch_queue: Arc::clone(prefetch_queue),
        }
    }

    /// Returns a manifest from memory, from the store, or from the upstream.
    pub(in crate::cache) async fn get(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<ManifestAnswer, CacheError> {
        if let Some(manifest) = self.storage.memory.manifests.get(repository, digest) {
            return Ok(ManifestAnswer::immutable(manifest, Outcome::Hit));
        }
        // Boxed, like every path that few requests take: a request moves its whole future, at the size of the longest path.
        Box::pin(self.get_beyond_memory(repository, digest)).await
    }

    async fn get_beyond_memory(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<ManifestAnswer, CacheError> {
        let stored = self.stored_state(repository, digest).await?;
        self.storage.retry_store();
        match stored {
            StoredState { link: Some(_), manifest: Some(manifest) } => {
                self.storage.memory.manifests.insert(repository, Arc::clone(&manifest));
                Ok(ManifestAnswer::immutable(manifest, Outcome::Hit))
            }
            StoredState { link: None, manifest: Some(manifest) } => {
                self.access.confirm_manifest(repository, digest).await?;
                self.access.link(repository, digest).await;
                self.record_subject(repository, &manifest).await;
                self.storage.memory.manifests.insert(repository, Arc::clone(&manifest));
                Ok(ManifestAnswer::immutable(manifest, Outcome::Revalidated))
            }
            StoredState { manifest: None, .. } => {
                let (manifest, leader) = self.fetch(repository, digest, Children::Prefetch).await?;
                let outcome = if leader { Outcome::Miss } else { Outcome::Join };
                Ok(ManifestAnswer::immutable(manifest, outcome))
            }
        }
    }

    /// Returns a manifest that the repository is linked to and that the store or memory has. Contacts no upstream.
    pub(in crate::cache) async fn get_stored(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<Arc<CachedManifest>>, CacheError> {
        if let Some(manifest) = self.storage.memory.manifests.get(repository, digest) {
            return Ok(Some(manifest));
        }
        let stored = Box::pin(self.stored_state(repository, digest)).await?;
        let manifest = stored.manifest.filter(|_| stored.link.is_some());
        if let Some(manifest) = &manifest {
            self.storage.memory.manifests.insert(repository, Arc::clone(manifest));
        }
        Ok(manifest)
    }

    async fn stored_state(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<StoredState, CacheError> {
        let (storage, repository, digest) = (Arc::clone(&self.storage), repository.clone(), *digest);
        let work = move |store: &StoreSession| {
            let link = store.link(&repository, &digest)?;
            if !store.is_delivered(&repository.upstream, &digest)? {
                return Ok(StoredState { link, manifest: None });
            }
            let stored = match store.manifest(&digest) {
                Ok(stored) => stored,
                Err(error @ StoreError::Damaged(_)) => {
                    // A miss: the next request fetches the manifest again.
                    storage.report_store_error("a manifest is damaged and will be fetched again", &error);
                    storage.deleter(store).delete_damaged_manifest(&digest)?;
                    None
                }
                Err(error) => return Err(error),
            };
            let manifest = stored.map(|StoredManifest { media_type, body }| {
                let now = storage.clock.now();
                let usage = storage.content.manifest_usage(&digest, &body, media_type.as_str(), now);
                Arc::new(CachedManifest { digest, media_type, body, usage })
            });
            Ok(StoredState { link, manifest })
        };
        let stored = self.storage.with_store(work).await;
        self.storage.or_default("the stored manifest cannot be read", stored)
    }

    /// Fetches a manifest from the upstream, once for all concurrent requests. Returns true for the request that started
    /// the fetch.
    ///
    /// The wait is bounded; the fetch continues without the request.
    pub(in crate::cache) async fn fetch(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
        children: Children,
    ) -> Result<(Arc<CachedManifest>, bool), CacheError> {
        self.access.check_absence(repository, &AbsenceKey::Manifest(*digest))?;
        let upstream = self.rules.upstream(repository)?;
        upstream.check_loop()?;
        let ticket = self.flights.join(&(repository.clone(), *digest), || {
            let (manifests, repository, digest) = (Arc::clone(self), repository.clone(), *digest);
            async move { manifests.download(&repository, &digest, children).await }
        });
        let leader = ticket.leader;
        Ok((in_time(joined(&upstream, leader, ticket.wait())).await?, leader))
    }

    async fn download(
        &self,
        repository: &Repository,
        digest: &Digest,
        children: Children,
    ) -> Result<Arc<CachedManifest>, CacheError> {
        // Another flight may have ended after the store was read and before this one began.
        if let Some(manifest) = self.get_stored(repository, digest).await? {
            return Ok(manifest);
        }
        let upstream = self.rules.upstream(repository)?;
        let reference = Reference::Digest(*digest);
        let answer = match upstream.manifest(&repository.name, &reference, UPSTREAM_ACCEPT, None).await {
            Ok(answer) => answer,
            Err(error) => {
                let absence = AbsenceKey::Manifest(*digest);
                return Err(self.access.remember_absence(repository, absence, error.into()));
            }
        };
        verify_manifest(&self.storage.metrics, repository, &answer, digest).await?;
        let manifest = self.keep(repository, *digest, answer).await?;
        if children == Children::Prefetch {
            self.prefetch(repository, &manifest, true);
        }
        Ok(manifest)
    }

    /// Stores a verified manifest with its links, and adds it to memory. A manifest that cannot be stored is served from
    /// memory.
    pub(in crate::cache) async fn keep(
        &self,
        repository: &Repository,
        digest: Digest,
        answer: UnverifiedManifest,
    ) -> Result<Arc<CachedManifest>, CacheError> {
        let UnverifiedManifest { body, content_type, memory, .. } = answer;
        let parse = {
            let body = body.clone();
            move || Manifest::read(&body, content_type.as_deref())
        };
        let turn = match &memory {
            Some(memory) => Some(memory.turn(body.len(), Instant::now() + WAIT_MAX).await?),
            None => None,
        };
        let parsed = process(body.len(), parse).await?;
        let parsed = parsed.map_err(|error| CacheError::invalid(format!("{digest}: {error}")))?;
        let media_type = parsed.media_type.clone();
        let work = {
            let (storage, repository, body) = (Arc::clone(&self.storage), repository.clone(), body.clone());
            move |store: &StoreSession| {
                let _held = (memory, turn);
                put_manifest(&storage, store, &repository, digest, &parsed, body)
            }
        };
        let kept = match body.len() {
            ..=SMALL_DOCUMENT => self.storage.with_store(work).await,
            _ => self.storage.with_store_long(work).await,
        };
        match kept {
            Ok(manifest) => Ok(manifest),
            Err(error) => {
                self.storage.report_error("a manifest could not be stored; it is served from memory", &error);
                let usage = Arc::default();
                let manifest = Arc::new(CachedManifest { digest, media_type, body, usage });
                self.storage.memory.manifests.insert(repository, Arc::clone(&manifest));
                Ok(manifest)
            }
        }
    }

    /// Queues an index or a manifest for prefetch, unless all that it needs was prefetched before. `lists` is true if lists of
    /// referrers are wanted.
    pub(in crate::cache) fn prefetch(
        &self,
        repository: &Repository,
        manifest: &Arc<CachedManifest>,
        lists: bool,
    ) {
        let is_index = manifest.media_type.kind() == Some(ManifestKind::Index);
        let index = (repository.clone(), manifest.digest);
        if self.rules.current().prefetch.is_enabled(is_index, lists)
            && self.storage.memory.prefetched.get(&index).is_none()
        {
            self.prefetch_queue.push(index, lists);
        }
    }

    /// Records the subject of a manifest that was stored through another repository. A referrer that is not recorded is
    /// still in the upstream's list.
    async fn record_subject(&self, repository: &Repository, manifest: &CachedManifest) {
        let parsed = self.rules.parse(repository, manifest).await;
        let Some(Manifest { subject: Some(subject), .. }) = parsed else { return };
        let (repository, referrer) = (repository.clone(), manifest.digest);
        let change = Change::AddReferrer { repository, subject, referrer };
        if let Err(error) = self.storage.with_store(move |store| store.apply(&[change])).await {
            self.storage.report_error("a referrer could not be recorded", &error);
        }
    }
}

/// Stores a verified manifest with its links, and adds it to memory. Blocks.
pub(in crate::cache) fn put_manifest(
    storage: &Storage,
    store: &StoreSession,
    repository: &Repository,
    digest: Digest,
    parsed: &Manifest,
    body: Bytes,
) -> Result<Arc<CachedManifest>, StoreError> {
    let stored = StoredManifest { media_type: parsed.media_type.clone(), body: body.clone() };
    // A manifest links its repository to the content that it contains. It does not link it to its subject or to foreign
    // layers: registries check neither, so that a forged manifest could claim any digest.
    let contained = parsed.children.iter().chain(&parsed.blobs).filter(|target| !target.foreign);
    let links = contained.map(|target| (target.digest, target.size));
    let now = storage.clock.now();
    let media_type = store.put_manifest(repository, &digest, &stored, links, now)?;
    if let Some(subject) = parsed.subject {
        let repository = repository.clone();
        store.apply(&[Change::AddReferrer { repository, subject, referrer: digest }])?;
    }
    if let Err(error) = store_inline_blobs(storage, store, repository, &body) {
        storage.report_store_error("a blob that a manifest contains could not be stored", &error);
    }
    let usage = storage.content.add_manifest(&digest, &body, dependencies(parsed), now);
    let manifest = Arc::new(CachedManifest { digest, media_type, body, usage });
    storage.memory.manifests.insert(repository, Arc::clone(&manifest));
    Ok(manifest)
}
