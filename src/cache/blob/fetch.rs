//! Fetch of a blob into the store without a reader, for prefetch, `warm`, `export` and repair.

use std::sync::Arc;

use crate::cache::blob::answer::BlobSource;
use crate::cache::blob::blobs::Blobs;
use crate::cache::error::CacheError;
use crate::oci::{Digest, Repository};
use crate::store::{DraftEnd, StoreError};
use crate::telemetry::Outcome;

impl Blobs {
    /// Fetches a blob unless it is stored, and waits until it is complete. `progress` is called with the number of bytes
    /// that have arrived. Returns true if the blob had to be fetched.
    pub(in crate::cache) async fn fetch(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
        mut progress: impl FnMut(u64) + Send,
    ) -> Result<bool, CacheError> {
        if self.look_up(repository, digest).await?.1.is_none() {
            // A fetch for which no client waits starts only when there is room for its draft.
            self.storage.capacity.wait_to_start(Some(repository)).await;
        }
        match self.fetch_once(repository, digest, &mut progress).await? {
            Some(fetched) => Ok(fetched),
            // The store is degraded: the bytes were passed through to clients only.
            None if self.storage.store_health.is_degraded() => Err(StoreError::Closed.into()),
            // Another download would end in the same way.
            None => Err(StoreError::NoRoom.into()),
        }
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
        // This fetch reads nothing, so the fill must not wait for it.
        drop(follower);
        let end = loop {
            let now = *watch.borrow_and_update();
            progress(now.received);
            if now.end.is_some() || watch.changed().await.is_err() {
                break now.end;
            }
        };
        match end {
            Some(DraftEnd::Verified) => {
                // A verified draft is stored a moment later, unless the disk refuses it or it is evicted at once.
                self.storage.fills.wait_for_end(digest).await;
                let (_, stored) = self.look_up(repository, digest).await?;
                Ok(stored.map(|_| true))
            }
            None | Some(DraftEnd::Abandoned) if !draft.is_kept() => Ok(None),
            Some(DraftEnd::Mismatch) => {
                Err(CacheError::Mismatch(format!("the upstream sent other content for {digest}")))
            }
            Some(DraftEnd::Abandoned) | None => Err(CacheError::Interrupted),
        }
    }
}
