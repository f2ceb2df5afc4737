//! Whether what is held is intact, what of it a tag leads to, and what is left of things that have gone.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::oci::{Digest, Hasher};
use crate::store::{Collected, DraftUsage, OpenBlob, StoreError};

use crate::cache::eviction::{BlockedFills, Reachability, clear_leftovers};
use crate::cache::manifest::by_digest::by_digest;
use crate::cache::{Cache, CacheError, Shared, blocking};

/// How much of a blob is read at a time.
const STEP: u64 = 1 << 20;
/// A pointer that was confirmed within this time may stand for a manifest that is still being kept.
const COMING: Duration = Duration::from_hours(1);
/// A draft that nothing was added to for this long is not gone on with any more.
const ABANDONED: Duration = Duration::from_hours(24);

/// What holding content against its digest showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Integrity {
    /// It is what its digest says.
    Intact,
    /// It was not, and has left the store.
    Corrupt,
    /// It left meanwhile.
    Gone,
}

/// Something that is to be verified again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubItem {
    /// What.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Whether it is a manifest, not a blob.
    pub manifest: bool,
    /// When it was last verified, in milliseconds since 1970.
    pub verified: u64,
}

/// Something that was damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedContent {
    /// What.
    pub digest: Digest,
    /// Whether it was a manifest, not a blob.
    pub manifest: bool,
}

/// Tells after a number of bytes read how long to wait.
pub type Throttle<'a> = &'a mut (dyn FnMut(u64) -> Duration + Send);

impl Cache {
    /// What was last verified before `before` (milliseconds since 1970), what was so longest ago first.
    pub async fn due(&self, before: u64) -> Result<Vec<ScrubItem>, CacheError> {
        let store = self.0.store.clone();
        blocking(move || {
            let mut due = Vec::new();
            let manifests = store.held_manifests()?.into_iter().map(|held| (held, true));
            for (held, manifest) in manifests.chain(store.held_blobs()?.into_iter().map(|held| (held, false)))
            {
                if held.verified < before {
                    due.push(ScrubItem {
                        digest: held.digest,
                        size: held.size,
                        manifest,
                        verified: held.verified,
                    });
                }
            }
            due.sort_unstable_by_key(|due| due.verified);
            Ok(due)
        })
        .await
    }

    /// Holds content against its digest. `rest` is told every number of bytes read,
    /// and tells how long to wait before the next.
    /// Damaged content leaves the store.
    pub async fn verify(&self, due: &ScrubItem, rest: Throttle<'_>) -> Result<Integrity, CacheError> {
        let condition = if due.manifest {
            self.verify_manifest(&due.digest, rest).await?
        } else {
            self.verify_blob(&due.digest, rest).await?
        };
        if condition == Integrity::Intact {
            let (store, digest, now) = (self.0.store.clone(), due.digest, self.0.clock.now_millis());
            blocking(move || store.note_verified(&digest, now)).await?;
        }
        Ok(condition)
    }

    async fn verify_blob(&self, digest: &Digest, rest: Throttle<'_>) -> Result<Integrity, CacheError> {
        let (store, wanted) = (self.0.store.clone(), *digest);
        let Some(entry) = blocking(move || store.blob(&wanted)).await? else { return Ok(Integrity::Gone) };
        let Some(_reading) = self.0.eviction.hold(digest) else { return Ok(Integrity::Gone) };
        let opened = {
            let entry = entry.clone();
            blocking(move || entry.open()).await
        };
        let found = match opened {
            Ok(blob) => hash(blob, rest).await,
            Err(error) => Err(error),
        };
        match found {
            Ok(found) if found == *digest => Ok(Integrity::Intact),
            Ok(_) => {
                self.heal(&entry, &StoreError::Damaged(*digest)).await;
                Ok(Integrity::Corrupt)
            }
            Err(CacheError::Store(error)) if matches!(*error, StoreError::Damaged(_)) => {
                self.heal(&entry, &error).await;
                Ok(Integrity::Corrupt)
            }
            Err(error) => Err(error),
        }
    }

