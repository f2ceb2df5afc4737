//! Blocking implementation of the store.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;
use sled::transaction::{
    ConflictableTransactionError, TransactionError, TransactionalTree, UnabortableTransactionError,
};

use crate::clock::Timestamp;
use crate::oci::{Digest, MediaType, Repository};

use super::blobs::Blobs;
use super::draft::commit_queue::CommitQueue;
use super::error::StoreError;
use super::index::database::{Database, Trees};
use super::index::fact::{Fact, LinkFact, ManifestFact};
use super::index::key::Key;
use super::lifecycle::open::Opening;
use super::lifecycle::quarantine;

/// A manifest as it is kept: bytes and the type they are served under.
#[derive(Clone, Debug)]
pub struct StoredManifest {
    /// The type, as the upstream gave it or as the body told.
    pub media_type: MediaType,
    /// The document, byte for byte.
    pub body: Bytes,
}

/// What the store holds, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bytes of content: manifests and blobs, without overhead.
    pub content: u64,
    /// Manifests held.
    pub manifests: u64,
    /// Blobs held.
    pub blobs: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) content: AtomicU64,
    pub(super) manifests: AtomicU64,
    pub(super) blobs: AtomicU64,
}

/// How long a flush waits for verified drafts to become content.
const SETTLED_WITHIN: Duration = Duration::from_secs(5);

/// The parts of a store; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Engine {
    pub(super) database: Database,
    pub(super) blobs: Blobs,
    pub(super) commit_queue: CommitQueue,
    pub(super) counters: Arc<Counters>,
    pub(super) opening: Arc<Opening>,
    /// Held while a document is kept or removed: neither may come between the other's pages and fact.
    pub(super) changing: Arc<Mutex<()>>,
}

impl Engine {
    /// What is held now. Touches no disk.
    pub(super) fn counts(&self) -> Counts {
        Counts {
            content: self.counters.content.load(Ordering::Relaxed),
            manifests: self.counters.manifests.load(Ordering::Relaxed),
            blobs: self.counters.blobs.load(Ordering::Relaxed),
        }
    }

    /// Bytes the store takes on disk.
    pub(super) fn size_on_disk(&self) -> Result<u64, StoreError> {
        Ok(self.database.db()?.size_on_disk()? + self.blobs.size_on_disk()?)
    }

    /// How many stores that did not open lie aside in the folder.
    pub(super) fn quarantined(&self) -> Result<usize, StoreError> {
        Ok(quarantine::in_folder(self.opening.path())?.len())
    }

    /// Bytes that are free on the store's disk for whoever larder runs as.
    pub(super) fn free_on_disk(&self) -> Result<u64, StoreError> {
        let path = self.opening.path();
        let failed = |error: Errno| StoreError::Folder { path: path.to_owned(), source: error.into() };
        let found = rustix::fs::statvfs(path).map_err(failed)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    /// Waits until everything written so far is on disk. Blobs that have been verified are waited for too, as long as a
    /// stop may take: what is left of them are drafts with all their bytes, which the next fill makes content.
    pub(super) fn flush(&self) -> Result<(), StoreError> {
        let left = self.commit_queue.wait(SETTLED_WITHIN);
        if left > 0 {
            tracing::warn!(left, "blobs are kept as drafts until they are asked for again");
        }
        self.database.db()?.flush()?;
        Ok(())
    }

    pub(super) fn fact<F: Fact>(&self, key: &Key<'_>) -> Result<Option<F>, StoreError> {
        let Some(bytes) = self.database.facts()?.get(key.to_bytes())? else { return Ok(None) };
        Ok(readable(&bytes))
    }

    /// A manifest by digest.
    pub(super) fn manifest(&self, digest: &Digest) -> Result<Option<StoredManifest>, StoreError> {
        let mut fact = self.fact::<ManifestFact>(&Key::Manifest(digest))?;
        loop {
            let Some(told) = fact else { return Ok(None) };
            match self.document(digest, &told) {
                Ok(found) => return Ok(Some(found)),
                Err(StoreError::Damaged(_)) => {}
                Err(error) => return Err(error),
            }
            // It may have been removed while it was read, which is no damage.
            fact = self.fact(&Key::Manifest(digest))?;
            if fact.as_ref() == Some(&told) {
                return Err(StoreError::Damaged(*digest));
            }
        }
    }

    fn document(&self, digest: &Digest, fact: &ManifestFact) -> Result<StoredManifest, StoreError> {
        let size = usize::try_from(fact.size).map_err(|_| StoreError::Damaged(*digest))?;
        let documents = self.database.documents()?;
        let mut body = Vec::with_capacity(size);
        while body.len() < size {
            match documents.get(digest, (body.len() / documents.page_size()) as u64)? {
                Some(page) if !page.is_empty() => body.extend_from_slice(&page),
                _ => return Err(StoreError::Damaged(*digest)),
            }
        }
        let media_type = MediaType::new(&fact.media_type).ok_or(StoreError::Damaged(*digest))?;
        if body.len() != size {
            return Err(StoreError::Damaged(*digest));
        }
        Ok(StoredManifest { media_type, body: body.into() })
    }

    /// Keeps a verified manifest, and the links that it gives its repository.
    ///
    /// A digest that is kept already keeps its media type: one digest, one reading, for ever. Returns that type.
    pub(super) fn put_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
        manifest: &StoredManifest,
        links: impl Iterator<Item = (Digest, Option<u64>)>,
        now: Timestamp,
    ) -> Result<MediaType, StoreError> {
        let size = manifest.body.len() as u64;
        let held = self.database.facts()?.get(Key::Manifest(digest).to_bytes())?;
        let media_type = match held.as_deref().and_then(readable::<ManifestFact>) {
            Some(known) => MediaType::new(&known.media_type).ok_or(StoreError::Damaged(*digest))?,
            None => self.put_document(digest, manifest, held, now)?,
        };
        let mut batch = sled::Batch::default();
        let own = std::iter::once((*digest, Some(size)));
        for (target, size) in own.chain(links) {
            if size.is_none() {
                self.add_link(repository, &target)?;
                continue;
            }
            batch.insert(Key::Link(repository, &target).to_bytes(), LinkFact { size }.encode());
        }
        self.database.facts()?.apply_batch(batch)?;
        Ok(media_type)
    }

