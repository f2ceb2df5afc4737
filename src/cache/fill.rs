//! Blobs: from the store, or by a fill that everybody who asks for the same digest tails.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use crate::oci::{Digest, Reference, Repository};
use crate::store::{BlobEntry, Draft, DraftEnd, DraftWriter, LinkFact, StoreError};
use crate::telemetry::Outcome;

use super::download::{Download, Ending, Received};
use super::manifest::{link, remember};
use super::{Cache, CacheError, Shared, blocking, now};

/// A blob to serve, and how the cache came by it.
#[derive(Debug)]
pub struct Blob {
    /// Its length, where known.
    pub size: Option<u64>,
    /// Where its bytes come from; `None` for a blob that was only asked about.
    pub source: Option<Source>,
    /// What the cache did.
    pub outcome: Outcome,
}

/// Where a blob's bytes come from.
#[derive(Debug)]
pub enum Source {
    /// The store has it, whole and verified.
    Stored(BlobEntry),
    /// A fill is bringing it.
    Filling(Arc<Draft>),
    /// The upstream sends it, past the store.
    Passing(mpsc::Receiver<Result<Bytes, CacheError>>),
}

/// How far a fill has come, as far as somebody who wants to start reading must know.
#[derive(Clone, Debug)]
enum Phase {
    /// The upstream has not answered yet.
    Starting,
    /// Bytes are coming.
    Running(Arc<Draft>),
    /// It was there already, or is by now.
    Stored(BlobEntry),
    /// There will be nothing to read.
    Failed(CacheError),
}

/// The fills under way, by digest.
#[derive(Debug, Default)]
pub(super) struct Fills(Mutex<HashMap<Digest, watch::Receiver<Phase>>>);

impl Fills {
    fn with<T>(&self, change: impl FnOnce(&mut HashMap<Digest, watch::Receiver<Phase>>) -> T) -> T {
        // Nothing under this lock can panic halfway through a change.
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn running(&self, digest: &Digest) -> Option<watch::Receiver<Phase>> {
        self.with(|fills| fills.get(digest).cloned())
    }
}

impl Cache {
    /// A blob, to be read.
    pub async fn blob(&self, repository: &Repository, digest: &Digest) -> Result<Blob, CacheError> {
        let shared = &self.0;
        let key = (repository.clone(), *digest);
        if let Some(entry) = shared.hot.blobs.get(&key) {
            return Ok(stored(entry, Outcome::Hit));
        }
        let (linked, entry) = look(shared, repository, digest).await?;
        if let Some(entry) = entry {
            let outcome = if linked.is_some() { Outcome::Hit } else { Outcome::Revalidated };
            if linked.is_none() {
                confirm(shared, repository, digest).await?;
            }
            shared.hot.blobs.insert(key, entry.clone());
            return Ok(stored(entry, outcome));
        }
        let reference = Reference::Digest(*digest);
        if shared.hot.is_absent(repository, &reference, now()) {
            return Err(CacheError::NotFound);
        }
        if linked.is_none() && shared.fills.running(digest).is_some() {
            // The fill is another repository's; this one must have a right of its own to join.
            confirm(shared, repository, digest).await?;
        }
        let (mut phase, started) =
            join_or_start(shared, repository, digest, linked.and_then(|link| link.size));
        if !started {
            shared.metrics.fills_joined.inc();
        }
        let outcome = if started { Outcome::Miss } else { Outcome::Join };
        match phase.wait_for(|phase| !matches!(phase, Phase::Starting)).await.as_deref() {
            Ok(Phase::Running(draft)) => {
                let source = Some(Source::Filling(Arc::clone(draft)));
                Ok(Blob { size: draft.progress().total, source, outcome })
            }
            Ok(Phase::Stored(entry)) => Ok(stored(entry.clone(), outcome)),
            Ok(Phase::Failed(error)) => Err(error.clone()),
            Ok(Phase::Starting) | Err(_) => Err(CacheError::Interrupted),
        }
    }