    async fn verify_manifest(&self, digest: &Digest, rest: Throttle<'_>) -> Result<Integrity, CacheError> {
        let (shared, wanted) = (Arc::clone(&self.0), *digest);
        let (condition, length) = blocking(move || {
            let error = match shared.store.manifest(&wanted) {
                Ok(None) => return Ok((Integrity::Gone, 0)),
                Ok(Some(found)) if Digest::of(wanted.algorithm(), &found.body) == wanted => {
                    return Ok((Integrity::Intact, found.body.len() as u64));
                }
                Ok(Some(_)) => StoreError::Damaged(wanted),
                Err(error @ StoreError::Damaged(_)) => error,
                Err(error) => return Err(error),
            };
            shared.report_store_error("a manifest is damaged and will be fetched again", &error);
            shared.store.remove_manifest(&wanted)?;
            shared.eviction.removed(&wanted);
            shared.memory.remove_content(|digest| *digest == wanted);
            Ok((Integrity::Corrupt, 0))
        })
        .await?;
        tokio::time::sleep(rest(length)).await;
        Ok(condition)
    }

    /// Fetches again what was damaged, for a repository that is linked to it. Returns what has come, or is coming.
    pub async fn repair(&self, damaged: &[DamagedContent]) -> Result<Vec<Digest>, CacheError> {
        let store = self.0.store.clone();
        let wanted: HashSet<_> = damaged.iter().map(|damaged| damaged.digest).collect();
        let linked = blocking(move || store.linked_from(&wanted)).await?;
        let mut repaired = Vec::new();
        for DamagedContent { digest, manifest } in damaged {
            let Some(repository) = linked.get(digest) else { continue };
            let fetched = if *manifest {
                by_digest(&self.0, repository, digest).await.map(drop)
            } else {
                self.fetch_blob(repository, digest).await
            };
            match fetched {
                Ok(()) => repaired.push(*digest),
                Err(error) => {
                    tracing::warn!(%repository, %digest, %error, "damaged content cannot be fetched again yet");
                }
            }
        }
        Ok(repaired)
    }

    /// What tags lead to and what they do not: manifests, blobs and bytes.
    pub async fn reach(&self) -> Result<Reachability, CacheError> {
        let shared = Arc::clone(&self.0);
        blocking(move || Ok(shared.eviction.reached(&shared.store.pointed_at()?))).await
    }

    /// Removes what is left of things that have gone. What is held stays.
    pub async fn collect(&self) -> Result<Collected, CacheError> {
        let shared = Arc::clone(&self.0);
        blocking(move || collect(&shared)).await
    }
}

fn collect(shared: &Shared) -> Result<Collected, StoreError> {
    let before = |time: Duration| {
        shared.clock.now_millis().saturating_sub(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    };
    let mut collected =
        shared.store.collect_facts(|digest| shared.eviction.is_needed(digest), before(COMING))?;
    collected.leftovers += clear_leftovers(shared)?;
    let mut blocked = BlockedFills::new(&shared.fills);
    for DraftUsage { digest, changed, .. } in shared.store.drafts()? {
        if changed < before(ABANDONED) && blocked.block(&digest) {
            shared.store.remove_draft(&digest)?;
            blocked.unblock(&digest);
            collected.drafts += 1;
        }
    }
    Ok(collected)
}

/// The digest that a blob really has.
async fn hash(blob: OpenBlob, rest: Throttle<'_>) -> Result<Digest, CacheError> {
    let size = blob.entry().size();
    let mut hasher = Hasher::new(blob.entry().digest().algorithm());
    let mut at = 0;
    while at < size {
        let reading = blob.clone();
        let (after, read) = blocking(move || {
            let mut read = 0;
            for piece in reading.read(at..size, STEP)? {
                hasher.update(&piece);
                read += piece.len() as u64;
            }
            // Nothing before the end would be read for ever.
            if read == 0 { Err(StoreError::Damaged(*reading.entry().digest())) } else { Ok((hasher, read)) }
        })
        .await?;
        hasher = after;
        at += read;
        tokio::time::sleep(rest(read)).await;
    }
    Ok(hasher.finish())
}
