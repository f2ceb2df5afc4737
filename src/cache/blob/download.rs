//! The network side of a fill: brings the rest of a draft from the upstream, across interruptions.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};

use crate::oci::{Digest, Name};
use crate::source::{BlobBody, BlobSender, ByteRange, Source, SourceError, open_blob};
use crate::store::{Draft, DraftWriter};

use crate::cache::blob::write_pipeline::WritePipeline;
use crate::cache::error::CacheError;

/// Attempts in a row that bring nothing before a fill gives up: enough to outlast a registry's restart, because some
/// clients that hold a part of an image cannot go elsewhere for the rest.
const BARREN_MAX: usize = 8;
/// A registry that wants to be left alone for longer is not waited for.
const REST_MAX: Duration = Duration::from_secs(30);
/// Attempts in all; an upstream that cuts this often is not worth more.
const ATTEMPTS_MAX: usize = 100;

/// How long a reader may stand still before a draft that is not kept goes on without it.
const STALLED: Duration = Duration::from_secs(30);

/// A draft after its download.
pub(in crate::cache) struct Downloaded {
    pub(in crate::cache) writer: DraftWriter,
    /// The endpoints that sent a part of it.
    pub(in crate::cache) senders: Vec<Arc<dyn BlobSender>>,
    pub(in crate::cache) ending: DownloadEnd,
    /// Whether the bytes are what an answer labelled as gzip decoded to: if they are wrong, the label may be.
    pub(in crate::cache) decoded: bool,
}

/// How a download ended.
pub(in crate::cache) enum DownloadEnd {
    /// All bytes are there, as far as lengths tell.
    Complete,
    /// The upstream's answer contradicts itself, or an earlier one.
    Wrong(String),
    /// The upstream's length is not the one that a descriptor promised.
    Unlike(String),
    /// It is not kept, and all who read it have left.
    Unwanted,
    /// The draft that was taken over needs nothing more, if it is of this blob at all.
    Left,
}

/// What is asked for.
pub(in crate::cache) struct Download<'a> {
    /// Places that may have the blob, in the order in which they are asked.
    pub(in crate::cache) sources: &'a [Arc<dyn Source>],
    pub(in crate::cache) name: &'a Name,
    pub(in crate::cache) digest: &'a Digest,
    /// What a descriptor said of the size.
    pub(in crate::cache) size: Option<u64>,
    /// Whether the bytes of an answer labelled as gzip are known to be the blob itself.
    pub(in crate::cache) mislabelled: bool,
    /// Called when nobody can begin to read the draft any more.
    pub(in crate::cache) leaving: &'a (dyn Fn() + Send + Sync),
}

enum PumpEnd {
    End,
    Broken(SourceError),
    /// It ended in good order before the length that is known.
    Short,
    TooLong,
    Unwanted,
    NotKept(CacheError),
}

