//! What refers to a manifest: signatures, attestations, whatever was attached to it.
//!
//! The upstream's list is asked for by its referrers API, or, where it has none, under the fall-back tag, and is kept
//! by the rules for tags. Manifests that were kept here and refer to the same subject are added to it. A list without
//! an entry tells a client that an image is not signed, so no trouble of an upstream may ever make one.

use std::sync::Arc;

use crate::oci::{Digest, Referrer, Referrers, Repository, Tag};
use crate::store::{StoreError, StoreSession};
use crate::telemetry::Outcome;

use crate::cache::Cache;
use crate::cache::core::Shared;
use crate::cache::deadline::in_time;
use crate::cache::error::CacheError;
use crate::cache::lists::catalog::ListResult;
use crate::cache::manifest::answer::ManifestAnswer;
use crate::cache::manifest::resolve::{is_absent, is_known, last_known, resolve};
use crate::cache::memory::CachedManifest;
use crate::cache::pointer::Pointer;
use crate::cache::pointer::TagKey;

/// Manifests held that are added to one list.
const HELD_MAX: usize = 1000;

/// A definite answer, or the last known one.
enum ReferrersAnswer {
    Listed(ManifestAnswer),
    /// There is no list; what the cache did to know that.
    Absent(Outcome),
}

impl Cache {
    /// What refers to `subject` in a repository, of one artifact type if one is named. An empty list is always the
    /// upstream's own word.
    pub async fn referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<ListResult<Referrers>, CacheError> {
        let shared = &self.0;
        let (owner, of) = (repository.clone(), *subject);
        let held = shared.with_store(move |store| store.referrers(&owner, &of, HELD_MAX)).await;
        let held = shared.or_default("the referrers held cannot be found out", held)?;
        let (document, outcome, age, stale) = match answer(shared, repository, subject, &held).await {
            Ok(ReferrersAnswer::Listed(ManifestAnswer { document, outcome, age, stale })) => {
                (Some(document), outcome, age, stale)
            }
            Ok(ReferrersAnswer::Absent(outcome)) => (None, outcome, None, None),
            Err(error) => (None, Outcome::Stale, None, Some(error)),
        };
        let mut content = together(shared, repository, document, held).await?;
        if let Some(artifact_type) = artifact_type {
            content.retain(artifact_type);
        }
        match stale {
            Some(error) if content.is_empty() && error.is_trouble() => Err(error),
            stale => Ok(ListResult { content, outcome, age, stale }),
        }
    }
}

/// The upstream's answer, by whichever way it has one, or the last that is known of either.
async fn answer(
    shared: &Arc<Shared>,
    repository: &Repository,
    subject: &Digest,
    held: &[Digest],
) -> Result<ReferrersAnswer, CacheError> {
    let list = Pointer::Referrers(repository.clone(), *subject);
    let tag = Tag::of_referrers(subject);
    let fallback = Pointer::Tag(TagKey { repository: repository.clone(), tag, variant: None });
    let copy = !held.is_empty() || is_known(shared, &fallback).await?;
    let asking = async {
        if !shared.memory.is_without_api(repository, subject, shared.clock.instant()) {
            match ask(shared, &list, copy).await {
                Err(CacheError::NoReferrers) => {}
                other => return other,
            }
        }
        ask(shared, &fallback, copy).await
    };
    let mut error = match in_time(asking).await {
        Err(error) if error.is_trouble() => error,
        other => return other,
    };
    for pointer in [&list, &fallback] {
        match last_known(shared, pointer, error).await {
            Ok(found) => return Ok(ReferrersAnswer::Listed(found)),
            Err(same) => error = same,
        }
    }
    Err(error)
}

/// Resolves one of the two. Who has a `copy` to serve does not wait long.
async fn ask(shared: &Arc<Shared>, pointer: &Pointer, copy: bool) -> Result<ReferrersAnswer, CacheError> {
    let remembered = is_absent(shared, pointer);
    match resolve(shared, pointer, copy).await {
        Ok(found) => Ok(ReferrersAnswer::Listed(found)),
        Err(CacheError::NotFound) if remembered => Ok(ReferrersAnswer::Absent(Outcome::Hit)),
        Err(CacheError::NotFound) => Ok(ReferrersAnswer::Absent(Outcome::Miss)),
        Err(error) => Err(error),
    }
}

/// The upstream's list and what is held beside it.
async fn together(
    shared: &Arc<Shared>,
    repository: &Repository,
    document: Option<Arc<CachedManifest>>,
    held: Vec<Digest>,
) -> Result<Referrers, CacheError> {
    let repository = repository.clone();
    let list = shared.with_store(move |store| {
        let list = document.map_or_else(|| Some(Referrers::default()), |it| Referrers::read(&it.body));
        list.map(|mut list| add_held(store, &repository, &held, &mut list).map(|()| list)).transpose()
    });
    list.await?.ok_or_else(|| {
        CacheError::Invalid("what it has under the fall-back tag is no image index".to_owned())
    })
}

/// What is known here of what refers to a manifest: the last list that its upstream gave, and the manifests held. Asks
/// nobody; that nothing is known does not mean that nothing refers.
pub(in crate::cache) fn known(
    store: &StoreSession,
    repository: &Repository,
    subject: &Digest,
) -> Result<Referrers, StoreError> {
    let list = match store.pointer(&Pointer::Referrers(repository.clone(), *subject))? {
        Some(fact) => Some(fact),
        None => store.pointer(&Pointer::tag(repository, &Tag::of_referrers(subject)))?,
    };
    let document = match list.map(|fact| store.manifest(&fact.digest)) {
        Some(Ok(document)) => document,
        None | Some(Err(StoreError::Damaged(_))) => None,
        Some(Err(error)) => return Err(error),
    };
    let mut known = document.and_then(|it| Referrers::read(&it.body)).unwrap_or_default();
    add_held(store, repository, &store.referrers(repository, subject, HELD_MAX)?, &mut known)?;
    Ok(known)
}

/// Adds those of the manifests held that the list lacks. One that has gone, or is damaged, is not held.
fn add_held(
    store: &StoreSession,
    repository: &Repository,
    held: &[Digest],
    list: &mut Referrers,
) -> Result<(), StoreError> {
    for digest in held {
        if list.contains(digest) || store.link(repository, digest)?.is_none() {
            continue;
        }
        match store.manifest(digest) {
            Ok(Some(it)) => list.extend(Referrer::describe(digest, &it.media_type, &it.body)),
            Ok(None) | Err(StoreError::Damaged(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
