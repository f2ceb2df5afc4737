//! Writing side of a draft.

use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use tokio::sync::watch;

use crate::clock::Timestamp;
use crate::oci::{Digest, Hasher, Repository};
use crate::store::blobs::SpaceModel;
use crate::store::blobs::files::draft::FileDraft;
use crate::store::blobs::files::{DraftKey, FileBody};
use crate::store::draft::budget::VerifiedMemory;
use crate::store::draft::commit_queue::{CommitPermit, PendingCommit};
use crate::store::draft::progress::{DraftEnd, Progress};
use crate::store::draft::reader::Draft;
use crate::store::draft::window::Window;
use crate::store::engine::Engine;
use crate::store::error::StoreError;
use crate::store::index::fact::{Fact as _, LeftoverFact};
use crate::store::index::key::Key;

/// Largest number of written bytes that stay in memory, for readers close to the newest byte.
const WINDOW: u64 = 1 << 20;

/// Writer of a draft: hashes and writes received bytes. All methods block unless stated otherwise.
#[derive(Debug)]
pub struct DraftWriter {
    hasher: DraftHasher,
    file: DraftFile,
}

/// Half of a writer that hashes.
#[derive(Debug)]
pub struct DraftHasher {
    hasher: Hasher,
    /// Bytes of an interrupted fill that are not hashed yet, from the start.
    left: u64,
    body: Option<FileBody>,
}

/// Half of a writer that writes.
#[derive(Debug)]
pub struct DraftFile {
    store: Engine,
    draft: Arc<Draft>,
    growing: DraftBytes,
}

/// Destination of the bytes.
#[derive(Debug)]
enum DraftBytes {
    File(FileDraft),
    /// Readers and hash only, with the error that ended writing.
    Lost(Option<StoreError>),
}

/// Draft whose bytes match the digest, and which is not committed yet. Readers have all bytes. It may wait long for its
/// commit, so its bytes are in its file, or are few.
#[derive(Debug)]
pub struct VerifiedDraft {
    file: DraftFile,
    /// Memory of bytes that are not in a file.
    _memory: Option<VerifiedMemory>,
    /// Counted until it is dropped, so that a shutdown waits for the commit.
    _settler: PendingCommit,
}

impl Engine {
    /// Returns true if a commit copies the bytes of a draft.
    fn copies_on_commit(&self) -> bool {
        self.blobs.space_model() == SpaceModel::Shared
    }

    /// Opens a draft, and resumes what an interrupted fill left.
    pub(in crate::store) fn open_draft(&self, key: &DraftKey) -> Result<DraftWriter, StoreError> {
        let (digest, files) = (&key.digest, self.blobs.files());
        let growing = {
            let _names = self.blobs.lock_names();
            let leftover = Key::Leftover(digest).to_bytes();
            if self.database.facts()?.contains_key(&leftover)? {
                self.blobs.remove(digest)?;
                self.database.facts()?.remove(&leftover)?;
            }
            files.demote(digest)?;
            if let Some(upstream) = &key.upstream
                && files.has_unowned_draft(digest)
                && self.is_delivered(upstream, digest)?
            {
                files.adopt_draft(key)?;
            }
            files.draft(key)?
        };
        let left = growing.written();
        let body = growing.body();
        Ok(self.draft_writer(digest, left, Some(body), DraftBytes::File(growing)))
    }

    /// Creates a draft in memory. Does not block.
    pub(in crate::store) fn memory_draft(&self, digest: &Digest) -> DraftWriter {
        self.draft_writer(digest, 0, None, DraftBytes::Lost(None))
    }

    fn draft_writer(
        &self,
        digest: &Digest,
        left: u64,
        body: Option<FileBody>,
        growing: DraftBytes,
    ) -> DraftWriter {
        let draft = Draft {
            kept: AtomicBool::new(body.is_some()),
            body: body.clone(),
            digest: *digest,
            progress: watch::Sender::new(Progress { received: left, written: left, total: None, end: None }),
            left,
            window: Mutex::new(Window::new(self.memory_budget.share())),
            held: OnceLock::new(),
        };
        let hasher = DraftHasher { hasher: Hasher::new(digest.algorithm()), left, body };
        let file = DraftFile { store: self.clone(), draft: draft.into(), growing };
        DraftWriter { hasher, file }
    }

