//! Manifests by tag: fresh ones at once, others after exactly one question to the upstream, and the last known one
//! when the upstream cannot be asked.

use std::sync::Arc;
use std::time::Duration;

use crate::config::schema::{Cache as Settings, OnUpstream404};
use crate::oci::media::CANONICAL_ACCEPT;
use crate::oci::{Digest, Reference};
use crate::store::TagFact;
use crate::telemetry::Outcome;
use crate::upstream::{Document as Answer, Upstream};

use super::freshness::{self, Freshness};
use super::hot::Wanted;
use super::manifest::{fetch, keep, stored};
use super::right::remember;
use super::verify::{check, digest_of};
use super::{ANSWER_WITHIN, CacheError, Document, Found, Shared, TagKey, blocking, walks};

/// How a question to the upstream about a tag ended.
#[derive(Clone, Debug)]
pub(super) struct Resolved {
    document: Arc<Document>,
    outcome: Outcome,
}

/// The last known state of a tag, with the document it stands for.
#[derive(Clone, Debug)]
struct Known {
    fact: TagFact,
    document: Arc<Document>,
}

/// Resolves a tag.
pub(super) async fn by_tag(shared: &Arc<Shared>, key: &TagKey) -> Result<Found, CacheError> {
    let upstream = shared.upstream(&key.repository)?;
    let settings = upstream.settings();
    let known = known(shared, key).await?;
    let age = |known: &Known| Some(freshness::age(shared.clock.now(), known.fact.checked_at));
    if let Some(known) = &known {
        let judged = freshness::judge(shared.clock.now(), known.fact.checked_at, settings);
        if judged == Freshness::ServeAndRevalidate {
            drop(question(shared, key, Some(known.clone())));
        }
        if judged != Freshness::Expired {
            let document = Arc::clone(&known.document);
            return Ok(Found { document, outcome: Outcome::Hit, age: age(known), stale: None });
        }
    } else if shared.hot.is_absent(&key.repository, &Wanted::Tag(key.tag.clone()), shared.clock.now()) {
        return Err(CacheError::NotFound);
    }

    let suspect = upstream.is_suspect();
    let ticket = question(shared, key, known.clone());
    let leader = ticket.leader;
    // Who has a copy does not wait long, and not at all for an upstream that keeps failing. In any case the question
    // goes on without this request, and tells for the next one whether the upstream is back.
    let patience = match known {
        Some(_) if suspect => Duration::ZERO,
        Some(_) => settings.revalidate_timeout,
        None => ANSWER_WITHIN,
    };
    let answer = match tokio::time::timeout(patience, ticket.wait()).await {
        Ok(answer) => answer,
        Err(_) if suspect => Err(CacheError::Timeout("it keeps failing and was not waited for".to_owned())),
        Err(_) => Err(CacheError::too_late(patience)),
    };
    match (answer, known) {
        (Ok(Resolved { document, outcome }), _) => {
            let outcome = if leader || outcome != Outcome::Miss { outcome } else { Outcome::Join };
            Ok(Found { document, outcome, age: Some(Duration::ZERO), stale: None })
        }
        (Err(error), Some(known)) if serves_stale(&error, shared.clock.now(), &known.fact, settings) => {
            let age = age(&known);
            Ok(Found {
                document: known.document,
                outcome: Outcome::Stale,
                age,
                stale: Some(error.to_string()),
            })
        }
        (Err(error), _) => Err(error),
    }
}

fn serves_stale(error: &CacheError, now: u64, fact: &TagFact, settings: &Settings) -> bool {
    if error.is_trouble() {
        freshness::may_serve_stale(now, fact.checked_at, settings)
    } else {
        settings.on_upstream_404 == OnUpstream404::Stale
    }
}

/// What memory or the store knows of a tag; a tag whose document is gone is not known.
async fn known(shared: &Arc<Shared>, key: &TagKey) -> Result<Option<Known>, CacheError> {
    let fact = if let Some(fact) = shared.hot.tags.get(key) {
        Some(fact)
    } else {
        let (store, owned) = (shared.store.clone(), key.clone());
        let fact =
            blocking(move || store.tag(&owned.repository, &owned.tag, owned.variant.as_deref())).await?;
        if let Some(fact) = fact {
            shared.hot.tags.insert(key.clone(), fact);
        }
        fact
    };
    let Some(fact) = fact else { return Ok(None) };
    let document = stored(shared, &key.repository, &fact.digest).await?;
    Ok(document.map(|document| Known { fact, document }))
}

/// Puts the question to the upstream, once for all who wait for the same tag.
fn question(shared: &Arc<Shared>, key: &TagKey, known: Option<Known>) -> super::flight::Ticket<Resolved> {
    shared.tag_flights.join(key, || {
        let (shared, key) = (Arc::clone(shared), key.clone());
        async move {
            let asked = ask(&shared, &key, known.as_ref()).await;
            if let Err(CacheError::NotFound) = asked {
                gone(&shared, &key).await;
            }
            asked
        }
    })
}

