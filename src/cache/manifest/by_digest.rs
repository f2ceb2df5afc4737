//! Manifests by digest: from memory, from the store, from the upstream; verified, kept, and their children sought.

use std::sync::Arc;

use bytes::Bytes;

use crate::oci::media::CANONICAL_ACCEPT;
use crate::oci::{Digest, Manifest, Reference, Repository};
use crate::source::{Source as _, UnverifiedManifest};
use crate::store::{Change, LinkFact, StoreError, StoreSession, StoredManifest};
use crate::telemetry::Outcome;

use crate::cache::access::{confirm_manifest, link, remember};
use crate::cache::core::Shared;
use crate::cache::deadline::in_time;
use crate::cache::error::CacheError;
use crate::cache::eviction::index::dependencies;
use crate::cache::manifest::answer::ManifestAnswer;
use crate::cache::manifest::verify::check;
use crate::cache::memory::AbsenceKey;
use crate::cache::memory::CachedManifest;
use crate::cache::prefetch::queue;

/// What the store knows of a digest in a repository.
#[derive(Default)]
struct StoredState {
    linked: Option<LinkFact>,
    document: Option<Arc<CachedManifest>>,
}

/// A manifest by digest: immutable, so freshness plays no part.
pub(in crate::cache) async fn by_digest(
    shared: &Arc<Shared>,
    repository: &Repository,
    digest: &Digest,
) -> Result<ManifestAnswer, CacheError> {
    if let Some(document) = shared.memory.manifests.get(repository, digest) {
        return Ok(found(document, Outcome::Hit));
    }
    // Boxed, as is all that few requests come to: every request moves its future, at the size of its longest way.
    Box::pin(by_digest_elsewhere(shared, repository, digest)).await
}

/// The same where memory does not have it.
async fn by_digest_elsewhere(
    shared: &Arc<Shared>,
    repository: &Repository,
    digest: &Digest,
) -> Result<ManifestAnswer, CacheError> {
    let held = held(shared, repository, digest).await?;
    shared.retry_store();
    match held {
        StoredState { linked: Some(_), document: Some(document) } => {
            shared.memory.manifests.insert(repository, Arc::clone(&document));
            Ok(found(document, Outcome::Hit))
        }
        StoredState { linked: None, document: Some(document) } => {
            confirm_manifest(shared, repository, digest).await?;
            link(shared, repository, digest).await;
            note_subject(shared, repository, &document).await;
            shared.memory.manifests.insert(repository, Arc::clone(&document));
            Ok(found(document, Outcome::Revalidated))
        }
        StoredState { linked, document: None } => {
            let (document, leader) =
                fetch(shared, repository, digest, linked.and_then(|link| link.size), true).await?;
            Ok(found(document, if leader { Outcome::Miss } else { Outcome::Join }))
        }
    }
}

/// What never grows old.
fn found(document: Arc<CachedManifest>, outcome: Outcome) -> ManifestAnswer {
    ManifestAnswer { document, outcome, age: None, stale: None }
}

/// A document that the repository may serve and the store holds; from memory if it is there.
pub(in crate::cache) async fn stored(
    shared: &Arc<Shared>,
    repository: &Repository,
    digest: &Digest,
) -> Result<Option<Arc<CachedManifest>>, CacheError> {
    if let Some(document) = shared.memory.manifests.get(repository, digest) {
        return Ok(Some(document));
    }
    let held = Box::pin(held(shared, repository, digest)).await?;
    let document = held.document.filter(|_| held.linked.is_some());
    if let Some(document) = &document {
        shared.memory.manifests.insert(repository, Arc::clone(document));
    }
    Ok(document)
}

async fn held(
    shared: &Arc<Shared>,
    repository: &Repository,
    digest: &Digest,
) -> Result<StoredState, CacheError> {
    let (owned, repository, digest) = (Arc::clone(shared), repository.clone(), *digest);
    let look = move |store: &StoreSession| {
        let linked = store.link(&repository, &digest)?;
        let document = match store.manifest(&digest) {
            Ok(stored) => stored,
            Err(error @ StoreError::Damaged(_)) => {
                // A miss that heals itself: what is left is dropped, and fetched again.
                owned.report_store_error("a manifest is damaged and will be fetched again", &error);
                owned.deleter(store).delete_damaged_manifest(&digest)?;
                None
            }
            Err(error) => return Err(error),
        };
        let document = document.map(|StoredManifest { media_type, body }| {
            let now = owned.clock.now();
            let usage = owned.eviction.manifest_usage(&digest, &body, media_type.as_str(), now);
            Arc::new(CachedManifest { digest, media_type, body, usage })
        });
        Ok(StoredState { linked, document })
    };
    let held = shared.with_store(look).await;
    shared.or_default("what is held cannot be found out", held)
}

