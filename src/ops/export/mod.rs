//! `export`: sends an image as an OCI layout in a tar. Missing content is fetched during the export.
//!
//! The content is listed first, so that the length and most errors are known before the first byte is sent. Manifests
//! are sent unchanged. An export that fails is shorter than its stated length.

mod plan;
mod report;
mod search;

use std::future::poll_fn;

use backon::Retryable as _;
use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::cache::{Cache, CacheError, CacheErrorKind};
use crate::oci::{Digest, Repository};

use self::plan::{ArchivePart, PlannedBlob};
pub use self::report::ExportReport;
use self::search::Search;
use super::operations::Operations;
use super::platform::Platform;
use super::protocol::{ExportRequest, OpsError};
use super::reference;
use super::warm::backoff;
use crate::layout::{TAR_END, blob_path, file_header, padding};

/// Chunks that wait for the receiver at most.
const QUEUE: usize = 4;
/// Blobs that are fetched ahead.
const AHEAD: usize = 4;
/// Attempts to read a blob to its end.
const ATTEMPTS: usize = 3;

/// Running export.
#[derive(Debug)]
pub struct Export {
    /// Report of the export.
    pub report: ExportReport,
    /// Length of the archive in bytes.
    pub length: u64,
    /// Chunks of the archive. After an error no more chunks follow.
    pub pieces: mpsc::Receiver<Result<Bytes, CacheError>>,
}

/// Starts an export.
pub async fn export(operations: &Operations, ask: ExportRequest) -> Result<Export, OpsError> {
    let cache = operations.cache();
    let named = reference::parse(cache, &ask.reference)?;
    let platforms: Vec<(String, Platform)> = ask
        .platforms
        .iter()
        .map(|text| Ok((text.clone(), Platform::parse(text)?)))
        .collect::<Result<_, OpsError>>()?;
    let name = match (&ask.name, &named.tag) {
        (Some(name), _) => Some(reference::whole(cache, name)?),
        (None, Some(tag)) => Some((format!("{}:{tag}", named.repository), tag.to_string())),
        (None, None) => None,
    };
    let search = Search { cache, named: &named, platforms: &platforms, offline: ask.offline };
    let plan = search.plan().await?;
    let parts = plan.parts(name.as_ref());
    let length = parts.iter().map(ArchivePart::length).fold(TAR_END.len() as u64, u64::saturating_add);
    let report = plan.report(&named, name);
    let (sender, pieces) = mpsc::channel(QUEUE);
    let sending =
        Sending { cache: cache.clone(), repository: named.repository, offline: ask.offline, sender };
    tokio::spawn(async move {
        if let Err(Stop::Failed(error)) = sending.run(&parts).await {
            tracing::warn!(reference = %sending.repository, %error, "an export broke off");
            // The receiver may be gone.
            let _ = sending.sender.send(Err(error)).await;
        }
    });
    Ok(Export { report, length, pieces })
}

/// Reason why an export stops.
enum Stop {
    /// The receiver was dropped.
    Gone,
    Failed(CacheError),
}

impl From<CacheError> for Stop {
    fn from(error: CacheError) -> Self {
        Self::Failed(error)
    }
}

/// Sender of an archive.
struct Sending {
    cache: Cache,
    repository: Repository,
    offline: bool,
    sender: mpsc::Sender<Result<Bytes, CacheError>>,
}

impl Sending {
    async fn run(&self, parts: &[ArchivePart]) -> Result<(), Stop> {
        // Dropping the set stops the waiting, not the fills, which the cache owns.
        let (mut ahead, mut begun) = (JoinSet::new(), 0);
        for (place, part) in parts.iter().enumerate() {
            for next in parts.iter().take(place + 1 + AHEAD).skip(begun.max(place + 1)) {
                if let ArchivePart::Blob(PlannedBlob { digest, held: false, .. }) = next {
                    ahead.spawn(fetch(self.cache.clone(), self.repository.clone(), *digest));
                }
            }
            begun = place + 1 + AHEAD;
            match part {
                ArchivePart::File(path, content) => {
                    let mut bytes = BytesMut::from(&*file_header(path, content.len() as u64));
                    bytes.extend_from_slice(content);
                    bytes.extend_from_slice(padding(content.len() as u64));
                    self.send(bytes.freeze()).await?;
                }
                ArchivePart::Blob(blob) => {
                    self.send(file_header(&blob_path(&blob.digest), blob.size)).await?;
                    self.blob(blob).await?;
                    self.send(Bytes::from_static(padding(blob.size))).await?;
                }
            }
        }
        self.send(Bytes::from_static(&TAR_END)).await
    }

    /// Sends a blob. If the cached copy is corrupt, the rest is fetched unless `offline` is set.
    async fn blob(&self, blob: &PlannedBlob) -> Result<(), Stop> {
        let mut at = 0;
        for _ in 1..ATTEMPTS {
            match self.rest(blob, &mut at).await {
                Err(Stop::Failed(error)) if !self.offline && is_worth_another(&error) => {
                    tracing::info!(digest = %blob.digest, %error, at, "a blob broke off in an export; going on");
                }
                ended => return ended,
            }
        }
        self.rest(blob, &mut at).await
    }

    async fn rest(&self, blob: &PlannedBlob, at: &mut u64) -> Result<(), Stop> {
        let PlannedBlob { digest, size, .. } = blob;
        let attempt = || self.cache.blob(&self.repository, digest);
        let found = attempt.retry(backoff()).when(CacheError::is_retryable).await?;
        let range = (*at > 0).then_some(*at..*size);
        let (mut reader, _) = self.cache.reader(&self.repository, digest, found, range).await?;
        while let Some(piece) = poll_fn(|cx| reader.poll_next(cx)).await {
            let piece = piece?;
            *at += piece.len() as u64;
            if *at > *size {
                return Err(CacheError::Mismatch(format!("{digest} is longer than {size} bytes")).into());
            }
            self.send(piece).await?;
        }
        if *at < *size { Err(CacheError::Interrupted.into()) } else { Ok(()) }
    }

    async fn send(&self, bytes: Bytes) -> Result<(), Stop> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.sender.send(Ok(bytes)).await.map_err(|_| Stop::Gone)
    }
}

/// Returns true if another read may succeed: corrupt content is fetched again.
fn is_worth_another(error: &CacheError) -> bool {
    error.is_retryable() || error.kind() == CacheErrorKind::Corrupt
}

/// Fetches a blob before it is sent. An error is found again when the blob is sent.
async fn fetch(cache: Cache, repository: Repository, digest: Digest) {
    let attempt = || cache.fetch_blob(&repository, &digest, |_| {});
    drop(attempt.retry(backoff()).when(CacheError::is_retryable).await);
}