    /// A blob's size. Downloads nothing.
    pub async fn blob_size(&self, repository: &Repository, digest: &Digest) -> Result<Blob, CacheError> {
        let shared = &self.0;
        let (linked, entry) = look(shared, repository, digest).await?;
        match (linked, entry) {
            (Some(_), Some(entry)) => {
                Ok(Blob { size: Some(entry.size()), source: None, outcome: Outcome::Hit })
            }
            (_, entry) => {
                let size = confirm(shared, repository, digest).await?;
                let outcome = if entry.is_some() { Outcome::Revalidated } else { Outcome::Bypass };
                Ok(Blob { size: entry.map(|entry| entry.size()).or(size), source: None, outcome })
            }
        }
    }

    /// A blob turned out to be damaged while it was read: it leaves the store, and is fetched again when asked for.
    pub(super) async fn heal(&self, digest: &Digest, error: &StoreError) {
        let shared = &self.0;
        shared.store_failed("a blob is damaged and will be fetched again", error);
        shared.hot.blobs.retain(|(_, held), _| held != digest);
        let (store, digest) = (shared.store.clone(), *digest);
        if let Err(error) = blocking(move || store.remove_blob(&digest)).await {
            tracing::error!(%error, %digest, "a damaged blob could not be removed");
        }
    }
}

fn stored(entry: BlobEntry, outcome: Outcome) -> Blob {
    Blob { size: Some(entry.size()), source: Some(Source::Stored(entry)), outcome }
}

async fn look(
    shared: &Shared,
    repository: &Repository,
    digest: &Digest,
) -> Result<(Option<LinkFact>, Option<BlobEntry>), CacheError> {
    let (store, repository, digest) = (shared.store.clone(), repository.clone(), *digest);
    blocking(move || Ok((store.linked(&repository, &digest)?, store.blob(&digest)?))).await
}

/// Asks the upstream whether this repository has a blob; a yes is kept as a link.
async fn confirm(
    shared: &Arc<Shared>,
    repository: &Repository,
    digest: &Digest,
) -> Result<Option<u64>, CacheError> {
    let reference = Reference::Digest(*digest);
    if shared.hot.is_absent(repository, &reference, now()) {
        return Err(CacheError::NotFound);
    }
    let upstream = shared.upstream(repository)?;
    match upstream.head_blob(&repository.name, digest).await {
        Ok(size) => {
            link(shared, repository, digest).await;
            Ok(size)
        }
        Err(error) => Err(remember(shared, repository, reference, error.into())),
    }
}

fn join_or_start(
    shared: &Arc<Shared>,
    repository: &Repository,
    digest: &Digest,
    size: Option<u64>,
) -> (watch::Receiver<Phase>, bool) {
    shared.fills.with(|fills| {
        if let Some(phase) = fills.get(digest) {
            return (phase.clone(), false);
        }
        let (sender, phase) = watch::channel(Phase::Starting);
        fills.insert(*digest, phase.clone());
        let fill = Fill {
            shared: Arc::clone(shared),
            repository: repository.clone(),
            digest: *digest,
            size,
            phase: sender,
            draft: None,
            ending: Phase::Failed(CacheError::Interrupted),
        };
        shared.metrics.fills_running.inc();
        tokio::spawn(fill.run());
        (phase, true)
    })
}

/// One download of one digest into the store.
struct Fill {
    shared: Arc<Shared>,
    repository: Repository,
    digest: Digest,
    /// What a descriptor, or an earlier HEAD, said of the size.
    size: Option<u64>,
    phase: watch::Sender<Phase>,
    draft: Option<Arc<Draft>>,
    /// What waiting requests are told in the end.
    ending: Phase,
}

impl Drop for Fill {
    /// However it ends, also by a panic: off the board first, so that who asks again starts anew, and only then are
    /// readers told.
    fn drop(&mut self) {
        self.shared.fills.with(|fills| fills.remove(&self.digest));
        self.shared.metrics.fills_running.dec();
        if let Some(draft) = &self.draft {
            draft.close();
        }
        self.phase.send_replace(self.ending.clone());
    }
}

impl Fill {
    async fn run(mut self) {
        let begin = std::time::Instant::now();
        let result = self.fill().await;
        let word = match &result {
            Ok(_) => "ok",
            Err(CacheError::Invalid(_)) => "mismatch",
            Err(CacheError::Store(_)) => "store",
            Err(_) => "upstream",
        };
        self.shared.metrics.fill_finished(word);
        match result {
            Ok(entry) => {
                tracing::debug!(repository = %self.repository, digest = %self.digest, bytes = entry.size(), ms = begin.elapsed().as_millis(), "filled");
                self.ending = Phase::Stored(entry);
            }
            Err(error) => {
                if matches!(error, CacheError::Invalid(_)) {
                    self.shared.metrics.verify_failure(self.repository.upstream.as_str(), "blob");
                }
                if !matches!(error, CacheError::NotFound) {
                    tracing::warn!(repository = %self.repository, digest = %self.digest, %error, "a fill failed");
                }
                self.ending = Phase::Failed(error);
            }
        }
    }

