//! Blobs by digest: from memory, from the store, or from a fill, for repositories that have access to them.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use crate::oci::{Digest, Repository};
use crate::store::{BlobEntry, Draft, DraftEnd, Follower, LinkFact, OpenBlob, StoreError};
use crate::telemetry::Outcome;

use crate::cache::Cache;
use crate::cache::access::confirm_blob;
use crate::cache::blob::fill::Fill;
use crate::cache::blob::fills::{Admission, FillPhase, fill_ended};
use crate::cache::blocking::blocking;
use crate::cache::core::Shared;
use crate::cache::deadline::in_time;
use crate::cache::error::CacheError;
use crate::cache::eviction::usage::ContentPin;
use crate::cache::memory::AbsenceKey;

/// A blob to serve, and how the cache came by it.
#[derive(Debug)]
pub struct BlobAnswer {
    /// Its length, where known.
    pub size: Option<u64>,
    /// Where its bytes come from; `None` for a blob that was only asked about.
    pub source: Option<BlobSource>,
    /// What the cache did.
    pub outcome: Outcome,
}

/// Where a blob's bytes come from.
#[derive(Debug)]
pub enum BlobSource {
    /// The store has it, whole and verified, and keeps it while it is read.
    Stored(OpenBlob, ContentPin),
    /// A fill is bringing it.
    Filling(Follower),
    /// The upstream sends what the draft does not have yet, past the store.
    Passing(mpsc::Receiver<Bytes>, Follower),
}

/// Rounds of finding a place at a fill: another repository's fill may fail under a request that then starts its own.
const ROUNDS: usize = 4;

impl Cache {
    /// A blob, to be read.
    pub async fn blob(&self, repository: &Repository, digest: &Digest) -> Result<BlobAnswer, CacheError> {
        in_time(self.find_blob(repository, digest)).await
    }

    async fn find_blob(&self, repository: &Repository, digest: &Digest) -> Result<BlobAnswer, CacheError> {
        let shared = &self.0;
        let key = (repository.clone(), *digest);
        // In trouble the store is asked itself: it may not have it any more.
        if !shared.store_health.is_degraded()
            && let Some(entry) = shared.memory.blobs.get(&key)
            && let Some(pin) = shared.eviction.pin_for_client(&entry, shared.clock.now())
            && let Some(blob) = self.stored(entry, pin, Outcome::Hit).await?
        {
            return Ok(blob);
        }
        let mut confirmed = false;
        for _ in 0..ROUNDS {
            let (linked, entry) = look(shared, repository, digest).await?;
            let has_access = linked.is_some() || confirmed;
            if let Some(entry) = entry
                && let Some(pin) = shared.eviction.pin_for_client(&entry, shared.clock.now())
            {
                if !has_access {
                    confirm_blob(shared, repository, digest).await?;
                }
                let outcome = if linked.is_some() { Outcome::Hit } else { Outcome::Revalidated };
                let Some(blob) = self.stored(entry.clone(), pin, outcome).await? else { continue };
                shared.memory.blobs.insert(key, entry);
                return Ok(blob);
            }
            if shared.memory.is_absent(repository, &AbsenceKey::Blob(*digest), shared.clock.instant()) {
                return Err(CacheError::NotFound);
            }
            let size = linked.and_then(|link| link.size);
            let (phase, own, outcome) = match shared.fills.admit(repository, digest, size, has_access) {
                Admission::Start(sender, phase, span) => {
                    Fill::start(shared, repository, digest, size, has_access, (sender, span));
                    (phase, true, Outcome::Miss)
                }
                // All of it is here, and on its way to where it stays.
                Admission::Join(phase, own) if phase.borrow().is_verified() => (phase, own, Outcome::Hit),
                Admission::Join(phase, own) => {
                    shared.metrics.fills_joined.inc();
                    (phase, own, Outcome::Join)
                }
                Admission::WaitForRemoval(mut phase) => {
                    // Ended by the sender's going.
                    let _ = phase.changed().await;
                    continue;
                }
                Admission::NeedsAccess => {
                    confirm_blob(shared, repository, digest).await?;
                    confirmed = true;
                    continue;
                }
            };
            match begun(phase.clone()).await {
                FillStart::Filling(draft) => {
                    let total = draft.progress().total;
                    match (size, total) {
                        (Some(size), Some(total)) if size != total && own => {
                            let reason = format!("it has {total} bytes, its descriptor says {size}");
                            return Err(CacheError::Mismatch(reason));
                        }
                        // Two repositories' descriptors differ: the end of the other one's fill will tell.
                        (Some(size), Some(total)) if size != total => fill_ended(phase).await,
                        _ => {
                            // Too late for one that is not kept: it has left the board, and the next round begins another.
                            let Some(follower) = draft.follow(0) else { continue };
                            let outcome = if draft.is_kept() { outcome } else { Outcome::Bypass };
                            return Ok(BlobAnswer {
                                size: total,
                                source: Some(BlobSource::Filling(follower)),
                                outcome,
                            });
                        }
                    }
                }
                FillStart::Stored(entry) => {
                    if let Some(pin) = shared.eviction.pin_for_client(&entry, shared.clock.now())
                        && let Some(blob) = self.stored(entry, pin, outcome).await?
                    {
                        return Ok(blob);
                    }
                }
                FillStart::Failed(error) if own => return Err(error),
                // Another repository's failure is no answer for this one.
                FillStart::Failed(_) => {}
            }
        }
        Err(CacheError::Interrupted)
    }

