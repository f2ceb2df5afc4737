//! Content from elsewhere than an upstream: verified, kept, and only then given to a repository and a tag.
//!
//! A blob comes in as by a fill, but for nobody: clients may read along if they have a right to it of their own. What a
//! manifest links it to is decided later. What came in and is needed by no manifest in the end goes again.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::oci::manifest::ManifestError;
use crate::oci::{Digest, Hasher, Manifest, Repository, Tag};
use crate::store::{Draft, DraftWriter, StoreError, StoredManifest, TagFact};

use crate::cache::blob::fills::{FillPhase, fill_ended};
use crate::cache::eviction::{BlockedFills, ContentPin, needs};
use crate::cache::manifest::by_digest;
use crate::cache::memory::CheckedPointer;
use crate::cache::{Cache, CacheError, Pointer, Shared, TagKey};

/// How much of a blob is in memory at a time.
const STEP: usize = 256 << 10;

/// Why something does not come in.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The source gave up.
    #[error(transparent)]
    Source(#[from] io::Error),
    /// The bytes are not those of their digest.
    #[error("the bytes given for {0} are others")]
    Mismatch(Box<Digest>),
    /// There is more of it than the store may ever hold.
    #[error("there is more content than store.max_size ({}) lets the store hold", bytesize::ByteSize(*.0).display().iec())]
    TooMuch(u64),
    /// The document is not one that is kept.
    #[error("{digest}: {reason}")]
    Document {
        /// Which one.
        digest: Box<Digest>,
        /// Why.
        reason: ManifestError,
    },
    /// The store fails, and takes nothing.
    #[error("the store takes nothing now: its disk is full or fails; the log tells more")]
    NotKept,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Cache {
    /// Begins to take content in. Its methods block; to be called on a runtime's thread for what blocks.
    pub fn importer(&self) -> Result<Importer, ImportError> {
        if self.0.store_health.is_degraded() {
            self.0.retry_store();
            return Err(ImportError::NotKept);
        }
        Ok(Importer {
            cache: self.clone(),
            runtime: Handle::current(),
            came: HashMap::new(),
            kept: HashMap::new(),
            manifests: Vec::new(),
            needed: HashSet::new(),
            bytes: 0,
        })
    }
}

/// Content on its way in. What it has taken in stays at least as long as this does.
#[derive(Debug)]
pub struct Importer {
    cache: Cache,
    runtime: Handle,
    /// Blobs that were not held before.
    came: HashMap<Digest, ContentPin>,
    /// Blobs that were held before, and stay because of this.
    kept: HashMap<Digest, ContentPin>,
    /// What keeps the manifests that came in.
    manifests: Vec<ContentPin>,
    /// What the manifests that came in need.
    needed: HashSet<Digest>,
    bytes: u64,
}

impl Importer {
    /// Takes in a blob of `size` bytes, which `content` gives. What is held already is compared and not written again.
    pub fn blob(&mut self, digest: &Digest, size: u64, content: &mut impl Read) -> Result<(), ImportError> {
        let shared = Arc::clone(&self.cache.0);
        loop {
            if self.finds(digest)? {
                return compare(digest, size, content);
            }
            // As with all that no client waits for.
            self.runtime.block_on(shared.fills.wait_until(|| !shared.is_crowded(digest, Some(size))));
            match shared.fills.start_import(digest) {
                Ok(phase) => {
                    shared.metrics.fills_running.inc();
                    let coming = BlobImport {
                        shared: &shared,
                        digest,
                        phase,
                        draft: None,
                        ending: FillPhase::Starting,
                    };
                    // It may have come in between. While this place is taken nobody removes it either.
                    if let Some(entry) = shared.store.blob(digest)? {
                        shared.eviction.blob_added(digest, entry.size(), shared.clock.now_millis());
                        continue;
                    }
                    self.bytes = self.bytes.saturating_add(size);
                    let most = shared.eviction.limits().max_size;
                    if self.bytes > most {
                        return Err(ImportError::TooMuch(most));
                    }
                    let pin = coming.bring(&self.runtime, size, content)?;
                    self.came.insert(*digest, pin);
                    return Ok(());
                }
                Err(phase) => self.runtime.block_on(fill_ended(phase)),
            }
        }
    }

    /// Whether a blob is held, which then stays. One that shows to be damaged is not.
    fn finds(&mut self, digest: &Digest) -> Result<bool, ImportError> {
        if self.came.contains_key(digest) || self.kept.contains_key(digest) {
            return Ok(true);
        }
        let shared = &self.cache.0;
        let Some(entry) = shared.store.blob(digest)? else { return Ok(false) };
        match entry.open() {
            Err(error @ StoreError::Damaged(_)) => {
                self.runtime.block_on(self.cache.heal(&entry, &error));
                return Ok(false);
            }
            opened => drop(opened?),
        }
        let pin = shared.eviction.read(&entry, shared.clock.now_millis());
        let found = pin.is_some();
        self.kept.extend(pin.map(|pin| (*digest, pin)));
        Ok(found)
    }

    /// The length of a blob that is held, or came in.
    pub fn blob_size(&mut self, digest: &Digest) -> Result<Option<u64>, ImportError> {
        if !self.finds(digest)? {
            return Ok(None);
        }
        Ok(self.cache.0.store.blob(digest)?.map(|entry| entry.size()))
    }

    /// How many blobs came in that were not held before, and their bytes.
    pub fn came(&self) -> (u64, u64) {
        (self.came.len() as u64, self.bytes)
    }

    /// A manifest that is held, for whichever repository.
    pub fn document(&self, digest: &Digest) -> Result<Option<StoredManifest>, ImportError> {
        match self.cache.0.store.manifest(digest) {
            Err(StoreError::Damaged(_)) => Ok(None),
            found => Ok(found?),
        }
    }

    /// Takes a manifest or an index into a repository, which thereby gets a right to all that it contains. What that is
    /// should have come in before.
    pub fn manifest(
        &mut self,
        repository: &Repository,
        digest: &Digest,
        read: &Manifest,
        body: Bytes,
    ) -> Result<(), ImportError> {
        let shared = &self.cache.0;
        verify(digest, &body)?;
        if let Err(StoreError::Damaged(_)) = shared.store.manifest(digest) {
            shared.store.remove_manifest(digest)?;
            shared.eviction.removed(digest);
        }
        by_digest::put(shared, repository, *digest, read, body)?;
        self.manifests.extend(shared.eviction.hold(digest));
        self.needed.extend(needs(read));
        Ok(())
    }

    /// Points a tag at a manifest that came in, as if its upstream had just said so, and forgets what the tag stood for
    /// to clients that accept only some types.
    pub fn tag(&self, repository: &Repository, tag: &Tag, digest: &Digest) -> Result<(), ImportError> {
        let shared = &self.cache.0;
        let now = shared.clock.now_millis();
        let before = shared.store.tag(repository, tag, None)?;
        let moved_at = before.filter(|fact| fact.digest == *digest).map_or(now, |fact| fact.moved_at);
        let fact = TagFact { digest: *digest, checked_at: now, moved_at };
        shared.store.put_tag(repository, tag, None, &fact)?;
        for (types, _) in shared.store.variants(repository, tag)? {
            shared.store.remove_tag(repository, tag, Some(&types))?;
        }
        shared.memory.pointers.retain(|pointer, _| match pointer {
            Pointer::Tag(key) => key.repository != *repository || key.tag != *tag,
            Pointer::Referrers(..) => true,
        });
        let key = TagKey { repository: repository.clone(), tag: tag.clone(), variant: None };
        let at = Some(shared.clock.instant());
        shared.memory.pointers.insert(Pointer::Tag(key), CheckedPointer { fact, at });
        Ok(())
    }
}

impl Drop for Importer {
    /// What no manifest needs goes again, however this ended.
    fn drop(&mut self) {
        let shared = &self.cache.0;
        let loose: Vec<Digest> =
            self.came.drain().map(|(digest, _)| digest).filter(|it| !self.needed.contains(it)).collect();
        let mut blocked = BlockedFills::new(&shared.fills);
        let gone: HashSet<Digest> = loose
            .into_iter()
            .filter(|digest| blocked.block(digest) && shared.eviction.take(digest).is_some())
            .collect();
        if !gone.is_empty() {
            shared.memory.remove_content(|digest| gone.contains(digest));
        }
        for digest in &gone {
            if let Err(error) = shared.store.remove_blob(digest) {
                shared.report_store_error("a blob that came in for nothing could not be removed", &error);
                shared.eviction.invalidate_index();
            }
        }
    }
}

/// A blob on its way in.
struct BlobImport<'a> {
    shared: &'a Arc<Shared>,
    digest: &'a Digest,
    phase: watch::Sender<FillPhase>,
    draft: Option<Arc<Draft>>,
    ending: FillPhase,
}

