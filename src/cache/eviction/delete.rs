//! Deletion of cached content, in one order for all callers: first what leads to a manifest, then the manifest, then blobs
//! that nothing needs. Of each manifest and blob the fact is deleted before the bytes.
//!
//! In this order an interrupted deletion leaves bytes that no fact points at, and never a fact without its bytes.

use std::collections::HashSet;

use crate::cache::fills::Fills;
use crate::cache::memory::MemoryCache;
use crate::oci::{Digest, Repository, Tag};
use crate::store::{BlobEntry, Change, DraftUsage, Pointer, PointerScope, Removal, StoreError, StoreSession};

use super::content::{ContentKind, Victim};
use super::tracker::ContentTracker;

/// Digests whose fills are blocked while their content is deleted, so that no fill writes bytes that are being deleted.
pub(in crate::cache) struct BlockedFills<'a> {
    fills: &'a Fills,
    digests: HashSet<Digest>,
}

impl<'a> BlockedFills<'a> {
    pub(in crate::cache) fn new(fills: &'a Fills) -> Self {
        Self { fills, digests: HashSet::new() }
    }

    /// Blocks fills of a digest. Returns false if a fill is running.
    pub(in crate::cache) fn block(&mut self, digest: &Digest) -> bool {
        self.fills.block(digest) && self.digests.insert(*digest)
    }

    /// Permits fills of a digest again.
    pub(in crate::cache) fn unblock(&mut self, digest: &Digest) {
        if self.digests.remove(digest) {
            self.fills.unblock(digest);
        }
    }
}

impl Drop for BlockedFills<'_> {
    fn drop(&mut self) {
        for digest in &self.digests {
            self.fills.unblock(digest);
        }
    }
}

/// Content that was taken out of the eviction index and is to be deleted from memory and store.
#[derive(Debug, Default)]
pub(in crate::cache) struct DeletionBatch {
    manifests: HashSet<Digest>,
    /// Blobs in the order of their deletion.
    blobs: Vec<Digest>,
    bytes: u64,
}

impl DeletionBatch {
    pub(in crate::cache) fn push(&mut self, victim: &Victim) {
        match victim.kind {
            ContentKind::Manifest => {
                self.manifests.insert(victim.digest);
            }
            ContentKind::Blob => self.blobs.push(victim.digest),
        }
        self.bytes = self.bytes.saturating_add(victim.size);
    }

    pub(in crate::cache) fn is_empty(&self) -> bool {
        self.manifests.is_empty() && self.blobs.is_empty()
    }

    /// Returns the number of manifests.
    pub(in crate::cache) fn manifests(&self) -> usize {
        self.manifests.len()
    }

    /// Returns the number of blobs.
    pub(in crate::cache) fn blobs(&self) -> usize {
        self.blobs.len()
    }

    /// Returns the bytes on disk of all content in the batch.
    pub(in crate::cache) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Parts of the cache that a deletion changes. All methods block.
#[derive(Clone, Copy)]
pub(in crate::cache) struct Deleter<'a> {
    pub(in crate::cache) store: &'a StoreSession,
    pub(in crate::cache) memory: &'a MemoryCache,
    pub(in crate::cache) content: &'a ContentTracker,
    pub(in crate::cache) fills: &'a Fills,
}