    async fn fill(&mut self) -> Result<BlobEntry, CacheError> {
        let mut writer = match self.open().await? {
            Opened::Stored(entry) => {
                link(&self.shared, &self.repository, &self.digest).await;
                return Ok(entry);
            }
            Opened::Draft(writer) => writer,
        };
        let received = loop {
            let received = self.download(*writer).await?;
            if !matches!(received.ending, Ending::Beyond) {
                break received;
            }
            // What an earlier run left is no prefix of this blob. Nobody has been shown any of it: start over.
            blocking(move || received.writer.condemn()).await?;
            writer = match self.open().await? {
                Opened::Draft(writer) => writer,
                Opened::Stored(entry) => return Ok(entry),
            };
        };
        self.finish(received).await
    }

    async fn open(&self) -> Result<Opened, CacheError> {
        let (store, digest) = (self.shared.store.clone(), self.digest);
        blocking(move || match store.blob(&digest)? {
            // Another fill may have ended between the look into the store and this one.
            Some(entry) => Ok(Opened::Stored(entry)),
            None => Ok(Opened::Draft(Box::new(store.open_draft(&digest)?))),
        })
        .await
    }

    async fn download(&mut self, writer: DraftWriter) -> Result<Received, CacheError> {
        self.draft = Some(Arc::clone(writer.draft()));
        let upstream = self.shared.upstream(&self.repository)?;
        let download =
            Download { upstream, name: &self.repository.name, digest: &self.digest, size: self.size };
        let received =
            download.run(writer, |draft| drop(self.phase.send_replace(Phase::Running(draft)))).await;
        received
            .map_err(|error| remember(&self.shared, &self.repository, Reference::Digest(self.digest), error))
    }

    async fn finish(&self, Received { writer, ending }: Received) -> Result<BlobEntry, CacheError> {
        let (repository, size) = (self.repository.clone(), self.size);
        let reason = match ending {
            Ending::Wrong(reason) => {
                blocking(move || writer.condemn()).await?;
                reason
            }
            Ending::Complete | Ending::Beyond => {
                if blocking(move || writer.finish(&repository, size, now())).await? == DraftEnd::Committed {
                    let (store, digest) = (self.shared.store.clone(), self.digest);
                    return blocking(move || store.blob(&digest)).await?.ok_or(CacheError::Interrupted);
                }
                "the bytes do not match their digest or size".to_owned()
            }
        };
        Err(CacheError::Invalid(format!("{}: {reason}", self.digest)))
    }
}

enum Opened {
    Stored(BlobEntry),
    Draft(Box<DraftWriter>),
}
