//! Fetch of a blob into the store without a reader, for prefetch, `warm`, `export` and repair.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::cache::blob::answer::BlobSource;
use crate::cache::blob::blobs::Blobs;
use crate::cache::error::CacheError;
use crate::cache::fills::{OtherWork, fill_ended};
use crate::oci::{Digest, Repository};
use crate::store::{DraftEnd, StoreError};
use crate::telemetry::Outcome;

/// Longest wait for the fill of another upstream, which may be slow without end.
const OTHER_FILL_TIMEOUT: Duration = Duration::from_mins(2);

/// Progress of a fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchProgress {
    /// Number of bytes that have arrived.
    Received(u64),
    /// All bytes have arrived. The named repository of another upstream, or an import, is storing them.
    WaitingFor(String),
}

impl Blobs {
    /// Fetches a blob unless it is stored, and waits until it is complete. Returns true if the blob had to be fetched.
    ///
    /// While another upstream fills the same digest, the bytes are fetched nevertheless: they show that the upstream of the
    /// repository has them. The other fill stores them.
    pub(in crate::cache) async fn fetch(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
        mut progress: impl FnMut(FetchProgress) + Send,
    ) -> Result<bool, CacheError> {
        let fills = &self.storage.fills;
        let mut is_repeated = false;
        loop {
            let is_stored_elsewhere = || fills.other_work(&repository.upstream, digest).is_some();
            if !self.look_up(repository, digest).await?.is_stored && !is_stored_elsewhere() {
                // A fetch for which no client waits starts only when there is room for its draft.
                self.storage.capacity.wait_to_start(Some(repository)).await;
            }
            if let Some(fetched) = self.fetch_once(repository, digest, &mut progress).await? {
                return Ok(fetched || is_repeated);
            }
            // The store is degraded: the bytes were passed through to clients only.
            if self.storage.store_health.is_degraded() {
                return Err(StoreError::Closed.into());
            }
            // Unless another upstream stores the blob, another download would end in the same way.
            let is_elsewhere = is_stored_elsewhere() || self.look_up(repository, digest).await?.is_stored;
            if !is_elsewhere || std::mem::replace(&mut is_repeated, true) {
                return Err(StoreError::NoRoom.into());
            }
            self.await_other_upstreams(repository, digest, &mut progress).await?;
        }
    }

    /// Waits until no other upstream fills a digest.
    async fn await_other_upstreams(
        &self,
        repository: &Repository,
        digest: &Digest,
        progress: &mut (impl FnMut(FetchProgress) + Send),
    ) -> Result<(), CacheError> {
        let deadline = Instant::now() + OTHER_FILL_TIMEOUT;
        while let Some(OtherWork { owner, phase }) =
            self.storage.fills.other_work(&repository.upstream, digest)
        {
            let owner = owner.map_or_else(|| "an import".to_owned(), |owner| owner.to_string());
            progress(FetchProgress::WaitingFor(owner.clone()));
            timeout_at(deadline, fill_ended(phase)).await.map_err(|_| {
                CacheError::timeout(format!(
                    "{owner} has been storing the same blob for too long; try again later"
                ))
            })?;
        }
        Ok(())
    }

    /// Fetches a blob once. Returns true if it had to be fetched, `None` if it was fetched and not stored.
    async fn fetch_once(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
        progress: &mut (impl FnMut(FetchProgress) + Send),
    ) -> Result<Option<bool>, CacheError> {
        let blob = self.get(repository, digest).await?;
        let Some(BlobSource::Filling(follower)) = blob.source else {
            progress(FetchProgress::Received(blob.size.unwrap_or_default()));
            return Ok(Some(matches!(blob.outcome, Outcome::Miss | Outcome::Join)));
        };
        let draft = Arc::clone(follower.draft());
        let mut watch = draft.watch();
        // This fetch reads nothing, so the fill must not wait for it. A fill that stores nothing ends without a reader.
        // It is no client, and must not hold the phase, which would count as one that is about to read.
        let follower = blob.proof.map(|_| follower);
        if let Some(follower) = &follower {
            follower.set_background();
        }
        let end = loop {
            let now = *watch.borrow_and_update();
            progress(FetchProgress::Received(now.received));
            if let Some(follower) = &follower {
                follower.moved(now.received);
            }
            if now.end.is_some() || watch.changed().await.is_err() {
                break now.end;
            }
        };
        match end {
            Some(DraftEnd::Verified) => {
                // A verified draft is stored a moment later, unless the disk refuses it or it is evicted at once.
                match follower {
                    Some(_) => self.storage.fills.wait_for_proof(&repository.upstream, digest).await,
                    None => self.storage.fills.wait_for_end(digest).await,
                }
                Ok(self.look_up(repository, digest).await?.entry.map(|_| true))
            }
            None | Some(DraftEnd::Abandoned) if !draft.is_kept() => Ok(None),
            Some(DraftEnd::Mismatch) => {
                Err(CacheError::Mismatch(format!("the upstream sent other content for {digest}")))
            }
            Some(DraftEnd::Abandoned) | None => Err(CacheError::Interrupted),
        }
    }
}
