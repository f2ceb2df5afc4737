//! Tags, and lists of referrers: fresh ones at once, others after exactly one question to the upstream, and the last
//! known one when the upstream cannot be asked.

use std::sync::Arc;
use std::time::Duration;

use crate::config::schema::{Cache as Settings, OnUpstream404};
use crate::oci::media::CANONICAL_ACCEPT;
use crate::oci::{Digest, Reference, Repository};
use crate::source::{Source as _, UnverifiedManifest};
use crate::store::{Change, TagFact};
use crate::telemetry::Outcome;
use crate::upstream::Upstream;

use crate::cache::access::remember;
use crate::cache::core::Shared;
use crate::cache::deadline::Deadline;
use crate::cache::error::CacheError;
use crate::cache::freshness::{self, Freshness};
use crate::cache::manifest::answer::ManifestAnswer;
use crate::cache::manifest::by_digest::{fetch, keep, stored};
use crate::cache::manifest::referrers_index;
use crate::cache::manifest::verify::{check, digest_of};
use crate::cache::memory::CachedManifest;
use crate::cache::memory::{AbsenceKey, CheckedPointer};
use crate::cache::pointer::Pointer;
use crate::cache::pointer::TagKey;
use crate::cache::prefetch::queue;

/// How a question to the upstream about a pointer ended.
#[derive(Clone, Debug)]
pub(in crate::cache) struct ResolvedPointer {
    document: Arc<CachedManifest>,
    outcome: Outcome,
}

/// The last known state of a pointer, with the document it stands for.
#[derive(Clone, Debug)]
struct KnownPointer {
    checked: CheckedPointer,
    document: Arc<CachedManifest>,
}

/// Resolves a pointer, for who may have a `copy` of something else to serve in its place.
pub(in crate::cache) async fn resolve(
    shared: &Arc<Shared>,
    pointer: &Pointer,
    copy: bool,
) -> Result<ManifestAnswer, CacheError> {
    let upstream = shared.upstream(pointer.repository())?;
    let settings = upstream.settings();
    let known = known(shared, pointer).await?;
    if let Some(known) = &known {
        let age = known.checked.age(&shared.clock);
        let judged = freshness::judge(age, known.checked.fact.checked_at.as_millis(), settings);
        if judged == Freshness::ServeAndRevalidate {
            drop(question(shared, pointer, Some(known.clone())));
        }
        if judged != Freshness::Expired {
            let document = Arc::clone(&known.document);
            return Ok(ManifestAnswer { document, outcome: Outcome::Hit, age, stale: None });
        }
    } else if is_absent(shared, pointer) {
        return Err(CacheError::NotFound);
    }
    Box::pin(answered(shared, pointer, known, upstream, copy)).await
}

/// What the upstream says that a pointer stands for; what was known of it stands in where there is no answer.
async fn answered(
    shared: &Arc<Shared>,
    pointer: &Pointer,
    known: Option<KnownPointer>,
    upstream: Arc<Upstream>,
    copy: bool,
) -> Result<ManifestAnswer, CacheError> {
    let patience = Deadline::with(&upstream, copy || known.is_some());
    // The question goes on without this request, and tells for the next one whether the upstream is back.
    let ticket = question(shared, pointer, known.clone());
    let leader = ticket.leader;
    let answer = patience.wait(ticket.wait()).await;
    match (answer, known) {
        (Ok(ResolvedPointer { document, outcome }), _) => {
            let outcome = if leader || outcome != Outcome::Miss { outcome } else { Outcome::Join };
            Ok(ManifestAnswer { document, outcome, age: Some(Duration::ZERO), stale: None })
        }
        (Err(error), Some(known)) => stale(shared, known, upstream.settings(), error),
        (Err(error), None) => Err(error),
    }
}

/// Whether the upstream said lately that there is no such thing.
pub(in crate::cache) fn is_absent(shared: &Shared, pointer: &Pointer) -> bool {
    shared.memory.is_absent(pointer.repository(), &wanted(pointer), shared.clock.instant())
}

fn wanted(pointer: &Pointer) -> AbsenceKey {
    match pointer {
        Pointer::Tag(key) => AbsenceKey::Tag(key.tag.clone(), key.variant.clone()),
        Pointer::Referrers(_, subject) => AbsenceKey::Referrers(*subject),
    }
}

/// Whether it is known what the pointer last stood for.
pub(in crate::cache) async fn is_known(shared: &Arc<Shared>, pointer: &Pointer) -> Result<bool, CacheError> {
    Ok(known(shared, pointer).await?.is_some())
}