/// One HEAD if something is known, and a GET by tag only if it moved.
async fn ask(shared: &Arc<Shared>, key: &TagKey, known: Option<&Known>) -> Result<Resolved, CacheError> {
    let upstream = Arc::clone(shared.upstream(&key.repository)?);
    let reference = Reference::Tag(key.tag.clone());
    let accept = key.variant.as_deref().unwrap_or(CANONICAL_ACCEPT);
    let mut announced = None;
    if let Some(known) = known {
        // Another flight may have landed between the judgement and this one.
        if let Some(newer) = shared.hot.tags.get(key).filter(|fact| fact.checked_at > known.fact.checked_at)
            && let Some(document) = stored(shared, &key.repository, &newer.digest).await?
        {
            return Ok(Resolved { document, outcome: Outcome::Revalidated });
        }
        let head = upstream.head_manifest(&key.repository.name, &reference, accept).await?;
        announced = head.and_then(|head| head.digest);
        if announced == Some(known.fact.digest) {
            let fact = TagFact { checked_at: shared.clock.now(), ..known.fact };
            put_tag(shared, key, fact).await;
            walks::seek(shared, &key.repository, &known.document);
            return Ok(Resolved { document: Arc::clone(&known.document), outcome: Outcome::Revalidated });
        }
    }
    let document = fetch_by_tag(shared, key, &upstream, accept, announced).await?;
    let unchanged = known.is_some_and(|known| known.fact.digest == document.digest);
    let now = shared.clock.now();
    let moved_at = known.filter(|_| unchanged).map_or(now, |known| known.fact.moved_at);
    put_tag(shared, key, TagFact { digest: document.digest, checked_at: now, moved_at }).await;
    walks::seek(shared, &key.repository, &document);
    Ok(Resolved { document, outcome: if unchanged { Outcome::Revalidated } else { Outcome::Miss } })
}

/// Gets what a tag stands for and verifies it against the digest that the upstream announced.
///
/// A registry that announces one document and sends another (Docker Hub has sent a child under its list's digest)
/// is asked by digest: for what it announced, then for what it sent. What it does not know by its own digest is
/// damaged and is refused.
async fn fetch_by_tag(
    shared: &Arc<Shared>,
    key: &TagKey,
    upstream: &Upstream,
    accept: &str,
    announced: Option<Digest>,
) -> Result<Arc<Document>, CacheError> {
    let repository = &key.repository;
    let reference = Reference::Tag(key.tag.clone());
    let answer = upstream.get_manifest(&repository.name, &reference, accept).await?;
    let digest = digest_of(&answer);
    // The GET's own header is the newer announcement: the tag may have moved since the HEAD.
    let announced = answer.digest.or(announced).unwrap_or(digest);
    if announced == digest {
        return keep(shared, repository, digest, answer).await;
    }
    tracing::warn!(%repository, tag = %key.tag, %announced, %digest, "the upstream announced another digest than it sent");
    if let Ok((document, _)) = fetch(shared, repository, &announced, None, true).await {
        return Ok(document);
    }
    let known = upstream.get_manifest(&repository.name, &Reference::Digest(digest), accept).await;
    match known {
        Ok(Answer { body, .. }) if body == answer.body => keep(shared, repository, digest, answer).await,
        _ => {
            check(shared, repository, &answer, &announced, None)?;
            Err(CacheError::Mismatch(format!("{digest} is not what was announced")))
        }
    }
}

/// Keeps a tag. Facts that cannot be kept cost a revalidation after the next start, never a wrong answer.
async fn put_tag(shared: &Arc<Shared>, key: &TagKey, fact: TagFact) {
    shared.hot.tags.insert(key.clone(), fact);
    let (store, owned) = (shared.store.clone(), key.clone());
    let kept =
        blocking(move || store.put_tag(&owned.repository, &owned.tag, owned.variant.as_deref(), &fact)).await;
    if let Err(error) = kept {
        shared.failed("a tag could not be kept", &error);
    }
}

/// The upstream says that the tag is gone: it leaves service, its content stays.
async fn gone(shared: &Arc<Shared>, key: &TagKey) {
    let Ok(upstream) = shared.upstream(&key.repository) else { return };
    // A variant's absence says nothing about the tag. An absence is consulted only where nothing is known.
    if key.variant.is_none() {
        remember(shared, &key.repository, Wanted::Tag(key.tag.clone()), CacheError::NotFound);
    }
    if upstream.settings().on_upstream_404 == OnUpstream404::Stale {
        return;
    }
    shared.hot.tags.remove(key);
    let (store, owned) = (shared.store.clone(), key.clone());
    let removed =
        blocking(move || store.remove_tag(&owned.repository, &owned.tag, owned.variant.as_deref())).await;
    if let Err(error) = removed {
        shared.failed("a tag could not be removed", &error);
    }
}
