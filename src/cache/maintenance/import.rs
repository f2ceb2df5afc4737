//! Import of content from an archive: verified, stored, and then linked to a repository and a tag.
//!
//! A blob is stored as by a fill, and linked to no repository. A client may read it meanwhile if its repository has
//! access. A manifest that is imported later links its repository to the blobs that it contains. Imported blobs that no
//! imported manifest needs are deleted at the end.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::cache::error::CacheError;
use crate::cache::eviction::content::dependencies;
use crate::cache::eviction::delete::{BlockedFills, DeletionBatch};
use crate::cache::eviction::draft_space::DraftShare;
use crate::cache::eviction::usage::ContentPin;
use crate::cache::fills::{FillPhase, fill_ended};
use crate::cache::manifest::put_manifest;
use crate::cache::memory::CheckedPointer;
use crate::cache::storage::Storage;
use crate::oci::manifest::ManifestError;
use crate::oci::{Digest, Hasher, Manifest, Repository, Tag, UpstreamName};
use crate::store::Pointer;
use crate::store::{
    BlobEntry, Change, Draft, DraftKey, DraftWriter, Removal, StoreError, StoreSession, StoredManifest,
    TagFact,
};

/// Bytes of a blob that are in memory at a time.
const STEP: usize = 256 << 10;

/// Reason for which content is not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The archive cannot be read.
    #[error(transparent)]
    Source(#[from] io::Error),
    /// The bytes do not match their digest.
    #[error("the bytes in the archive do not match {0}")]
    Mismatch(Box<Digest>),
    /// The archive has more content than the store may hold.
    #[error("the archive has more content than store.max_size ({}) permits", bytesize::ByteSize(*.0).display().iec())]
    TooMuch(u64),
    /// The manifest is refused.
    #[error("{digest}: {reason}")]
    Document {
        /// Digest of the manifest.
        digest: Box<Digest>,
        /// Reason of the refusal.
        reason: ManifestError,
    },
    /// The store has no room for a blob.
    #[error(
        "the store has no room for a blob of the archive; raise store.max_size or free space on the disk"
    )]
    NoRoom,
    /// The store is in degraded mode.
    #[error("the store takes no content now: its disk is full or fails; see the log for details")]
    NotKept,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Import of one archive. Its content is pinned while this exists. All methods block, and must be called on a thread of
/// the runtime for blocking work.
#[derive(Debug)]
pub struct Importer {
    pub(super) storage: Arc<Storage>,
    pub(super) runtime: Handle,
    /// Blobs that the import has added.
    added: HashMap<Digest, ContentPin>,
    /// Blobs of the archive that were cached before.
    present: HashMap<Digest, ContentPin>,
    manifests: Vec<ContentPin>,
    /// Blobs whose bytes are in the archive.
    received: HashSet<Digest>,
    /// Digests that the imported manifests need.
    needed: HashSet<Digest>,
    added_bytes: u64,
}

impl Importer {
    /// Starts an import, unless the store is in degraded mode.
    pub(in crate::cache) fn new(storage: &Arc<Storage>) -> Result<Self, ImportError> {
        if storage.store_health.is_degraded() {
            storage.retry_store();
            return Err(ImportError::NotKept);
        }
        Ok(Self {
            storage: Arc::clone(storage),
            runtime: Handle::current(),
            added: HashMap::new(),
            present: HashMap::new(),
            manifests: Vec::new(),
            received: HashSet::new(),
            needed: HashSet::new(),
            added_bytes: 0,
        })
    }