/// What a pointer last stood for, for who was not answered because of `error`; the error where nothing may be served.
pub(in crate::cache) async fn last_known(
    shared: &Arc<Shared>,
    pointer: &Pointer,
    error: CacheError,
) -> Result<ManifestAnswer, CacheError> {
    let upstream = shared.upstream(pointer.repository())?;
    match known(shared, pointer).await? {
        Some(known) => stale(shared, known, upstream.settings(), error),
        None => Err(error),
    }
}

fn stale(
    shared: &Shared,
    known: KnownPointer,
    settings: &Settings,
    error: CacheError,
) -> Result<ManifestAnswer, CacheError> {
    let age = known.checked.age(&shared.clock);
    if !serves_stale(&error, age, settings) {
        return Err(error);
    }
    let age = Some(age.unwrap_or_default());
    Ok(ManifestAnswer { document: known.document, outcome: Outcome::Stale, age, stale: Some(error) })
}

/// Whether what was last confirmed so long ago may be served although the upstream answered with `error`.
pub(in crate::cache) fn serves_stale(error: &CacheError, age: Option<Duration>, settings: &Settings) -> bool {
    if error.is_trouble() {
        freshness::may_serve_stale(age, settings)
    } else {
        settings.on_upstream_404 == OnUpstream404::Stale
    }
}

/// What memory or the store knows of a pointer; one whose document is gone is not known.
async fn known(shared: &Arc<Shared>, pointer: &Pointer) -> Result<Option<KnownPointer>, CacheError> {
    let checked = if let Some(checked) = shared.memory.pointers.get(pointer) {
        Some(checked)
    } else {
        let owned = pointer.clone();
        let fact = shared.with_store(move |store| store.pointer(&owned)).await;
        let fact = shared.or_default("what a tag or a list stands for cannot be found out", fact)?;
        let checked = fact.map(|fact| CheckedPointer { fact, at: None });
        if let Some(checked) = checked {
            shared.memory.pointers.insert(pointer.clone(), checked);
        }
        checked
    };
    let Some(checked) = checked else { return Ok(None) };
    let document = stored(shared, pointer.repository(), &checked.fact.digest).await?;
    Ok(document.map(|document| KnownPointer { checked, document }))
}

/// Puts the question to the upstream, once for all who wait for the same pointer.
fn question(
    shared: &Arc<Shared>,
    pointer: &Pointer,
    known: Option<KnownPointer>,
) -> crate::cache::flight::Ticket<ResolvedPointer> {
    shared.pointer_flights.join(pointer, || {
        let (shared, pointer) = (Arc::clone(shared), pointer.clone());
        async move {
            let asked = ask(&shared, &pointer, known.as_ref()).await;
            if let Err(error @ (CacheError::NotFound | CacheError::NoReferrers)) = &asked {
                gone(&shared, &pointer, error).await;
            }
            asked
        }
    })
}

/// Asks the upstream and keeps its answer.
async fn ask(
    shared: &Arc<Shared>,
    pointer: &Pointer,
    known: Option<&KnownPointer>,
) -> Result<ResolvedPointer, CacheError> {
    // Another flight may have landed between the judgement and this one. What it found is newer whatever its time: the
    // clock may have been set back.
    if let Some(known) = known
        && let Some(newer) = shared.memory.pointers.get(pointer)
        && newer.fact.checked_at != known.checked.fact.checked_at
        && let Some(document) = stored(shared, pointer.repository(), &newer.fact.digest).await?
    {
        return Ok(ResolvedPointer { document, outcome: Outcome::Revalidated });
    }
    let document = match pointer {
        Pointer::Tag(key) => ask_for_tag(shared, key, known).await?,
        Pointer::Referrers(repository, subject) => {
            referrers_index::fetch(shared, repository, subject).await?
        }
    };
    let unchanged = known.is_some_and(|known| known.checked.fact.digest == document.digest);
    let now = shared.clock.now();
    let moved_at = known.filter(|_| unchanged).map_or(now, |known| known.checked.fact.moved_at);
    put(shared, pointer, TagFact { digest: document.digest, checked_at: now, moved_at }).await;
    // What refers to an image is fetched when it is asked for: most of it is not.
    if let Pointer::Tag(key) = pointer {
        queue::seek(shared, &key.repository, &document);
    }
    Ok(ResolvedPointer { document, outcome: if unchanged { Outcome::Revalidated } else { Outcome::Miss } })
}

