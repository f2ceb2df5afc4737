//! A draft: the growing, unverified bytes of one fill, and the readers that tail it.
//!
//! The newest bytes are shared from memory as they came from the network; older ones are read back from where they
//! were written. A draft shows all but its last byte until its size and digest have matched.
//!
//! A draft that the disk does not take goes on in memory alone: hashed, shown to those who follow it, at the pace of the
//! slowest of them, and forgotten.

pub(in crate::store) mod commit_queue;
pub(in crate::store) mod window;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use crate::clock::Timestamp;
use crate::oci::{Digest, Hasher, Repository};

use crate::store::blobs::BlobBody;
use crate::store::blobs::files::{FileBody, FileDraft};
use crate::store::draft::commit_queue::{CommitPermit, PendingCommit};
use crate::store::draft::window::Window;
use crate::store::engine::Engine;
use crate::store::error::StoreError;
use crate::store::index::fact::{DraftFact, Fact as _};
use crate::store::index::key::Key;

/// How far a draft has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes received.
    pub received: u64,
    /// Bytes that are written, and can be read back.
    pub written: u64,
    /// The body's length, once known.
    pub total: Option<u64>,
    /// Set when nothing more will come.
    pub end: Option<DraftEnd>,
}

impl Progress {
    /// Bytes that may be shown: the last one only after verification.
    pub fn readable(&self) -> u64 {
        if self.end == Some(DraftEnd::Verified) {
            return self.received;
        }
        let withheld = self.total.map_or(self.received, |total| self.received.min(total));
        withheld.saturating_sub(u64::from(self.total.is_none_or(|total| withheld == total)))
    }
}

/// How a draft ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DraftEnd {
    /// Size and digest matched: it is content, or on its way to becoming content.
    Verified,
    /// The bytes were not what the digest, or the announced size, promised; they are gone.
    Mismatch,
    /// The fill gave up.
    Abandoned,
}

/// The shared side of a draft.
#[derive(Debug)]
pub struct Draft {
    digest: Digest,
    /// `None` if nothing of it was ever to be written.
    body: Option<BlobBody>,
    progress: watch::Sender<Progress>,
    /// Bytes that an earlier draft left.
    left: u64,
    window: Mutex<Window>,
    /// Whether what comes is written. Once it is not, the window is all there is of it.
    kept: AtomicBool,
}

