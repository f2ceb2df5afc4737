//! A draft: the growing, unverified bytes of one fill, and the readers that tail it.
//!
//! The newest bytes are shared from memory as they came from the network; older ones are read back from their
//! pages. A draft shows all but its last byte until its size and digest have matched.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Buf, Bytes, BytesMut};
use tokio::sync::watch;

use crate::oci::{Digest, Hasher, Repository};

use super::entry;
use super::fact::{DraftFact, Fact as _};
use super::key::Key;
use super::pages::Pages;
use super::{Store, StoreError};

/// How far a draft has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes received.
    pub received: u64,
    /// Bytes that are in pages.
    pub paged: u64,
    /// The body's length, once known.
    pub total: Option<u64>,
    /// Set when nothing more will come.
    pub end: Option<DraftEnd>,
}

impl Progress {
    /// Bytes that may be shown: the last one only after verification.
    pub fn readable(&self) -> u64 {
        if self.end == Some(DraftEnd::Committed) {
            return self.received;
        }
        let withheld = self.total.map_or(self.received, |total| self.received.min(total));
        withheld.saturating_sub(u64::from(self.total.is_none_or(|total| withheld == total)))
    }
}

/// How a draft ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DraftEnd {
    /// It is content now.
    Committed,
    /// The bytes were not what the digest, or the announced size, promised; they are gone.
    Mismatch,
    /// The fill gave up.
    Abandoned,
}

/// The shared side of a draft.
#[derive(Debug)]
pub struct Draft {
    digest: Digest,
    pages: Pages,
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

    /// Tells readers that nothing more will come, unless the draft became content. The writer does not do this
    /// itself: whoever owns the fill first sees to it that no new reader comes. Needs no blocking thread.
    pub fn close(&self) {
        self.progress.send_if_modified(|progress| {
            let open = progress.end.is_none();
            progress.end.get_or_insert(DraftEnd::Abandoned);
            open
        });
    }

    /// What the window has of `range`, from its start: at once, from memory. `None` if that has gone to pages.
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

    /// Reads `range` from the pages, up to about `step` bytes. The range must be paged.
    pub fn read(&self, range: Range<u64>, step: u64) -> Result<Vec<Bytes>, StoreError> {
        entry::read(&self.pages, &self.digest, range, step)
    }

    /// Drops from the window what pages hold, up to `keep` bytes behind the newest.
    fn trim(&self, paged: u64, keep: u64) {
        let mut window = self.window();
        let newest = window.back().map_or(0, |(at, bytes)| at + bytes.len() as u64);
        let until = paged.min(newest.saturating_sub(keep));
        while window.front().is_some_and(|(at, bytes)| at + bytes.len() as u64 <= until) {
            window.pop_front();
        }
    }

    fn window(&self) -> MutexGuard<'_, VecDeque<(u64, Bytes)>> {
        // Nothing under this lock can panic halfway through a change.
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Pages for which room is made at a time.
const PREPARED: u64 = 32;

/// How much of the newest a draft keeps in memory after it went to pages, for readers close to the frontier.
const WINDOW: u64 = 1 << 20;

/// The writing side of a draft: hashes and pages what came in. Lives on a blocking thread.
#[derive(Debug)]
pub struct DraftWriter {
    store: Store,
    draft: std::sync::Arc<Draft>,
    hasher: Hasher,
    /// What does not fill a page yet.
    rest: BytesMut,
    next_page: u64,
}

impl Store {
    /// Opens the draft of a digest: what an interrupted fill left is taken over, its hash computed anew.
    pub fn open_draft(&self, digest: &Digest) -> Result<DraftWriter, StoreError> {
        let key = Key::Draft(digest).to_bytes();
        let mut hasher = Hasher::new(digest.algorithm());
        let mut next_page = 0;
        match self.fact::<DraftFact>(&Key::Draft(digest))? {
            Some(DraftFact { condemned: true }) => {
                self.pages.remove(digest)?;
                self.facts.remove(&key)?;
            }
            Some(DraftFact { condemned: false }) => {
                while let Some(page) = self.pages.get(digest, next_page)? {
                    if page.len() != self.pages.page_size() {
                        break;
                    }
                    hasher.update(&page);
                    next_page += 1;
                }
            }
            None => {}
        }
        let length = next_page * self.pages.page_size() as u64;
        let progress = Progress { received: length, paged: length, total: None, end: None };
        let draft = Draft {
            digest: *digest,
            pages: self.pages.clone(),
            progress: watch::Sender::new(progress),
            window: Mutex::default(),
        };
        let rest = BytesMut::with_capacity(self.pages.page_size());
        Ok(DraftWriter { store: self.clone(), draft: draft.into(), hasher, rest, next_page })
    }
}

impl DraftWriter {
    /// The shared side.
    pub fn draft(&self) -> &std::sync::Arc<Draft> {
        &self.draft
    }