    /// Imports a blob of `size` bytes. A cached blob is only compared with `content`, and not written again.
    pub fn blob(&mut self, digest: &Digest, size: u64, content: &mut impl Read) -> Result<(), ImportError> {
        let storage = Arc::clone(&self.storage);
        loop {
            if self.is_present(digest)? {
                compare(digest, size, content)?;
                self.received.insert(*digest);
                return Ok(());
            }
            // No client waits for an import, so it waits until the disk has caught up.
            self.runtime.block_on(storage.capacity.wait_to_start(None));
            match storage.fills.start_import(digest) {
                Ok(phase) => {
                    storage.metrics.fills_running.inc();
                    let import = BlobImport {
                        storage: &storage,
                        digest,
                        phase,
                        draft: None,
                        end: FillPhase::Starting,
                    };
                    // Another fill may have stored the blob since the look-up. No deletion can start meanwhile.
                    if let Some(entry) = self.entry(digest)? {
                        storage.content.add_blob(digest, entry.size(), storage.clock.now());
                        continue;
                    }
                    self.added_bytes = self.added_bytes.saturating_add(size);
                    let max_size = storage.capacity.limits().max_size;
                    if self.added_bytes > max_size {
                        return Err(ImportError::TooMuch(max_size));
                    }
                    let pin = import.run(&self.runtime, size, content)?;
                    self.added.insert(*digest, pin);
                    self.received.insert(*digest);
                    return Ok(());
                }
                Err(phase) => self.runtime.block_on(fill_ended(phase)),
            }
        }
    }

    fn entry(&self, digest: &Digest) -> Result<Option<BlobEntry>, ImportError> {
        let digest = *digest;
        Ok(self.runtime.block_on(self.storage.store.run(move |store| store.blob(&digest)))?)
    }

    /// Returns true if a blob is cached, and pins it. A damaged blob is deleted and counts as missing.
    fn is_present(&mut self, digest: &Digest) -> Result<bool, ImportError> {
        if self.added.contains_key(digest) || self.present.contains_key(digest) {
            return Ok(true);
        }
        let storage = &self.storage;
        let Some(entry) = self.entry(digest)? else { return Ok(false) };
        match entry.open() {
            Err(error @ StoreError::Damaged(_)) => {
                self.runtime.block_on(storage.delete_damaged_blob(&entry, &error));
                return Ok(false);
            }
            opened => drop(opened?),
        }
        let pin = storage.content.pin_for_client(&entry, storage.clock.now());
        let is_present = pin.is_some();
        self.present.extend(pin.map(|pin| (*digest, pin)));
        Ok(is_present)
    }

    /// Returns the size of a blob that was imported, or that is cached and was delivered by an upstream.
    pub fn blob_size(
        &mut self,
        upstream: &UpstreamName,
        digest: &Digest,
    ) -> Result<Option<u64>, ImportError> {
        let is_known = self.received.contains(digest) || self.is_delivered(upstream, digest)?;
        if !is_known || !self.is_present(digest)? {
            return Ok(None);
        }
        Ok(self.entry(digest)?.map(|entry| entry.size()))
    }

    /// Returns the number and the bytes of the blobs that the import has added.
    pub fn added(&self) -> (u64, u64) {
        (self.added.len() as u64, self.added_bytes)
    }

    fn is_delivered(&self, upstream: &UpstreamName, digest: &Digest) -> Result<bool, ImportError> {
        let (upstream, digest) = (upstream.clone(), *digest);
        let work = move |store: &StoreSession| store.is_delivered(&upstream, &digest);
        Ok(self.runtime.block_on(self.storage.store.run(work))?)
    }

    /// Returns a cached manifest of any repository of an upstream.
    pub fn stored_manifest(
        &self,
        upstream: &UpstreamName,
        digest: &Digest,
    ) -> Result<Option<StoredManifest>, ImportError> {
        if !self.is_delivered(upstream, digest)? {
            return Ok(None);
        }
        let digest = *digest;
        match self.runtime.block_on(self.storage.store.run(move |store| store.manifest(&digest))) {
            Err(StoreError::Damaged(_)) => Ok(None),
            found => Ok(found?),
        }
    }