    /// Waits for a permit to commit a verified draft. If commits copy bytes, only a few run at the same time. A draft in
    /// memory is not copied, and would occupy its memory while it waits.
    pub(in crate::store) async fn commit_permit(&self, verified: &VerifiedDraft) -> CommitPermit {
        if self.copies_on_commit() && verified.is_stored() {
            self.commit_queue.commit_permit().await
        } else {
            CommitPermit::free()
        }
    }
}

impl DraftWriter {
    /// Returns the draft.
    pub fn draft(&self) -> &Arc<Draft> {
        &self.file.draft
    }

    /// Returns the bytes that are collected for the next write to the disk.
    pub fn unwritten(&self) -> u64 {
        self.file.unwritten()
    }

    /// Splits the writer, so that two threads can hash and write: both cost about the same.
    pub fn split(self) -> (DraftHasher, DraftFile) {
        (self.hasher, self.file)
    }

    /// Joins the halves of one writer, which have taken the same bytes.
    pub fn join(hasher: DraftHasher, file: DraftFile) -> Self {
        Self { hasher, file }
    }

    /// Hashes and writes the next received bytes.
    pub fn append(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.hasher.append(&bytes)?;
        self.file.append(bytes)
    }

    /// Writes collected bytes, so that the next fill can resume from them. A draft with all its bytes is about to be verified,
    /// may never need a file, and is not written.
    pub fn flush(&mut self) -> Result<(), StoreError> {
        let progress = self.draft().progress();
        if progress.total == Some(progress.received) { Ok(()) } else { self.file.write(FileDraft::complete) }
    }

    /// Verifies and commits the draft, for a caller without readers in between.
    pub fn finish(
        self,
        repository: &Repository,
        expected: Option<u64>,
        now: Timestamp,
    ) -> Result<DraftEnd, StoreError> {
        match self.verify(expected)? {
            Some(verified) => verified.commit(Some(repository), now).map(|_| DraftEnd::Verified),
            None => Ok(DraftEnd::Mismatch),
        }
    }

    /// Compares size and digest. If both match, readers get the last byte. Otherwise removes the bytes and returns `None`.
    pub fn verify(self, expected: Option<u64>) -> Result<Option<VerifiedDraft>, StoreError> {
        let Self { hasher, mut file } = self;
        let progress = file.draft.progress();
        let size = progress.received;
        let announced = expected.or(progress.total);
        if hasher.finish()? != file.draft.digest || announced.is_some_and(|announced| announced != size) {
            file.remove()?;
            return Ok(None);
        }
        let memory = file.settle()?;
        if let DraftBytes::File(growing) = &file.growing {
            // Some readers have read from the file.
            growing.is_ours()?;
        }
        let settler = file.store.commit_queue.begin();
        file.draft.progress.send_modify(|progress| {
            progress.total = Some(size);
            progress.end = Some(DraftEnd::Verified);
        });
        if let DraftBytes::File(growing) = &file.growing {
            growing.permit_parking();
            file.draft.park_unread();
        }
        Ok(Some(VerifiedDraft { file, _memory: memory, _settler: settler }))
    }

    /// Removes the bytes of the draft.
    pub fn discard(self) -> Result<(), StoreError> {
        self.file.remove()
    }
}

impl DraftHasher {
    /// Hashes the next received bytes.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.catch_up()?;
        self.hasher.update(bytes);
        Ok(())
    }

    fn finish(mut self) -> Result<Digest, StoreError> {
        self.catch_up()?;
        Ok(self.hasher.finish())
    }

    /// Hashes the bytes of an interrupted fill. They may be many GiB, so this happens here and not when the draft is opened,
    /// where a request waits.
    fn catch_up(&mut self) -> Result<(), StoreError> {
        match &self.body {
            Some(body) => body.hash(std::mem::take(&mut self.left), &mut self.hasher),
            None => Ok(()),
        }
    }
}

impl DraftFile {
    /// Writes the next received bytes. After an error of the disk the draft continues in memory.
    pub fn append(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let step = self.draft.step();
        self.write(|growing| {
            growing.append(bytes)?;
            if growing.waiting_bytes() >= step { growing.complete() } else { Ok(()) }
        })
    }

    /// Prepares a verified draft to wait for its commit. A small draft stays in memory, if there is memory for it. All bytes
    /// of another draft are in its file then: after an interruption no byte is downloaded again.
    fn settle(&mut self) -> Result<Option<VerifiedMemory>, StoreError> {
        let DraftBytes::File(growing) = &mut self.growing else { return Ok(None) };
        if !growing.has_file()
            && let Some(memory) = self.store.memory_budget.reserve(growing.length())
        {
            self.draft.window().replace_all(growing.compact());
            return Ok(Some(memory));
        }
        self.write(FileDraft::complete)?;
        if matches!(self.growing, DraftBytes::File(_)) {
            self.draft.window().release_all();
        }
        Ok(None)
    }

