//! Pointers to manifests: served while fresh, revalidated with one request to the upstream after that, and served stale
//! while the upstream fails.

use std::sync::Arc;
use std::time::Duration;

use crate::cache::access::Access;
use crate::cache::deadline::{Deadline, joined};
use crate::cache::error::{CacheError, CacheErrorKind};
use crate::cache::flight::{Flights, Ticket};
use crate::cache::freshness::{self, Freshness};
use crate::cache::manifest::absences::Absences;
use crate::cache::manifest::answer::{AbsenceAnswer, ManifestAnswer, PointerAnswer};
use crate::cache::manifest::by_digest::Manifests;
use crate::cache::manifest::by_tag::TagRequest;
use crate::cache::manifest::referrers_index;
use crate::cache::memory::{AbsenceKey, CachedManifest, CheckTime, CheckedPointer};
use crate::cache::rules::Rules;
use crate::cache::storage::Storage;
use crate::config::schema::{Cache as CacheSettings, OnUpstream404};
use crate::store::{Change, Pointer, TagFact};
use crate::telemetry::Outcome;
use crate::upstream::{RequestOrigin, Upstream};

/// Tags and lists of referrers.
#[derive(Debug)]
pub(in crate::cache) struct Pointers {
    storage: Arc<Storage>,
    rules: Arc<Rules>,
    access: Access,
    absences: Absences,
    manifests: Arc<Manifests>,
    flights: Flights<Pointer, ResolvedPointer>,
}

/// Answer of the upstream about a pointer.
#[derive(Clone, Debug)]
struct ResolvedPointer {
    manifest: Arc<CachedManifest>,
    outcome: Outcome,
}

/// Last known state of a pointer, with the manifest that it points at.
#[derive(Clone, Debug)]
struct KnownPointer {
    checked: CheckedPointer,
    manifest: Arc<CachedManifest>,
}

/// Last known answer of the upstream about a pointer.
#[derive(Clone, Debug)]
enum LastState {
    Present(KnownPointer),
    Absent(CheckTime),
}

impl LastState {
    /// Returns the time at which the upstream gave the answer.
    fn check(&self) -> CheckTime {
        match self {
            Self::Present(KnownPointer { checked: CheckedPointer { fact, at }, .. }) => {
                CheckTime { checked_at: fact.checked_at, at: *at }
            }
            Self::Absent(check) => *check,
        }
    }

    fn judge(&self, age: Option<Duration>, settings: &CacheSettings) -> Freshness {
        let checked_at = self.check().checked_at;
        match self {
            Self::Present(_) => freshness::judge(age, checked_at, settings),
            Self::Absent(_) => freshness::judge_absence(age, checked_at, settings),
        }
    }

    /// Returns the target of the pointer, if there is one.
    fn known(&self) -> Option<&KnownPointer> {
        match self {
            Self::Present(known) => Some(known),
            Self::Absent(_) => None,
        }
    }

    fn answer(self, outcome: Outcome, age: Option<Duration>, stale: Option<CacheError>) -> PointerAnswer {
        match self {
            Self::Present(KnownPointer { manifest, .. }) => {
                PointerAnswer::Present(ManifestAnswer { manifest, outcome, age, stale })
            }
            Self::Absent(_) => PointerAnswer::Absent(AbsenceAnswer { outcome, age, stale }),
        }
    }
}

/// Creates the answer for an absence that is not stale.
fn absent(outcome: Outcome, age: Option<Duration>) -> PointerAnswer {
    PointerAnswer::Absent(AbsenceAnswer { outcome, age, stale: None })
}

impl Pointers {
    pub(in crate::cache) fn new(
        storage: &Arc<Storage>,
        rules: &Arc<Rules>,
        manifests: &Arc<Manifests>,
    ) -> Self {
        Self {
            storage: Arc::clone(storage),
            rules: Arc::clone(rules),
            access: Access::new(storage, rules),
            absences: Absences::new(storage),
            manifests: Arc::clone(manifests),
            flights: Flights::default(),
        }
    }

