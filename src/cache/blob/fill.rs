//! Fill: one download of one digest into the store. It belongs to the cache, and every request for the digest reads its draft.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;
use tracing::{Instrument as _, Span};

use crate::cache::blob::blobs::Blobs;
use crate::cache::blob::download::{Download, DownloadEnd, Downloaded, GzipLabel};
use crate::cache::blob::write_pipeline::DraftRoom;
use crate::cache::error::{CacheError, CacheErrorKind};
use crate::cache::eviction::draft_space::DraftShare;
use crate::cache::fills::{FillKind, FillPhase};
use crate::cache::memory::AbsenceKey;
use crate::clock;
use crate::oci::{Digest, Repository};
use crate::source::BlobSender;
use crate::store::{BlobEntry, Change, Draft, DraftKey, DraftWriter, VerifiedDraft};
use crate::telemetry::trace;
use crate::upstream::RequestOrigin;

/// Request that starts a fill.
pub(super) struct FillRequest {
    pub(super) repository: Repository,
    pub(super) digest: Digest,
    /// Size that a descriptor states. It may be wrong.
    pub(super) size_hint: Option<u64>,
    /// True if the repository's access to the digest is known.
    pub(super) has_access: bool,
    pub(super) kind: FillKind,
}

/// Fill in progress.
pub(super) struct Fill {
    blobs: Arc<Blobs>,
    repository: Repository,
    digest: Digest,
    /// Size that a descriptor states. It may be wrong.
    size_hint: Option<u64>,
    /// True if the repository's access to the digest is known.
    has_access: bool,
    kind: FillKind,
    phase: watch::Sender<FillPhase>,
    draft: Option<Arc<Draft>>,
    /// Part of the disk that the draft uses.
    share: Option<Arc<DraftShare>>,
    /// True if the download was given up because of its rate.
    is_slow: bool,
    /// Phase that waiting requests see when the fill has ended.
    last_phase: FillPhase,
}

impl Drop for Fill {
    /// Ends the fill, also after a panic: it is removed from the map first, so that the next request starts a new fill, and
    /// only then its readers see the end.
    fn drop(&mut self) {
        self.blobs.storage.fills.remove(&self.repository, &self.digest, self.kind, &self.phase);
        self.blobs.storage.metrics.fills_running.dec();
        if let Some(draft) = &self.draft {
            draft.close();
        }
        self.share = None;
        self.phase.send_replace(self.last_phase.clone());
    }
}

/// Beginning of a fill.
enum OpenedDraft {
    /// Another repository has filled the digest meanwhile.
    Stored(BlobEntry),
    Draft(Box<DraftWriter>),
}

/// End of one attempt to fill.
enum Attempt {
    /// The blob is verified.
    Verified(Box<VerifiedDraft>),
    /// The draft is not stored, and no reader is left.
    Unwanted,
    /// No client reads the draft, and it grows too slowly.
    TooSlow,
    /// An earlier fill left a wrong draft. Nobody is to blame.
    WrongDraft,
    /// The bytes are wrong. They may be right with the other treatment of the gzip label.
    WrongLabel(GzipLabel, String),
}

impl Fill {
    /// Creates a fill that was admitted to the map of fills.
    pub(super) fn new(blobs: &Arc<Blobs>, request: FillRequest, phase: watch::Sender<FillPhase>) -> Self {
        let FillRequest { repository, digest, size_hint, has_access, kind } = request;
        blobs.storage.metrics.fills_running.inc();
        Self {
            blobs: Arc::clone(blobs),
            repository,
            digest,
            size_hint,
            has_access,
            kind,
            phase,
            draft: None,
            share: None,
            is_slow: false,
            last_phase: FillPhase::Failed(CacheError::Interrupted),
        }
    }

    /// Runs the fill in the background.
    pub(super) fn start(self, span: Span) {
        tokio::spawn(RequestOrigin::inherit(self.run()).instrument(span));
    }

    async fn run(mut self) {
        let begin = Instant::now();
        let result = self.fill().await;
        let word = if self.is_slow { "slow" } else { result_word(&result) };
        self.blobs.storage.metrics.fill_finished(word);
        trace::filled(&Span::current(), word);
        self.last_phase = match result {
            // A request that joins late finds the whole blob in the draft while readers keep it in memory.
            Ok(None) => match &self.draft {
                Some(draft) => FillPhase::Running(Arc::clone(draft)),
                None => FillPhase::Failed(CacheError::Interrupted),
            },
            Ok(Some(entry)) => {
                let (bytes, ms) = (entry.size(), clock::millis(begin.elapsed()));
                tracing::debug!(repository = %self.repository, digest = %self.digest, bytes, ms, "blob filled");
                FillPhase::Stored(entry)
            }
            Err(error) => {
                self.report_failure(&error);
                FillPhase::Failed(error)
            }
        };
    }

