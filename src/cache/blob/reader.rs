//! Reads a blob for one client at that client's pace, from the store or from the tail of a fill.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::num::NonZero;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tracing::Instrument as _;

use crate::oci::{Digest, Name, Repository};
use crate::source::{BlobBody, ByteRange, Source as _};
use crate::store::{Draft, DraftEnd, OpenBlob, Progress, StoreError};
use crate::telemetry::{Outcome, trace};
use crate::upstream::Upstream;

use crate::cache::Cache;
use crate::cache::blob::find::{BlobAnswer, BlobSource};
use crate::cache::blocking::blocking;
use crate::cache::error::CacheError;
use crate::cache::eviction::usage::ContentPin;

/// How much is read from the store per step, off the async threads. The next step is under way while one is sent.
const STEP: u64 = 512 << 10;
/// Steps under way at once for one client, if others leave room for them: pages of sled cost more to read than to send.
const AHEAD: usize = 3;
/// Steps that read from sled at once. Every thread that does keeps some MiB of what sled's cache has let go, so that with
/// one for each client memory would grow with clients.
pub(in crate::cache) const READING_MAX: usize = 8;
/// How far beyond a fill's frontier a range must begin to be worth a request of its own to the upstream.
const FAR: u64 = 8 << 20;
/// How much of such a range is asked for at a time. Clients that want one chunk ask for all that follows and hang up when
/// they have it, as containerd does: so that costs little more than they read, and no connection to the upstream.
const PIECE: u64 = 4 << 20;
/// How long a client that is passed through may leave a chunk unread.
const STALLED: Duration = Duration::from_secs(30);
/// Chunks between the upstream and a client that is passed through.
const QUEUE: usize = 4;

/// Steps under way beside the first one of each client, for all clients together. More than there are processors make
/// nothing faster: each is memory, and drives from the processors' caches what others are about to send.
pub(in crate::cache) fn ahead_max() -> usize {
    std::thread::available_parallelism().map_or(2, NonZero::get)
}

/// A part of the blob on its way from the store.
struct Step {
    bytes: Pin<Box<dyn Future<Output = Result<VecDeque<Bytes>, CacheError>> + Send>>,
    /// Room to be under way beside another one.
    _room: Option<OwnedSemaphorePermit>,
}

/// A blob's bytes in order.
pub struct BlobReader {
    cache: Cache,
    source: BlobSource,
    /// Where the next step begins.
    at: u64,
    /// Where the reading ends; `None` where nobody knows yet.
    end: Option<u64>,
    ready: VecDeque<Bytes>,
    /// In the order of their bytes.
    steps: VecDeque<Step>,
}

impl std::fmt::Debug for BlobReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobReader").field("at", &self.at).field("end", &self.end).finish_non_exhaustive()
    }
}

impl Cache {
    /// A reader over `range` of a blob, or over all of it.
    ///
    /// A range that begins far beyond what a running fill has is fetched from the upstream on its own (`bypass`)
    /// while the fill goes on: lazy-pulling snapshotters read a blob's tail first. What a client gets that way is
    /// as unverified as a part of a blob always is.
    ///
    /// Of a blob that is held the first bytes are read here, before anything is promised: if they show it to be damaged
    /// it is fetched instead.
    pub async fn reader(
        &self,
        repository: &Repository,
        digest: &Digest,
        blob: BlobAnswer,
        range: Option<Range<u64>>,
    ) -> Result<(BlobReader, Outcome), CacheError> {
        let (mut reader, outcome) = self.begin_reading(repository, digest, blob, range.clone()).await?;
        match reader.read_first().await {
            Ok(()) => Ok((reader, outcome)),
            Err(error) if error.is_damage() => {
                let blob = self.blob(repository, digest).await?;
                self.begin_reading(repository, digest, blob, range).await
            }
            Err(error) => Err(error),
        }
    }

    async fn begin_reading(
        &self,
        repository: &Repository,
        digest: &Digest,
        blob: BlobAnswer,
        range: Option<Range<u64>>,
    ) -> Result<(BlobReader, Outcome), CacheError> {
        let mut source = blob.source.ok_or(CacheError::Interrupted)?;
        let mut outcome = blob.outcome;
        source = match (source, &range) {
            (BlobSource::Filling(follower), Some(range)) => {
                follower.moved(range.start);
                let draft = follower.draft();
                let far = range.start > draft.progress().readable().saturating_add(FAR);
                let passing = if far { self.pass(repository, digest, range, draft).await } else { None };
                match passing {
                    Some(passing) => {
                        outcome = Outcome::Bypass;
                        BlobSource::Passing(passing, follower)
                    }
                    None => BlobSource::Filling(follower),
                }
            }
            (source, _) => source,
        };
        let whole = match &source {
            BlobSource::Stored(blob, _) => Some(blob.entry().size()),
            BlobSource::Filling(_) | BlobSource::Passing(..) => None,
        };
        let at = range.as_ref().map_or(0, |range| range.start);
        let end = range.map(|range| range.end).or(whole);
        let (cache, ready, steps) = (self.clone(), VecDeque::new(), VecDeque::new());
        Ok((BlobReader { cache, source, at, end, ready, steps }, outcome))
    }

