//! Scrub: compares stored content with its digests, deletes damaged content, and fetches it again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cache::blob::Blobs;
use crate::cache::error::CacheError;
use crate::cache::manifest::Manifests;
use crate::cache::storage::Storage;
use crate::clock::Timestamp;
use crate::oci::{Digest, Hasher, Repository};
use crate::store::{Change, OpenBlob, StoreError, StoreSession};

/// Bytes of a blob that are read at a time.
const STEP: u64 = 1 << 20;

/// Result of a comparison of content with its digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Integrity {
    /// The content matches its digest.
    Intact,
    /// The content did not match, and was deleted.
    Damaged,
    /// The content was deleted before it could be verified.
    Missing,
}

/// Stored content that is due for verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubItem {
    /// Digest of the content.
    pub digest: Digest,
    /// Length in bytes.
    pub size: u64,
    /// True for a manifest, false for a blob.
    pub manifest: bool,
    /// Time of the last verification.
    pub verified_at: Timestamp,
}

/// Content that was damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedContent {
    /// Digest of the content.
    pub digest: Digest,
    /// True for a manifest, false for a blob.
    pub manifest: bool,
}

/// Throttle of reads: takes the number of bytes read, and returns the time to wait before the next read.
pub type Throttle<'a> = &'a mut (dyn FnMut(u64) -> Duration + Send);

/// Lists the content that was last verified before `before`, least recently verified first. Blocks.
pub(in crate::cache) fn list_due(
    store: &StoreSession,
    before: Timestamp,
) -> Result<Vec<ScrubItem>, StoreError> {
    let mut due = Vec::new();
    let inventory = store.inventory()?;
    for (entries, manifest) in [(inventory.manifests, true), (inventory.blobs, false)] {
        for entry in entries {
            let verified_at = entry.verified;
            if verified_at < before {
                due.push(ScrubItem { digest: entry.digest, size: entry.size, manifest, verified_at });
            }
        }
    }
    due.sort_by_key(|item| item.verified_at);
    Ok(due)
}

/// Compares content with its digest, and deletes damaged content.
pub(in crate::cache) async fn verify(
    storage: &Arc<Storage>,
    item: &ScrubItem,
    throttle: Throttle<'_>,
) -> Result<Integrity, CacheError> {
    let integrity = if item.manifest {
        verify_manifest(storage, &item.digest, throttle).await?
    } else {
        verify_blob(storage, &item.digest, throttle).await?
    };
    if integrity == Integrity::Intact {
        let change = Change::SetVerified(item.digest, storage.clock.now());
        storage.with_store(move |store| store.apply(&[change])).await?;
    }
    Ok(integrity)
}

async fn verify_blob(
    storage: &Arc<Storage>,
    digest: &Digest,
    throttle: Throttle<'_>,
) -> Result<Integrity, CacheError> {
    let wanted = *digest;
    let Some(entry) = storage.with_store(move |store| store.blob(&wanted)).await? else {
        return Ok(Integrity::Missing);
    };
    let Some(_pin) = storage.content.pin(digest) else { return Ok(Integrity::Missing) };
    let opened = {
        let entry = entry.clone();
        storage.with_store_long(move |_| entry.open()).await
    };
    let found = match opened {
        Ok(blob) => hash(storage, blob, throttle).await,
        Err(error) => Err(error),
    };
    match found {
        Ok(found) if found == *digest => Ok(Integrity::Intact),
        Ok(_) => {
            storage.delete_damaged_blob(&entry, &StoreError::Damaged(*digest)).await;
            Ok(Integrity::Damaged)
        }
        Err(CacheError::Store(error)) if matches!(*error, StoreError::Damaged(_)) => {
            storage.delete_damaged_blob(&entry, &error).await;
            Ok(Integrity::Damaged)
        }
        Err(error) => Err(error),
    }
}

async fn verify_manifest(
    storage: &Arc<Storage>,
    digest: &Digest,
    throttle: Throttle<'_>,
) -> Result<Integrity, CacheError> {
    let (owned, digest) = (Arc::clone(storage), *digest);
    let verify = move |store: &StoreSession| {
        let error = match store.manifest(&digest) {
            Ok(None) => return Ok((Integrity::Missing, 0)),
            Ok(Some(found)) if Digest::of(digest.algorithm(), &found.body) == digest => {
                return Ok((Integrity::Intact, found.body.len() as u64));
            }
            Ok(Some(_)) => StoreError::Damaged(digest),
            Err(error @ StoreError::Damaged(_)) => error,
            Err(error) => return Err(error),
        };
        owned.report_store_error("a manifest is damaged and will be fetched again", &error);
        owned.deleter(store).delete_damaged_manifest(&digest)?;
        Ok((Integrity::Damaged, 0))
    };
    let (integrity, length) = storage.with_store_long(verify).await?;
    tokio::time::sleep(throttle(length)).await;
    Ok(integrity)
}

/// Fetches damaged content again, each from a repository that is linked to it. Returns the digests that were fetched, or
/// are being fetched.
pub(in crate::cache) async fn repair(
    storage: &Storage,
    manifests: &Arc<Manifests>,
    blobs: &Arc<Blobs>,
    damaged: &[DamagedContent],
) -> Result<Vec<Digest>, CacheError> {
    let wanted: HashSet<_> = damaged.iter().map(|damaged| damaged.digest).collect();
    let links = storage.with_store_long(move |store| store.links(None, |_, digest| wanted.contains(digest)));
    let linked: HashMap<Digest, Repository> =
        links.await?.into_iter().map(|(repository, digest)| (digest, repository)).rev().collect();
    let mut repaired = Vec::new();
    for DamagedContent { digest, manifest } in damaged {
        let Some(repository) = linked.get(digest) else { continue };
        let fetched = if *manifest {
            manifests.get(repository, digest).await.map(drop)
        } else {
            blobs.fetch(repository, digest, |_| {}).await.map(drop)
        };
        match fetched {
            Ok(()) => repaired.push(*digest),
            Err(error) => {
                tracing::warn!(%repository, %digest, %error, "cannot fetch damaged content again; the next request retries");
            }
        }
    }
    Ok(repaired)
}

/// Computes the digest of a blob's bytes.
async fn hash(storage: &Storage, blob: OpenBlob, throttle: Throttle<'_>) -> Result<Digest, CacheError> {
    let size = blob.entry().size();
    let mut hasher = Hasher::new(blob.entry().digest().algorithm());
    let mut offset = 0;
    while offset < size {
        let blob = blob.clone();
        let step = storage.with_store_long(move |_| {
            let mut read = 0;
            for chunk in blob.read(offset..size, STEP)? {
                hasher.update(&chunk);
                read += chunk.len() as u64;
            }
            // An empty read before the end would repeat for ever.
            if read == 0 { Err(StoreError::Damaged(*blob.entry().digest())) } else { Ok((hasher, read)) }
        });
        let read;
        (hasher, read) = step.await?;
        offset += read;
        tokio::time::sleep(throttle(read)).await;
    }
    Ok(hasher.finish())
}
