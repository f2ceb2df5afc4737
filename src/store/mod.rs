//! The store: bytes by digest, facts by key, in sled; the bytes of blobs in sled too, or in files beside it.
//!
//! Three trees share one log. `facts` says what is known (tags, links, manifests, blobs, referrers), `documents` holds
//! the bytes of manifests, `pages` the bytes of blobs, unless they are files. Drafts are files in either case: they grow
//! as fast as the network brings them, which sled does not. Bytes land before the
//! fact that points at them: sled recovers a prefix of its log, and a file is on the disk first. So a crash can lose
//! the newest facts but cannot leave a fact without its bytes; a page or a file that is missing all the same, or was
//! changed by somebody else, reads as [`StoreError::Damaged`], never as content.
//!
//! Every method here may touch the disk and must run off the async threads, except where its documentation says
//! otherwise.

mod blobs;
mod draft;
mod error;
mod index;
mod lifecycle;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;
use sled::transaction::{
    ConflictableTransactionError, TransactionError, TransactionalTree, UnabortableTransactionError,
};

use crate::oci::{Digest, MediaType, Name, Repository, Tag, UpstreamName};

pub use blobs::entry::{BlobEntry, OpenBlob};
pub use draft::commit_queue::CommitPermit;
pub use draft::{Draft, DraftEnd, DraftFile, DraftHasher, DraftWriter, Follower, Progress, VerifiedDraft};
pub use error::StoreError;
pub use index::fact::{LinkFact, TagFact};
pub use index::inventory::{ContentEntry, DraftUsage};
pub use lifecycle::convert::{Conversion, Step, StepEnd};
pub use lifecycle::gc::Collected;
pub use lifecycle::header::Geometry;

use blobs::Blobs;
use draft::commit_queue::CommitQueue;
use index::database::{Database, Trees};
use index::fact::{Fact, ManifestFact};
use index::key::Key;
use lifecycle::open::Opening;
use lifecycle::quarantine;

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
struct Counters {
    content: AtomicU64,
    manifests: AtomicU64,
    blobs: AtomicU64,
}

/// How long a flush waits for verified drafts to become content.
const SETTLED_WITHIN: Duration = Duration::from_secs(5);

/// A handle to the store; clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    database: Database,
    blobs: Blobs,
    commit_queue: CommitQueue,
    counters: Arc<Counters>,
    opening: Arc<Opening>,
    /// Held while a document is kept or removed: neither may come between the other's pages and fact.
    changing: Arc<Mutex<()>>,
}

impl Store {
    /// What is held now. Touches no disk.
    pub fn counts(&self) -> Counts {
        Counts {
            content: self.counters.content.load(Ordering::Relaxed),
            manifests: self.counters.manifests.load(Ordering::Relaxed),
            blobs: self.counters.blobs.load(Ordering::Relaxed),
        }
    }

    /// Bytes the store takes on disk.
    pub fn size_on_disk(&self) -> Result<u64, StoreError> {
        Ok(self.database.db()?.size_on_disk()? + self.blobs.size_on_disk()?)
    }

    /// How many stores that did not open lie aside in the folder.
    pub fn quarantined(&self) -> Result<usize, StoreError> {
        Ok(quarantine::in_folder(self.opening.path())?.len())
    }

    /// Of the bytes on disk, those of files of drafts.
    pub fn size_of_drafts(&self) -> Result<u64, StoreError> {
        self.blobs.size_of_drafts()
    }

    /// Bytes that are free on the store's disk for whoever larder runs as.
    pub fn free_on_disk(&self) -> Result<u64, StoreError> {
        let path = self.opening.path();
        let failed = |error: Errno| StoreError::Folder { path: path.to_owned(), source: error.into() };
        let found = rustix::fs::statvfs(path).map_err(failed)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    /// Waits until everything written so far is on disk. Blobs that have been verified are waited for too, as long as a
    /// stop may take: what is left of them are drafts with all their bytes, which the next fill makes content.
    pub fn flush(&self) -> Result<(), StoreError> {
        let left = self.commit_queue.wait(SETTLED_WITHIN);
        if left > 0 {
            tracing::warn!(left, "blobs are kept as drafts until they are asked for again");
        }
        self.database.db()?.flush()?;
        Ok(())
    }

    fn fact<F: Fact>(&self, key: &Key<'_>) -> Result<Option<F>, StoreError> {
        let Some(bytes) = self.database.facts()?.get(key.to_bytes())? else { return Ok(None) };
        Ok(readable(&bytes))
    }

    // ---- tags ----

    /// What is known of a tag, as given to clients for whom the upstream was asked for the types in `variant`.
    pub fn tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        variant: Option<&str>,
    ) -> Result<Option<TagFact>, StoreError> {
        self.fact(&tag_key(repository, tag, variant))
    }