    /// Resolves a pointer to a manifest. `has_copy` is true if the caller has something else to serve, so that it waits only
    /// briefly.
    pub(in crate::cache) async fn manifest(
        self: &Arc<Self>,
        pointer: &Pointer,
        has_copy: bool,
    ) -> Result<ManifestAnswer, CacheError> {
        self.resolve(pointer, has_copy).await?.into_manifest()
    }

    /// Resolves a pointer. An absence is an answer, and not an error.
    pub(in crate::cache) async fn resolve(
        self: &Arc<Self>,
        pointer: &Pointer,
        has_copy: bool,
    ) -> Result<PointerAnswer, CacheError> {
        let upstream = self.rules.upstream(pointer.repository())?;
        let state = match self.last_state(pointer).await? {
            Some(state) => {
                let age = state.check().age(&self.storage.clock);
                let freshness = state.judge(age, upstream.settings());
                if freshness == Freshness::ServeAndRevalidate {
                    drop(self.revalidate(pointer, state.known().cloned()));
                }
                if freshness != Freshness::Expired {
                    return Ok(state.answer(Outcome::Hit, age, None));
                }
                Some(state)
            }
            None if self.is_remembered_absent(pointer) => return Ok(absent(Outcome::Hit, None)),
            None => None,
        };
        Box::pin(self.resolve_upstream(pointer, state, upstream, has_copy)).await
    }

    /// Waits for the upstream's answer. Without an answer the last known state is served stale.
    async fn resolve_upstream(
        self: &Arc<Self>,
        pointer: &Pointer,
        state: Option<LastState>,
        upstream: Arc<Upstream>,
        has_copy: bool,
    ) -> Result<PointerAnswer, CacheError> {
        upstream.check_loop()?;
        let deadline = Deadline::new(&upstream, has_copy || state.is_some());
        // The flight continues after the deadline, so that the next request knows whether the upstream has recovered.
        let known = state.as_ref().and_then(LastState::known).cloned();
        let ticket = self.revalidate(pointer, known);
        let leader = ticket.leader;
        let shared = |outcome| if leader || outcome != Outcome::Miss { outcome } else { Outcome::Join };
        let answer = match (deadline.wait(joined(&upstream, leader, ticket.wait())).await, state) {
            (Ok(ResolvedPointer { manifest, outcome }), _) => {
                let (outcome, age) = (shared(outcome), Some(Duration::ZERO));
                Ok(PointerAnswer::Present(ManifestAnswer { manifest, outcome, age, stale: None }))
            }
            // A stale copy would come back as the answer to the request that started the circle.
            (Err(CacheError::Loop), _) if !RequestOrigin::current().hops.is_empty() => Err(CacheError::Loop),
            (Err(error), Some(state)) => self.stale(state, upstream.settings(), error),
            (Err(error), None) => Err(error),
        };
        match answer {
            Err(CacheError::NotFound) => Ok(absent(shared(Outcome::Miss), Some(Duration::ZERO))),
            answer => answer,
        }
    }

    /// Returns the time of the last check if the pointer is known to be absent.
    pub(in crate::cache) async fn known_absence(
        &self,
        pointer: &Pointer,
    ) -> Result<Option<CheckTime>, CacheError> {
        self.absences.get(pointer).await
    }

    /// Keeps the absence of a pointer that follows from other answers of the upstream.
    pub(in crate::cache) async fn keep_absence(&self, pointer: &Pointer, check: CheckTime) {
        self.absences.put(pointer, check).await;
    }

    /// Returns true if the last target of the pointer is cached.
    pub(in crate::cache) async fn is_known(&self, pointer: &Pointer) -> Result<bool, CacheError> {
        Ok(self.known(pointer).await?.is_some())
    }

    /// Returns the last target of a pointer after the upstream failed with `error`, or the error if nothing may be served.
    pub(in crate::cache) async fn last_known(
        &self,
        pointer: &Pointer,
        error: CacheError,
    ) -> Result<PointerAnswer, CacheError> {
        let upstream = self.rules.upstream(pointer.repository())?;
        match self.last_state(pointer).await? {
            Some(state) => self.stale(state, upstream.settings(), error),
            None => Err(error),
        }
    }

