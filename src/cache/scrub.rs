//! Whether what is held is intact, what of it a tag leads to, and what is left of things that have gone.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::oci::{Digest, Hasher};
use crate::store::{Collected, Drafted, OpenBlob, StoreError};

use super::eviction::{Closed, Reached};
use super::manifest::by_digest::by_digest;
use super::{Cache, CacheError, Shared, blocking};

/// How much of a blob is read at a time.
const STEP: u64 = 1 << 20;
/// A pointer that was confirmed within this time may stand for a manifest that is still being kept.
const COMING: Duration = Duration::from_hours(1);
/// A draft that nothing was added to for this long is not gone on with any more.
const ABANDONED: Duration = Duration::from_hours(24);

/// What holding content against its digest showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It is what its digest says.
    Intact,
    /// It was not, and has left the store.
    Damaged,
    /// It left meanwhile.
    Gone,
}

/// Something that is to be verified again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
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
pub struct Damaged {
    /// What.
    pub digest: Digest,
    /// Whether it was a manifest, not a blob.
    pub manifest: bool,
}

/// Tells after a number of bytes read how long to wait.
pub type Rest<'a> = &'a mut (dyn FnMut(u64) -> Duration + Send);

impl Cache {
    /// What was last verified before `before` (milliseconds since 1970), what was so longest ago first.
    pub async fn due(&self, before: u64) -> Result<Vec<Due>, CacheError> {
        let store = self.0.store.clone();
        blocking(move || {
            let mut due = Vec::new();
            let manifests = store.held_manifests()?.into_iter().map(|held| (held, true));
            for (held, manifest) in manifests.chain(store.held_blobs()?.into_iter().map(|held| (held, false)))
            {
                if held.verified < before {
                    due.push(Due { digest: held.digest, size: held.size, manifest, verified: held.verified });
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
    pub async fn verify(&self, due: &Due, rest: Rest<'_>) -> Result<Condition, CacheError> {
        let condition = if due.manifest {
            self.verify_manifest(&due.digest, rest).await?
        } else {
            self.verify_blob(&due.digest, rest).await?
        };
        if condition == Condition::Intact {
            let (store, digest, now) = (self.0.store.clone(), due.digest, self.0.clock.now_millis());
            blocking(move || store.note_verified(&digest, now)).await?;
        }
        Ok(condition)
    }

    async fn verify_blob(&self, digest: &Digest, rest: Rest<'_>) -> Result<Condition, CacheError> {
        let (store, wanted) = (self.0.store.clone(), *digest);
        let Some(entry) = blocking(move || store.blob(&wanted)).await? else { return Ok(Condition::Gone) };
        let Some(_reading) = self.0.eviction.hold(digest) else { return Ok(Condition::Gone) };
        let opened = {
            let entry = entry.clone();
            blocking(move || entry.open()).await
        };
        let found = match opened {
            Ok(blob) => hash(blob, rest).await,
            Err(error) => Err(error),
        };
        match found {
            Ok(found) if found == *digest => Ok(Condition::Intact),
            Ok(_) => {
                self.heal(&entry, &StoreError::Damaged(*digest)).await;
                Ok(Condition::Damaged)
            }
            Err(CacheError::Store(error)) if matches!(*error, StoreError::Damaged(_)) => {
                self.heal(&entry, &error).await;
                Ok(Condition::Damaged)
            }
            Err(error) => Err(error),
        }
    }

    async fn verify_manifest(&self, digest: &Digest, rest: Rest<'_>) -> Result<Condition, CacheError> {
        let (shared, wanted) = (Arc::clone(&self.0), *digest);
        let (condition, length) = blocking(move || {
            let error = match shared.store.manifest(&wanted) {
                Ok(None) => return Ok((Condition::Gone, 0)),
                Ok(Some(found)) if Digest::of(wanted.algorithm(), &found.body) == wanted => {
                    return Ok((Condition::Intact, found.body.len() as u64));
                }
                Ok(Some(_)) => StoreError::Damaged(wanted),
                Err(error @ StoreError::Damaged(_)) => error,
                Err(error) => return Err(error),
            };
            shared.store_failed("a manifest is damaged and will be fetched again", &error);
            shared.store.remove_manifest(&wanted)?;
            shared.eviction.left(&wanted);
            shared.memory.remove_content(|digest| *digest == wanted);
            Ok((Condition::Damaged, 0))
        })
        .await?;
        tokio::time::sleep(rest(length)).await;
        Ok(condition)
    }

    /// Fetches again what was damaged, for a repository that is linked to it. Returns what has come, or is coming.
    pub async fn repair(&self, damaged: &[Damaged]) -> Result<Vec<Digest>, CacheError> {
        let store = self.0.store.clone();
        let wanted: HashSet<_> = damaged.iter().map(|damaged| damaged.digest).collect();
        let linked = blocking(move || store.linked_from(&wanted)).await?;
        let mut repaired = Vec::new();
        for Damaged { digest, manifest } in damaged {
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
    pub async fn reach(&self) -> Result<Reached, CacheError> {
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
    collected.remains += clear_remains(shared)?;
    let mut closed = Closed::new(&shared.fills);
    for Drafted { digest, changed, .. } in shared.store.drafts()? {
        if changed < before(ABANDONED) && closed.close(&digest) {
            shared.store.remove_draft(&digest)?;
            closed.open(&digest);
            collected.drafts += 1;
        }
    }
    Ok(collected)
}

/// Removes what interrupted copies left. Returns of how many blobs.
pub(super) fn clear_remains(shared: &Shared) -> Result<u64, StoreError> {
    let (mut closed, mut cleared) = (Closed::new(&shared.fills), 0);
    for digest in shared.store.remains()? {
        if closed.close(&digest) {
            shared.store.clear_remains(&digest)?;
            closed.open(&digest);
            cleared += 1;
        }
    }
    Ok(cleared)
}

/// The digest that a blob really has.
async fn hash(blob: OpenBlob, rest: Rest<'_>) -> Result<Digest, CacheError> {
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
