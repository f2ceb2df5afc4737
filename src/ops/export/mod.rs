//! `export`: sends an image as an OCI layout in a tar. Missing content is fetched during the export.
//!
//! The content is listed first, so that the length and most errors are known before the first byte is sent. Manifests
//! are sent unchanged. An export that fails is shorter than its stated length.

mod lists;
mod plan;
mod referrers;
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

/// Maximum number of chunks that wait for the receiver.
const QUEUE_LENGTH: usize = 4;
/// Number of blobs that are fetched ahead.
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
    pub chunks: mpsc::Receiver<Result<Bytes, CacheError>>,
}

/// Starts an export.
pub async fn export(operations: &Operations, request: ExportRequest) -> Result<Export, OpsError> {
    let cache = operations.cache();
    let reference = reference::parse(cache, &request.reference)?;
    let platforms: Vec<(String, Platform)> = request
        .platforms
        .iter()
        .map(|text| Ok((text.clone(), Platform::parse(text)?)))
        .collect::<Result<_, OpsError>>()?;
    let name = match (&request.name, &reference.tag) {
        (Some(name), _) => Some(reference::complete_name(cache, name)?),
        (None, Some(tag)) => Some((format!("{}:{tag}", reference.repository), tag.to_string())),
        (None, None) => None,
    };
    let ExportRequest { offline, referrers, .. } = request;
    let search = Search { cache, reference: &reference, platforms: &platforms, offline, referrers };
    let plan = search.plan().await?;
    let repository = match &name {
        Some((full_name, tag)) => full_name.strip_suffix(&format!(":{tag}")).unwrap_or(full_name).to_owned(),
        None => reference.repository.to_string(),
    };
    let parts = plan.parts(name.as_ref(), &repository);
    let length = parts.iter().map(ArchivePart::length).fold(TAR_END.len() as u64, u64::saturating_add);
    let report = plan.report(&reference, name);
    let (sender, chunks) = mpsc::channel(QUEUE_LENGTH);
    let archive = ArchiveSender {
        cache: cache.clone(),
        repository: reference.repository,
        offline: request.offline,
        sender,
    };
    tokio::spawn(async move {
        if let Err(Stop::Failed(error)) = archive.run(&parts).await {
            tracing::warn!(reference = %archive.repository, %error, "an export failed");
            // The receiver may have been dropped.
            let _ = archive.sender.send(Err(error)).await;
        }
    });
    Ok(Export { report, length, chunks })
}

/// Reason why an export stops.
enum Stop {
    /// The receiver was dropped.
    Disconnected,
    Failed(CacheError),
}

impl From<CacheError> for Stop {
    fn from(error: CacheError) -> Self {
        Self::Failed(error)
    }
}

/// Sender of an archive.
struct ArchiveSender {
    cache: Cache,
    repository: Repository,
    offline: bool,
    sender: mpsc::Sender<Result<Bytes, CacheError>>,
}

impl ArchiveSender {
    async fn run(&self, parts: &[ArchivePart]) -> Result<(), Stop> {
        // The fills are owned by the cache, so they continue when the set is dropped.
        let (mut ahead, mut started) = (JoinSet::new(), 0);
        for (position, part) in parts.iter().enumerate() {
            for next in parts.iter().take(position + 1 + AHEAD).skip(started.max(position + 1)) {
                if let ArchivePart::Blob(PlannedBlob { digest, cached: false, .. }) = next {
                    ahead.spawn(fetch(self.cache.clone(), self.repository.clone(), *digest));
                }
            }
            started = position + 1 + AHEAD;
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
                Err(Stop::Failed(error)) if !self.offline && can_be_repeated(&error) => {
                    tracing::info!(digest = %blob.digest, %error, at, "a blob was interrupted during an export; continuing");
                }
                result => return result,
            }
        }
        self.rest(blob, &mut at).await
    }

    /// Sends the bytes of a blob from the offset `at`, and advances `at`.
    async fn rest(&self, blob: &PlannedBlob, at: &mut u64) -> Result<(), Stop> {
        let PlannedBlob { digest, size, .. } = blob;
        let attempt = || self.cache.blob(&self.repository, digest);
        let found = attempt.retry(backoff()).when(CacheError::is_retryable).await?;
        if found.size.is_some_and(|found| found != *size) {
            return Err(wrong_length(digest, *size));
        }
        let range = (*at > 0).then_some(*at..*size);
        let (mut reader, _) = self.cache.reader(&self.repository, digest, found, range).await?;
        while let Some(chunk) = poll_fn(|cx| reader.poll_next(cx)).await {
            let chunk = chunk?;
            *at += chunk.len() as u64;
            if *at > *size {
                return Err(wrong_length(digest, *size));
            }
            self.send(chunk).await?;
        }
        if *at < *size { Err(CacheError::Interrupted.into()) } else { Ok(()) }
    }

    async fn send(&self, bytes: Bytes) -> Result<(), Stop> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.sender.send(Ok(bytes)).await.map_err(|_| Stop::Disconnected)
    }
}

/// Creates the error for a blob that was not cached when the lengths of the archive were determined.
fn wrong_length(digest: &Digest, stated: u64) -> Stop {
    Stop::Failed(CacheError::Mismatch(format!(
        "{digest} does not have {stated} bytes as its descriptor states; fetch the image with `larder warm`, and export it again"
    )))
}

/// Returns true if another read may succeed: corrupt content is fetched again.
fn can_be_repeated(error: &CacheError) -> bool {
    error.is_retryable() || error.kind() == CacheErrorKind::Corrupt
}

/// Fetches a blob before it is sent. An error is found again when the blob is sent.
async fn fetch(cache: Cache, repository: Repository, digest: Digest) {
    let attempt = || cache.fetch_blob(&repository, &digest, |_| {});
    drop(attempt.retry(backoff()).when(CacheError::is_retryable).await);
}
