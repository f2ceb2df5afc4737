//! Blob whose digest cannot be verified, passed through from the upstream. Nothing of it is stored.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tracing::Instrument as _;

use crate::cache::blob::blobs::Blobs;
use crate::cache::deadline::in_time;
use crate::cache::error::CacheError;
use crate::oci::{Repository, UnverifiableDigest};
use crate::source::{BlobBody, Source as _};
use crate::telemetry::trace;

/// Time after which a client that takes no bytes is given up.
const STALLED_CLIENT_TIMEOUT: Duration = Duration::from_secs(30);
/// Chunks between the upstream and the client.
const QUEUE: usize = 4;

/// Blob whose bytes are unverified, also at the end.
#[derive(Debug)]
pub struct UnverifiableBlob {
    /// Length that the upstream announces.
    pub size: Option<u64>,
    /// True if the upstream labels the body as encoded with gzip.
    pub is_gzip: bool,
    body: BlobBody,
}

impl Blobs {
    /// Opens a blob at its upstream. `None` unless the configuration permits such blobs.
    pub(in crate::cache) async fn unverifiable(
        &self,
        repository: &Repository,
        digest: &UnverifiableDigest,
    ) -> Result<Option<UnverifiableBlob>, CacheError> {
        let upstream = self.rules.upstream(repository)?;
        if !upstream.passes_unverifiable() {
            return Ok(None);
        }
        upstream.check_loop()?;
        let body = in_time(async { Ok(upstream.unverifiable_blob(&repository.name, digest, None).await?) });
        let body = body.await?;
        Ok(Some(UnverifiableBlob { size: body.total, is_gzip: body.gzip, body }))
    }
}

impl UnverifiableBlob {
    /// Starts the transfer. After an error the rest must not be sent.
    pub fn into_chunks(self) -> mpsc::Receiver<Result<Bytes, CacheError>> {
        let (sender, chunks) = mpsc::channel(QUEUE);
        tokio::spawn(transfer(self.body, sender).instrument(trace::background("unverifiable")));
        chunks
    }
}

async fn transfer(mut body: BlobBody, sender: mpsc::Sender<Result<Bytes, CacheError>>) {
    loop {
        let chunk = match body.chunk().await {
            Ok(None) => return,
            Ok(Some(chunk)) => Ok(chunk),
            Err(error) => Err(error.into()),
        };
        let is_last = chunk.is_err();
        let sent = tokio::time::timeout(STALLED_CLIENT_TIMEOUT, sender.send(chunk)).await;
        if is_last || !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
}
