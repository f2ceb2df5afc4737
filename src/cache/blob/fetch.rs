//! Fetch of a blob into the store without a reader, for prefetch, `warm`, `export` and repair.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::cache::blob::answer::BlobSource;
use crate::cache::blob::blobs::Blobs;
use crate::cache::error::CacheError;
use crate::oci::{Digest, Repository};
use crate::store::{DraftEnd, StoreError};
use crate::telemetry::Outcome;

/// Longest wait for the fill of another upstream, which may be slow without end.
const OTHER_FILL_TIMEOUT: Duration = Duration::from_mins(2);

impl Blobs {
    /// Fetches a blob unless it is stored, and waits until it is complete. `progress` is called with the number of bytes
    /// that have arrived. Returns true if the blob had to be fetched.
    pub(in crate::cache) async fn fetch(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
        mut progress: impl FnMut(u64) + Send,
    ) -> Result<bool, CacheError> {
        let mut is_repeated = false;
        loop {
            self.await_other_upstreams(repository, digest).await?;
            if !self.look_up(repository, digest).await?.is_stored {
                // A fetch for which no client waits starts only when there is room for its draft.
                self.storage.capacity.wait_to_start(Some(repository)).await;
            }
            if let Some(fetched) = self.fetch_once(repository, digest, &mut progress).await? {
                return Ok(fetched);
            }
            // The store is degraded: the bytes were passed through to clients only.
            if self.storage.store_health.is_degraded() {
                return Err(StoreError::Closed.into());
            }
            let is_stored = self.look_up(repository, digest).await?.is_stored;
            let is_elsewhere =
                is_stored || self.storage.fills.is_busy_elsewhere(&repository.upstream, digest);
            // Unless another upstream has begun meanwhile, another download would end in the same way.
            if !is_elsewhere || std::mem::replace(&mut is_repeated, true) {
                return Err(StoreError::NoRoom.into());
            }
        }
    }

    /// Waits for the fill of another upstream: the bytes that it stores need no second place on the disk.
    async fn await_other_upstreams(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<(), CacheError> {
        let others = self.storage.fills.wait_for_others(&repository.upstream, digest);
        timeout(OTHER_FILL_TIMEOUT, others).await.map_err(|_| {
            CacheError::timeout(
                "another upstream has been sending the same blob for too long; try again later",
            )
        })
    }

    /// Fetches a blob once. Returns true if it had to be fetched, `None` if it was fetched and not stored.
    async fn fetch_once(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
        progress: &mut (impl FnMut(u64) + Send),
    ) -> Result<Option<bool>, CacheError> {
        let blob = self.get(repository, digest).await?;
        let Some(BlobSource::Filling(follower)) = blob.source else {
            progress(blob.size.unwrap_or_default());
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
            progress(now.received);
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
