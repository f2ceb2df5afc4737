//! Range of a blob that is passed through from the upstream, because the running fill is far behind it.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tracing::Instrument as _;

use crate::cache::blob::blobs::Blobs;
use crate::oci::{Digest, Name, Repository};
use crate::source::{BlobBody, ByteRange, Source as _};
use crate::store::Draft;
use crate::telemetry::trace;
use crate::upstream::{Slot, Upstream};

/// Bytes of one request. Clients that want one chunk request everything after it and disconnect when they have the chunk, as
/// containerd does. A small request then costs little more than the client reads, and keeps the connection usable.
const PIECE: u64 = 4 << 20;
/// Time after which a client that takes no bytes is given up.
const STALLED_CLIENT_TIMEOUT: Duration = Duration::from_secs(30);
/// Chunks between the upstream and the client.
const QUEUE: usize = 4;

/// Range that is being passed through.
struct Passthrough {
    upstream: Arc<Upstream>,
    name: Name,
    digest: Digest,
    /// Bytes that are still to be sent.
    rest: Range<u64>,
    draft: Arc<Draft>,
    /// Length of the blob, if it was known at the start.
    total: Option<u64>,
    /// Held while a connection of the upstream is in use.
    _slot: Slot<Repository>,
}

impl Blobs {
    /// Starts to pass a range through, piece by piece until the fill has caught up. `None` if the upstream does not send
    /// exactly this range. If the transfer ends early, the reader continues with the draft.
    pub(super) async fn pass_through(
        &self,
        repository: &Repository,
        digest: &Digest,
        range: &Range<u64>,
        draft: &Arc<Draft>,
    ) -> Option<mpsc::Receiver<Bytes>> {
        let slot = self.passthrough.try_acquire(repository)?;
        let passthrough = Passthrough {
            upstream: self.rules.upstream(repository).ok()?,
            name: repository.name.clone(),
            digest: *digest,
            rest: range.clone(),
            draft: Arc::clone(draft),
            total: draft.progress().total,
            _slot: slot,
        };
        let body = passthrough.next_piece().await?;
        let (sender, chunks) = mpsc::channel(QUEUE);
        tokio::spawn(passthrough.run(body, sender).instrument(trace::background("range")));
        Some(chunks)
    }
}

impl Passthrough {
    async fn run(mut self, mut body: BlobBody, sender: mpsc::Sender<Bytes>) {
        while self.rest.start < self.rest.end {
            match body.chunk().await {
                Ok(Some(mut chunk)) => {
                    let rest = self.rest.end - self.rest.start;
                    chunk.truncate(usize::try_from(rest).unwrap_or(usize::MAX));
                    self.rest.start += chunk.len() as u64;
                    let sent = tokio::time::timeout(STALLED_CLIENT_TIMEOUT, sender.send(chunk)).await;
                    if !matches!(sent, Ok(Ok(()))) {
                        return;
                    }
                }
                Ok(None) if self.draft.progress().readable() <= self.rest.start => {
                    match self.next_piece().await {
                        Some(next) => body = next,
                        None => return,
                    }
                }
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Requests the next piece. `None` unless the upstream sends exactly this piece.
    async fn next_piece(&self) -> Option<BlobBody> {
        let end = self.rest.end.min(self.rest.start.saturating_add(PIECE));
        let range = ByteRange { first: self.rest.start, last: end.checked_sub(1) };
        let body = self.upstream.blob(&self.name, &self.digest, range, None).await.ok()?;
        // A range of an encoded body is not a range of the blob. The length shows whether the body is encoded.
        let is_encoded = body.gzip && body.total != self.total;
        (body.offset == self.rest.start && !is_encoded).then_some(body)
    }
}
