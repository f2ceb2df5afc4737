//! The upstream's list of referrers of a manifest: fetched completely, and stored as one image index.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::cache::error::CacheError;
use crate::cache::freshness;
use crate::cache::memory::{ApiScope, CachedManifest};
use crate::cache::rules::Rules;
use crate::cache::storage::Storage;
use crate::oci::{Algorithm, Digest, MediaType, Referrers, Repository};
use crate::source::{DocumentMemory, DocumentTurn, Source as _, SourceError};
use crate::store::{StoreError, StoreSession, StoredManifest};

/// Time for which a missing referrers API is remembered, unless tags stay fresh longer.
const MISSING_API_TTL: Duration = Duration::from_mins(10);

/// Fetches the list from the upstream. An empty list is an absence, and not a list.
pub(super) async fn fetch(
    storage: &Arc<Storage>,
    rules: &Rules,
    repository: &Repository,
    subject: &Digest,
) -> Result<Arc<CachedManifest>, CacheError> {
    let upstream = rules.upstream(repository)?;
    let remember_missing = |scope, ttl| {
        storage.memory.remember_missing_api(scope, storage.clock.instant() + ttl);
        Err(CacheError::NoReferrers)
    };
    let missing_api_ttl = freshness::at_least_tag_ttl(MISSING_API_TTL, upstream.settings());
    let listed = upstream.referrers(&repository.name, subject, None).await;
    if listed.is_ok() {
        storage.memory.remember_api(&repository.upstream);
    }
    match listed {
        Ok(list) if list.is_empty() => Err(CacheError::NotFound),
        Ok(list) => {
            let (list, memory) = list.into_parts();
            let turn = match &memory {
                Some(memory) => Some(memory.own_turn().await?),
                None => None,
            };
            keep(storage, repository, list, (memory, turn)).await
        }
        Err(SourceError::NoReferrers { lasting: true }) => {
            remember_missing(ApiScope::Repository(repository.clone()), missing_api_ttl)
        }
        // An API that has worked before fails now. Its lists may exist.
        Err(error @ (SourceError::ReferrersElsewhere | SourceError::NotReferrers))
            if storage.memory.has_sent_list(&repository.upstream) =>
        {
            Err(CacheError::unreachable(error.to_string()))
        }
        Err(SourceError::NoReferrers { lasting: false } | SourceError::NotReferrers) => {
            let scope = ApiScope::Subject(repository.clone(), *subject);
            remember_missing(scope, upstream.settings().negative_ttl)
        }
        Err(SourceError::ReferrersElsewhere) => {
            remember_missing(ApiScope::Upstream(repository.upstream.clone()), missing_api_ttl)
        }
        Err(error) => Err(error.into()),
    }
}

/// Stores a list like a manifest, linked to its repository. The list links the repository to none of the referrers: they
/// need not exist, and each one is verified when it is fetched.
async fn keep(
    storage: &Arc<Storage>,
    repository: &Repository,
    list: Referrers,
    held: (Option<DocumentMemory>, Option<DocumentTurn>),
) -> Result<Arc<CachedManifest>, CacheError> {
    let (shared, owner) = (Arc::clone(storage), repository.clone());
    let work = move |store: &StoreSession| {
        let _held = held;
        let body = Bytes::from(list.to_index());
        drop(list);
        let kept = put_list(&shared, store, &owner, body.clone());
        Ok(kept.unwrap_or_else(|error| {
            shared.report_store_error(
                "a list of referrers could not be stored; it is served from memory",
                &error,
            );
            let (digest, media_type) = (Digest::of(Algorithm::Sha256, &body), MediaType::oci_index());
            Arc::new(CachedManifest { digest, media_type, body, usage: Arc::default() })
        }))
    };
    let manifest = storage.with_store_long(work).await?;
    storage.memory.manifests.insert(repository, Arc::clone(&manifest));
    Ok(manifest)
}

/// Stores a list, linked to its repository. Blocks.
pub(in crate::cache) fn put_list(
    storage: &Storage,
    store: &StoreSession,
    repository: &Repository,
    body: Bytes,
) -> Result<Arc<CachedManifest>, StoreError> {
    let (digest, media_type) = (Digest::of(Algorithm::Sha256, &body), MediaType::oci_index());
    let stored = StoredManifest { media_type: media_type.clone(), body: body.clone() };
    let now = storage.clock.now();
    store.put_manifest(repository, &digest, &stored, std::iter::empty(), now)?;
    let usage = storage.content.add_manifest(&digest, &body, std::iter::empty(), now);
    Ok(Arc::new(CachedManifest { digest, media_type, body, usage }))
}