    fn report_failure(&self, error: &CacheError) {
        if error.kind() == CacheErrorKind::Mismatch {
            self.blobs.storage.metrics.verify_failure(self.repository.upstream.as_str(), "blob");
        }
        if error.kind() != CacheErrorKind::NotFound && !self.is_slow {
            tracing::warn!(
                repository = %self.repository,
                digest = %self.digest,
                %error,
                cause = error.cause().map(tracing::field::display),
                "fill failed"
            );
        }
    }

    /// Fills the blob. `None` if it was served to its readers and could not be stored.
    async fn fill(&mut self) -> Result<Option<BlobEntry>, CacheError> {
        let mut gzip_label = GzipLabel::Guess;
        loop {
            let writer = match self.open().await? {
                OpenedDraft::Draft(writer) => writer,
                OpenedDraft::Stored(entry) => {
                    if !self.has_access {
                        self.blobs.access.confirm_blob(&self.repository, &self.digest).await?;
                    }
                    return Ok(Some(entry));
                }
            };
            // Boxed: a verified fill may wait long, and needs none of the state of its download.
            let downloaded = Box::pin(self.download(*writer, gzip_label)).await?;
            match self.check(downloaded, gzip_label).await? {
                Attempt::Verified(verified) => return self.commit(*verified).await,
                Attempt::Unwanted => return Ok(None),
                Attempt::TooSlow => return Err(self.give_up()),
                Attempt::WrongDraft => {}
                Attempt::WrongLabel(other, reason) => {
                    // Readers have got wrong bytes and are cut off. New requests wait for the next download.
                    tracing::info!(
                        digest = %self.digest, reason, treatment = ?other,
                        "the gzip label of the upstream was misread; fetching the blob again"
                    );
                    gzip_label = other;
                }
            }
            self.start_over();
        }
    }

    /// Verifies a draft after its download. Wrong bytes are an error, unless another attempt may help.
    async fn check(&self, downloaded: Downloaded, gzip_label: GzipLabel) -> Result<Attempt, CacheError> {
        let Downloaded { writer, senders, end, gzip_label: used } = downloaded;
        let reason = match end {
            DownloadEnd::Complete => match self.verify(writer).await? {
                Some(verified) => return Ok(Attempt::Verified(Box::new(verified))),
                None => "the bytes do not match their digest".to_owned(),
            },
            DownloadEnd::Contradiction(reason) => {
                self.blobs.storage.with_store(move |_| writer.discard()).await?;
                reason
            }
            DownloadEnd::Unwanted => return Ok(Attempt::Unwanted),
            DownloadEnd::TooSlow => return Ok(Attempt::TooSlow),
            DownloadEnd::Existing => {
                let verified = self.verify(writer).await?;
                return Ok(
                    verified.map_or(Attempt::WrongDraft, |verified| Attempt::Verified(Box::new(verified)))
                );
            }
        };
        match (gzip_label, used) {
            (GzipLabel::Guess, Some(GzipLabel::Decode)) => Ok(Attempt::WrongLabel(GzipLabel::Ignore, reason)),
            (GzipLabel::Guess, Some(GzipLabel::Ignore)) => Ok(Attempt::WrongLabel(GzipLabel::Decode, reason)),
            _ => Err(self.mismatch(&senders, &reason)),
        }
    }

    /// Reports that the download is given up because of its rate. The next fill resumes the draft.
    fn give_up(&mut self) -> CacheError {
        self.is_slow = true;
        tracing::warn!(
            upstream = %self.repository.upstream,
            repository = %self.repository.name,
            digest = %self.digest,
            received = self.draft.as_ref().map_or(0, |draft| draft.progress().received),
            "download given up: no client reads it, and it is slower than min_rate of the upstream"
        );
        CacheError::timeout("the download was slower than min_rate, and no client read it")
    }

    /// Cuts off the readers of the draft. New requests wait for the next draft.
    fn start_over(&mut self) {
        self.phase.send_replace(FillPhase::Starting);
        if let Some(draft) = self.draft.take() {
            draft.close();
        }
    }

    /// Creates the error for wrong bytes, and reports them to their senders: the next fill prefers other endpoints.
    fn mismatch(&self, senders: &[Arc<dyn BlobSender>], reason: &str) -> CacheError {
        for sender in senders {
            sender.report_mismatch(&self.digest);
        }
        CacheError::Mismatch(format!("{}: {reason}", self.digest))
    }

