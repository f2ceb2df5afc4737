//! A fill: one download of one digest into the store, owned by the cache and tailed by everybody who asks for it.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;
use tracing::{Instrument as _, Span};

use crate::oci::{Digest, Repository};
use crate::source::BlobSender;
use crate::store::{BlobEntry, Draft, DraftWriter, VerifiedDraft};
use crate::telemetry::trace;

use crate::cache::access::{confirm_blob, remember};
use crate::cache::blob::download::{Download, DownloadEnd, Downloaded};
use crate::cache::blob::fills::FillPhase;
use crate::cache::blocking::blocking;
use crate::cache::core::Shared;
use crate::cache::error::CacheError;
use crate::cache::memory::AbsenceKey;

/// What a fill is to bring, and whom it tells.
pub(in crate::cache) struct Fill {
    shared: Arc<Shared>,
    repository: Repository,
    digest: Digest,
    /// What a descriptor promised of the size.
    size: Option<u64>,
    /// Whether the repository is linked to the digest already.
    has_access: bool,
    phase: watch::Sender<FillPhase>,
    draft: Option<Arc<Draft>>,
    /// What waiting requests are told in the end.
    ending: FillPhase,
}

impl Drop for Fill {
    /// However it ends, also by a panic: off the board first, so that who asks again starts anew, and only then are
    /// readers told.
    fn drop(&mut self) {
        self.shared.fills.remove(&self.digest, &self.phase);
        self.shared.metrics.fills_running.dec();
        if let Some(draft) = &self.draft {
            draft.close();
        }
        self.phase.send_replace(self.ending.clone());
    }
}

enum OpenedFill {
    Stored(BlobEntry),
    Draft(Box<DraftWriter>),
}

impl Fill {
    /// Starts a fill for a place on the board.
    pub(in crate::cache) fn start(
        shared: &Arc<Shared>,
        repository: &Repository,
        digest: &Digest,
        size: Option<u64>,
        has_access: bool,
        (phase, span): (watch::Sender<FillPhase>, Span),
    ) {
        let fill = Self {
            shared: Arc::clone(shared),
            repository: repository.clone(),
            digest: *digest,
            size,
            has_access,
            phase,
            draft: None,
            ending: FillPhase::Failed(CacheError::Interrupted),
        };
        shared.metrics.fills_running.inc();
        tokio::spawn(fill.run().instrument(span));
    }

    async fn run(mut self) {
        let begin = Instant::now();
        let result = self.fill().await;
        let word = match &result {
            Ok(Some(_)) => "ok",
            Ok(None) => "unkept",
            Err(CacheError::Mismatch(_)) => "mismatch",
            Err(CacheError::Store(_)) => "store",
            Err(_) => "upstream",
        };
        self.shared.metrics.fill_finished(word);
        trace::filled(&Span::current(), word);
        self.ending = match result {
            // Who comes too late to be told earlier finds all of it, if it still is in memory.
            Ok(None) => match &self.draft {
                Some(draft) => FillPhase::Running(Arc::clone(draft)),
                None => FillPhase::Failed(CacheError::Interrupted),
            },
            Ok(Some(entry)) => {
                let (bytes, ms) = (entry.size(), begin.elapsed().as_millis());
                tracing::debug!(repository = %self.repository, digest = %self.digest, bytes, ms, "filled");
                FillPhase::Stored(entry)
            }
            Err(error) => {
                if matches!(error, CacheError::Mismatch(_)) {
                    self.shared.metrics.verify_failure(self.repository.upstream.as_str(), "blob");
                }
                if !matches!(error, CacheError::NotFound) {
                    tracing::warn!(repository = %self.repository, digest = %self.digest, %error, "a fill failed");
                }
                FillPhase::Failed(error)
            }
        };
    }

    /// Brings the blob; `None` if it was served to all who wanted it, and could not be kept.
    async fn fill(&mut self) -> Result<Option<BlobEntry>, CacheError> {
        let mut mislabelled = false;
        loop {
            let writer = match self.open().await? {
                OpenedFill::Draft(writer) => writer,
                OpenedFill::Stored(entry) => {
                    // It came in through another repository since the store was asked.
                    if !self.has_access {
                        confirm_blob(&self.shared, &self.repository, &self.digest).await?;
                    }
                    return Ok(Some(entry));
                }
            };
            let Downloaded { writer, senders, ending, decoded } = self.download(*writer, mislabelled).await?;
            let reason = match ending {
                DownloadEnd::Complete => match self.verify(writer, self.size).await? {
                    Some(verified) => return self.settle(verified).await,
                    None => "the bytes do not match their digest or size".to_owned(),
                },
                DownloadEnd::Wrong(reason) => {
                    blocking(move || writer.discard()).await?;
                    reason
                }
                DownloadEnd::Unwanted => return Ok(None),
                // Somebody's promise is broken; the draft may be has_access all the same.
                DownloadEnd::Unlike(reason) => return Err(self.mismatch(&senders, &reason)),
                // If what an earlier run left does not verify, that is nobody's fault: start over.
                DownloadEnd::Left => {
                    if let Some(verified) = self.verify(writer, None).await? {
                        return self.settle(verified).await;
                    }
                    self.start_over();
                    continue;
                }
            };
            if !decoded {
                return Err(self.mismatch(&senders, &reason));
            }
            // Who reads has been shown what the label made of the blob and is cut; who asks again waits for the other
            // reading.
            tracing::info!(digest = %self.digest, reason, "not what its label says: fetching it as it is");
            mislabelled = true;
            self.start_over();
        }
    }