    /// Sets a tag; the manifest it points at must be there already.
    pub fn put_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        variant: Option<&str>,
        fact: &TagFact,
    ) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        batch.insert(tag_key(repository, tag, variant).to_bytes(), fact.encode());
        if variant.is_none() {
            batch.insert(Key::Repository(&repository.upstream, repository.name.as_str()).to_bytes(), &[][..]);
        }
        self.database.facts()?.apply_batch(batch)?;
        Ok(())
    }

    /// Forgets a tag; its content stays.
    pub fn remove_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        variant: Option<&str>,
    ) -> Result<(), StoreError> {
        self.database.facts()?.remove(tag_key(repository, tag, variant).to_bytes())?;
        if variant.is_none() && self.tags(repository, None, 1)?.is_empty() {
            self.database
                .facts()?
                .remove(Key::Repository(&repository.upstream, repository.name.as_str()).to_bytes())?;
        }
        Ok(())
    }

    /// Up to `limit` tags of a repository that sort after `last`, in byte order.
    pub fn tags(
        &self,
        repository: &Repository,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, StoreError> {
        let prefix = Key::Tag(repository, "").to_bytes();
        let from = Key::Tag(repository, last.unwrap_or_default()).to_bytes();
        self.names(&prefix, &from, last.is_some(), limit)
    }

    /// Up to `limit` names of an upstream's repositories that hold a tag and sort after `last`, in byte order.
    pub fn repositories(
        &self,
        upstream: &UpstreamName,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Name>, StoreError> {
        let prefix = Key::Repository(upstream, "").to_bytes();
        let from = Key::Repository(upstream, last.unwrap_or_default()).to_bytes();
        let names = self.names(&prefix, &from, last.is_some(), limit)?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    fn names(
        &self,
        prefix: &[u8],
        from: &[u8],
        after: bool,
        limit: usize,
    ) -> Result<Vec<String>, StoreError> {
        let mut found = Vec::new();
        for item in self.database.facts()?.range(from..) {
            let (key, _) = item?;
            let Some(rest) = key.strip_prefix(prefix) else { break };
            if after && *key == *from {
                continue;
            }
            if found.len() == limit {
                break;
            }
            found.push(String::from_utf8_lossy(rest).into_owned());
        }
        Ok(found)
    }

    // ---- links ----

    /// The link from a repository to a digest, if there is one.
    pub fn linked(&self, repository: &Repository, digest: &Digest) -> Result<Option<LinkFact>, StoreError> {
        self.fact(&Key::Link(repository, digest))
    }

    /// Links a repository to a digest that its upstream confirmed or delivered. A link that is there stays as it is:
    /// it may know the size.
    pub fn link(&self, repository: &Repository, digest: &Digest) -> Result<(), StoreError> {
        let key = Key::Link(repository, digest).to_bytes();
        let link = LinkFact { size: None }.encode();
        // The outcome of the comparison does not matter: either way there is a link now.
        let _ = self.database.facts()?.compare_and_swap(key, None::<&[u8]>, Some(link))?;
        Ok(())
    }

    // ---- walks ----

    /// Notes that something below an index is still to be fetched.
    pub fn enqueue_prefetch(&self, repository: &Repository, index: &Digest) -> Result<(), StoreError> {
        self.database.facts()?.insert(Key::Prefetch(repository, index).to_bytes(), &[][..])?;
        Ok(())
    }

    /// Notes that nothing below an index is to be fetched any more.
    pub fn dequeue_prefetch(&self, repository: &Repository, index: &Digest) -> Result<(), StoreError> {
        self.database.facts()?.remove(Key::Prefetch(repository, index).to_bytes())?;
        Ok(())
    }

    /// All indexes below which something is still to be fetched.
    pub fn prefetch_queue(&self) -> Result<Vec<(Repository, Digest)>, StoreError> {
        let mut found = Vec::new();
        for item in self.database.facts()?.scan_prefix(Key::prefetches()) {
            found.extend(Key::read_prefetch(&item?.0));
        }
        Ok(found)
    }

    // ---- manifests ----

    /// A manifest by digest.
    pub fn manifest(&self, digest: &Digest) -> Result<Option<StoredManifest>, StoreError> {
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
    pub fn put_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
        manifest: &StoredManifest,
        links: impl Iterator<Item = (Digest, Option<u64>)>,
        now: u64,
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
                self.link(repository, &target)?;
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
        now: u64,
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
    pub fn remove_manifest(&self, digest: &Digest) -> Result<(), StoreError> {
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
fn transact<T>(
    facts: &sled::Tree,
    change: impl Fn(&TransactionalTree) -> Result<T, UnabortableTransactionError>,
) -> Result<T, StoreError> {
    let done = facts.transaction(|facts| Ok::<_, ConflictableTransactionError<()>>(change(facts)?));
    done.map_err(|error| match error {
        TransactionError::Storage(error) => error.into(),
        TransactionError::Abort(()) => StoreError::Fact("a change aborted itself".to_owned()),
    })
}

fn tag_key<'a>(repository: &'a Repository, tag: &'a Tag, variant: Option<&'a str>) -> Key<'a> {
    match variant {
        Some(types) => Key::Variant(repository, tag.as_str(), types),
        None => Key::Tag(repository, tag.as_str()),
    }
}

/// A fact that does not decode is as good as none: what it told costs a question to the upstream.
fn readable<F: Fact>(bytes: &[u8]) -> Option<F> {
    F::decode(bytes).inspect_err(|error| tracing::error!(%error, "a fact is passed over")).ok()
}