    /// The beginning of a range straight from the upstream, piece by piece until the fill has come that far; `None` if
    /// the upstream does not give just that. Where it ends early, for whatever reason, the draft goes on.
    async fn pass(
        &self,
        repository: &Repository,
        digest: &Digest,
        range: &Range<u64>,
        draft: &Arc<Draft>,
    ) -> Option<mpsc::Receiver<Bytes>> {
        // Each holds a connection of the upstream's for as long as its client likes to read.
        let place = Arc::clone(&self.0.passing).try_acquire_owned().ok()?;
        let upstream = self.0.upstream(repository).ok()?;
        let (name, digest, mut left) = (repository.name.clone(), *digest, range.clone());
        let whole = draft.progress().total;
        let mut body = piece(&upstream, &name, &digest, &left, whole).await?;
        let (sender, passing) = mpsc::channel(QUEUE);
        let draft = Arc::clone(draft);
        let pass = async move {
            let _place = place;
            while left.start < left.end {
                match body.chunk().await {
                    Ok(Some(mut chunk)) => {
                        chunk.truncate(usize::try_from(left.end - left.start).unwrap_or(usize::MAX));
                        left.start += chunk.len() as u64;
                        let sent = tokio::time::timeout(STALLED, sender.send(chunk)).await;
                        if !matches!(sent, Ok(Ok(()))) {
                            return;
                        }
                    }
                    Ok(None) if draft.progress().readable() <= left.start => {
                        match piece(&upstream, &name, &digest, &left, whole).await {
                            Some(next) => body = next,
                            None => return,
                        }
                    }
                    Ok(None) | Err(_) => return,
                }
            }
        };
        tokio::spawn(pass.instrument(trace::background("range")));
        Some(passing)
    }
}

/// The next piece of a range, and nothing before or beside it.
async fn piece(
    upstream: &Upstream,
    name: &Name,
    digest: &Digest,
    left: &Range<u64>,
    whole: Option<u64>,
) -> Option<BlobBody> {
    let end = left.end.min(left.start.saturating_add(PIECE));
    let body = upstream
        .blob(name, digest, ByteRange { first: left.start, last: end.checked_sub(1) }, None)
        .await
        .ok()?;
    // A range of encoded bytes is none of the blob's; the length tells which they are.
    let encoded = body.gzip && body.total != whole;
    (body.offset == left.start && !encoded).then_some(body)
}

impl BlobReader {
    /// Has the first bytes of what is held ready.
    async fn read_first(&mut self) -> Result<(), CacheError> {
        if matches!(self.source, BlobSource::Stored(..))
            && let Some(first) = poll_fn(|cx| self.poll_next(cx)).await
        {
            self.ready.push_front(first?);
        }
        Ok(())
    }

