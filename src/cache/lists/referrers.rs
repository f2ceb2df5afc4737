//! Lists of referrers: signatures, attestations and other artifacts that refer to a manifest.
//!
//! The upstream's list comes from its referrers API, or from the fall-back tag if there is no API, and follows the freshness
//! rules of tags. Cached manifests with the same subject are added. A missing entry tells a client that an image is not
//! signed, so a failing upstream must never shorten a list.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::cache::deadline::in_time;
use crate::cache::error::CacheError;
use crate::cache::lists::page::ListResult;
use crate::cache::manifest::{ManifestAnswer, Pointers};
use crate::cache::memory::CachedManifest;
use crate::cache::rules::Rules;
use crate::cache::storage::Storage;
use crate::oci::{Digest, Referrer, Referrers, Repository, Tag};
use crate::source::Counted;
use crate::store::{Pointer, StoreError, StoreSession};
use crate::telemetry::Outcome;

/// Limit on cached manifests that are added to one list.
const CACHED_MAX: usize = 1000;
/// Longest wait for the memory of a large list.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(9);

/// Lists of referrers.
#[derive(Debug)]
pub(in crate::cache) struct ReferrersLists {
    storage: Arc<Storage>,
    rules: Arc<Rules>,
    pointers: Arc<Pointers>,
}

/// Upstream's list, or its definite absence.
enum UpstreamList {
    Present(ManifestAnswer),
    /// There is no list. The outcome shows whether the upstream was asked now.
    Absent(Outcome),
}

impl ReferrersLists {
    pub(in crate::cache) fn new(
        storage: &Arc<Storage>,
        rules: &Arc<Rules>,
        pointers: &Arc<Pointers>,
    ) -> Self {
        Self { storage: Arc::clone(storage), rules: Arc::clone(rules), pointers: Arc::clone(pointers) }
    }