    fn stale(
        &self,
        state: LastState,
        settings: &CacheSettings,
        error: CacheError,
    ) -> Result<PointerAnswer, CacheError> {
        let age = state.check().age(&self.storage.clock);
        let is_kept = matches!(state, LastState::Present(_)) || error.allows_stale();
        if !is_kept || !serves_stale(&error, age, settings) {
            return Err(error);
        }
        Ok(state.answer(Outcome::Stale, Some(age.unwrap_or_default()), Some(error)))
    }

    /// Returns the last known state of a pointer.
    async fn last_state(&self, pointer: &Pointer) -> Result<Option<LastState>, CacheError> {
        match self.known(pointer).await? {
            Some(known) => Ok(Some(LastState::Present(known))),
            None => Ok(self.absences.get(pointer).await?.map(LastState::Absent)),
        }
    }

    /// Looks a pointer up in memory and in the store. A pointer whose manifest is gone is unknown.
    async fn known(&self, pointer: &Pointer) -> Result<Option<KnownPointer>, CacheError> {
        let checked = match self.storage.memory.pointers.get(pointer) {
            Some(checked) => Some(checked),
            None => self.read(pointer).await?,
        };
        let Some(checked) = checked else { return Ok(None) };
        let manifest = self.manifests.get_stored(pointer.repository(), &checked.fact.digest).await?;
        Ok(manifest.map(|manifest| KnownPointer { checked, manifest }))
    }

    /// Reads a pointer from the store into memory.
    async fn read(&self, pointer: &Pointer) -> Result<Option<CheckedPointer>, CacheError> {
        let owned = pointer.clone();
        let fact = self.storage.with_store(move |store| store.pointer(&owned)).await;
        let fact = self.storage.or_default("a tag or a list of referrers cannot be read", fact)?;
        let checked = fact.map(|fact| CheckedPointer { fact, at: None });
        if let Some(checked) = checked {
            self.storage.memory.pointers.insert(pointer.clone(), checked);
        }
        Ok(checked)
    }

    /// Asks the upstream, once for all concurrent requests for the same pointer.
    fn revalidate(
        self: &Arc<Self>,
        pointer: &Pointer,
        known: Option<KnownPointer>,
    ) -> Ticket<ResolvedPointer> {
        self.flights.join(pointer, || {
            let (pointers, pointer) = (Arc::clone(self), pointer.clone());
            async move {
                let resolved = pointers.ask_upstream(&pointer, known.as_ref()).await;
                if let Err(error) = &resolved
                    && !error.allows_stale()
                {
                    pointers.drop_absent(&pointer, error).await;
                }
                resolved
            }
        })
    }

    /// Asks the upstream, and stores its answer.
    async fn ask_upstream(
        &self,
        pointer: &Pointer,
        known: Option<&KnownPointer>,
    ) -> Result<ResolvedPointer, CacheError> {
        if let Some(resolved) = self.resolved_meanwhile(pointer, known).await? {
            return Ok(resolved);
        }
        let manifest = match pointer {
            Pointer::Tag(key) => {
                let upstream = self.rules.upstream(&key.repository)?;
                let request = TagRequest::new(&self.manifests, &self.storage.metrics, &upstream, key);
                request.send(known.map(|known| &known.manifest)).await?
            }
            Pointer::Referrers(repository, subject) => {
                referrers_index::fetch(&self.storage, &self.rules, repository, subject).await?
            }
        };
        let unchanged = known.filter(|known| known.manifest.digest == manifest.digest);
        let now = self.storage.clock.now();
        let moved_at = unchanged.map_or(now, |known| known.checked.fact.moved_at);
        self.put(pointer, TagFact { digest: manifest.digest, checked_at: now, moved_at }).await;
        // Referrers are fetched when a client requests them: most of them are never requested.
        if let Pointer::Tag(key) = pointer {
            // A list of the referrers of a list would have no end.
            let lists = pointer.subject().is_none();
            self.manifests.prefetch(&key.repository, &manifest, lists);
        }
        let outcome = if unchanged.is_some() { Outcome::Revalidated } else { Outcome::Miss };
        Ok(ResolvedPointer { manifest, outcome })
    }

