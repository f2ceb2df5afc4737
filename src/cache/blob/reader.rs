//! Reader of a blob for one client, at the client's pace: from the store, or from the draft of a running fill.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};

use crate::cache::blob::answer::{BlobAnswer, BlobSource};
use crate::cache::blob::blobs::Blobs;
use crate::cache::error::{CacheError, CacheErrorKind};
use crate::cache::eviction::usage::ContentPin;
use crate::oci::{Digest, Repository};
use crate::store::{Draft, DraftEnd, Follower, OpenBlob, Progress, Store, StoreError, Work};
use crate::telemetry::Outcome;

/// Bytes of one read from the store. Reads run off the async threads, and the next one runs while the last one is sent.
const STEP: u64 = 512 << 10;
/// Limit on concurrent reads for one client: pages of sled cost more to read than to send.
const STEPS_AHEAD_MAX: usize = 3;
/// Distance of a range from the end of the draft from which it is passed through from the upstream.
const PASSTHROUGH_DISTANCE: u64 = 8 << 20;

/// Reader of a blob's bytes in order.
pub struct BlobReader {
    blobs: Arc<Blobs>,
    source: BlobSource,
    /// Bytes that the draft does not have yet, passed through from the upstream. The draft provides the rest.
    passing: Option<mpsc::Receiver<Bytes>>,
    /// Request for bytes to pass through.
    opening: Option<Opening>,
    /// Repository and digest of a running fill.
    filled: Option<Box<(Repository, Digest)>>,
    /// Offset of the next read.
    at: u64,
    /// Offset of the end; `None` if unknown.
    end: Option<u64>,
    /// Length that a descriptor states, if the length of the blob is unknown. The last byte of this length is withheld
    /// until the blob is verified.
    size_hint: Option<u64>,
    ready: VecDeque<Bytes>,
    /// Running reads, in the order of their bytes.
    steps: VecDeque<ReadStep>,
}

/// Request for a range to pass through. `None` if the upstream does not send it.
type Opening = Pin<Box<dyn Future<Output = Option<mpsc::Receiver<Bytes>>> + Send>>;

/// Running read.
struct ReadStep {
    bytes: Pin<Box<dyn Future<Output = Result<VecDeque<Bytes>, CacheError>> + Send>>,
    /// Permit to run beside another read of the same client.
    _permit: Option<OwnedSemaphorePermit>,
}

impl std::fmt::Debug for BlobReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobReader").field("at", &self.at).field("end", &self.end).finish_non_exhaustive()
    }
}

impl Blobs {
    /// Creates a reader over `range` of a blob, or over the whole blob.
    ///
    /// A range far beyond the end of a running fill's draft is passed through from the upstream while the fill continues
    /// (`bypass`): lazy-pulling snapshotters read the end of a blob first. Such bytes are unverified, like any part of a blob.
    ///
    /// The first bytes of a stored blob are read before this returns. If the blob is corrupt, it is fetched again.
    pub(in crate::cache) async fn reader(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
        blob: BlobAnswer,
        range: Option<Range<u64>>,
    ) -> Result<(BlobReader, Outcome), CacheError> {
        let (mut reader, outcome) = self.open_reader(repository, digest, blob, range.clone()).await?;
        match reader.read_first().await {
            Ok(()) => Ok((reader, outcome)),
            Err(error) if error.kind() == CacheErrorKind::Corrupt => {
                let blob = self.get(repository, digest).await?;
                self.open_reader(repository, digest, blob, range).await
            }
            Err(error) => Err(error),
        }
    }

    async fn open_reader(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
        blob: BlobAnswer,
        range: Option<Range<u64>>,
    ) -> Result<(BlobReader, Outcome), CacheError> {
        let size_hint = if blob.size.is_none() { blob.size_hint } else { None };
        let source = blob.source.ok_or(CacheError::Interrupted)?;
        let (mut outcome, mut passing, mut filled) = (blob.outcome, None, None);
        if let (BlobSource::Filling(follower), Some(range)) = (&source, &range) {
            follower.moved(range.start);
            if is_far(follower, range) {
                passing = self.pass_through(repository, digest, range, follower.draft()).await;
            }
            if passing.is_some() {
                outcome = Outcome::Bypass;
            }
            filled = Some(Box::new((repository.clone(), *digest)));
        }
        let size = match &source {
            BlobSource::Stored(blob, _) => Some(blob.entry().size()),
            BlobSource::Filling(_) => None,
        };
        let at = range.as_ref().map_or(0, |range| range.start);
        let end = range.map(|range| range.end).or(size);
        let reader = BlobReader {
            blobs: Arc::clone(self),
            source,
            passing,
            opening: None,
            filled,
            at,
            end,
            size_hint,
            ready: VecDeque::new(),
            steps: VecDeque::new(),
        };
        Ok((reader, outcome))
    }
}

/// Returns true if a range is so far beyond the end of a draft that it is passed through.
fn is_far(follower: &Follower, range: &Range<u64>) -> bool {
    range.start > follower.draft().progress().readable().saturating_add(PASSTHROUGH_DISTANCE)
}

