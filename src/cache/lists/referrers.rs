//! Lists of referrers: signatures, attestations and other artifacts that refer to a manifest.
//!
//! The upstream's list comes from its referrers API, or from the fall-back tag if there is no API, and follows the freshness
//! rules of tags. So does the absence of a list: an upstream that has neither an entry in its API nor the tag has no referrers.
//! Cached manifests with the same subject are added. A missing entry tells a client that an image is not signed, so a failing
//! upstream must never shorten a list, and only a confirmed absence is served as an empty list.

use std::sync::Arc;

use tokio::time::Instant;

use crate::cache::deadline::in_time;
use crate::cache::error::CacheError;
use crate::cache::lists::page::ListResult;
use crate::cache::manifest::{AbsenceAnswer, ManifestAnswer, PointerAnswer, Pointers};
use crate::cache::memory::{CachedManifest, CheckTime};
use crate::cache::rules::Rules;
use crate::cache::storage::Storage;
use crate::clock::Timestamp;
use crate::oci::{Digest, Referrer, Referrers, ReferrersPage, Repository, Tag};
use crate::source::WAIT_MAX;
use crate::store::{Pointer, StoreError, StoreSession};
use crate::telemetry::Outcome;

/// Limit on cached manifests that are added to one list.
const CACHED_MAX: usize = 1000;

/// Lists of referrers.
#[derive(Debug)]
pub(in crate::cache) struct ReferrersLists {
    storage: Arc<Storage>,
    rules: Arc<Rules>,
    pointers: Arc<Pointers>,
}

/// Part of a list of referrers that is requested.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReferrersQuery<'a> {
    /// Artifact type of the entries; `None` for all types.
    pub artifact_type: Option<&'a str>,
    /// Digest of the last entry of the page before.
    pub after: Option<&'a str>,
    /// Size of the page in bytes. A page has at least one entry, unless the list ends.
    pub most: usize,
}

/// List of referrers to serve.
#[derive(Debug)]
pub struct ReferrersAnswer {
    /// Page of the list, with the outcome of the request.
    pub list: ListResult<ReferrersPage>,
    /// True if the list contains only the entries of the requested artifact type.
    pub is_filtered: bool,
}

/// Resource of the upstream that a list is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ListOrigin {
    Api,
    FallbackTag,
}

impl ReferrersLists {
    pub(in crate::cache) fn new(
        storage: &Arc<Storage>,
        rules: &Arc<Rules>,
        pointers: &Arc<Pointers>,
    ) -> Self {
        Self { storage: Arc::clone(storage), rules: Arc::clone(rules), pointers: Arc::clone(pointers) }
    }

    /// Returns the referrers of `subject`, of one artifact type if a type is given and the entries have reliable types. The
    /// upstream has confirmed an empty list, now or when it could last be asked.
    pub(in crate::cache) async fn get(
        &self,
        repository: &Repository,
        subject: &Digest,
        query: ReferrersQuery<'_>,
    ) -> Result<ReferrersAnswer, CacheError> {
        let (owner, of) = (repository.clone(), *subject);
        let cached = self.storage.with_store(move |store| store.referrers(&owner, &of, CACHED_MAX)).await;
        let cached = self.storage.or_default("the cached referrers cannot be listed", cached)?;
        let answer = self.upstream_list(repository, subject, !cached.is_empty()).await;
        // The types in the index of a fall-back tag are written by clients, and are often wrong. A filter would hide signatures.
        let has_reliable_types = !matches!(answer, Ok((PointerAnswer::Present(_), ListOrigin::FallbackTag)));
        let artifact_type = query.artifact_type.filter(|_| has_reliable_types);
        let (manifest, outcome, age, stale, unknown) = match answer {
            Ok((PointerAnswer::Present(ManifestAnswer { manifest, outcome, age, stale }), _)) => {
                (Some(manifest), outcome, age, stale, false)
            }
            Ok((PointerAnswer::Absent(AbsenceAnswer { outcome, age, stale }), _)) => {
                (None, outcome, age, stale, false)
            }
            Err(error) => (None, Outcome::Stale, None, Some(error), true),
        };
        let query = ReferrersQuery { artifact_type, ..query };
        let (content, is_empty) = self.merge(repository, manifest, cached, query).await?;
        match stale {
            // Without a list of the upstream, an empty one would mean "not signed".
            Some(error) if unknown && is_empty => Err(error),
            stale => {
                let list = ListResult { content, outcome, age, stale };
                Ok(ReferrersAnswer { list, is_filtered: artifact_type.is_some() })
            }
        }
    }