    /// Hashes `bytes` and writes the pages that they fill. They must be those that the draft received next.
    pub fn append(&mut self, mut bytes: Bytes) -> Result<(), StoreError> {
        let page_size = self.store.pages.page_size();
        self.hasher.update(&bytes);
        while self.rest.len() + bytes.len() >= page_size {
            let needed = page_size - self.rest.len();
            if self.rest.is_empty() {
                self.write_page(&bytes[..needed])?;
            } else {
                self.rest.extend_from_slice(&bytes[..needed]);
                let page = std::mem::take(&mut self.rest);
                self.write_page(&page)?;
                self.rest = page;
                self.rest.clear();
            }
            bytes.advance(needed);
        }
        self.rest.extend_from_slice(&bytes);
        let paged = self.next_page * page_size as u64;
        // Counted first, trimmed after: a reader that does not find its bytes in the window must find them in pages.
        self.draft.progress.send_if_modified(|progress| {
            progress.paged = paged;
            // Readers wait for bytes received, not for pages.
            false
        });
        self.draft.trim(paged, WINDOW);
        Ok(())
    }

    fn write_page(&mut self, page: &[u8]) -> Result<(), StoreError> {
        if self.next_page == 0 {
            // Only now: a draft of nothing is nothing to remember.
            let key = Key::Draft(&self.draft.digest).to_bytes();
            self.store.facts.insert(key, DraftFact { condemned: false }.encode())?;
        }
        if self.next_page.is_multiple_of(PREPARED) {
            let page_size = self.store.pages.page_size() as u64;
            let pages = self.draft.progress().total.map_or(u64::MAX, |total| total.div_ceil(page_size));
            self.store.pages.prepare(
                &self.draft.digest,
                self.next_page,
                pages.min(self.next_page + PREPARED),
            )?;
        }
        self.store.pages.put(&self.draft.digest, self.next_page, page)?;
        self.next_page += 1;
        Ok(())
    }

    /// Ends the draft: with the right size and digest it becomes content, linked to `repository`; else it goes.
    pub fn finish(
        mut self,
        repository: &Repository,
        expected: Option<u64>,
        now: u64,
    ) -> Result<DraftEnd, StoreError> {
        let progress = self.draft.progress();
        let size = progress.received;
        let announced = expected.or(progress.total);
        let found = self.hasher.clone().finish();
        if found != self.draft.digest || announced.is_some_and(|announced| announced != size) {
            self.condemn()?;
            return Ok(DraftEnd::Mismatch);
        }
        if !self.rest.is_empty() {
            let page = std::mem::take(&mut self.rest);
            self.write_page(&page)?;
        }
        self.store.commit_blob(repository, &self.draft.digest, size, now)?;
        self.draft.progress.send_modify(|progress| {
            progress.paged = size;
            progress.total = Some(size);
            progress.end = Some(DraftEnd::Committed);
        });
        Ok(DraftEnd::Committed)
    }

    /// Drops the draft's bytes. Marked first, so that a crash in the middle cannot bring them back.
    pub fn condemn(self) -> Result<(), StoreError> {
        let digest = &self.draft.digest;
        let key = Key::Draft(digest).to_bytes();
        self.store.facts.insert(key.as_slice(), DraftFact { condemned: true }.encode())?;
        self.store.pages.remove(digest)?;
        self.store.facts.remove(key)?;
        Ok(())
    }
}