/// One HEAD if something is known, and a GET by tag only if it moved.
async fn ask_for_tag(
    shared: &Arc<Shared>,
    key: &TagKey,
    known: Option<&KnownPointer>,
) -> Result<Arc<CachedManifest>, CacheError> {
    let upstream = shared.upstream(&key.repository)?;
    let reference = Reference::Tag(key.tag.clone());
    let accept = key.variant.as_deref().unwrap_or(CANONICAL_ACCEPT);
    let mut announced = None;
    if let Some(known) = known {
        let head = match upstream.head(&key.repository.name, &reference, accept, None).await {
            Err(error) if error.may_be_about_head() => None,
            head => head?,
        };
        announced = head.and_then(|head| head.digest);
        if announced == Some(known.checked.fact.digest) {
            return Ok(Arc::clone(&known.document));
        }
    }
    fetch_by_tag(shared, key, &upstream, accept, announced).await
}

/// Gets what a tag stands for and verifies it against the digest that the upstream announced.
///
/// A registry that announces one document and sends another (Docker Hub has sent a child under its list's digest)
/// is asked by digest: for what it announced, then for what it sent; or the other way round, if the client takes just
/// the types of what was sent. What it does not know by its own digest is damaged and is refused.
async fn fetch_by_tag(
    shared: &Arc<Shared>,
    key: &TagKey,
    upstream: &Upstream,
    accept: &str,
    announced: Option<Digest>,
) -> Result<Arc<CachedManifest>, CacheError> {
    let repository = &key.repository;
    let reference = Reference::Tag(key.tag.clone());
    let answer = upstream.manifest(&repository.name, &reference, accept, None).await?;
    let digest = digest_of(&answer);
    // The GET's own header is the newer announcement: the tag may have moved since the HEAD.
    let announced = answer.digest.or(announced).unwrap_or(digest);
    if announced == digest {
        return keep(shared, repository, digest, answer).await;
    }
    tracing::warn!(%repository, tag = %key.tag, %announced, %digest, "the upstream announced another digest than it sent");
    let converted = key.variant.is_some();
    if converted {
        if let Some(document) = stored(shared, repository, &digest).await? {
            return Ok(document);
        }
        if knows(upstream, repository, &digest, accept, &answer).await {
            return keep(shared, repository, digest, answer).await;
        }
    }
    if let Ok((document, _)) = fetch(shared, repository, &announced, None, true).await {
        return Ok(document);
    }
    if !converted && knows(upstream, repository, &digest, accept, &answer).await {
        return keep(shared, repository, digest, answer).await;
    }
    check(shared, repository, &answer, &announced, None)?;
    Err(CacheError::Mismatch(format!("{digest} is not what was announced")))
}

/// Whether the upstream gives the same document for the document's own digest.
async fn knows(
    upstream: &Upstream,
    repository: &Repository,
    digest: &Digest,
    accept: &str,
    answer: &UnverifiedManifest,
) -> bool {
    let known = upstream.manifest(&repository.name, &Reference::Digest(*digest), accept, None).await;
    known.is_ok_and(|known| known.body == answer.body)
}

/// Keeps a pointer. Facts that cannot be kept cost a revalidation after the next start, never a wrong answer.
async fn put(shared: &Arc<Shared>, pointer: &Pointer, fact: TagFact) {
    let at = Some(shared.clock.instant());
    shared.memory.pointers.insert(pointer.clone(), CheckedPointer { fact, at });
    let change = Change::SetPointer(pointer.clone(), fact);
    let kept = shared.with_store(move |store| store.apply(&[change])).await;
    if let Err(error) = kept {
        shared.report_error("what a tag or a list stands for could not be kept", &error);
    }
    // What it stands for may have gone between its coming and this, and its pointers with it.
    if !shared.eviction.contains(&fact.digest) {
        remove_from_store(shared, pointer).await;
    }
}

async fn remove_from_store(shared: &Arc<Shared>, pointer: &Pointer) {
    let change = Change::RemovePointer(pointer.clone());
    let removed = shared.with_store(move |store| store.apply(&[change])).await;
    if let Err(error) = removed {
        shared.report_error("a tag or a list that is gone could not be removed", &error);
    }
}

/// The upstream says that there is no such thing any more: it leaves service, its content stays.
async fn gone(shared: &Arc<Shared>, pointer: &Pointer, error: &CacheError) {
    let Ok(upstream) = shared.upstream(pointer.repository()) else { return };
    // An absence is consulted only where nothing is known.
    remember(shared, pointer.repository(), wanted(pointer), error.clone());
    if upstream.settings().on_upstream_404 == OnUpstream404::Stale {
        return;
    }
    shared.memory.pointers.remove(pointer);
    remove_from_store(shared, pointer).await;
}