    /// Returns true if the upstream's list, or that it has none, is known. Contacts no upstream.
    pub(in crate::cache) async fn is_known(
        &self,
        repository: &Repository,
        subject: &Digest,
    ) -> Result<bool, CacheError> {
        let (repository, subject) = (repository.clone(), *subject);
        let known = self.storage.with_store(move |store| {
            let is_confirmed = confirmed_at(store, &repository, &subject)?.is_some();
            Ok(is_confirmed || known_referrers(store, &repository, &subject)?.checked_at.is_some())
        });
        known.await
    }

    /// Returns the upstream's list from the API or the fall-back tag, or the last known state of either.
    async fn upstream_list(
        &self,
        repository: &Repository,
        subject: &Digest,
        has_cached: bool,
    ) -> Result<(PointerAnswer, ListOrigin), CacheError> {
        let api = Pointer::Referrers(repository.clone(), *subject);
        let fallback = Pointer::tag(repository, &Tag::of_referrers(subject));
        let has_copy = has_cached
            || self.pointers.is_known(&fallback).await?
            || self.pointers.known_absence(&api).await?.is_some();
        let request = async {
            let now = self.storage.clock.instant();
            if !self.storage.memory.is_missing_api(repository, subject, now) {
                match self.pointers.resolve(&api, has_copy).await {
                    Err(CacheError::NoReferrers) => {}
                    other => return other.map(|answer| (answer, ListOrigin::Api)),
                }
            }
            let answer = self.pointers.resolve(&fallback, has_copy).await?;
            if let PointerAnswer::Absent(absence) = &answer {
                self.keep_absence(&api, &fallback, absence).await?;
            }
            Ok((answer, ListOrigin::FallbackTag))
        };
        let error = match in_time(request).await {
            Err(error) if error.allows_stale() => error,
            other => return other,
        };
        let error = match self.pointers.last_known(&api, error).await {
            Err(same) => same,
            Ok(known) => return Ok((known, ListOrigin::Api)),
        };
        match self.pointers.last_known(&fallback, error).await {
            // The tag alone says nothing about a list of the API.
            Ok(PointerAnswer::Absent(AbsenceAnswer { stale: Some(error), .. })) => Err(error),
            known => known.map(|answer| (answer, ListOrigin::FallbackTag)),
        }
    }

    /// Keeps the absence of a list that neither the API nor the fall-back tag has, from the time at which the tag was absent.
    async fn keep_absence(
        &self,
        api: &Pointer,
        fallback: &Pointer,
        absence: &AbsenceAnswer,
    ) -> Result<(), CacheError> {
        let check = match self.pointers.known_absence(fallback).await? {
            Some(check) => check,
            // The tag of a long digest has no subject, so that its absence is remembered only.
            None if absence.outcome == Outcome::Hit => return Ok(()),
            None => CheckTime::now(&self.storage.clock),
        };
        if absence.stale.is_none() {
            self.pointers.keep_absence(api, check).await;
        }
        Ok(())
    }