impl Deleter<'_> {
    /// Deletes a batch, and with a `repository` also its links to the content and its queued prefetch. Fills of the
    /// blobs must be blocked, and are permitted again after each blob; then `blob_deleted` is called.
    pub(in crate::cache) fn delete(
        &self,
        batch: &DeletionBatch,
        repository: Option<&Repository>,
        blocked: &mut BlockedFills<'_>,
        mut blob_deleted: impl FnMut(),
    ) -> Result<(), StoreError> {
        let DeletionBatch { manifests, blobs, .. } = batch;
        let in_batch: HashSet<&Digest> = manifests.iter().chain(blobs).collect();
        self.memory.remove_content(|digest| in_batch.contains(digest));
        if !manifests.is_empty() {
            self.store.remove(Removal::Pointers(manifests))?;
        }
        for digest in manifests {
            if let Some(repository) = repository {
                self.store.apply(&[Change::DequeuePrefetch(repository.clone(), *digest)])?;
            }
            self.store.remove(Removal::Manifest(digest))?;
        }
        for digest in blobs {
            self.store.remove(Removal::Blob(digest))?;
            blocked.unblock(digest);
            blob_deleted();
        }
        if let Some(repository) = repository {
            let unlink = |digest: &Digest| Change::RemoveLink(repository.clone(), *digest);
            let changes: Vec<_> = manifests.iter().chain(blobs).map(unlink).collect();
            self.store.apply(&changes)?;
        }
        Ok(())
    }

    /// Deletes tags of a repository, with their variants. Returns the digests that they pointed at.
    pub(in crate::cache) fn delete_tags(
        &self,
        repository: &Repository,
        tags: &[Tag],
    ) -> Result<Vec<Digest>, StoreError> {
        let mut targets = Vec::new();
        for tag in tags {
            targets.extend(self.delete_stored_variants(repository, tag)?);
            let pointer = Pointer::tag(repository, tag);
            if let Some(fact) = self.store.pointer(&pointer)? {
                self.store.apply(&[Change::RemovePointer(pointer)])?;
                targets.push(fact.digest);
            }
        }
        self.memory.remove_tags(repository, tags);
        Ok(targets)
    }

    /// Deletes the variants of a tag. The tag itself stays in the store, and is removed from memory.
    pub(in crate::cache) fn delete_variants(
        &self,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<(), StoreError> {
        self.delete_stored_variants(repository, tag)?;
        self.memory.remove_tags(repository, std::slice::from_ref(tag));
        Ok(())
    }

    fn delete_stored_variants(&self, repository: &Repository, tag: &Tag) -> Result<Vec<Digest>, StoreError> {
        let mut targets = Vec::new();
        for (pointer, fact) in self.store.pointers(PointerScope::Variants(repository, tag))? {
            self.store.apply(&[Change::RemovePointer(pointer)])?;
            targets.push(fact.digest);
        }
        Ok(targets)
    }

    /// Deletes a damaged manifest. Tags that point at it stay: the next request fetches the manifest again.
    pub(in crate::cache) fn delete_damaged_manifest(&self, digest: &Digest) -> Result<(), StoreError> {
        self.store.remove(Removal::Manifest(digest))?;
        self.content.remove(digest);
        self.memory.remove_content(|it| it == digest);
        Ok(())
    }

    /// Deletes a damaged blob, unless it was filled again since `entry` was read. Links to it stay: the next request
    /// fetches the blob again.
    pub(in crate::cache) fn delete_damaged_blob(&self, entry: &BlobEntry) -> Result<(), StoreError> {
        let deleted = self.store.remove(Removal::CorruptBlob(entry));
        self.content.remove(entry.digest());
        self.memory.remove_blob(entry.digest());
        deleted
    }

    /// Deletes drafts, except those with a running fill. Returns the number and the bytes.
    pub(in crate::cache) fn delete_drafts(
        &self,
        drafts: impl IntoIterator<Item = DraftUsage>,
    ) -> Result<(u64, u64), StoreError> {
        let (mut blocked, mut deleted, mut bytes) = (BlockedFills::new(self.fills), 0, 0);
        for draft in drafts {
            if blocked.block(&draft.key.digest) {
                self.store.remove(Removal::Draft(&draft.key))?;
                blocked.unblock(&draft.key.digest);
                deleted += 1;
                bytes += draft.bytes;
            }
        }
        Ok((deleted, bytes))
    }

    /// Deletes bytes that interrupted copies and deletions left. Returns the number of blobs with such bytes.
    pub(in crate::cache) fn delete_leftovers(&self, leftovers: &[Digest]) -> Result<u64, StoreError> {
        let (mut blocked, mut deleted) = (BlockedFills::new(self.fills), 0);
        for digest in leftovers {
            if blocked.block(digest) {
                self.store.remove(Removal::Leftovers(digest))?;
                blocked.unblock(digest);
                deleted += 1;
            }
        }
        Ok(deleted)
    }
}