impl Drop for BlobImport<'_> {
    /// Off the board first, so that who asks again begins anew, and only then are readers told.
    fn drop(&mut self) {
        self.shared.fills.remove(self.digest, &self.phase);
        self.shared.metrics.fills_running.dec();
        if let Some(draft) = &self.draft {
            draft.close();
        }
        if matches!(self.ending, FillPhase::Starting) {
            self.ending = FillPhase::Failed(CacheError::Interrupted);
        }
        self.phase.send_replace(self.ending.clone());
    }
}

impl BlobImport<'_> {
    fn bring(
        mut self,
        runtime: &Handle,
        size: u64,
        content: &mut impl Read,
    ) -> Result<ContentPin, ImportError> {
        let Shared { store, eviction, clock, .. } = &**self.shared;
        // What an interrupted fill left may be wrong, and here comes all of it.
        store.remove_draft(self.digest)?;
        let mut writer = store.open_draft(self.digest)?;
        let draft = Arc::clone(writer.draft());
        draft.announce(size);
        self.draft = Some(Arc::clone(&draft));
        self.phase.send_replace(FillPhase::Running(draft));
        eviction.look();
        if let Err(error) = fill(&mut writer, size, content) {
            writer.discard()?;
            return Err(error);
        }
        let Some(verified) = writer.verify(Some(size))? else {
            return Err(ImportError::Mismatch((*self.digest).into()));
        };
        let turn = runtime.block_on(self.shared.turn_of(&verified));
        let now = clock.now_millis();
        if !verified.commit(None, now)? {
            return Err(ImportError::NotKept);
        }
        drop(turn);
        let entry = store.blob(self.digest)?.ok_or(ImportError::NotKept)?;
        eviction.blob_added(self.digest, entry.size(), now);
        let pin = eviction.hold(self.digest).ok_or(ImportError::NotKept)?;
        self.ending = FillPhase::Stored(entry);
        Ok(pin)
    }
}