    /// Returns the result of another flight that ended after the freshness was judged and before this flight began.
    async fn resolved_meanwhile(
        &self,
        pointer: &Pointer,
        known: Option<&KnownPointer>,
    ) -> Result<Option<ResolvedPointer>, CacheError> {
        let newer = self.storage.memory.pointers.get(pointer);
        let known = known.map(|known| &known.checked);
        let Some(newer) = newer.filter(|newer| newer.was_checked_after(known)) else { return Ok(None) };
        let manifest = self.manifests.get_stored(pointer.repository(), &newer.fact.digest).await?;
        let outcome = if known.is_some() { Outcome::Revalidated } else { Outcome::Join };
        Ok(manifest.map(|manifest| ResolvedPointer { manifest, outcome }))
    }

    /// Stores a pointer. A pointer that cannot be stored costs a revalidation after the next start, and never a wrong answer.
    async fn put(&self, pointer: &Pointer, fact: TagFact) {
        let at = Some(self.storage.clock.instant());
        self.storage.memory.insert_pointer(pointer, CheckedPointer { fact, at });
        let change = Change::SetPointer(pointer.clone(), fact);
        if let Err(error) = self.storage.with_store(move |store| store.apply(&[change])).await {
            self.storage.report_error("a tag or a list of referrers could not be stored", &error);
        }
        // The manifest may have been evicted, together with its pointers, before this pointer was written.
        if !self.storage.content.contains(&fact.digest) {
            self.remove(pointer).await;
        }
    }

    async fn remove(&self, pointer: &Pointer) {
        let change = Change::RemovePointer(pointer.clone());
        if let Err(error) = self.storage.with_store(move |store| store.apply(&[change])).await {
            self.storage.report_error("an outdated tag or list of referrers could not be removed", &error);
        }
    }

    /// Handles a definite 404 of the upstream: the pointer is removed, the content stays.
    async fn drop_absent(&self, pointer: &Pointer, error: &CacheError) {
        let Ok(upstream) = self.rules.upstream(pointer.repository()) else { return };
        if upstream.settings().on_upstream_404 != OnUpstream404::Stale {
            self.storage.memory.pointers.remove(pointer);
            self.remove(pointer).await;
        }
        // The absence is used only while the pointer is unknown.
        match absence_key(pointer) {
            Some(key) => {
                self.access.remember_absence(pointer.repository(), key, error.clone());
            }
            None if matches!(error, CacheError::NotFound) => {
                self.absences.put(pointer, CheckTime::now(&self.storage.clock)).await;
            }
            None => {}
        }
    }

    /// Returns true if a definite 404 is remembered, for a pointer whose absence is not kept.
    fn is_remembered_absent(&self, pointer: &Pointer) -> bool {
        let absence = absence_key(pointer);
        absence.is_some_and(|key| self.access.check_absence(pointer.repository(), &key).is_err())
    }
}

/// Returns the key of a remembered 404; `None` for a pointer whose absence is kept in the store.
fn absence_key(pointer: &Pointer) -> Option<AbsenceKey> {
    match pointer {
        Pointer::Tag(key) if pointer.subject().is_none() => {
            Some(AbsenceKey::Tag(key.tag.clone(), key.variant.clone()))
        }
        Pointer::Tag(_) | Pointer::Referrers(..) => None,
    }
}

/// Returns true if cached content of this age may be served although the upstream answered with `error`.
pub(in crate::cache) fn serves_stale(
    error: &CacheError,
    age: Option<Duration>,
    settings: &CacheSettings,
) -> bool {
    if error.kind() == CacheErrorKind::Denied {
        freshness::may_serve_denied(age, settings)
    } else if error.allows_stale() {
        freshness::may_serve_stale(age, settings)
    } else {
        settings.on_upstream_404 == OnUpstream404::Stale
    }
}