impl Draft {
    /// A view of the progress that can be awaited.
    pub fn watch(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// The progress now.
    pub fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// Bytes that were there when it was opened.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// How many read it along.
    pub fn followers(&self) -> usize {
        self.window().followers()
    }

    /// Sets the length that the upstream announced. Needs no blocking thread.
    pub fn announce(&self, total: u64) {
        self.progress.send_modify(|progress| progress.total = Some(total));
    }

    /// Takes bytes that came in, and shows them to readers. Needs no blocking thread.
    pub fn receive(&self, bytes: Bytes) {
        let length = bytes.len() as u64;
        let received = self.progress.borrow().received;
        self.window().push(received, bytes);
        self.progress.send_modify(|progress| progress.received += length);
    }

    /// Tells readers that nothing more will come, unless the draft was verified. The writer does not do this
    /// itself: whoever owns the fill first sees to it that no new reader comes. Needs no blocking thread.
    pub fn close(&self) {
        self.progress.send_if_modified(|progress| {
            let open = progress.end.is_none();
            progress.end.get_or_insert(DraftEnd::Abandoned);
            open
        });
    }

    /// What the window has of `range`, from its start: at once, from memory. `None` if it has left the window.
    pub fn recent(&self, range: Range<u64>) -> Option<Vec<Bytes>> {
        self.window().get(range)
    }

    /// Reads back the start of `range`, up to about `step` bytes. The range must be written.
    pub fn read(&self, range: Range<u64>, step: u64) -> Result<Vec<Bytes>, StoreError> {
        match &self.body {
            Some(body) => body.read(range, step),
            None => Err(StoreError::Damaged(self.digest)),
        }
    }

    /// As `read`, but only what the system has in memory. Needs no blocking thread.
    pub fn read_now(&self, range: Range<u64>) -> Option<Bytes> {
        self.body.as_ref()?.read_now(range)
    }

    /// Whether what comes is written.
    pub fn is_kept(&self) -> bool {
        self.kept.load(Ordering::Acquire)
    }

    /// Follows the draft from `at` on; `None` if what is there is neither in memory nor written. Needs no blocking thread.
    pub fn follow(self: &Arc<Self>, at: u64) -> Option<Follower> {
        let mut window = self.window();
        let progress = self.progress();
        let id = (self.is_kept() || window.reaches(at, &progress)).then(|| window.follow(at))?;
        drop(window);
        Some(Follower { draft: Arc::clone(self), id })
    }

    /// Waits until there is room for more of a draft that is not written: until those who follow it have read so far that
    /// no more than a few MiB are held for them. One who stands still for as long as `patience` is not waited for any
    /// longer and has lost what comes next. `leaving` is called before the first bytes go that nobody will get any more;
    /// from then on nobody can begin to follow. Returns whether anybody is left to read.
    pub async fn make_room(&self, patience: Duration, mut leaving: impl FnMut()) -> bool {
        loop {
            let moved = {
                let window = self.window();
                let excess = window.held().saturating_sub(UNKEPT);
                if excess == 0 {
                    return true;
                }
                if window.is_followed() { Some(Arc::clone(&window.moved)) } else { None }
            };
            let Some(moved) = moved else { return false };
            leaving();
            let notified = moved.notified();
            let written = self.progress().written;
            if self.window().pass(written) {
                continue;
            }
            if tokio::time::timeout(patience, notified).await.is_err() {
                self.window().lose_the_last(written);
            }
        }
    }

    /// Whether what comes at `at` is neither in memory nor written. Needs no blocking thread.
    pub fn has_lost(&self, at: u64) -> bool {
        let window = self.window();
        !self.is_kept() && !window.reaches(at, &self.progress())
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        // Nothing under this lock can panic halfway through a change.
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who reads a draft.
#[derive(Debug)]
pub struct Follower {
    draft: Arc<Draft>,
    id: u64,
}

impl Follower {
    /// What is followed.
    pub fn draft(&self) -> &Arc<Draft> {
        &self.draft
    }

    /// Notes that everything before `at` has been taken. Needs no blocking thread.
    pub fn moved(&self, at: u64) {
        self.draft.window().moved_to(self.id, at);
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.draft.window().leave(self.id);
    }
}

/// How much is held in memory of a draft that is not written.
const UNKEPT: u64 = 4 << 20;

/// How much of the newest a draft keeps in memory after it was written, for readers close to the frontier.
const WINDOW: u64 = 1 << 20;

/// The writing side of a draft: hashes and writes what came in.
#[derive(Debug)]
pub struct DraftWriter {
    hasher: DraftHasher,
    file: DraftFile,
}

/// The half that hashes. Lives on blocking threads.
#[derive(Debug)]
pub struct DraftHasher {
    hasher: Hasher,
    /// What an interrupted fill left and is not hashed yet, in bytes from the start.
    left: u64,
    body: Option<FileBody>,
}

/// The half that writes. Lives on blocking threads.
#[derive(Debug)]
pub struct DraftFile {
    store: Engine,
    draft: Arc<Draft>,
    growing: Growing,
}

/// Where a draft's bytes go.
#[derive(Debug)]
enum Growing {
    File(FileDraft),
    /// Nowhere any more: its readers and its hash get them, and nobody else.
    Lost(Option<StoreError>),
}

/// A draft whose bytes are those of its digest, and which is not content yet. Readers have all of it.
#[derive(Debug)]
pub struct VerifiedDraft {
    file: DraftFile,
    /// A stop waits for what readers have been told of.
    _settler: PendingCommit,
}

impl Engine {
    /// Opens the draft of a digest, taking over what an interrupted fill left.
    pub(in crate::store) fn open_draft(&self, digest: &Digest) -> Result<DraftWriter, StoreError> {
        let growing = {
            let _names = self.blobs.names();
            let key = Key::Draft(digest).to_bytes();
            if self.database.facts()?.contains_key(&key)? {
                self.blobs.remove_content(digest)?;
                self.database.facts()?.remove(&key)?;
            }
            self.blobs.draft(digest)?
        };
        let left = growing.written();
        let body = growing.body();
        Ok(self.draft_writer(digest, left, Some(body), Growing::File(growing)))
    }

    /// A draft of which nothing is written. Needs no blocking thread.
    pub(in crate::store) fn memory_draft(&self, digest: &Digest) -> DraftWriter {
        self.draft_writer(digest, 0, None, Growing::Lost(None))
    }

    fn draft_writer(
        &self,
        digest: &Digest,
        left: u64,
        body: Option<FileBody>,
        growing: Growing,
    ) -> DraftWriter {
        let draft = Draft {
            kept: AtomicBool::new(body.is_some()),
            body: body.clone().map(BlobBody::File),
            digest: *digest,
            progress: watch::Sender::new(Progress { received: left, written: left, total: None, end: None }),
            left,
            window: Mutex::default(),
        };
        let hasher = DraftHasher { hasher: Hasher::new(digest.algorithm()), left, body };
        let file = DraftFile { store: self.clone(), draft: draft.into(), growing };
        DraftWriter { hasher, file }
    }

    /// Waits until it is a verified draft's turn to settle: where content is copied, that is done for a few at a time.
    /// Needs no blocking thread.
    pub(in crate::store) async fn commit_permit(&self) -> CommitPermit {
        if self.blobs.are_copied() { self.commit_queue.commit_permit().await } else { CommitPermit::free() }
    }
}

impl DraftWriter {
    /// The shared side.
    pub fn draft(&self) -> &Arc<Draft> {
        &self.file.draft
    }

    /// Both halves, for who has a thread for each: they cost about the same.
    pub fn split(self) -> (DraftHasher, DraftFile) {
        (self.hasher, self.file)
    }

    /// Puts the halves of one draft together, which have taken the same bytes.
    pub fn join(hasher: DraftHasher, file: DraftFile) -> Self {
        Self { hasher, file }
    }

    /// Hashes and writes `bytes`. They must be those that the draft received next.
    pub fn append(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.hasher.append(&bytes)?;
        self.file.append(bytes)
    }

    /// Writes what `append` kept back, for the next fill to go on from, unless all of it is there: that is about to be
    /// verified, and may never need a file.
    pub fn flush(&mut self) -> Result<(), StoreError> {
        let progress = self.draft().progress();
        if progress.total == Some(progress.received) { Ok(()) } else { self.file.write(FileDraft::complete) }
    }

    /// Ends the draft in one go, for who has no readers to serve in between.
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

    /// Holds size and digest against what was promised. If both match, readers get the last byte; if not, the bytes go,
    /// and there is nothing to settle.
    pub fn verify(self, expected: Option<u64>) -> Result<Option<VerifiedDraft>, StoreError> {
        let Self { hasher, mut file } = self;
        let progress = file.draft.progress();
        let size = progress.received;
        let announced = expected.or(progress.total);
        if hasher.finish()? != file.draft.digest || announced.is_some_and(|announced| announced != size) {
            file.remove()?;
            return Ok(None);
        }
        if matches!(&file.growing, Growing::File(growing) if growing.has_file()) {
            // If the rest is interrupted, nothing of this need come again.
            file.write(FileDraft::complete)?;
        }
        if let Growing::File(growing) = &file.growing {
            // Some readers had it from the file.
            growing.is_ours()?;
        }
        let settler = file.store.commit_queue.begin();
        file.draft.progress.send_modify(|progress| {
            progress.total = Some(size);
            progress.end = Some(DraftEnd::Verified);
        });
        Ok(Some(VerifiedDraft { file, _settler: settler }))
    }

    /// Drops the draft's bytes.
    pub fn discard(self) -> Result<(), StoreError> {
        self.file.remove()
    }
}

impl DraftHasher {
    /// Hashes bytes that the draft received next.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.catch_up()?;
        self.hasher.update(bytes);
        Ok(())
    }

    fn finish(mut self) -> Result<Digest, StoreError> {
        self.catch_up()?;
        Ok(self.hasher.finish())
    }

    /// Hashes what an interrupted fill left. Only here, where nobody's answer waits for it: it may be many GiB.
    fn catch_up(&mut self) -> Result<(), StoreError> {
        match &self.body {
            Some(body) => body.hash(std::mem::take(&mut self.left), &mut self.hasher),
            None => Ok(()),
        }
    }
}

impl DraftFile {
    /// Writes bytes that the draft received next. If they cannot be written, the draft is no longer kept, and goes on
    /// without a disk.
    pub fn append(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.write(|growing| growing.append(bytes))
    }

    fn write(
        &mut self,
        write: impl FnOnce(&mut FileDraft) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let Growing::File(growing) = &mut self.growing else { return Ok(()) };
        match write(growing) {
            Ok(()) => {
                let written = growing.written();
                self.is_written(written);
                Ok(())
            }
            Err(error) if error.is_disk_failure() => {
                self.draft.kept.store(false, Ordering::Release);
                self.growing = Growing::Lost(Some(error));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn remove(&self) -> Result<(), StoreError> {
        match self.growing {
            Growing::File(_) => self.store.blobs.remove_draft(&self.draft.digest),
            Growing::Lost(_) => Ok(()),
        }
    }

    /// Counts what is written, and lets go of what readers need no longer have in memory.
    fn is_written(&self, written: u64) {
        // Counted first, trimmed after: a reader that does not find its bytes in the window must be able to read them.
        self.draft.progress.send_if_modified(|progress| {
            progress.written = written;
            // Readers wait for bytes received, not for written ones.
            false
        });
        self.draft.window().trim(written, WINDOW);
    }
}

impl VerifiedDraft {
    /// How many bytes it has, if they are kept.
    pub fn kept(&self) -> Option<u64> {
        matches!(self.file.growing, Growing::File(_)).then(|| self.file.draft.progress().received)
    }

    /// Makes the draft content, linked to `repository`; without one it is content that nobody has a right to yet. To be
    /// called when it is its [turn](Store::turn). Takes as long as the disk needs, and where content is copied, as the
    /// copy does; until then readers go on with the draft.
    ///
    /// Returns whether it was kept; why the disk did not take it is told here, once.
    pub fn commit(self, repository: Option<&Repository>, now: Timestamp) -> Result<bool, StoreError> {
        let DraftFile { store, draft, growing } = self.file;
        let mut growing = match growing {
            Growing::File(growing) => growing,
            Growing::Lost(error) => return error.map_or(Ok(false), Err),
        };
        let digest = &draft.digest;
        let trees = store.database.trees()?;
        if store.blobs.are_copied() {
            // Marked first: pages without their fact must go, should this be interrupted. The draft stays.
            trees.facts.insert(Key::Draft(digest).to_bytes(), DraftFact { condemned: true }.encode())?;
        }
        store.blobs.commit(&mut growing, now, &trees.pages)?;
        store.commit_blob(&trees.facts, repository, digest, growing.length(), now)?;
        if store.blobs.are_copied() && growing.has_file() {
            // It goes when the disk has the copy.
            trees.db.flush()?;
            store.blobs.remove_draft(digest)?;
        }
        Ok(true)
    }
}