    /// Cuts who reads the draft, and lets who asks again wait for the next one.
    fn start_over(&mut self) {
        self.phase.send_replace(FillPhase::Starting);
        if let Some(draft) = self.draft.take() {
            draft.close();
        }
    }

    /// Reports wrong content to its senders, so that others are asked first the next time.
    fn mismatch(&self, senders: &[Arc<dyn BlobSender>], reason: &str) -> CacheError {
        for sender in senders {
            sender.report_mismatch(&self.digest);
        }
        CacheError::Mismatch(format!("{}: {reason}", self.digest))
    }

    async fn open(&self) -> Result<OpenedFill, CacheError> {
        let (store, digest) = (self.shared.store.clone(), self.digest);
        if self.shared.store_health.is_degraded() {
            self.shared.retry_store();
            return Ok(OpenedFill::Draft(Box::new(store.memory_draft(&digest))));
        }
        let crowded = self.shared.is_crowded(&digest, self.size);
        let opened = self.shared.with_store(move |session| match session.blob(&digest)? {
            Some(entry) => Ok(OpenedFill::Stored(entry)),
            // Clients need not wait until the disk has caught up.
            None if crowded => Ok(OpenedFill::Draft(Box::new(store.memory_draft(&digest)))),
            None => Ok(OpenedFill::Draft(Box::new(session.open_draft(&digest)?))),
        });
        match opened.await {
            Err(CacheError::Store(error)) => {
                self.shared.report_store_error("a draft cannot be opened", &error);
                Ok(OpenedFill::Draft(Box::new(self.shared.store.memory_draft(&digest))))
            }
            opened => opened,
        }
    }

    async fn download(&mut self, writer: DraftWriter, mislabelled: bool) -> Result<Downloaded, CacheError> {
        self.draft = Some(Arc::clone(writer.draft()));
        let sources = self.shared.sources(&self.repository)?;
        let (name, digest, size) = (&self.repository.name, &self.digest, self.size);
        let leaving = || self.shared.fills.remove(&self.digest, &self.phase);
        let download = Download { sources: &sources, name, digest, size, mislabelled, leaving: &leaving };
        let received = download.run(writer, |draft| self.begins(draft)).await;
        received
            .map_err(|error| remember(&self.shared, &self.repository, AbsenceKey::Blob(self.digest), error))
    }

    /// Bytes are coming: there should be room for them.
    fn begins(&self, draft: Arc<Draft>) {
        self.phase.send_replace(FillPhase::Running(draft));
        self.shared.capacity.wake_evictor();
    }

    /// Holds the draft against its digest. If it verifies, everybody may have all of it from here on.
    async fn verify(
        &self,
        writer: DraftWriter,
        size: Option<u64>,
    ) -> Result<Option<VerifiedDraft>, CacheError> {
        let draft = Arc::clone(writer.draft());
        let verified = blocking(move || writer.verify(size)).await?;
        if verified.is_some() {
            self.phase.send_replace(FillPhase::Running(draft));
        }
        Ok(verified)
    }

    /// Makes a draft content. It has been served by then, so that a store that does not take it is no failure to anybody.
    async fn settle(&self, verified: VerifiedDraft) -> Result<Option<BlobEntry>, CacheError> {
        let (repository, digest) = (self.repository.clone(), self.digest);
        let now = self.shared.clock.now();
        let turn = self.shared.turn_of(&verified).await;
        let entry = self.shared.with_store(move |store| {
            let kept = verified.commit(Some(&repository), now)?;
            drop(turn);
            if kept { store.blob(&digest) } else { Ok(None) }
        });
        let entry = match entry.await {
            Err(CacheError::Store(error)) => {
                self.shared.report_store_error("a blob could not be kept; it is served all the same", &error);
                None
            }
            entry => entry?,
        };
        if let Some(entry) = &entry {
            self.shared.eviction.add_blob(&digest, entry.size(), now);
        }
        Ok(entry)
    }
}
