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
use super::encoding::{Pairs, target};
use super::error::OpsError;
use super::operations::Operations;
use super::platform::Platform;
use super::reference;
use super::warm::backoff;
use crate::layout::{TAR_END, blob_path, file_header, padding};

/// Chunks that wait for the receiver at most.
const QUEUE: usize = 4;
/// Blobs that are fetched ahead.
const AHEAD: usize = 4;
/// Attempts to read a blob to its end.
const ATTEMPTS: usize = 3;

/// Options of an export.
#[derive(Clone, Debug, Default, PartialEq, Eq, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ExportRequest {
    /// Reference of the image.
    pub reference: String,
    /// Platforms of an index to export. Empty means all.
    #[param(rename = "platform", required = false)]
    pub platforms: Vec<String>,
    /// Name of the image in the archive, if different.
    pub name: Option<String>,
    /// True to fetch nothing.
    #[param(required = false)]
    pub offline: bool,
}

impl ExportRequest {
    /// Path in the admin API.
    pub const PATH: &str = "/export";

    /// Returns the path and query.
    pub fn target(&self) -> String {
        let mut pairs = vec![("reference", self.reference.clone())];
        pairs.extend(self.platforms.iter().map(|it| ("platform", it.clone())));
        pairs.extend(self.name.clone().map(|name| ("name", name)));
        pairs.extend(self.offline.then(|| ("offline", "true".to_owned())));
        target(Self::PATH, pairs)
    }

    /// Parses the query that `target` wrote.
    pub fn read(query: &str) -> Result<Self, OpsError> {
        let mut pairs = Pairs::of(query);
        let ask = Self {
            reference: pairs.needed("reference")?,
            platforms: pairs.all("platform"),
            name: pairs.one("name")?,
            offline: pairs.flag("offline")?,
        };
        pairs.end().map(|()| ask)
    }
}

/// Response header with the report as JSON.
pub const REPORT_HEADER: &str = "larder-report";

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn export_request_survives_encoding() {
        for ask in [
            ExportRequest { reference: "a:1".to_owned(), ..ExportRequest::default() },
            ExportRequest {
                reference: "ghcr.io/a/b@sha256:0".to_owned(),
                platforms: vec!["linux/arm/v7".to_owned(), "linux/amd64".to_owned()],
                name: Some("c:2".to_owned()),
                offline: true,
            },
        ] {
            let target = ask.target();
            let (_, query) = target.split_once('?').expect("a query");
            assert_eq!(ExportRequest::read(query).expect("well written"), ask);
        }
        for query in ["", "reference=a&platfrom=b", "reference=a&reference=b", "reference=a&offline=maybe"] {
            assert!(ExportRequest::read(query).is_err(), "{query}");
        }
    }
}
