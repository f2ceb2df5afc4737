//! Removal of a tag or a manifest by the operator, with the content that nothing else needs.

use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::cache::error::CacheError;
use crate::cache::eviction::delete::{BlockedFills, DeletionBatch};
use crate::cache::eviction::evictor::Evictor;
use crate::cache::storage::Storage;
use crate::oci::{Digest, Repository, Tag};
use crate::store::{Pointer, PointerScope, StoreError, StoreSession};

/// Number and size of what a removal deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovalReport {
    /// Tags, and variants of tags for clients that accept only some media types.
    pub tags: u64,
    /// Manifests and indexes.
    pub manifests: u64,
    /// Blobs.
    pub blobs: u64,
    /// Bytes of manifests and blobs.
    pub bytes: u64,
    /// Manifests and blobs that stay: something else needs them, or they are being read or filled.
    pub kept: u64,
}

/// Object to remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemovalTarget {
    /// A tag.
    Tag(Tag),
    /// A manifest, and all tags of its repository that point at it.
    Manifest(Digest),
}

/// Removes a tag or a manifest of a repository, and the content that nothing else points at or needs. Content that another
/// repository is linked to stays, and so does pinned content.
pub(in crate::cache) async fn remove(
    storage: &Arc<Storage>,
    repository: &Repository,
    target: RemovalTarget,
) -> Result<RemovalReport, CacheError> {
    if !storage.content.is_complete() {
        Evictor::new(storage).rebuild_index().await?;
    }
    let (owned, repository) = (Arc::clone(storage), repository.clone());
    let work = move |store: &StoreSession| {
        let removed = remove_now(&owned, store, &repository, &target);
        if removed.is_err() {
            // Content that could not be deleted is still in the store, and must return to the index.
            owned.content.set_incomplete();
        }
        removed
    };
    storage.with_store_long(work).await
}

fn remove_now(
    storage: &Storage,
    store: &StoreSession,
    repository: &Repository,
    target: &RemovalTarget,
) -> Result<RemovalReport, StoreError> {
    let deleter = storage.deleter(store);
    let tags = tags_to_delete(store, repository, target)?;
    let mut roots = deleter.delete_tags(repository, &tags)?;
    let mut report = RemovalReport { tags: roots.len() as u64, ..RemovalReport::default() };
    if let RemovalTarget::Manifest(digest) = target {
        roots.push(*digest);
    }
    let pointed_at = store.pointers(PointerScope::All)?.into_iter().map(|(_, fact)| fact.digest);
    let linked = store.links(None, |other, _| other != repository)?.into_iter().map(|(_, digest)| digest);
    let protected = pointed_at.chain(linked).collect();
    let mut blocked = BlockedFills::new(&storage.fills);
    let (batch, kept) = take_unneeded(storage, roots, &protected, &mut blocked);
    deleter.delete(&batch, Some(repository), &mut blocked, || {})?;
    report.manifests = batch.manifests() as u64;
    report.blobs = batch.blobs() as u64;
    report.bytes = batch.bytes();
    report.kept = kept;
    Ok(report)
}

/// Takes content out of the index, from `roots` along dependencies, except content that is protected, pinned, needed or
/// being filled. Returns also the number of cached manifests and blobs that stay.
fn take_unneeded(
    storage: &Storage,
    roots: Vec<Digest>,
    protected: &HashSet<Digest>,
    blocked: &mut BlockedFills<'_>,
) -> (DeletionBatch, u64) {
    let (mut batch, mut kept) = (DeletionBatch::default(), 0);
    let (mut pending, mut seen) = (roots, HashSet::new());
    while let Some(digest) = pending.pop() {
        if !seen.insert(digest) {
            continue;
        }
        if protected.contains(&digest) {
            kept += 1;
            continue;
        }
        // Block fills first: a fill that starts after the look-up would write bytes that are being deleted.
        let is_blocked = blocked.block(&digest);
        let dependencies = storage.content.dependencies(&digest);
        if let Some(victim) = is_blocked.then(|| storage.content.take(&digest)).flatten() {
            pending.extend(dependencies);
            if victim.is_manifest() {
                blocked.unblock(&digest);
            }
            batch.push(&victim);
        } else {
            blocked.unblock(&digest);
            // Content that was never cached does not count as kept.
            kept += u64::from(storage.content.contains(&digest));
        }
    }
    (batch, kept)
}

fn tags_to_delete(
    store: &StoreSession,
    repository: &Repository,
    target: &RemovalTarget,
) -> Result<Vec<Tag>, StoreError> {
    match target {
        RemovalTarget::Tag(tag) => Ok(vec![tag.clone()]),
        RemovalTarget::Manifest(digest) => {
            let tags = store.pointers(PointerScope::Tags(Some(repository)))?.into_iter();
            let tags =
                tags.filter(|(_, fact)| fact.digest == *digest).filter_map(|(pointer, _)| match pointer {
                    Pointer::Tag(key) => Some(key.tag),
                    Pointer::Referrers(..) => None,
                });
            Ok(tags.collect())
        }
    }
}