    /// Opens a draft: in the store, or in memory if the store is degraded or has no room for another draft.
    async fn open(&self) -> Result<OpenedDraft, CacheError> {
        let (storage, digest) = (&self.blobs.storage, self.digest);
        let in_memory = || OpenedDraft::Draft(Box::new(storage.store.memory_draft(&digest)));
        if storage.store_health.is_degraded() {
            storage.retry_store();
            return Ok(in_memory());
        }
        if self.kind == FillKind::Prove {
            return Ok(in_memory());
        }
        let (store, is_backlogged) = (storage.store.clone(), storage.capacity.is_backlogged());
        let repository = self.repository.clone();
        let opened = storage.with_store(move |session| match session.blob(&digest)? {
            Some(entry) if session.is_delivered(&repository.upstream, &digest)? => Ok(OpenedDraft::Stored(entry)),
            // Bytes that only another upstream has delivered are not stored twice.
            Some(_) => Ok(OpenedDraft::Draft(Box::new(store.memory_draft(&digest)))),
            // Clients need not wait until the disk has caught up.
            None if is_backlogged => {
                tracing::warn!(
                    upstream = %repository.upstream,
                    repository = %repository.name,
                    %digest,
                    "blob is passed through and not stored: too many downloads wait for the disk, which is slower than the \
                     network; a later pull stores it"
                );
                Ok(OpenedDraft::Draft(Box::new(store.memory_draft(&digest))))
            }
            None => {
                let key = DraftKey::of(&repository.upstream, &digest);
                Ok(OpenedDraft::Draft(Box::new(session.open_draft(&key)?)))
            }
        });
        match opened.await {
            Err(CacheError::Store(error)) => {
                storage.report_store_error("a draft cannot be opened", &error);
                Ok(in_memory())
            }
            opened => opened,
        }
    }

    async fn download(
        &mut self,
        writer: DraftWriter,
        gzip_label: GzipLabel,
    ) -> Result<Downloaded, CacheError> {
        let (draft, capacity) = (Arc::clone(writer.draft()), &self.blobs.storage.capacity);
        let share = Arc::new(capacity.drafts().share(Some(&self.repository), draft.left()));
        (self.draft, self.share) = (Some(draft), Some(Arc::clone(&share)));
        let sources = self.blobs.rules.sources(&self.repository)?;
        let download = Download {
            store: &self.blobs.storage.store,
            sources: &sources,
            name: &self.repository.name,
            digest: &self.digest,
            size_hint: self.size_hint,
            gzip_label,
            min_rate: self.blobs.rules.upstream(&self.repository)?.min_rate(),
            // The map of fills has one receiver.
            is_awaited: &|| self.phase.receiver_count() > 1,
            on_unjoinable: &|| self.leave_fills(),
        };
        let room = DraftRoom { capacity, share, digest: &self.digest };
        let downloaded = download.run(writer, room, |draft| self.publish(draft)).await;
        downloaded.map_err(|error| {
            let absence = AbsenceKey::Blob(self.digest);
            self.blobs.access.remember_absence(&self.repository, absence, error)
        })
    }

    /// Removes the fill from the map of fills: no new reader joins it.
    fn leave_fills(&self) {
        self.blobs.storage.fills.leave(&self.repository, &self.digest, self.kind, &self.phase);
    }

    /// Lets readers start.
    fn publish(&self, draft: Arc<Draft>) {
        self.phase.send_replace(FillPhase::Running(draft));
    }

    /// Verifies a draft against its digest. Readers may read the last byte of a verified draft.
    async fn verify(&self, writer: DraftWriter) -> Result<Option<VerifiedDraft>, CacheError> {
        let draft = Arc::clone(writer.draft());
        let verified = self.blobs.storage.with_store_long(move |_| writer.verify(None)).await?;
        if verified.is_some() {
            self.phase.send_replace(FillPhase::Running(draft));
        }
        Ok(verified)
    }

    /// Commits a verified draft to the store. Readers have its bytes already, so a store that refuses them fails no request.
    async fn commit(&self, verified: VerifiedDraft) -> Result<Option<BlobEntry>, CacheError> {
        let storage = &self.blobs.storage;
        let (repository, digest) = (self.repository.clone(), self.digest);
        let now = storage.clock.now();
        if let Some(share) = &self.share {
            share.set_unwritten(verified.unwritten());
            share.set_verified();
        }
        let permit = storage.commit_permit(&verified).await;
        let is_degraded = storage.store_health.is_degraded();
        let committed = storage.with_store_long(move |store| {
            let is_stored = verified.commit(Some(&repository), now)?;
            drop(permit);
            if !is_stored && is_degraded {
                return Ok((false, None));
            }
            if !is_stored {
                // The bytes may be stored for another upstream. This one has delivered them, too.
                let delivered = Change::AddDelivered(repository.upstream.clone(), digest);
                store.apply(&[delivered, Change::AddLink(repository, digest)])?;
            }
            Ok((is_stored, store.blob(&digest)?))
        });
        let (is_stored, entry) = match committed.await {
            Err(CacheError::Store(error)) => {
                storage.report_store_error("a blob could not be stored; it is served from its draft", &error);
                (false, None)
            }
            committed => committed?,
        };
        if let Some(entry) = entry.as_ref().filter(|_| is_stored) {
            storage.content.add_blob(&digest, entry.size(), now);
            if let Some(share) = &self.share {
                share.commit();
            }
            storage.capacity.wake_evictor();
        }
        Ok(entry)
    }
}

/// Returns the `result` label of metrics and traces.
fn result_word(result: &Result<Option<BlobEntry>, CacheError>) -> &'static str {
    match result {
        Ok(Some(_)) => "ok",
        Ok(None) => "unkept",
        Err(error) => match error.kind() {
            CacheErrorKind::Mismatch => "mismatch",
            CacheErrorKind::Store | CacheErrorKind::Corrupt => "store",
            _ => "upstream",
        },
    }
}
