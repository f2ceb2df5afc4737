//! Network side of a fill: fetches the rest of a draft from the upstream, and resumes after interruptions.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use crate::cache::blob::pace::Pace;
use crate::cache::blob::write_pipeline::{DraftRoom, WritePipeline};
use crate::cache::error::CacheError;
use crate::oci::{Digest, Name};
use crate::source::{BlobBody, BlobSender, ByteRange, Source, SourceError, open_blob};
use crate::store::{Draft, DraftWriter, Store};
use crate::telemetry::trace;
use crate::upstream::MinRate;

/// Consecutive requests without progress before a download fails. They outlast a restart of the registry, because some
/// clients cannot get the rest of a blob elsewhere.
const FUTILE_REQUESTS_MAX: usize = 8;
/// Longest pause that a registry may ask for. A longer one ends the download.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Requests of one download in all.
const REQUESTS_MAX: usize = 100;
/// Time after which a draft that is not stored continues without a reader that takes no bytes.
const STALLED_READER_TIMEOUT: Duration = Duration::from_secs(30);

/// Download of one blob.
pub(super) struct Download<'a> {
    pub(super) store: &'a Store,
    /// Sources that may have the blob, in the order in which they are asked.
    pub(super) sources: &'a [Arc<dyn Source>],
    pub(super) name: &'a Name,
    pub(super) digest: &'a Digest,
    /// Size that a descriptor states. It may be wrong, so it decides nothing that the digest can decide.
    pub(super) size_hint: Option<u64>,
    /// Treatment of bodies that are labelled as gzip.
    pub(super) gzip_label: GzipLabel,
    /// Rate below which the download is given up if no client reads it.
    pub(super) min_rate: MinRate,
    /// Returns true if requests wait for the beginning of the download.
    pub(super) is_awaited: &'a (dyn Fn() -> bool + Send + Sync),
    /// Called when a draft that is not stored can no longer be joined.
    pub(super) on_unjoinable: &'a (dyn Fn() + Send + Sync),
}

/// Draft after its download.
pub(super) struct Downloaded {
    pub(super) writer: DraftWriter,
    /// Endpoints that sent a part of the draft.
    pub(super) senders: Vec<Arc<dyn BlobSender>>,
    pub(super) end: DownloadEnd,
    /// Treatment of the answers that were labelled as gzip; `None` if there were none. If the digest differs, the other
    /// treatment may be right.
    pub(super) gzip_label: Option<GzipLabel>,
}

/// Treatment of a body that is labelled as gzip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GzipLabel {
    /// The label is an object store's guess of the blob's type if the body has exactly the stated size, and true otherwise.
    Guess,
    /// The body is an encoding of the blob.
    Decode,
    /// The blob itself is a gzip file.
    Ignore,
}

/// End of a download.
pub(super) enum DownloadEnd {
    /// All bytes have arrived, according to the announced length.
    Complete,
    /// An earlier fill left a draft that needs no more bytes, if it is of this blob.
    Existing,
    /// The answers of the upstream contradict themselves or each other.
    Contradiction(String),
    /// The draft is not stored, and no reader is left.
    Unwanted,
    /// No client reads the draft, and it grows too slowly.
    TooSlow,
}

impl Download<'_> {
    /// Fetches all bytes after the end of the draft. `on_readable` is called once when readers can start.
    pub(super) async fn run(
        &self,
        writer: DraftWriter,
        room: DraftRoom<'_>,
        on_readable: impl FnOnce(Arc<Draft>),
    ) -> Result<Downloaded, CacheError> {
        let draft = Arc::clone(writer.draft());
        let backoff = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(Duration::from_secs(5))
            .with_max_times(FUTILE_REQUESTS_MAX)
            .with_jitter();
        let received = draft.progress().received;
        let mut run = DownloadRun {
            download: self,
            received,
            pace: Pace::new(self.min_rate, received, Instant::now()),
            draft,
            pipeline: WritePipeline::new(self.store.clone(), room, writer),
            senders: Vec::new(),
            used_gzip_label: None,
            is_end_doubted: false,
            on_readable: Some(on_readable),
            ranges: RangeSupport::Assumed,
            length_announced: false,
            requests: 0,
            delays: backoff.build(),
            backoff,
        };
        let end = run.run().await;
        let DownloadRun { pipeline, senders, used_gzip_label: gzip_label, .. } = run;
        // Awaited also after an error: nothing may be writing when the fill ends.
        let writer = pipeline.finish().await;
        Ok(Downloaded { end: end?, writer: writer?, senders, gzip_label })
    }
}