/// Moves all of `content` into a draft.
fn fill(writer: &mut DraftWriter, size: u64, content: &mut impl Read) -> Result<(), ImportError> {
    let draft = Arc::clone(writer.draft());
    let mut left = size;
    while left > 0 {
        let mut step = vec![0; STEP.min(usize::try_from(left).unwrap_or(STEP))];
        content.read_exact(&mut step)?;
        left -= step.len() as u64;
        let bytes = Bytes::from(step);
        draft.receive(bytes.clone());
        writer.append(bytes)?;
        if !draft.is_kept() {
            return Err(ImportError::NotKept);
        }
    }
    Ok(())
}

/// Reads what is held already, and holds it against its digest all the same: an archive that lies is refused.
fn compare(digest: &Digest, size: u64, content: &mut impl Read) -> Result<(), ImportError> {
    let mut hasher = Hasher::new(digest.algorithm());
    let (mut left, mut step) = (size, vec![0; STEP]);
    while left > 0 {
        let piece = &mut step[..STEP.min(usize::try_from(left).unwrap_or(STEP))];
        content.read_exact(piece)?;
        left -= piece.len() as u64;
        hasher.update(piece);
    }
    if hasher.finish() == *digest { Ok(()) } else { Err(ImportError::Mismatch((*digest).into())) }
}

/// Holds a document against its digest.
fn verify(digest: &Digest, body: &[u8]) -> Result<(), ImportError> {
    if Digest::of(digest.algorithm(), body) == *digest {
        Ok(())
    } else {
        Err(ImportError::Mismatch((*digest).into()))
    }
}
