//! What an operator wants gone: a tag or a manifest of a repository, and what only it led to.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use crate::oci::{Digest, Repository, Tag};
use crate::store::StoreError;

use crate::cache::eviction::{BlockedFills, Taken};
use crate::cache::{Cache, CacheError, Pointer, Shared, blocking};

/// What went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovalReport {
    /// Tags, with what they stood for to clients that accept only some types.
    pub tags: u64,
    /// Manifests and indexes.
    pub manifests: u64,
    /// Blobs.
    pub blobs: u64,
    /// Bytes of both.
    pub bytes: u64,
    /// What it led to and something else needs, or somebody reads or fetches now: it stays.
    pub kept: u64,
}

/// What is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemovalTarget {
    /// A tag.
    Tag(Tag),
    /// A manifest, and all tags of its repository that stand for it.
    Manifest(Digest),
}

impl Cache {
    /// Removes something of a repository, and what nothing else leads to or needs then. What another repository has
    /// pulled stays, and so does what is being read.
    pub async fn remove(
        &self,
        repository: &Repository,
        target: RemovalTarget,
    ) -> Result<RemovalReport, CacheError> {
        if !self.0.eviction.is_complete() {
            self.rebuild_index().await?;
        }
        let (shared, repository) = (Arc::clone(&self.0), repository.clone());
        blocking(move || {
            let removed = remove(&shared, &repository, &target);
            if removed.is_err() {
                // What could not be removed is still held: the ledger has to find it again.
                shared.eviction.complete.store(false, Ordering::Release);
            }
            removed
        })
        .await
    }
}

fn remove(
    shared: &Shared,
    repository: &Repository,
    target: &RemovalTarget,
) -> Result<RemovalReport, StoreError> {
    let (roots, tags) = forget(shared, repository, target)?;
    let mut removed = RemovalReport { tags, ..RemovalReport::default() };
    let mut pointed = shared.store.pointed_at()?;
    pointed.extend(shared.store.linked_elsewhere(repository)?);
    let mut blocked = BlockedFills::new(&shared.fills);
    let (mut left, mut seen) = (roots, HashSet::new());
    let (mut manifests, mut blobs) = (HashSet::new(), Vec::new());
    while let Some(digest) = left.pop() {
        if !seen.insert(digest) {
            continue;
        }
        if pointed.contains(&digest) {
            removed.kept += 1;
            continue;
        }
        // Blocked first: a fill that begins in between would write what is being removed.
        let free = blocked.block(&digest);
        let needs = shared.eviction.needs_of(&digest);
        if let Some(Taken { manifest, size }) = free.then(|| shared.eviction.take(&digest)).flatten() {
            removed.bytes += size;
            left.extend(needs);
            if manifest {
                blocked.unblock(&digest);
                manifests.insert(digest);
            } else {
                blobs.push(digest);
            }
        } else {
            blocked.unblock(&digest);
            // What was never fetched is not kept either.
            removed.kept += u64::from(shared.eviction.last(&digest).is_some());
        }
    }
    shared.memory.remove_content(|digest| manifests.contains(digest) || blobs.contains(digest));
    if !manifests.is_empty() {
        shared.store.forget_pointers(&manifests)?;
        for digest in &manifests {
            shared.store.dequeue_prefetch(repository, digest)?;
            shared.store.remove_manifest(digest)?;
        }
    }
    for digest in &blobs {
        shared.store.remove_blob(digest)?;
        blocked.unblock(digest);
    }
    shared.store.unlink(repository, manifests.iter().chain(&blobs))?;
    removed.manifests = manifests.len() as u64;
    removed.blobs = blobs.len() as u64;
    Ok(removed)
}

/// Takes what leads to it away. Returns what that stood for, and how many tags went.
fn forget(
    shared: &Shared,
    repository: &Repository,
    target: &RemovalTarget,
) -> Result<(Vec<Digest>, u64), StoreError> {
    let store = &shared.store;
    let (mut roots, mut count) = (Vec::new(), 0);
    let tags: Vec<Tag> = match target {
        RemovalTarget::Tag(tag) => vec![tag.clone()],
        RemovalTarget::Manifest(digest) => {
            roots.push(*digest);
            let tagged = store.tagged(Some(repository))?.into_iter();
            tagged.filter(|(_, _, fact)| fact.digest == *digest).map(|(_, tag, _)| tag).collect()
        }
    };
    for tag in &tags {
        for (types, fact) in store.variants(repository, tag)? {
            store.remove_tag(repository, tag, Some(&types))?;
            roots.push(fact.digest);
            count += 1;
        }
        if let Some(fact) = store.tag(repository, tag, None)? {
            store.remove_tag(repository, tag, None)?;
            roots.push(fact.digest);
            count += 1;
        }
    }
    shared.memory.pointers.retain(|pointer, _| match pointer {
        Pointer::Tag(key) => key.repository != *repository || !tags.contains(&key.tag),
        Pointer::Referrers(..) => true,
    });
    Ok((roots, count))
}