/// Download in progress.
struct DownloadRun<'a, F> {
    download: &'a Download<'a>,
    draft: Arc<Draft>,
    pipeline: WritePipeline<'a>,
    senders: Vec<Arc<dyn BlobSender>>,
    /// Treatment of the answers that were labelled as gzip.
    used_gzip_label: Option<GzipLabel>,
    /// True if the end of a body without a length was checked with another request.
    is_end_doubted: bool,
    /// Taken when readers can start.
    on_readable: Option<F>,
    ranges: RangeSupport,
    /// True once an answer has announced the length.
    length_announced: bool,
    requests: usize,
    /// Bytes that had arrived before the last progress.
    received: u64,
    pace: Pace,
    backoff: ExponentialBuilder,
    delays: ExponentialBackoff,
}

/// Support of the upstream for ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RangeSupport {
    /// No answer contradicts it.
    Assumed,
    /// One answer to a range may have been a refusal of ranges.
    Doubtful,
    /// Ask for the whole blob.
    Refused,
}

/// Next step of a download.
enum DownloadState {
    /// Send a request for the rest of the blob.
    Request,
    /// Receive the body of an answer.
    Receive(BlobBody),
    /// Wait before the next request.
    BackOff(SourceError),
    /// End the download.
    End(DownloadEnd),
}

impl DownloadState {
    const fn as_str(&self) -> &'static str {
        match self {
            Self::Request => "download.request",
            Self::Receive(_) => "download.receive",
            Self::BackOff(_) => "download.back_off",
            Self::End(_) => "download.end",
        }
    }
}

