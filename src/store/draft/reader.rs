//! Reading side of a draft.

use std::any::Any;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::oci::Digest;
use crate::store::blobs::files::FileBody;
use crate::store::draft::progress::{DraftEnd, Progress};
use crate::store::draft::window::Window;
use crate::store::error::StoreError;

/// Growing, unverified bytes of a fill, shared by the writer and all readers.
///
/// The newest bytes are in memory; older bytes are read from the file. A draft that the disk does not accept continues in
/// memory only, at the pace of its slowest reader.
#[derive(Debug)]
pub struct Draft {
    pub(super) digest: Digest,
    /// File; `None` for a draft that was never to be written.
    pub(super) body: Option<FileBody>,
    pub(super) progress: watch::Sender<Progress>,
    /// Bytes of an interrupted fill.
    pub(super) left: u64,
    pub(super) window: Mutex<Window>,
    /// True if new bytes are written to disk. If false, only the window has the newest bytes.
    pub(super) kept: AtomicBool,
    /// Value of the owner that exists as long as the draft, and with it its open file.
    pub(super) held: OnceLock<Box<dyn Any + Send + Sync>>,
}

impl Draft {
    /// Returns a receiver of the progress.
    pub fn watch(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Returns the current progress.
    pub fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// Returns the bytes of an interrupted fill that this draft resumes.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Returns the number of clients that read the draft.
    pub fn clients(&self) -> usize {
        self.window().clients()
    }

    /// Sets the length that the upstream announced. Does not block.
    pub fn announce(&self, total: u64) {
        self.progress.send_modify(|progress| progress.total = Some(total));
    }

    /// Returns the bytes that are collected for one step of hashing and writing.
    pub fn step(&self) -> usize {
        let step = self.window().limit(2 * STEP) / 2;
        usize::try_from(step).unwrap_or(usize::MAX)
    }

    /// Appends received bytes, and makes them available to readers. Does not block.
    pub fn receive(&self, bytes: Bytes) {
        let length = bytes.len() as u64;
        let received = self.progress.borrow().received;
        self.window().push(received, bytes);
        self.progress.send_modify(|progress| progress.received += length);
    }

    /// Ends the draft as abandoned, unless it has ended. The owner of the fill calls this after it has made sure that no new
    /// reader starts. Does not block.
    pub fn close(&self) {
        self.progress.send_if_modified(|progress| {
            let open = progress.end.is_none();
            progress.end.get_or_insert(DraftEnd::Abandoned);
            open
        });
    }

    /// Returns the start of `range` from memory; `None` if it is no longer in memory. Does not block.
    pub fn recent(&self, range: Range<u64>) -> Option<Vec<Bytes>> {
        self.window().get(range)
    }

    /// Reads the start of `range` from the file, up to about `step` bytes. The range must be written. Blocks.
    pub fn read(&self, range: Range<u64>, step: u64) -> Result<Vec<Bytes>, StoreError> {
        let read = match &self.body {
            Some(body) => body.read(range, step),
            None => Err(StoreError::Damaged(self.digest)),
        };
        // The reader may have ended meanwhile.
        self.park_unread();
        read
    }

    /// Closes the file of a draft that waits for its commit, unless a reader needs it. A later reader opens it again.
    pub(super) fn park_unread(&self) {
        if let Some(body) = &self.body
            && !self.window().is_followed()
        {
            body.park();
        }
    }

    /// Reads the start of `range` if it is in the page cache of the operating system. Does not block.
    pub fn read_now(&self, range: Range<u64>) -> Option<Bytes> {
        self.body.as_ref()?.read_now(range)
    }

    /// Returns true if new bytes are written to disk.
    pub fn is_kept(&self) -> bool {
        self.kept.load(Ordering::Acquire)
    }

    /// Adds a reader that starts at `at`; `None` if its bytes are neither in memory nor written. Does not block.
    pub fn follow(self: &Arc<Self>, at: u64) -> Option<Follower> {
        let mut window = self.window();
        let progress = self.progress();
        let id = (self.is_kept() || window.reaches(at, &progress)).then(|| window.follow(at))?;
        drop(window);
        Some(Follower { draft: Arc::clone(self), id })
    }

    /// Waits until a draft in memory has room: until its readers have taken so much that at most a few MiB remain. A reader
    /// that makes no progress for `deadline` is dropped. Calls `leaving` before the first bytes are released; after that no
    /// new reader can start. Returns false if no reader is left, and `is_awaited` returns false: no reader is about to
    /// start.
    pub async fn make_room(
        &self,
        deadline: Duration,
        is_awaited: impl Fn() -> bool,
        mut leaving: impl FnMut(),
    ) -> bool {
        let since = Instant::now();
        loop {
            let moved = {
                let window = self.window();
                let excess = window.bytes().saturating_sub(window.limit(MEMORY_MAX));
                if excess == 0 {
                    return true;
                }
                if window.is_followed() { Some(Arc::clone(&window.moved)) } else { None }
            };
            let Some(moved) = moved else {
                if !is_awaited() || since.elapsed() > deadline {
                    return false;
                }
                tokio::time::sleep(READER_CHECK).await;
                continue;
            };
            leaving();
            let notified = moved.notified();
            let written = self.progress().written;
            if self.window().release(written) {
                continue;
            }
            if tokio::time::timeout(deadline, notified).await.is_err() {
                self.window().drop_slowest(written);
            }
        }
    }

    /// Returns true if the bytes at `at` are neither in memory nor written. Does not block.
    pub fn has_lost(&self, at: u64) -> bool {
        let window = self.window();
        !self.is_kept() && !window.reaches(at, &self.progress())
    }

    pub(super) fn window(&self) -> MutexGuard<'_, Window> {
        // No code under this lock can panic in the middle of a change.
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reader of a draft.
#[derive(Debug)]
pub struct Follower {
    draft: Arc<Draft>,
    id: u64,
}

impl Follower {
    /// Returns the draft.
    pub fn draft(&self) -> &Arc<Draft> {
        &self.draft
    }

    /// Declares that no client reads with this: a download that is too slow may be given up.
    pub fn set_background(&self) {
        self.draft.window().set_background(self.id);
    }

    /// Records that everything before `at` was taken. Does not block.
    pub fn moved(&self, at: u64) {
        self.draft.window().moved_to(self.id, at);
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.draft.window().remove_reader(self.id);
        self.draft.park_unread();
    }
}

/// Interval of checks for the first reader of a draft.
const READER_CHECK: Duration = Duration::from_millis(5);
/// Largest number of bytes in memory of a draft that is not written, before its fill waits for readers.
const MEMORY_MAX: u64 = 4 << 20;
/// Largest step of hashing and writing: large enough for a low cost per step, small enough to stay in the CPU cache.
const STEP: u64 = 512 << 10;