    /// Adds the cached manifests to the upstream's list, and selects one artifact type. Returns the requested page, and true
    /// if the whole list is empty. A large list waits for its memory and its turn.
    async fn merge(
        &self,
        repository: &Repository,
        list: Option<Arc<CachedManifest>>,
        cached: Vec<Digest>,
        query: ReferrersQuery<'_>,
    ) -> Result<(ReferrersPage, bool), CacheError> {
        let mut memory = self.rules.upstream(repository)?.document_memory();
        let size = list.as_ref().map_or(0, |list| list.body.len());
        let deadline = Instant::now() + WAIT_MAX;
        memory.reserve(size, deadline).await?;
        let turn = memory.turn(size, deadline).await?;
        let (repository, most) = (repository.clone(), query.most);
        let [artifact_type, after] = [query.artifact_type, query.after].map(|text| text.map(str::to_owned));
        let merged = self.storage.with_store_long(move |store| {
            let _held = (memory, turn);
            let list = list.map_or_else(|| Some(Referrers::default()), |list| Referrers::read(&list.body));
            let Some(mut list) = list else { return Ok(None) };
            add_cached(store, &repository, &cached, &mut list)?;
            if let Some(artifact_type) = artifact_type {
                list.retain(&artifact_type);
            }
            Ok(Some((list.page(after.as_deref(), most), list.is_empty())))
        });
        let invalid = || CacheError::invalid("the fall-back tag for referrers is no image index");
        merged.await?.ok_or_else(invalid)
    }
}

/// Referrers of a manifest that are known without contacting the upstream.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KnownReferrers {
    /// Entries of the upstream's last list, and cached manifests with this subject.
    pub referrers: Referrers,
    /// Time at which the upstream last confirmed its list, or that it has none; `None` if this is not known.
    pub checked_at: Option<Timestamp>,
    /// True if a cached manifest has this subject.
    pub has_cached: bool,
}

impl KnownReferrers {
    /// Returns true if the upstream has confirmed that there are no referrers, and none is cached.
    pub fn is_confirmed_empty(&self) -> bool {
        self.checked_at.is_some() && self.referrers.is_empty()
    }
}

/// Returns the time at which the upstream last confirmed its list of referrers, or that it has none. Does not read the list,
/// which may be large. `None` also if only the whole list tells this. Blocks.
pub(in crate::cache) fn confirmed_at(
    store: &StoreSession,
    repository: &Repository,
    subject: &Digest,
) -> Result<Option<Timestamp>, StoreError> {
    let api = Pointer::Referrers(repository.clone(), *subject);
    let Some(fact) = store.pointer(&api)? else {
        return Ok(store.absence(&api)?.map(|fact| fact.checked_at));
    };
    let is_stored = store.access(repository, &fact.digest)?.is_some() && store.has_manifest(&fact.digest)?;
    Ok(is_stored.then_some(fact.checked_at))
}

/// Returns the known referrers of a manifest without contacting the upstream. Blocks.
pub(in crate::cache) fn known_referrers(
    store: &StoreSession,
    repository: &Repository,
    subject: &Digest,
) -> Result<KnownReferrers, StoreError> {
    let api = Pointer::Referrers(repository.clone(), *subject);
    let list = match stored_list(store, repository, &api)? {
        Some(list) => Some(list),
        None => match store.absence(&api)? {
            Some(fact) => Some((fact.checked_at, Referrers::default())),
            None => stored_list(store, repository, &Pointer::tag(repository, &Tag::of_referrers(subject)))?,
        },
    };
    let (checked_at, referrers) = list.unzip();
    let mut known =
        KnownReferrers { referrers: referrers.unwrap_or_default(), checked_at, has_cached: false };
    let cached = store.referrers(repository, subject, CACHED_MAX)?;
    let mut own = Referrers::default();
    add_cached(store, repository, &cached, &mut own)?;
    known.has_cached = !own.is_empty();
    known.referrers.extend(own);
    Ok(known)
}

/// Returns the list that a pointer points at, with the time of the upstream's last confirmation; `None` if it is not stored.
/// Blocks.
fn stored_list(
    store: &StoreSession,
    repository: &Repository,
    pointer: &Pointer,
) -> Result<Option<(Timestamp, Referrers)>, StoreError> {
    let Some(fact) = store.pointer(pointer)? else { return Ok(None) };
    if store.access(repository, &fact.digest)?.is_none() {
        return Ok(None);
    }
    match store.manifest(&fact.digest) {
        Ok(Some(stored)) => Ok(Referrers::read(&stored.body).map(|list| (fact.checked_at, list))),
        Ok(None) | Err(StoreError::Damaged(_)) => Ok(None),
        Err(error) => Err(error),
    }
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
