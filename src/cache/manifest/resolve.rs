//! Pointers to manifests: served while fresh, revalidated with one request to the upstream after that, and served stale
//! while the upstream fails.

use std::sync::Arc;
use std::time::Duration;

use crate::cache::access::Access;
use crate::cache::deadline::{Deadline, joined};
use crate::cache::error::{CacheError, CacheErrorKind};
use crate::cache::flight::{Flights, Ticket};
use crate::cache::freshness::{self, Freshness};
use crate::cache::manifest::answer::ManifestAnswer;
use crate::cache::manifest::by_digest::Manifests;
use crate::cache::manifest::by_tag::TagRequest;
use crate::cache::manifest::referrers_index;
use crate::cache::memory::{AbsenceKey, CachedManifest, CheckedPointer};
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
            manifests: Arc::clone(manifests),
            flights: Flights::default(),
        }
    }

    /// Resolves a pointer. `has_copy` is true if the caller has something else to serve, so that it waits only briefly.
    pub(in crate::cache) async fn resolve(
        self: &Arc<Self>,
        pointer: &Pointer,
        has_copy: bool,
    ) -> Result<ManifestAnswer, CacheError> {
        let upstream = self.rules.upstream(pointer.repository())?;
        let known = self.known(pointer).await?;
        match &known {
            Some(known) => {
                let age = known.checked.age(&self.storage.clock);
                let freshness = freshness::judge(age, known.checked.fact.checked_at, upstream.settings());
                if freshness == Freshness::ServeAndRevalidate {
                    drop(self.revalidate(pointer, Some(known.clone())));
                }
                if freshness != Freshness::Expired {
                    let manifest = Arc::clone(&known.manifest);
                    return Ok(ManifestAnswer { manifest, outcome: Outcome::Hit, age, stale: None });
                }
            }
            None => self.access.check_absence(pointer.repository(), &absence_key(pointer))?,
        }
        Box::pin(self.resolve_upstream(pointer, known, upstream, has_copy)).await
    }

    /// Waits for the upstream's answer. Without an answer the last known state is served stale.
    async fn resolve_upstream(
        self: &Arc<Self>,
        pointer: &Pointer,
        known: Option<KnownPointer>,
        upstream: Arc<Upstream>,
        has_copy: bool,
    ) -> Result<ManifestAnswer, CacheError> {
        upstream.check_loop()?;
        let deadline = Deadline::new(&upstream, has_copy || known.is_some());
        // The flight continues after the deadline, so that the next request knows whether the upstream has recovered.
        let ticket = self.revalidate(pointer, known.clone());
        let leader = ticket.leader;
        match (deadline.wait(joined(&upstream, leader, ticket.wait())).await, known) {
            (Ok(ResolvedPointer { manifest, outcome }), _) => {
                let outcome = if leader || outcome != Outcome::Miss { outcome } else { Outcome::Join };
                Ok(ManifestAnswer { manifest, outcome, age: Some(Duration::ZERO), stale: None })
            }
            // A stale copy would come back as the answer to the request that started the circle.
            (Err(CacheError::Loop), _) if !RequestOrigin::current().hops.is_empty() => Err(CacheError::Loop),
            (Err(error), Some(known)) => self.stale(known, upstream.settings(), error),
            (Err(error), None) => Err(error),
        }
    }

    /// Returns true if a definite 404 of the upstream is remembered.
    pub(in crate::cache) fn is_absent(&self, pointer: &Pointer) -> bool {
        self.access.check_absence(pointer.repository(), &absence_key(pointer)).is_err()
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
    ) -> Result<ManifestAnswer, CacheError> {
        let upstream = self.rules.upstream(pointer.repository())?;
        match self.known(pointer).await? {
            Some(known) => self.stale(known, upstream.settings(), error),
            None => Err(error),
        }
    }

    fn stale(
        &self,
        known: KnownPointer,
        settings: &CacheSettings,
        error: CacheError,
    ) -> Result<ManifestAnswer, CacheError> {
        let age = known.checked.age(&self.storage.clock);
        if !serves_stale(&error, age, settings) {
            return Err(error);
        }
        let age = Some(age.unwrap_or_default());
        Ok(ManifestAnswer { manifest: known.manifest, outcome: Outcome::Stale, age, stale: Some(error) })
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
            self.manifests.prefetch_children(&key.repository, &manifest);
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
        self.storage.memory.pointers.insert(pointer.clone(), CheckedPointer { fact, at });
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
        // The absence is used only while the pointer is unknown.
        self.access.remember_absence(pointer.repository(), absence_key(pointer), error.clone());
        if upstream.settings().on_upstream_404 == OnUpstream404::Stale {
            return;
        }
        self.storage.memory.pointers.remove(pointer);
        self.remove(pointer).await;
    }
}

fn absence_key(pointer: &Pointer) -> AbsenceKey {
    match pointer {
        Pointer::Tag(key) => AbsenceKey::Tag(key.tag.clone(), key.variant.clone()),
        Pointer::Referrers(_, subject) => AbsenceKey::Referrers(*subject),
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