    /// The next bytes; `None` at the end. An error means that the rest must not be sent.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, CacheError>>> {
        if let BlobSource::Passing(passing, follower) = &mut self.source
            && let Some(bytes) = ready!(passing.poll_recv(cx))
        {
            self.at += bytes.len() as u64;
            follower.moved(self.at);
            return Poll::Ready(Some(Ok(bytes)));
        }
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                self.read_ahead();
                return Poll::Ready(Some(Ok(bytes)));
            }
            if self.steps.is_empty() {
                if self.end.is_some_and(|end| self.at >= end) {
                    return Poll::Ready(None);
                }
                if let Some(bytes) = self.read_now() {
                    self.at += bytes.len() as u64;
                    return Poll::Ready(Some(Ok(bytes)));
                }
                self.begin_step(None);
            }
            let Some(step) = self.steps.front_mut() else { return Poll::Ready(None) };
            let found = ready!(step.bytes.as_mut().poll(cx));
            self.steps.pop_front();
            match found {
                Ok(found) if found.is_empty() => return Poll::Ready(None),
                Ok(found) => {
                    if let BlobSource::Filling(follower) | BlobSource::Passing(_, follower) = &self.source {
                        self.at += found.iter().map(|bytes| bytes.len() as u64).sum::<u64>();
                        follower.moved(self.at);
                    }
                    self.ready = found;
                }
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }

    /// Begins what will be needed, so that it is under way while what is ready goes out.
    fn read_ahead(&mut self) {
        match &self.source {
            BlobSource::Stored(blob, _) if blob.comes_by_itself() => {}
            // What comes after the tail of a draft is not known before it is there.
            BlobSource::Filling(_) | BlobSource::Passing(..) => {
                if self.steps.is_empty() && self.end.is_none_or(|end| self.at < end) {
                    self.begin_step(None);
                }
            }
            BlobSource::Stored(..) => {
                while self.steps.len() < AHEAD && self.end.is_none_or(|end| self.at < end) {
                    let first = self.steps.is_empty();
                    let room = Arc::clone(&self.cache.0.ahead).try_acquire_owned().ok();
                    if room.is_none() && !first {
                        break;
                    }
                    self.begin_step(room.filter(|_| !first));
                }
            }
        }
    }

    /// What needs no thread of its own because the system has it in memory.
    fn read_now(&self) -> Option<Bytes> {
        match &self.source {
            BlobSource::Stored(blob, _) => blob.read_now(self.at..self.end.unwrap_or(blob.entry().size())),
            BlobSource::Filling(_) | BlobSource::Passing(..) => None,
        }
    }

    fn begin_step(&mut self, room: Option<OwnedSemaphorePermit>) {
        let bytes: Pin<Box<dyn Future<Output = _> + Send>> = match &self.source {
            BlobSource::Stored(blob, pin) => {
                let end = self.end.unwrap_or(blob.entry().size());
                // Steps end where pages do, so that none is read twice.
                let range = self.at..end.min((self.at / STEP + 1) * STEP);
                self.at = range.end;
                let (cache, blob, held) = (self.cache.clone(), blob.clone(), pin.clone());
                if let Ok(turn) = Arc::clone(&cache.0.reading).try_acquire_owned() {
                    let step = step(turn, blob.clone(), held, range);
                    Box::pin(async move { found(&cache, &blob, step.await).await })
                } else {
                    // A task of its own, so that it goes on while nobody asks how far it is.
                    let step = tokio::spawn(step_in_turn(cache, blob, held, range));
                    Box::pin(async move { step.await.map_err(|_| CacheError::Interrupted)? })
                }
            }
            // What is passed through has ended, or this would not be asked for.
            BlobSource::Filling(follower) | BlobSource::Passing(_, follower) => {
                let draft = follower.draft();
                Box::pin(tail(Arc::clone(draft), draft.watch(), self.at, self.end))
            }
        };
        self.steps.push_back(Step { bytes, _room: room });
    }
}

/// What a step reads, on a blocking thread.
type Reads = JoinHandle<Result<Vec<Bytes>, StoreError>>;

/// Reads all of a range, which is one step long at most. It may outlive its client, and the blob must not go before it.
fn step(turn: OwnedSemaphorePermit, blob: OpenBlob, held: ContentPin, range: Range<u64>) -> Reads {
    spawn_blocking(move || {
        let _while = (turn, held);
        blob.read(range, STEP)
    })
}

/// The same once it may, and what becomes of it.
async fn step_in_turn(
    cache: Cache,
    blob: OpenBlob,
    held: ContentPin,
    range: Range<u64>,
) -> Result<VecDeque<Bytes>, CacheError> {
    // Nobody closes it.
    let turn = Arc::clone(&cache.0.reading).acquire_owned().await.map_err(|_| CacheError::Interrupted)?;
    found(&cache, &blob, step(turn, blob.clone(), held, range).await).await
}

/// What a step has read. A blob that shows to be damaged is taken out of service.
async fn found(
    cache: &Cache,
    blob: &OpenBlob,
    read: Result<Result<Vec<Bytes>, StoreError>, JoinError>,
) -> Result<VecDeque<Bytes>, CacheError> {
    match read.map_err(|_| CacheError::Interrupted)? {
        Ok(found) => Ok(found.into()),
        Err(error) => {
            if matches!(error, StoreError::Damaged(_)) {
                cache.heal(blob.entry(), &error).await;
            }
            Err(error.into())
        }
    }
}

/// The next bytes of a draft from `at`, as soon as there are any; none at its verified end.
async fn tail(
    draft: Arc<Draft>,
    mut watch: watch::Receiver<Progress>,
    at: u64,
    end: Option<u64>,
) -> Result<VecDeque<Bytes>, CacheError> {
    loop {
        let progress = *watch.borrow_and_update();
        let limit = progress.readable().min(end.unwrap_or(u64::MAX));
        if at < limit {
            if let Some(recent) = draft.recent(at..limit.min(at + STEP)) {
                return Ok(recent.into());
            }
            // What left the window is written: the writer counts it before it lets the window go.
            let written = limit.min(draft.progress().written);
            if at < written {
                if let Some(found) = draft.read_now(at..written) {
                    return Ok(VecDeque::from([found]));
                }
                let found: VecDeque<Bytes> = blocking(move || draft.read(at..written, STEP)).await?.into();
                // An empty step would read as the end.
                return if found.is_empty() { Err(CacheError::Interrupted) } else { Ok(found) };
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