impl BlobReader {
    /// Reads the first bytes of a stored blob.
    async fn read_first(&mut self) -> Result<(), CacheError> {
        if matches!(self.source, BlobSource::Stored(..))
            && let Some(first) = poll_fn(|cx| self.poll_next(cx)).await
        {
            self.ready.push_front(first?);
        }
        Ok(())
    }

    /// Returns true if the bytes are known to match the digest of the blob.
    pub fn is_verified(&self) -> bool {
        self.passing.is_none() && self.source.is_verified()
    }

    /// Continues with another range of the blob, after the bytes of the last one.
    pub fn move_to(&mut self, range: Range<u64>) {
        (self.passing, self.opening) = (None, None);
        self.ready.clear();
        self.steps.clear();
        (self.at, self.end) = (range.start, Some(range.end));
        let BlobSource::Filling(follower) = &self.source else { return };
        follower.moved(range.start);
        if is_far(follower, &range)
            && let Some(filled) = &self.filled
        {
            let (blobs, filled) = (Arc::clone(&self.blobs), filled.clone());
            let draft = Arc::clone(follower.draft());
            let opening = async move { blobs.pass_through(&filled.0, &filled.1, &range, &draft).await };
            self.opening = Some(Box::pin(opening));
        }
    }

    /// Returns the next bytes of a range that is passed through; `None` if the draft or the store has the rest.
    fn poll_passing(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(opening) = &mut self.opening {
            self.passing = ready!(opening.as_mut().poll(cx));
            self.opening = None;
        }
        let Some(chunks) = &mut self.passing else { return Poll::Ready(None) };
        let bytes = ready!(chunks.poll_recv(cx));
        match (&bytes, &self.source) {
            (Some(bytes), BlobSource::Filling(follower)) => {
                self.at += bytes.len() as u64;
                follower.moved(self.at);
            }
            _ => self.passing = None,
        }
        Poll::Ready(bytes)
    }

    /// Returns the next bytes, or `None` at the end. After an error the rest must not be sent.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, CacheError>>> {
        if let Some(bytes) = ready!(self.poll_passing(cx)) {
            return Poll::Ready(Some(Ok(bytes)));
        }
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                self.read_ahead();
                return Poll::Ready(Some(Ok(bytes)));
            }
            if self.steps.is_empty() {
                if self.is_at_end() {
                    return Poll::Ready(None);
                }
                if let Some(bytes) = self.read_now() {
                    self.at += bytes.len() as u64;
                    return Poll::Ready(Some(Ok(bytes)));
                }
                self.start_step(None);
            }
            let Some(step) = self.steps.front_mut() else { return Poll::Ready(None) };
            let read = ready!(step.bytes.as_mut().poll(cx));
            self.steps.pop_front();
            match read {
                Ok(read) if read.is_empty() => return Poll::Ready(None),
                Ok(read) => {
                    if let BlobSource::Filling(follower) = &self.source {
                        self.at += read.iter().map(|bytes| bytes.len() as u64).sum::<u64>();
                        follower.moved(self.at);
                    }
                    self.ready = read;
                }
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }

    fn is_at_end(&self) -> bool {
        self.end.is_some_and(|end| self.at >= end)
    }

    /// Starts the next reads, so that they run while the last bytes are sent.
    fn read_ahead(&mut self) {
        match &self.source {
            // The operating system reads ahead.
            BlobSource::Stored(blob, _) if blob.has_read_ahead() => {}
            // The next bytes of a draft may not have arrived yet, so there is at most one read.
            BlobSource::Filling(_) => {
                if self.steps.is_empty() && !self.is_at_end() {
                    self.start_step(None);
                }
            }
            BlobSource::Stored(..) => {
                while self.steps.len() < STEPS_AHEAD_MAX && !self.is_at_end() {
                    let is_first = self.steps.is_empty();
                    let permit = Arc::clone(&self.blobs.read_ahead).try_acquire_owned().ok();
                    if permit.is_none() && !is_first {
                        break;
                    }
                    self.start_step(permit.filter(|_| !is_first));
                }
            }
        }
    }

    /// Returns bytes that the operating system has in memory, without a blocking thread.
    fn read_now(&self) -> Option<Bytes> {
        match &self.source {
            BlobSource::Stored(blob, _) => blob.read_now(self.at..self.end.unwrap_or(blob.entry().size())),
            BlobSource::Filling(_) => None,
        }
    }

    fn start_step(&mut self, permit: Option<OwnedSemaphorePermit>) {
        let bytes: Pin<Box<dyn Future<Output = _> + Send>> = match &self.source {
            BlobSource::Stored(blob, pin) => {
                let end = self.end.unwrap_or(blob.entry().size());
                // Steps end at page boundaries, so that no page is read twice.
                let range = self.at..end.min((self.at / STEP + 1) * STEP);
                self.at = range.end;
                let (blobs, blob, pin) = (Arc::clone(&self.blobs), blob.clone(), pin.clone());
                if let Ok(permit) = Arc::clone(&blobs.store_reads).try_acquire_owned() {
                    let read = start_read(&blobs.storage.store, permit, blob.clone(), pin, range);
                    Box::pin(async move { finish_read(&blobs, &blob, read.await).await })
                } else {
                    // A separate task, so that the read progresses while this reader is not polled.
                    let read = tokio::spawn(queued_read(blobs, blob, pin, range));
                    Box::pin(async move { read.await.map_err(|_| CacheError::Interrupted)? })
                }
            }
            BlobSource::Filling(follower) => {
                let draft = follower.draft();
                let blobs = Arc::clone(&self.blobs);
                let (at, end, hint) = (self.at, self.end, self.size_hint);
                let unread = Unread { at, end, hint };
                Box::pin(read_draft(blobs, Arc::clone(draft), draft.watch(), unread))
            }
        };
        self.steps.push_back(ReadStep { bytes, _permit: permit });
    }
}