    /// Returns the bytes that are collected for the next write to the disk.
    pub fn unwritten(&self) -> u64 {
        match &self.growing {
            DraftBytes::File(growing) => growing.waiting_bytes() as u64,
            DraftBytes::Lost(_) => 0,
        }
    }

    /// Returns true if bytes are written to the disk.
    pub fn is_stored(&self) -> bool {
        matches!(self.growing, DraftBytes::File(_))
    }

    /// Stops writing, and removes the file: the draft continues in memory. Readers that are behind may read from the file
    /// until they have closed it, so `held` is kept as long as the draft exists.
    pub fn stop_storing(&mut self, held: impl Any + Send + Sync) -> Result<(), StoreError> {
        let DraftBytes::File(growing) = &self.growing else { return Ok(()) };
        // Removed first: a draft in memory may be followed by another fill of the digest, with a file of the same name.
        let removed = if growing.has_file() { growing.remove() } else { Ok(()) };
        // The first stop is the only one.
        drop(self.draft.held.set(Box::new(held)));
        self.draft.kept.store(false, Ordering::Release);
        self.growing = DraftBytes::Lost(None);
        removed
    }

    fn write(
        &mut self,
        write: impl FnOnce(&mut FileDraft) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let DraftBytes::File(growing) = &mut self.growing else { return Ok(()) };
        match write(growing) {
            Ok(()) => {
                let written = growing.written();
                self.is_written(written);
                Ok(())
            }
            Err(error) if error.is_disk_failure() => {
                self.draft.kept.store(false, Ordering::Release);
                self.growing = DraftBytes::Lost(Some(error));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn remove(&self) -> Result<(), StoreError> {
        match &self.growing {
            DraftBytes::File(growing) => growing.remove(),
            DraftBytes::Lost(_) => Ok(()),
        }
    }

    /// Updates the progress, and releases bytes that readers no longer need in memory.
    fn is_written(&self, written: u64) {
        // The progress is updated before the window: a reader that misses bytes in the window must be able to read them.
        self.draft.progress.send_if_modified(|progress| {
            progress.written = written;
            // Readers wait for received bytes, not for written bytes.
            false
        });
        let mut window = self.draft.window();
        let keep = window.limit(WINDOW);
        window.trim(written, keep);
    }
}

impl VerifiedDraft {
    /// Returns the bytes that are not written to the disk yet.
    pub fn unwritten(&self) -> u64 {
        self.file.unwritten()
    }

    /// Returns true if the bytes are on disk or are to be written.
    pub fn is_stored(&self) -> bool {
        self.file.is_stored()
    }

    /// Returns the number of bytes, if they are on disk or are to be written.
    pub fn kept(&self) -> Option<u64> {
        self.is_stored().then(|| self.file.draft.progress().received)
    }

    /// Makes content of the draft, and links `repository` to it. Call it with a [`CommitPermit`]. Blocks while the bytes are
    /// synchronised or copied; readers continue with the draft.
    ///
    /// Returns false if the draft was in memory only. Returns the error of the disk, if there was one, only here.
    pub fn commit(self, repository: Option<&Repository>, now: Timestamp) -> Result<bool, StoreError> {
        let Self { file: DraftFile { store, draft, growing }, _memory, _settler } = self;
        let mut growing = match growing {
            DraftBytes::File(growing) => growing,
            DraftBytes::Lost(error) => return error.map_or(Ok(false), Err),
        };
        growing.unpark()?;
        let digest = &draft.digest;
        let trees = store.database.trees()?;
        if let Some(repository) = repository {
            // Recorded first: content whose fact a crash loses is then resumed by its upstream.
            trees.facts.insert(Key::Delivered(digest, &repository.upstream).to_bytes(), &[][..])?;
        }
        if store.copies_on_commit() {
            // Marked first: after an interruption, pages without a fact must be removed. The draft stays.
            trees
                .facts
                .insert(Key::Leftover(digest).to_bytes(), LeftoverFact { must_remove: true }.encode())?;
        }
        store.blobs.commit(&mut growing, now, &trees)?;
        store.commit_blob(&trees.facts, repository, digest, growing.length(), now)?;
        if store.copies_on_commit() && growing.has_file() {
            // Removed when the copy is on disk.
            trees.flush()?;
            growing.remove()?;
        }
        Ok(true)
    }
}