    /// Keeps a document that was not held a moment ago: its bytes, then its fact, if no other came first. `unreadable`
    /// is what stood in the fact's place, if anything did.
    fn put_document(
        &self,
        digest: &Digest,
        manifest: &StoredManifest,
        unreadable: Option<sled::IVec>,
        now: Timestamp,
    ) -> Result<MediaType, StoreError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let Trees { documents, facts, .. } = self.database.trees()?;
        for (number, page) in manifest.body.chunks(documents.page_size()).enumerate() {
            documents.put(digest, number as u64, page)?;
        }
        let size = manifest.body.len() as u64;
        let media_type = manifest.media_type.as_str().to_owned();
        let fact = ManifestFact { media_type, size, stored_at: now }.encode();
        let key = Key::Manifest(digest).to_bytes();
        match facts.compare_and_swap(key, unreadable, Some(fact))? {
            Ok(()) => {
                self.counters.manifests.fetch_add(1, Ordering::Relaxed);
                self.counters.content.fetch_add(size, Ordering::Relaxed);
                Ok(manifest.media_type.clone())
            }
            Err(first) => {
                let known = first.current.as_deref().and_then(readable::<ManifestFact>);
                Ok(known
                    .and_then(|known| MediaType::new(&known.media_type))
                    .unwrap_or(manifest.media_type.clone()))
            }
        }
    }

    /// Removes a manifest. What points at it stays, and finds nothing.
    pub(super) fn remove_manifest(&self, digest: &Digest) -> Result<(), StoreError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let facts = self.database.facts()?;
        facts.remove(Key::Access(digest).to_bytes())?;
        facts.remove(Key::Verified(digest).to_bytes())?;
        let removed = facts.remove(Key::Manifest(digest).to_bytes())?;
        if let Some(fact) = removed.and_then(|bytes| readable::<ManifestFact>(&bytes)) {
            self.counters.manifests.fetch_sub(1, Ordering::Relaxed);
            self.counters.content.fetch_sub(fact.size, Ordering::Relaxed);
        }
        self.database.documents()?.remove(digest)
    }
}

/// Changes several facts in one atomic step. The change must be repeatable: sled runs it again on a conflict.
pub(super) fn transact<T>(
    facts: &sled::Tree,
    change: impl Fn(&TransactionalTree) -> Result<T, UnabortableTransactionError>,
) -> Result<T, StoreError> {
    let done = facts.transaction(|facts| Ok::<_, ConflictableTransactionError<()>>(change(facts)?));
    done.map_err(|error| match error {
        TransactionError::Storage(error) => error.into(),
        TransactionError::Abort(()) => StoreError::Fact("a change aborted itself".to_owned()),
    })
}

/// A fact that does not decode is as good as none: what it told costs a question to the upstream.
pub(super) fn readable<F: Fact>(bytes: &[u8]) -> Option<F> {
    F::decode(bytes).inspect_err(|error| tracing::error!(%error, "a fact is passed over")).ok()
}