    /// Imports a manifest or an index into a repository, and links the repository to its content. The content must be
    /// imported before.
    pub fn manifest(
        &mut self,
        repository: &Repository,
        digest: &Digest,
        manifest: &Manifest,
        body: Bytes,
    ) -> Result<(), ImportError> {
        let storage = &self.storage;
        verify(digest, &body)?;
        let (owned, repository, digest) = (Arc::clone(storage), repository.clone(), *digest);
        let parsed = manifest.clone();
        // The archive has delivered these bytes in the place of the upstream.
        let contained = parsed.children.iter().chain(&parsed.blobs).map(|target| target.digest);
        let delivered: Vec<Change> = contained
            .filter(|digest| self.received.contains(digest))
            .map(|digest| Change::AddDelivered(repository.upstream.clone(), digest))
            .collect();
        self.runtime.block_on(storage.store.run(move |store| {
            if let Err(StoreError::Damaged(_)) = store.manifest(&digest) {
                owned.deleter(store).delete_damaged_manifest(&digest)?;
            }
            put_manifest(&owned, store, &repository, digest, &parsed, body)?;
            store.apply(&delivered)
        }))?;
        self.manifests.extend(storage.content.pin(&digest));
        self.needed.extend(dependencies(manifest));
        Ok(())
    }

    /// Points a tag at an imported manifest, as if the upstream had just confirmed it, and deletes the variants of the tag.
    pub fn tag(&self, repository: &Repository, tag: &Tag, digest: &Digest) -> Result<(), ImportError> {
        let storage = &self.storage;
        let (owned, digest, now) = (Arc::clone(storage), *digest, storage.clock.now());
        let (repository, tag, pointer) = (repository.clone(), tag.clone(), Pointer::tag(repository, tag));
        let own = pointer.clone();
        let fact = self.runtime.block_on(storage.store.run(move |store| {
            let before = store.pointer(&own)?.filter(|fact| fact.digest == digest);
            let moved_at = before.map_or(now, |fact| fact.moved_at);
            let fact = TagFact { digest, checked_at: now, moved_at };
            store.apply(&[Change::SetPointer(own, fact)])?;
            owned.deleter(store).delete_variants(&repository, &tag)?;
            Ok(fact)
        }))?;
        let at = Some(storage.clock.instant());
        storage.memory.insert_pointer(&pointer, CheckedPointer { fact, at });
        Ok(())
    }
}

impl Drop for Importer {
    /// Deletes added blobs that no imported manifest needs, also after an error.
    fn drop(&mut self) {
        let storage = &self.storage;
        let added: Vec<Digest> = self.added.drain().map(|(digest, _)| digest).collect();
        let (owned, needed) = (Arc::clone(storage), std::mem::take(&mut self.needed));
        let deleted = self.runtime.block_on(storage.store.run(move |store| {
            let mut blocked = BlockedFills::new(&owned.fills);
            let mut batch = DeletionBatch::default();
            for digest in added.iter().filter(|digest| !needed.contains(digest)) {
                if blocked.block(digest)
                    && let Some(victim) = owned.content.take(digest)
                {
                    batch.push(&victim);
                }
            }
            if batch.is_empty() {
                return Ok(());
            }
            owned.deleter(store).delete(&batch, None, &mut blocked, || {})
        }));
        if let Err(error) = deleted {
            storage.report_store_error("cannot delete imported blobs that nothing needs", &error);
            storage.content.set_incomplete();
            storage.capacity.wake_evictor();
        }
    }
}

/// Import of one blob, which clients may read meanwhile like a fill.
struct BlobImport<'a> {
    storage: &'a Arc<Storage>,
    digest: &'a Digest,
    phase: watch::Sender<FillPhase>,
    draft: Option<Arc<Draft>>,
    /// Phase that readers get at the end.
    end: FillPhase,
}

impl Drop for BlobImport<'_> {
    /// Ends the import for its readers. It is removed from the list of fills first, so that a new request starts a new fill.
    fn drop(&mut self) {
        self.storage.fills.remove_import(self.digest, &self.phase);
        self.storage.metrics.fills_running.dec();
        if let Some(draft) = &self.draft {
            draft.close();
        }
        if matches!(self.end, FillPhase::Starting) {
            self.end = FillPhase::Failed(CacheError::Interrupted);
        }
        self.phase.send_replace(self.end.clone());
    }
}

