//! A draft: the growing, unverified bytes of one fill, and the readers that tail it.
//!
//! The newest bytes are shared from memory as they came from the network; older ones are read back from where they
//! were written. A draft shows all but its last byte until its size and digest have matched.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use crate::oci::{Digest, Hasher, Repository};

use super::bodies::Body;
use super::fact::{DraftFact, Fact as _};
use super::files::{FileBody, FileDraft};
use super::key::Key;
use super::settling::{Settler, Turn};
use super::{Store, StoreError};

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
    body: Body,
    progress: watch::Sender<Progress>,
    /// The newest bytes, by offset, without gaps up to `received`.
    window: Mutex<VecDeque<(u64, Bytes)>>,
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

    /// Sets the length that the upstream announced. Needs no blocking thread.
    pub fn announce(&self, total: u64) {
        self.progress.send_modify(|progress| progress.total = Some(total));
    }

    /// Takes bytes that came in, and shows them to readers. Needs no blocking thread.
    pub fn receive(&self, bytes: Bytes) {
        let length = bytes.len() as u64;
        let mut window = self.window();
        let at = window
            .back()
            .map_or_else(|| self.progress.borrow().received, |(at, last)| at + last.len() as u64);
        window.push_back((at, bytes));
        drop(window);
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
        let window = self.window();
        let first = window.partition_point(|(at, bytes)| at + bytes.len() as u64 <= range.start);
        if window.get(first).is_none_or(|(at, _)| *at > range.start) {
            return None;
        }
        let mut found = Vec::new();
        for (at, bytes) in window.range(first..) {
            if *at >= range.end {
                break;
            }
            let from = range.start.saturating_sub(*at);
            let to = (bytes.len() as u64).min(range.end - at);
            // Both are at most the chunk's length, which is a usize.
            found.push(
                bytes.slice(
                    usize::try_from(from).unwrap_or_default()..usize::try_from(to).unwrap_or_default(),
                ),
            );
        }
        Some(found)
    }

    /// Reads back the start of `range`, up to about `step` bytes. The range must be written.
    pub fn read(&self, range: Range<u64>, step: u64) -> Result<Vec<Bytes>, StoreError> {
        self.body.read(range, step)
    }

    /// As `read`, but only what the system has in memory. Needs no blocking thread.
    pub fn read_now(&self, range: Range<u64>) -> Option<Bytes> {
        self.body.read_now(range)
    }

    /// Drops from the window what is written, up to `keep` bytes behind the newest.
    fn trim(&self, written: u64, keep: u64) {
        let mut window = self.window();
        let newest = window.back().map_or(0, |(at, bytes)| at + bytes.len() as u64);
        let until = written.min(newest.saturating_sub(keep));
        while window.front().is_some_and(|(at, bytes)| at + bytes.len() as u64 <= until) {
            window.pop_front();
        }
    }

    fn window(&self) -> MutexGuard<'_, VecDeque<(u64, Bytes)>> {
        // Nothing under this lock can panic halfway through a change.
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

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
    body: FileBody,
}

/// The half that writes. Lives on blocking threads.
#[derive(Debug)]
pub struct DraftFile {
    store: Store,
    draft: std::sync::Arc<Draft>,
    growing: FileDraft,
}

/// A draft whose bytes are those of its digest, and which is not content yet. Readers have all of it.
#[derive(Debug)]
pub struct VerifiedDraft {
    file: DraftFile,
    /// A stop waits for what readers have been told of.
    _settler: Settler,
}

impl Store {
    /// Opens the draft of a digest, taking over what an interrupted fill left.
    pub fn open_draft(&self, digest: &Digest) -> Result<DraftWriter, StoreError> {
        let growing = {
            let _names = self.bodies.names();
            let key = Key::Draft(digest).to_bytes();
            if self.database.facts()?.contains_key(&key)? {
                self.bodies.remove_content(digest)?;
                self.database.facts()?.remove(&key)?;
            }
            self.bodies.draft(digest)?
        };
        let left = growing.written();
        let progress = Progress { received: left, written: left, total: None, end: None };
        let draft = Draft {
            body: Body::File(growing.body()),
            digest: *digest,
            progress: watch::Sender::new(progress),
            window: Mutex::default(),
        };
        let hasher = DraftHasher { hasher: Hasher::new(digest.algorithm()), left, body: growing.body() };
        let file = DraftFile { store: self.clone(), draft: draft.into(), growing };
        Ok(DraftWriter { hasher, file })
    }

    /// Waits until it is a verified draft's turn to settle: where content is copied, that is done for a few at a time.
    /// Needs no blocking thread.
    pub async fn turn(&self) -> Turn {
        if self.bodies.are_copied() { self.settling.turn().await } else { Turn::free() }
    }
}

impl DraftWriter {
    /// The shared side.
    pub fn draft(&self) -> &std::sync::Arc<Draft> {
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
        if progress.total == Some(progress.received) { Ok(()) } else { self.file.growing.complete() }
    }

    /// Ends the draft in one go, for who has no readers to serve in between.
    pub fn finish(
        self,
        repository: &Repository,
        expected: Option<u64>,
        now: u64,
    ) -> Result<DraftEnd, StoreError> {
        match self.verify(expected)? {
            Some(verified) => verified.settle(repository, now).map(|()| DraftEnd::Verified),
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
        if file.growing.has_file() {
            // If the rest is interrupted, nothing of this need come again.
            file.growing.complete()?;
            file.is_written();
        }
        let settler = file.store.settling.begin();
        file.draft.progress.send_modify(|progress| {
            progress.total = Some(size);
            progress.end = Some(DraftEnd::Verified);
        });
        Ok(Some(VerifiedDraft { file, _settler: settler }))
    }

    /// Drops the draft's bytes.
    pub fn condemn(self) -> Result<(), StoreError> {
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
        self.body.hash(std::mem::take(&mut self.left), &mut self.hasher)
    }
}

impl DraftFile {
    /// Writes bytes that the draft received next.
    pub fn append(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.growing.append(bytes)?;
        self.is_written();
        Ok(())
    }

    fn remove(&self) -> Result<(), StoreError> {
        self.store.bodies.remove_draft(&self.draft.digest)
    }

    /// Counts what is written, and lets go of what readers need no longer have in memory.
    fn is_written(&self) {
        let written = self.growing.written();
        // Counted first, trimmed after: a reader that does not find its bytes in the window must be able to read them.
        self.draft.progress.send_if_modified(|progress| {
            progress.written = written;
            // Readers wait for bytes received, not for written ones.
            false
        });
        self.draft.trim(written, WINDOW);
    }
}

impl VerifiedDraft {
    /// Makes the draft content, linked to `repository`. To be called when it is its [turn](Store::turn). Takes as long as
    /// the disk needs, and where content is copied, as the copy does; until then readers go on with the draft.
    pub fn settle(self, repository: &Repository, now: u64) -> Result<(), StoreError> {
        let DraftFile { store, draft, mut growing } = self.file;
        let digest = &draft.digest;
        if store.bodies.are_copied() {
            // Marked first: pages without their fact must go, should this be interrupted. The draft stays.
            store
                .database
                .facts()?
                .insert(Key::Draft(digest).to_bytes(), DraftFact { condemned: true }.encode())?;
        }
        store.bodies.settle(&mut growing, now)?;
        store.commit_blob(repository, digest, growing.length(), now)?;
        if store.bodies.are_copied() && growing.has_file() {
            // It goes when the disk has the copy.
            store.database.db()?.flush()?;
            store.bodies.remove_draft(digest)?;
        }
        Ok(())
    }
}