    /// Sees to it that a blob is held, for nobody who reads it. Waits until all of it has come.
    pub(in crate::cache) async fn fetch_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<(), CacheError> {
        self.bring_blob(repository, digest, |_| {}).await.map(drop)
    }

    /// The same for who wants to know how it goes: `tell` hears of all bytes that are there, whenever there are more.
    /// Returns whether it had to be fetched.
    pub async fn bring_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        mut tell: impl FnMut(u64) + Send,
    ) -> Result<bool, CacheError> {
        let shared = &self.0;
        let (linked, _) = look(shared, repository, digest).await?;
        let size = linked.and_then(|link| link.size);
        loop {
            // What no client waits for waits until the disk has caught up.
            shared.fills.wait_until(|| !shared.is_crowded(digest, size)).await;
            match self.bring(repository, digest, &mut tell).await? {
                Some(fetched) => return Ok(fetched),
                // It came past a store that fails, for those who read it alone.
                None if shared.store_health.is_degraded() => return Err(StoreError::Closed.into()),
                // Others were quicker to take the room.
                None => {}
            }
        }
    }

    /// Brings a blob once. Returns whether it had to be fetched; `None` if it came and was not kept.
    async fn bring(
        &self,
        repository: &Repository,
        digest: &Digest,
        tell: &mut (impl FnMut(u64) + Send),
    ) -> Result<Option<bool>, CacheError> {
        let blob = self.blob(repository, digest).await?;
        let Some(BlobSource::Filling(follower)) = blob.source else {
            tell(blob.size.unwrap_or_default());
            return Ok(Some(matches!(blob.outcome, Outcome::Miss | Outcome::Join)));
        };
        let draft = Arc::clone(follower.draft());
        let mut progress = draft.watch();
        // Nobody reads here, and so nobody need be waited for.
        drop(follower);
        let ended = loop {
            let now = *progress.borrow_and_update();
            tell(now.received);
            if now.end.is_some() || progress.changed().await.is_err() {
                break now.end;
            }
        };
        match ended {
            Some(DraftEnd::Verified) => Ok(draft.is_kept().then_some(true)),
            None | Some(DraftEnd::Abandoned) if !draft.is_kept() => Ok(None),
            Some(DraftEnd::Mismatch) => Err(CacheError::Mismatch(format!("{digest} came wrong"))),
            Some(DraftEnd::Abandoned) | None => Err(CacheError::Interrupted),
        }
    }

    /// A blob's size. Downloads nothing.
    pub async fn blob_size(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<BlobAnswer, CacheError> {
        in_time(self.find_blob_size(repository, digest)).await
    }

    async fn find_blob_size(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<BlobAnswer, CacheError> {
        let shared = &self.0;
        let (linked, entry) = look(shared, repository, digest).await?;
        shared.eviction.touch(digest, shared.clock.now());
        match (linked, entry) {
            (Some(_), Some(entry)) => {
                Ok(BlobAnswer { size: Some(entry.size()), source: None, outcome: Outcome::Hit })
            }
            (linked, entry) => {
                let told = confirm_blob(shared, repository, digest).await?;
                let outcome = if entry.is_some() { Outcome::Revalidated } else { Outcome::Bypass };
                // An upstream that tells no length may have told it in a manifest.
                let size = entry.map(|entry| entry.size()).or(told).or(linked.and_then(|link| link.size));
                Ok(BlobAnswer { size, source: None, outcome })
            }
        }
    }

    /// A blob that the store has, opened. `None` if that shows it to be damaged: then it has left the store, and what
    /// would have been a hit is a miss.
    async fn stored(
        &self,
        entry: BlobEntry,
        pin: ContentPin,
        outcome: Outcome,
    ) -> Result<Option<BlobAnswer>, CacheError> {
        let opened = if let Some(open) = entry.open_now() {
            Ok(open)
        } else {
            let entry = entry.clone();
            blocking(move || entry.open()).await
        };
        match opened {
            Ok(open) => {
                let source = Some(BlobSource::Stored(open, pin));
                Ok(Some(BlobAnswer { size: Some(entry.size()), source, outcome }))
            }
            Err(CacheError::Store(error)) if matches!(*error, StoreError::Damaged(_)) => {
                self.heal(&entry, &error).await;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// A blob turned out to be damaged: it leaves the store, and is fetched again when asked for.
    pub(in crate::cache) async fn heal(&self, entry: &BlobEntry, error: &StoreError) {
        let shared = &self.0;
        shared.report_store_error("a blob is damaged and will be fetched again", error);
        let (owned, damaged) = (Arc::clone(shared), entry.clone());
        let deleted = shared.with_store(move |store| owned.deleter(store).delete_damaged_blob(&damaged));
        if let Err(error) = deleted.await {
            shared.report_error("a damaged blob could not be taken out of service", &error);
        }
    }
}

async fn look(
    shared: &Shared,
    repository: &Repository,
    digest: &Digest,
) -> Result<(Option<LinkFact>, Option<BlobEntry>), CacheError> {
    let (repository, digest) = (repository.clone(), *digest);
    let told =
        shared.with_store(move |store| Ok((store.link(&repository, &digest)?, store.blob(&digest)?))).await;
    shared.or_default("what is held cannot be found out", told)
}

enum FillStart {
    Filling(Arc<Draft>),
    Stored(BlobEntry),
    Failed(CacheError),
}

/// Waits until a fill has begun to bring bytes, or has ended. The request's own bound ends the waiting; the fill goes on.
///
/// Of an empty body no byte can be withheld until it is verified, so there that is waited for.
async fn begun(mut phase: watch::Receiver<FillPhase>) -> FillStart {
    let phase = phase.wait_for(|phase| match phase {
        FillPhase::Starting => false,
        FillPhase::Running(draft) => {
            let progress = draft.progress();
            progress.total != Some(0) || progress.end.is_some()
        }
        FillPhase::Stored(_) | FillPhase::Failed(_) => true,
    });
    match phase.await.as_deref() {
        Ok(FillPhase::Running(draft)) => FillStart::Filling(Arc::clone(draft)),
        Ok(FillPhase::Stored(entry)) => FillStart::Stored(entry.clone()),
        Ok(FillPhase::Failed(error)) => FillStart::Failed(error.clone()),
        Ok(FillPhase::Starting) | Err(_) => FillStart::Failed(CacheError::Interrupted),
    }
}