/// Reads a range of at most one step. The read may outlive its client, so it holds the pin.
fn start_read(
    store: &Store,
    permit: OwnedSemaphorePermit,
    blob: OpenBlob,
    pin: ContentPin,
    range: Range<u64>,
) -> Work<Vec<Bytes>> {
    store.run(move |_| {
        let _held = (permit, pin);
        blob.read(range, STEP)
    })
}

/// Waits for a permit, and reads a range of at most one step.
async fn queued_read(
    blobs: Arc<Blobs>,
    blob: OpenBlob,
    pin: ContentPin,
    range: Range<u64>,
) -> Result<VecDeque<Bytes>, CacheError> {
    let permit = Arc::clone(&blobs.store_reads).acquire_owned().await.map_err(|_| CacheError::Interrupted)?;
    let read = start_read(&blobs.storage.store, permit, blob.clone(), pin, range);
    finish_read(&blobs, &blob, read.await).await
}

/// Returns the bytes of a read. A corrupt blob is removed.
async fn finish_read(
    blobs: &Blobs,
    blob: &OpenBlob,
    read: Result<Vec<Bytes>, StoreError>,
) -> Result<VecDeque<Bytes>, CacheError> {
    match read {
        Ok(read) => Ok(read.into()),
        Err(error) => {
            if matches!(error, StoreError::Damaged(_)) {
                blobs.storage.delete_damaged_blob(blob.entry(), &error).await;
            }
            Err(error.into())
        }
    }
}

/// Part of a draft that a reader has not read yet.
#[derive(Clone, Copy)]
struct Unread {
    at: u64,
    /// End of the part; `None` if unknown.
    end: Option<u64>,
    /// Stated length of the blob, if its length is unknown.
    hint: Option<u64>,
}

impl Unread {
    /// Returns the end of the bytes that may be sent now.
    fn limit(&self, progress: &Progress) -> u64 {
        let withheld = match (progress.end, self.hint) {
            (Some(DraftEnd::Verified), _) | (_, None) => u64::MAX,
            (_, Some(size)) => size.saturating_sub(1),
        };
        progress.readable().min(self.end.unwrap_or(u64::MAX)).min(withheld)
    }
}

/// Waits for unread bytes of a draft, and reads them. Returns no bytes at the verified end.
async fn read_draft(
    blobs: Arc<Blobs>,
    draft: Arc<Draft>,
    mut watch: watch::Receiver<Progress>,
    unread: Unread,
) -> Result<VecDeque<Bytes>, CacheError> {
    let Unread { at, end, .. } = unread;
    loop {
        let progress = *watch.borrow_and_update();
        let limit = unread.limit(&progress);
        if at < limit {
            if let Some(recent) = draft.recent(at..limit.min(at + STEP)) {
                return Ok(recent.into());
            }
            // Bytes that left the window are written: the writer counts them before it moves the window.
            let written = limit.min(draft.progress().written);
            if at < written {
                return read_written(&blobs.storage.store, draft, at..written).await;
            }
            if draft.has_lost(at) {
                return Err(CacheError::Interrupted);
            }
            continue;
        }
        match progress.end {
            Some(DraftEnd::Verified) => return Ok(VecDeque::new()),
            Some(_) => return Err(CacheError::Interrupted),
            None if end.is_some_and(|end| at >= end) => return Ok(VecDeque::new()),
            None => {}
        }
        if watch.changed().await.is_err() {
            return Err(CacheError::Interrupted);
        }
    }
}

/// Reads written bytes of a draft.
async fn read_written(
    store: &Store,
    draft: Arc<Draft>,
    range: Range<u64>,
) -> Result<VecDeque<Bytes>, CacheError> {
    if let Some(bytes) = draft.read_now(range.clone()) {
        return Ok(VecDeque::from([bytes]));
    }
    let bytes: VecDeque<Bytes> = store.run(move |_| draft.read(range, STEP)).await?.into();
    // An empty read would look like the end of the blob.
    if bytes.is_empty() { Err(CacheError::Interrupted) } else { Ok(bytes) }
}