impl BlobImport<'_> {
    /// Stores the blob. Returns a pin on it.
    fn run(
        mut self,
        runtime: &Handle,
        size: u64,
        content: &mut impl Read,
    ) -> Result<ContentPin, ImportError> {
        let Storage { store, content: tracker, capacity, clock, .. } = &**self.storage;
        let digest = *self.digest;
        // The archive has the whole blob, and the draft of an interrupted import may be wrong.
        let mut writer = runtime.block_on(store.run(move |store| {
            let key = DraftKey::unowned(&digest);
            store.remove(Removal::Draft(&key))?;
            store.open_draft(&key)
        }))?;
        let draft = Arc::clone(writer.draft());
        let share = capacity.drafts().share(None, 0);
        draft.announce(size);
        self.draft = Some(Arc::clone(&draft));
        self.phase.send_replace(FillPhase::Running(draft));
        let admit = |bytes| runtime.block_on(capacity.admit(&share, bytes));
        if let Err(error) = copy(&mut writer, size, content, &share, admit) {
            writer.discard()?;
            share.set_unlinked();
            return Err(error);
        }
        share.set_verified();
        let Some(verified) = writer.verify(Some(size))? else {
            return Err(ImportError::Mismatch((*self.digest).into()));
        };
        let permit = runtime.block_on(self.storage.commit_permit(&verified));
        let now = clock.now();
        if !verified.commit(None, now)? {
            return Err(ImportError::NotKept);
        }
        drop(permit);
        share.commit();
        let entry = runtime.block_on(store.run(move |store| store.blob(&digest)))?;
        let entry = entry.ok_or(ImportError::NotKept)?;
        tracker.add_blob(self.digest, entry.size(), now);
        capacity.wake_evictor();
        let pin = tracker.pin(self.digest).ok_or(ImportError::NotKept)?;
        self.end = FillPhase::Stored(entry);
        Ok(pin)
    }
}

/// Copies `size` bytes of `content` into a draft.
/// `admit` waits for room for a number of bytes in the share.
fn copy(
    writer: &mut DraftWriter,
    size: u64,
    content: &mut impl Read,
    share: &DraftShare,
    admit: impl Fn(u64) -> bool,
) -> Result<(), ImportError> {
    let draft = Arc::clone(writer.draft());
    let mut remaining = size;
    while remaining > 0 {
        let mut step = vec![0; STEP.min(usize::try_from(remaining).unwrap_or(STEP))];
        content.read_exact(&mut step)?;
        remaining -= step.len() as u64;
        let bytes = Bytes::from(step);
        if !admit(bytes.len() as u64) {
            return Err(ImportError::NoRoom);
        }
        draft.receive(bytes.clone());
        writer.append(bytes)?;
        share.set_unwritten(writer.unwritten());
        if !draft.is_kept() {
            return Err(ImportError::NotKept);
        }
    }
    Ok(())
}

/// Compares content in the archive with its digest: an archive with wrong bytes is refused even if the blob is cached.
fn compare(digest: &Digest, size: u64, content: &mut impl Read) -> Result<(), ImportError> {
    let mut hasher = Hasher::new(digest.algorithm());
    let (mut remaining, mut buffer) = (size, vec![0; STEP]);
    while remaining > 0 {
        let step = &mut buffer[..STEP.min(usize::try_from(remaining).unwrap_or(STEP))];
        content.read_exact(step)?;
        remaining -= step.len() as u64;
        hasher.update(step);
    }
    if hasher.finish() == *digest { Ok(()) } else { Err(ImportError::Mismatch((*digest).into())) }
}

/// Compares a manifest with its digest.
fn verify(digest: &Digest, body: &[u8]) -> Result<(), ImportError> {
    if Digest::of(digest.algorithm(), body) == *digest {
        Ok(())
    } else {
        Err(ImportError::Mismatch((*digest).into()))
    }
}