/// Fetches a manifest by digest, once for all who ask. Tells whether this caller was the first.
///
/// The request waits a bounded time; the flight goes on, and then, where `seek` says so, seeks the children. A walk
/// that fetches children itself must not, or no bound on its depth would hold.
pub(in crate::cache) async fn fetch(
    shared: &Arc<Shared>,
    repository: &Repository,
    digest: &Digest,
    size: Option<u64>,
    seek: bool,
) -> Result<(Arc<CachedManifest>, bool), CacheError> {
    let wanted = AbsenceKey::Manifest(*digest);
    if shared.memory.is_absent(repository, &wanted, shared.clock.instant()) {
        return Err(CacheError::NotFound);
    }
    let ticket = shared.manifest_flights.join(&(repository.clone(), *digest), || {
        let (shared, repository, digest) = (Arc::clone(shared), repository.clone(), *digest);
        async move {
            // Another flight may have landed between the look into the store and this one.
            if let Some(document) = stored(&shared, &repository, &digest).await? {
                return Ok(document);
            }
            let upstream = shared.upstream(&repository)?;
            let reference = Reference::Digest(digest);
            let answer = match upstream.manifest(&repository.name, &reference, CANONICAL_ACCEPT, None).await {
                Ok(answer) => answer,
                Err(error) => return Err(remember(&shared, &repository, wanted, error.into())),
            };
            check(&shared, &repository, &answer, &digest, size)?;
            let document = keep(&shared, &repository, digest, answer).await?;
            if seek {
                queue::seek(&shared, &repository, &document);
            }
            Ok(document)
        }
    });
    let leader = ticket.leader;
    Ok((in_time(ticket.wait()).await?, leader))
}

/// Keeps a verified body: decides its type, stores it with its links, puts it into memory.
pub(in crate::cache) async fn keep(
    shared: &Arc<Shared>,
    repository: &Repository,
    digest: Digest,
    answer: UnverifiedManifest,
) -> Result<Arc<CachedManifest>, CacheError> {
    let read = Manifest::read(&answer.body, answer.content_type.as_deref())
        .map_err(|error| CacheError::Invalid(format!("{digest}: {error}")))?;
    let media_type = read.media_type.clone();
    let kept = shared.with_store({
        let (shared, repository, body) = (Arc::clone(shared), repository.clone(), answer.body.clone());
        move |store| put(&shared, store, &repository, digest, &read, body)
    });
    match kept.await {
        Ok(document) => Ok(document),
        Err(error) => {
            shared.report_error("a manifest could not be kept; it is served all the same", &error);
            let document =
                Arc::new(CachedManifest { digest, media_type, body: answer.body, usage: Arc::default() });
            shared.memory.manifests.insert(repository, Arc::clone(&document));
            Ok(document)
        }
    }
}

/// Stores a verified body as what it was read as, with its links, and puts it into memory. Blocks.
pub(in crate::cache) fn put(
    shared: &Shared,
    store: &StoreSession,
    repository: &Repository,
    digest: Digest,
    read: &Manifest,
    body: Bytes,
) -> Result<Arc<CachedManifest>, StoreError> {
    let stored = StoredManifest { media_type: read.media_type.clone(), body: body.clone() };
    // What a manifest contains gives its repository a right to it. A subject is only pointed at, and a foreign layer
    // lies elsewhere: a registry checks neither, so that anybody could claim anything through them.
    let contained = read.children.iter().chain(&read.blobs).filter(|target| !target.foreign);
    let links = contained.map(|target| (target.digest, target.size));
    let now = shared.clock.now();
    let media_type = store.put_manifest(repository, &digest, &stored, links, now)?;
    if let Some(subject) = read.subject {
        let repository = repository.clone();
        store.apply(&[Change::AddReferrer { repository, subject, referrer: digest }])?;
    }
    let usage = shared.eviction.add_manifest(&digest, &body, dependencies(read), now);
    let document = Arc::new(CachedManifest { digest, media_type, body, usage });
    shared.memory.manifests.insert(repository, Arc::clone(&document));
    Ok(document)
}

/// Notes what a manifest that came in through another repository refers to in this one. One that is not noted is still
/// in the upstream's list.
async fn note_subject(shared: &Arc<Shared>, repository: &Repository, document: &CachedManifest) {
    let Ok(Manifest { subject: Some(subject), .. }) =
        Manifest::read(&document.body, Some(document.media_type.as_str()))
    else {
        return;
    };
    let (repository, referrer) = (repository.clone(), document.digest);
    let change = Change::AddReferrer { repository, subject, referrer };
    if let Err(error) = shared.with_store(move |store| store.apply(&[change])).await {
        shared.report_error("a referrer could not be noted", &error);
    }
}