    /// Returns the referrers of `subject`, of one artifact type if a type is given. An empty list always comes from the
    /// upstream.
    pub(in crate::cache) async fn get(
        &self,
        repository: &Repository,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<ListResult<Counted<Referrers>>, CacheError> {
        let (owner, of) = (repository.clone(), *subject);
        let cached = self.storage.with_store(move |store| store.referrers(&owner, &of, CACHED_MAX)).await;
        let cached = self.storage.or_default("the cached referrers cannot be listed", cached)?;
        let (manifest, outcome, age, stale) =
            match self.upstream_list(repository, subject, !cached.is_empty()).await {
                Ok(UpstreamList::Present(ManifestAnswer { manifest, outcome, age, stale })) => {
                    (Some(manifest), outcome, age, stale)
                }
                Ok(UpstreamList::Absent(outcome)) => (None, outcome, None, None),
                Err(error) => (None, Outcome::Stale, None, Some(error)),
            };
        let content = self.merge(repository, manifest, cached, artifact_type).await?;
        match stale {
            Some(error) if content.is_empty() && error.allows_stale() => Err(error),
            stale => Ok(ListResult { content, outcome, age, stale }),
        }
    }

    /// Returns the upstream's list from the API or the fall-back tag, or the last known list of either.
    async fn upstream_list(
        &self,
        repository: &Repository,
        subject: &Digest,
        has_cached: bool,
    ) -> Result<UpstreamList, CacheError> {
        let api = Pointer::Referrers(repository.clone(), *subject);
        let fallback = Pointer::tag(repository, &Tag::of_referrers(subject));
        let has_copy = has_cached || self.pointers.is_known(&fallback).await?;
        let request = async {
            let now = self.storage.clock.instant();
            if !self.storage.memory.is_missing_api(repository, subject, now) {
                match self.resolve(&api, has_copy).await {
                    Err(CacheError::NoReferrers) => {}
                    other => return other,
                }
            }
            self.resolve(&fallback, has_copy).await
        };
        let mut error = match in_time(request).await {
            Err(error) if error.allows_stale() => error,
            other => return other,
        };
        for pointer in [&api, &fallback] {
            match self.pointers.last_known(pointer, error).await {
                Ok(answer) => return Ok(UpstreamList::Present(answer)),
                Err(same) => error = same,
            }
        }
        Err(error)
    }

    /// Resolves the API's list or the fall-back tag. With a copy to serve the wait is short.
    async fn resolve(&self, pointer: &Pointer, has_copy: bool) -> Result<UpstreamList, CacheError> {
        let was_absent = self.pointers.is_absent(pointer);
        match self.pointers.resolve(pointer, has_copy).await {
            Ok(answer) => Ok(UpstreamList::Present(answer)),
            Err(CacheError::NotFound) if was_absent => Ok(UpstreamList::Absent(Outcome::Hit)),
            Err(CacheError::NotFound) => Ok(UpstreamList::Absent(Outcome::Miss)),
            Err(error) => Err(error),
        }
    }

    /// Adds the cached manifests to the upstream's list, and selects one artifact type. A large list waits for its memory,
    /// which the caller holds with the list.
    async fn merge(
        &self,
        repository: &Repository,
        list: Option<Arc<CachedManifest>>,
        cached: Vec<Digest>,
        artifact_type: Option<&str>,
    ) -> Result<Counted<Referrers>, CacheError> {
        let mut memory = self.rules.upstream(repository)?.document_memory();
        let size = list.as_ref().map_or(0, |list| list.body.len());
        memory.reserve(size, Instant::now() + MEMORY_TIMEOUT).await?;
        let (repository, artifact_type) = (repository.clone(), artifact_type.map(str::to_owned));
        let merged = self.storage.with_store_long(move |store| {
            let list = list.map_or_else(|| Some(Referrers::default()), |list| Referrers::read(&list.body));
            let Some(mut list) = list else { return Ok(None) };
            add_cached(store, &repository, &cached, &mut list)?;
            if let Some(artifact_type) = artifact_type {
                list.retain(&artifact_type);
            }
            Ok(Some(list))
        });
        let invalid = || CacheError::invalid("the fall-back tag for referrers is no image index");
        Ok(Counted::new(merged.await?.ok_or_else(invalid)?, memory))
    }
}

/// Returns the known referrers of a manifest without contacting the upstream: its last list, and the cached manifests. Other
/// referrers may exist. Blocks.
pub(in crate::cache) fn known_referrers(
    store: &StoreSession,
    repository: &Repository,
    subject: &Digest,
) -> Result<Referrers, StoreError> {
    let list = match store.pointer(&Pointer::Referrers(repository.clone(), *subject))? {
        Some(fact) => Some(fact),
        None => store.pointer(&Pointer::tag(repository, &Tag::of_referrers(subject)))?,
    };
    let list = match list {
        Some(fact) if store.access(repository, &fact.digest)?.is_some() => Some(fact),
        _ => None,
    };
    let stored = match list.map(|fact| store.manifest(&fact.digest)) {
        Some(Ok(stored)) => stored,
        None | Some(Err(StoreError::Damaged(_))) => None,
        Some(Err(error)) => return Err(error),
    };
    let mut known = stored.and_then(|stored| Referrers::read(&stored.body)).unwrap_or_default();
    let cached = store.referrers(repository, subject, CACHED_MAX)?;
    add_cached(store, repository, &cached, &mut known)?;
    Ok(known)
}

/// Adds the cached manifests that a list lacks. A manifest that is gone or damaged is skipped. Blocks.
fn add_cached(
    store: &StoreSession,
    repository: &Repository,
    cached: &[Digest],
    list: &mut Referrers,
) -> Result<(), StoreError> {
    for digest in cached {
        if list.contains(digest) || store.access(repository, digest)?.is_none() {
            continue;
        }
        match store.manifest(digest) {
            Ok(Some(stored)) => list.extend(Referrer::describe(digest, &stored.media_type, &stored.body)),
            Ok(None) | Err(StoreError::Damaged(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