impl Download<'_> {
    /// Brings everything after what the draft has. `running` is called once there is something to read: the upstream has
    /// begun to send, or need not be asked.
    pub(in crate::cache) async fn run(
        &self,
        writer: DraftWriter,
        running: impl FnOnce(Arc<Draft>),
    ) -> Result<Downloaded, CacheError> {
        let draft = Arc::clone(writer.draft());
        let mut writing = WritePipeline::new(writer);
        let (mut senders, mut decoded) = (Vec::new(), false);
        let ended = self.attempts(&draft, &mut writing, &mut senders, &mut decoded, running).await;
        // The writer comes back in any case: nothing may still be writing when the fill leaves the board.
        let writer = writing.end().await;
        Ok(Downloaded { ending: ended?, writer: writer?, senders, decoded })
    }

    async fn attempts(
        &self,
        draft: &Arc<Draft>,
        writing: &mut WritePipeline,
        senders: &mut Vec<Arc<dyn BlobSender>>,
        decoded: &mut bool,
        running: impl FnOnce(Arc<Draft>),
    ) -> Result<DownloadEnd, CacheError> {
        let mut running = Some(running);
        let patience = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(Duration::from_secs(5))
            .with_max_times(BARREN_MAX)
            .with_jitter();
        let mut delays = patience.build();
        let mut last = draft.progress().received;
        if self.size == Some(last) {
            if last == 0 {
                return Ok(DownloadEnd::Complete);
            }
            // To hash it may take long; readers need not wait for more than its last byte.
            draft.announce(last);
            running.take().into_iter().for_each(|running| running(Arc::clone(draft)));
            return Ok(DownloadEnd::Left);
        }
        let (mut ranged, mut told) = (true, false);
        for _ in 0..ATTEMPTS_MAX {
            // A part of an encoded body is no part of the blob.
            ranged &= !*decoded;
            let from = if ranged { draft.progress().received } else { 0 };
            let answer = open_blob(self.sources, self.name, self.digest, ByteRange::from(from)).await;
            let error = match answer.and_then(|body| self.read(body, decoded)) {
                Ok(body) => {
                    told |= body.total.is_some();
                    add_sender(senders, body.sender.as_ref());
                    if let Some(contradiction) = self.announce(draft, &body) {
                        return Ok(contradiction);
                    }
                    if let Some(running) = running.take() {
                        running(Arc::clone(draft));
                    }
                    match pump(draft, writing, body, self.leaving).await {
                        PumpEnd::End => return Ok(DownloadEnd::Complete),
                        PumpEnd::Unwanted => return Ok(DownloadEnd::Unwanted),
                        PumpEnd::TooLong => {
                            return Ok(DownloadEnd::Wrong(
                                "the upstream sends more than it announced".into(),
                            ));
                        }
                        PumpEnd::NotKept(error) => return Err(error),
                        PumpEnd::Broken(error @ SourceError::Undecodable) => {
                            return Ok(DownloadEnd::Wrong(error.to_string()));
                        }
                        PumpEnd::Short if *decoded => {
                            return Ok(DownloadEnd::Wrong("what the upstream sends decodes to less".into()));
                        }
                        PumpEnd::Short => SourceError::Interrupted("it ended before its length".to_owned()),
                        PumpEnd::Broken(error) => error,
                    }
                }
                Err(SourceError::RangeNotSatisfiable) if running.is_some() && from > 0 => {
                    return Ok(DownloadEnd::Left);
                }
                // The length was only promised, and all that there is has come.
                Err(SourceError::RangeNotSatisfiable) if from > 0 && !told => {
                    return Ok(DownloadEnd::Unlike(format!(
                        "its descriptor promises more than the {from} bytes there are"
                    )));
                }
                // A range that is answered wrongly or not at all is worth another attempt without one.
                Err(error @ SourceError::Invalid(_)) if from > 0 => {
                    ranged = false;
                    error
                }
                // Nobody reads yet, and the upstream layer has tried more than once already.
                Err(error) if running.is_some() => return Err(error.into()),
                // Clients hold a part of it: a signed address that has run out is worth another attempt, from the
                // registry's own address.
                Err(error @ (SourceError::RangeNotSatisfiable | SourceError::Invalid(_))) => {
                    ranged = false;
                    error
                }
                Err(error) => error,
            };
            let received = draft.progress().received;
            if received > last {
                last = received;
                delays = patience.build();
            }
            let Some(delay) = delays.next() else { return Err(error.into()) };
            let delay = match error.retry_after() {
                Some(rest) if rest > REST_MAX => return Err(error.into()),
                rest => delay.max(rest.unwrap_or_default()),
            };
            tracing::info!(digest = %self.digest, %error, received, "the upstream broke off; resuming");
            tokio::time::sleep(delay).await;
        }
        Err(CacheError::Unreachable("the upstream broke off too often".to_owned()))
    }

    /// Decides what the bytes of an answer are taken for. One that is labelled as gzip is decoded, unless its length
    /// is just what a descriptor promised: then the blob is a gzip file itself, as most layers are, and the label is
    /// an object store's idea of its type. Where no length decides, the label is believed until the digest differs.
    fn read(&self, body: BlobBody, decoded: &mut bool) -> Result<BlobBody, SourceError> {
        let promised = self.size.is_some() && body.total == self.size;
        if !body.gzip || self.mislabelled || promised {
            return Ok(body);
        }
        if body.offset > 0 {
            return Err(SourceError::Invalid("a part of an encoded body is no part of the blob".to_owned()));
        }
        *decoded = true;
        Ok(body.decoded())
    }

    /// Notes the length that an answer announces; one that contradicts what is known ends the download.
    fn announce(&self, draft: &Draft, body: &BlobBody) -> Option<DownloadEnd> {
        let before = draft.progress().total;
        match (self.size, before, body.total) {
            (Some(size), _, Some(total)) if size != total => {
                Some(DownloadEnd::Unlike(format!("its descriptor says {size} bytes, the upstream {total}")))
            }
            (_, Some(before), Some(total)) if before != total => {
                Some(DownloadEnd::Wrong(format!("the upstream announced {before} bytes, and now {total}")))
            }
            (size, _, total) => {
                if let Some(total) = total.or(size) {
                    draft.announce(total);
                }
                None
            }
        }
    }
}

/// Notes the sender of a body, once.
fn add_sender(senders: &mut Vec<Arc<dyn BlobSender>>, sender: Option<&Arc<dyn BlobSender>>) {
    if let Some(sender) = sender
        && !senders.iter().any(|known| Arc::ptr_eq(known, sender))
    {
        senders.push(Arc::clone(sender));
    }
}

/// Moves one answer's body into the draft, leaving out what the draft has already.
async fn pump(
    draft: &Draft,
    writing: &mut WritePipeline,
    mut body: BlobBody,
    leaving: &(dyn Fn() + Send + Sync),
) -> PumpEnd {
    // An upstream that ignores ranges sends the same prefix again; the digest will tell if it is not the same.
    let mut surplus = draft.progress().received.saturating_sub(body.offset);
    loop {
        let mut chunk = match body.chunk().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            Err(error) => return PumpEnd::Broken(error),
        };
        let skipped = usize::try_from(surplus).unwrap_or(usize::MAX).min(chunk.len());
        surplus -= skipped as u64;
        drop(chunk.split_to(skipped));
        if chunk.is_empty() {
            continue;
        }
        let progress = draft.progress();
        if progress.total.is_some_and(|total| progress.received + chunk.len() as u64 > total) {
            return PumpEnd::TooLong;
        }
        if !draft.is_kept() && !draft.make_room(STALLED, leaving).await {
            return PumpEnd::Unwanted;
        }
        draft.receive(chunk.clone());
        if let Err(error) = writing.take(chunk).await {
            return PumpEnd::NotKept(error);
        }
    }
    let progress = draft.progress();
    match progress.total {
        Some(total) if progress.received < total => PumpEnd::Short,
        _ => PumpEnd::End,
    }
}