impl<F: FnOnce(Arc<Draft>)> DownloadRun<'_, F> {
    async fn run(&mut self) -> Result<DownloadEnd, CacheError> {
        let mut state = self.start();
        loop {
            trace::state(state.as_str());
            state = match state {
                DownloadState::Request => self.request().await?,
                DownloadState::Receive(body) => self.receive(body).await?,
                DownloadState::BackOff(error) => self.back_off(error).await?,
                DownloadState::End(end) => return Ok(end),
            };
        }
    }

    fn start(&mut self) -> DownloadState {
        let Download { size_hint, digest, .. } = self.download;
        if *size_hint != Some(self.received) {
            return DownloadState::Request;
        }
        if self.received == 0 {
            let is_empty = **digest == Digest::of(digest.algorithm(), b"");
            return if is_empty { DownloadState::End(DownloadEnd::Complete) } else { DownloadState::Request };
        }
        // Hashing a large draft takes long. Readers can have all bytes but the last one meanwhile.
        self.draft.announce(self.received);
        self.report_readable();
        DownloadState::End(DownloadEnd::Existing)
    }

    async fn request(&mut self) -> Result<DownloadState, CacheError> {
        if self.requests == REQUESTS_MAX {
            return Err(CacheError::unreachable("the upstream interrupted the download too often"));
        }
        self.requests += 1;
        // A range of an encoded body is not a range of the blob.
        if self.is_decoded() {
            self.ranges = RangeSupport::Refused;
        }
        let from = if self.ranges == RangeSupport::Refused { 0 } else { self.draft.progress().received };
        let Download { sources, name, digest, .. } = self.download;
        let asked_at = Instant::now();
        let answer = open_blob(sources, name, digest, ByteRange::from(from)).await;
        self.pace.skip(asked_at.elapsed());
        match answer.and_then(|body| self.decode(body)) {
            Ok(body) => Ok(DownloadState::Receive(body)),
            Err(error) => self.refused(error, from),
        }
    }

    /// Handles a request that was answered without a body that can be used.
    fn refused(&mut self, error: SourceError, from: u64) -> Result<DownloadState, CacheError> {
        let has_readers = self.on_readable.is_none();
        match error {
            SourceError::RangeNotSatisfiable if from > 0 && !has_readers => {
                Ok(DownloadState::End(DownloadEnd::Existing))
            }
            // No answer has announced a length, and there are no more bytes.
            SourceError::RangeNotSatisfiable if from > 0 && !self.length_announced => {
                Ok(DownloadState::End(DownloadEnd::Complete))
            }
            // An upstream that refuses ranges may still send the whole blob.
            error if from > 0 && error.is_about_range() => {
                self.ranges = RangeSupport::Refused;
                Ok(DownloadState::BackOff(error))
            }
            error if from > 0 && error.may_be_about_range() => {
                self.ranges = match self.ranges {
                    RangeSupport::Assumed => RangeSupport::Doubtful,
                    RangeSupport::Doubtful | RangeSupport::Refused => RangeSupport::Refused,
                };
                Ok(DownloadState::BackOff(error))
            }
            // No reader depends on this download, and the upstream layer has retried already.
            error if !has_readers => Err(error.into()),
            // A signed address may have expired: a request without a range starts at the registry's own address.
            error @ (SourceError::RangeNotSatisfiable | SourceError::Invalid(_)) => {
                self.ranges = RangeSupport::Refused;
                Ok(DownloadState::BackOff(error))
            }
            error => Ok(DownloadState::BackOff(error)),
        }
    }

    async fn receive(&mut self, body: BlobBody) -> Result<DownloadState, CacheError> {
        self.length_announced |= body.total.is_some();
        self.add_sender(&body);
        if let Some(contradiction) = self.announce(&body) {
            return Ok(DownloadState::End(contradiction));
        }
        self.report_readable();
        let contradiction = |reason: String| Ok(DownloadState::End(DownloadEnd::Contradiction(reason)));
        match self.copy(body).await? {
            BodyEnd::Complete => Ok(DownloadState::End(DownloadEnd::Complete)),
            BodyEnd::Unwanted => Ok(DownloadState::End(DownloadEnd::Unwanted)),
            BodyEnd::TooSlow => Ok(DownloadState::End(DownloadEnd::TooSlow)),
            BodyEnd::TooLong => contradiction("the upstream sends more than it announced".to_owned()),
            BodyEnd::Broken(error @ SourceError::Undecodable) => contradiction(error.to_string()),
            BodyEnd::Short if self.is_decoded() => {
                contradiction("what the upstream sends decodes to less".to_owned())
            }
            BodyEnd::Short => {
                let error = SourceError::Interrupted("it ended before its length".to_owned());
                Ok(DownloadState::BackOff(error))
            }
            BodyEnd::Broken(error) => Ok(DownloadState::BackOff(error)),
        }
    }

    /// Adds the sender of a body to the list, once.
    fn add_sender(&mut self, body: &BlobBody) {
        if let Some(sender) = &body.sender
            && !self.senders.iter().any(|known| Arc::ptr_eq(known, sender))
        {
            self.senders.push(Arc::clone(sender));
        }
    }

    async fn back_off(&mut self, error: SourceError) -> Result<DownloadState, CacheError> {
        let received = self.draft.progress().received;
        if received > self.received {
            self.received = received;
            self.delays = self.backoff.build();
        }
        let Some(delay) = self.delays.next() else { return Err(error.into()) };
        let delay = match error.retry_after() {
            Some(pause) if pause > PAUSE_MAX => return Err(error.into()),
            pause => delay.max(pause.unwrap_or_default()),
        };
        tracing::info!(digest = %self.download.digest, %error, received, "download interrupted; resuming");
        tokio::time::sleep(delay).await;
        Ok(DownloadState::Request)
    }

    fn report_readable(&mut self) {
        if let Some(on_readable) = self.on_readable.take() {
            on_readable(Arc::clone(&self.draft));
        }
    }

    /// Decodes a body that is labelled as gzip, unless its length is exactly the stated size: then the blob itself is a
    /// gzip file, as most layers are, and the label is an object store's guess of its type. The guess is corrected when the
    /// digest differs.
    fn decode(&mut self, body: BlobBody) -> Result<BlobBody, SourceError> {
        if !body.gzip {
            return Ok(body);
        }
        let size = self.download.size_hint;
        let is_ignored = match self.download.gzip_label {
            GzipLabel::Guess => size.is_some() && body.total == size,
            GzipLabel::Decode => false,
            GzipLabel::Ignore => true,
        };
        if is_ignored {
            self.used_gzip_label.get_or_insert(GzipLabel::Ignore);
            return Ok(body);
        }
        if body.offset > 0 {
            return Err(SourceError::Invalid("a part of an encoded body is no part of the blob".to_owned()));
        }
        self.used_gzip_label = Some(GzipLabel::Decode);
        Ok(body.decoded())
    }

    fn is_decoded(&self) -> bool {
        self.used_gzip_label == Some(GzipLabel::Decode)
    }

    /// Records the length that an answer announces. A length that contradicts an earlier one ends the download. The size in
    /// a descriptor is not announced to clients: it may be wrong.
    fn announce(&self, body: &BlobBody) -> Option<DownloadEnd> {
        match (self.draft.progress().total, body.total) {
            (Some(before), Some(total)) if before != total => Some(DownloadEnd::Contradiction(format!(
                "the upstream announced {before} bytes, and now {total}"
            ))),
            (_, Some(total)) => {
                self.draft.announce(total);
                None
            }
            (_, None) => None,
        }
    }

    /// Decides whether a body without a length is complete. A body that is closed early looks complete, so a body that is
    /// shorter than the stated size is checked once with a request for the rest.
    fn end_without_length(&mut self, received: u64) -> BodyEnd {
        let is_short = !self.is_decoded() && self.download.size_hint.is_some_and(|size| received < size);
        if is_short && !std::mem::replace(&mut self.is_end_doubted, true) {
            return BodyEnd::Short;
        }
        BodyEnd::Complete
    }

    /// Waits until readers have taken enough of a draft that is not stored. Returns false if there are none.
    async fn make_room(&self) -> bool {
        let Download { is_awaited, on_unjoinable, .. } = self.download;
        self.draft.make_room(STALLED_READER_TIMEOUT, is_awaited, on_unjoinable).await
    }

    /// Waits for the next bytes of a body. `None` if no client reads the draft and it grows too slowly.
    async fn next_chunk(&mut self, body: &mut BlobBody) -> Option<Result<Option<Bytes>, SourceError>> {
        // One future for all checks: it has the idle time-out of the body.
        let mut chunk = pin!(body.chunk());
        loop {
            if Instant::now() >= self.pace.next_check() {
                let is_read = self.draft.clients() > 0 || (self.download.is_awaited)();
                if self.pace.is_too_slow(self.draft.progress().received, is_read, Instant::now()) {
                    return None;
                }
            }
            if let Ok(chunk) = timeout_at(self.pace.next_check(), chunk.as_mut()).await {
                return Some(chunk);
            }
        }
    }

    /// Copies the body of one answer into the draft, without the bytes that the draft has already.
    async fn copy(&mut self, mut body: BlobBody) -> Result<BodyEnd, CacheError> {
        let draft = Arc::clone(&self.draft);
        // An upstream that ignores ranges sends the prefix again. If it differs, the digest will differ too.
        let mut surplus = draft.progress().received.saturating_sub(body.offset);
        loop {
            let mut chunk = match self.next_chunk(&mut body).await {
                Some(Ok(Some(chunk))) => chunk,
                Some(Ok(None)) => break,
                Some(Err(error)) => return Ok(BodyEnd::Broken(error)),
                None => return Ok(BodyEnd::TooSlow),
            };
            let skipped = usize::try_from(surplus).unwrap_or(usize::MAX).min(chunk.len());
            surplus -= skipped as u64;
            drop(chunk.split_to(skipped));
            if chunk.is_empty() {
                continue;
            }
            let progress = draft.progress();
            if progress.total.is_some_and(|total| progress.received + chunk.len() as u64 > total) {
                return Ok(BodyEnd::TooLong);
            }
            if !draft.is_kept() && !self.make_room().await {
                return Ok(BodyEnd::Unwanted);
            }
            draft.receive(chunk.clone());
            self.pipeline.append(chunk).await?;
        }
        let progress = draft.progress();
        Ok(match progress.total {
            Some(total) if progress.received < total => BodyEnd::Short,
            Some(_) => BodyEnd::Complete,
            None => self.end_without_length(progress.received),
        })
    }
}

/// End of one answer's body.
enum BodyEnd {
    Complete,
    /// The transfer failed.
    Broken(SourceError),
    /// The body ended before the announced length.
    Short,
    /// The body is longer than the announced length.
    TooLong,
    /// The draft is not stored, and no reader is left.
    Unwanted,
    /// No client reads the draft, and it grows too slowly.
    TooSlow,
}
