//! Lookup of a blob: in memory, in the store, or by joining or starting a fill.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use tracing::Span;

use crate::cache::blob::answer::{BlobAnswer, BlobSource};
use crate::cache::blob::blobs::{Blobs, StoredBlob};
use crate::cache::blob::fill::{Fill, FillRequest};
use crate::cache::deadline::{in_time, joined};
use crate::cache::error::CacheError;
use crate::cache::eviction::usage::ContentPin;
use crate::cache::fills::{Admission, FillKind, FillPhase, KnownAccess, fill_ended};
use crate::cache::memory::AbsenceKey;
use crate::oci::{Digest, Repository};
use crate::store::{BlobEntry, Draft};
use crate::telemetry::{Outcome, trace};

/// Limit on lookups in the store for one request: a fill that another repository started may fail under the request, which
/// then starts its own.
const ROUNDS: usize = 4;

/// Longest wait for the head of an answer to the fill of another repository.
const FOREIGN_HEAD_TIMEOUT: Duration = Duration::from_secs(3);

impl Blobs {
    /// Returns a blob with a source to read from.
    pub(in crate::cache) async fn get(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<BlobAnswer, CacheError> {
        in_time(async {
            if let Some(blob) = self.get_from_memory(repository, digest).await? {
                return Ok(blob);
            }
            let lookup = BlobLookup {
                blobs: self,
                repository,
                digest,
                confirmed: false,
                size_hint: None,
                access: KnownAccess::default(),
            };
            // Boxed: a request moves its whole future, at the size of the longest path.
            Box::pin(lookup.run()).await
        })
        .await
    }

    async fn get_from_memory(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<BlobAnswer>, CacheError> {
        match self.pin_in_memory(repository, digest) {
            Some((entry, pin)) => self.open_stored(entry, pin, Outcome::Hit).await,
            None => Ok(None),
        }
    }

    /// Pins a blob that the repository has served lately. Reads nothing from the store.
    fn pin_in_memory(&self, repository: &Repository, digest: &Digest) -> Option<(BlobEntry, ContentPin)> {
        // A degraded store is asked itself: it may have lost the blob.
        if self.storage.store_health.is_degraded() {
            return None;
        }
        let entry = self.storage.memory.blobs.get(&(repository.clone(), *digest))?;
        let pin = self.storage.content.pin_for_client(&entry, self.storage.clock.now())?;
        Some((entry, pin))
    }

    /// Returns a blob's size without downloading the blob.
    pub(in crate::cache) async fn size(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<BlobAnswer, CacheError> {
        in_time(self.find_size(repository, digest)).await
    }

    async fn find_size(&self, repository: &Repository, digest: &Digest) -> Result<BlobAnswer, CacheError> {
        if let Some((entry, _pin)) = self.pin_in_memory(repository, digest) {
            return Ok(BlobAnswer::of_size(Some(entry.size()), Outcome::Hit));
        }
        let StoredBlob { link, entry, .. } = self.look_up(repository, digest).await?;
        if let Some(entry) = &entry {
            self.storage.content.touch(digest, self.storage.clock.now());
            if link.is_some() {
                return Ok(BlobAnswer::of_size(Some(entry.size()), Outcome::Hit));
            }
        }
        if let size @ Some(_) = self.storage.fills.announced_length(repository, digest) {
            return Ok(BlobAnswer::of_size(size, Outcome::Join));
        }
        let outcome = if entry.is_some() { Outcome::Revalidated } else { Outcome::Bypass };
        let known = entry.map(|entry| entry.size()).or(link.and_then(|link| link.size));
        let size = match known {
            Some(size) => {
                self.access.confirm_blob(repository, digest).await?;
                Some(size)
            }
            None => self.access.blob_size(repository, digest).await?,
        };
        Ok(BlobAnswer::of_size(size, outcome))
    }
}

/// Lookup in progress.
struct BlobLookup<'a> {
    blobs: &'a Arc<Blobs>,
    repository: &'a Repository,
    digest: &'a Digest,
    /// True once the upstream has confirmed that the repository has the blob.
    confirmed: bool,
    /// Size that the link states. It may be wrong.
    size_hint: Option<u64>,
    /// Access that the store shows.
    access: KnownAccess,
}

/// Next step of a lookup.
enum LookupState {
    /// Read the link and the record in the store.
    Store,
    /// Open the stored blob.
    Open { entry: BlobEntry, pin: ContentPin, is_linked: bool },
    /// Join the running fill, or start one.
    Admit,
    /// Ask the upstream whether the repository has the blob, because another repository fills it.
    ConfirmAccess,
    /// Wait until the blob's old bytes are removed.
    AwaitRemoval(watch::Receiver<FillPhase>),
    /// Wait until the fill has bytes to read.
    AwaitBytes(JoinedFill),
    /// Wait for the end of another repository's fill, whose length contradicts this repository's descriptor.
    AwaitEnd(watch::Receiver<FillPhase>),
    /// Answer the request.
    Found(BlobAnswer),
}

impl LookupState {
    const fn as_str(&self) -> &'static str {
        match self {
            Self::Store => "blob.store",
            Self::Open { .. } => "blob.open",
            Self::Admit => "blob.admit",
            Self::ConfirmAccess => "blob.confirm_access",
            Self::AwaitRemoval(_) => "blob.await_removal",
            Self::AwaitBytes(_) => "blob.await_bytes",
            Self::AwaitEnd(_) => "blob.await_end",
            Self::Found(_) => "blob.found",
        }
    }
}

/// Fill that the request takes part in.
struct JoinedFill {
    phase: watch::Receiver<FillPhase>,
    /// True if the fill runs for the same repository.
    is_own: bool,
    outcome: Outcome,
    kind: FillKind,
}

impl BlobLookup<'_> {
    async fn run(mut self) -> Result<BlobAnswer, CacheError> {
        let (mut state, mut rounds) = (LookupState::Store, 0);
        loop {
            trace::state(state.as_str());
            state = match state {
                LookupState::Store if rounds == ROUNDS => return Err(CacheError::Interrupted),
                LookupState::Store => {
                    rounds += 1;
                    self.look_up().await?
                }
                LookupState::Open { entry, pin, is_linked } => self.open(entry, pin, is_linked).await?,
                LookupState::Admit => self.admit(),
                LookupState::ConfirmAccess => {
                    self.blobs.access.confirm_blob(self.repository, self.digest).await?;
                    self.confirmed = true;
                    LookupState::Store
                }
                LookupState::AwaitRemoval(mut phase) => {
                    // The removal ends when its sender is dropped.
                    let _ = phase.changed().await;
                    LookupState::Store
                }
                LookupState::AwaitBytes(fill) => self.await_bytes(fill).await?,
                LookupState::AwaitEnd(phase) => {
                    fill_ended(phase).await;
                    LookupState::Store
                }
                LookupState::Found(blob) => return Ok(blob),
            };
        }
    }

    async fn look_up(&mut self) -> Result<LookupState, CacheError> {
        let StoredBlob { link, entry, is_delivered, is_stored } =
            self.blobs.look_up(self.repository, self.digest).await?;
        let is_linked = link.is_some();
        self.access = KnownAccess { is_linked: is_linked || self.confirmed, is_delivered, is_stored };
        self.size_hint = link.and_then(|link| link.size);
        let storage = &self.blobs.storage;
        if let Some(entry) = entry
            && let Some(pin) = storage.content.pin_for_client(&entry, storage.clock.now())
        {
            return Ok(LookupState::Open { entry, pin, is_linked });
        }
        self.blobs.access.check_absence(self.repository, &AbsenceKey::Blob(*self.digest))?;
        self.blobs.rules.upstream(self.repository)?.check_loop()?;
        Ok(LookupState::Admit)
    }

    async fn open(
        &self,
        entry: BlobEntry,
        pin: ContentPin,
        is_linked: bool,
    ) -> Result<LookupState, CacheError> {
        if !is_linked && !self.confirmed {
            self.blobs.access.confirm_blob(self.repository, self.digest).await?;
        }
        let outcome = if is_linked { Outcome::Hit } else { Outcome::Revalidated };
        match self.blobs.open_stored(entry.clone(), pin, outcome).await? {
            Some(blob) => {
                self.blobs.storage.memory.blobs.insert((self.repository.clone(), *self.digest), entry);
                Ok(LookupState::Found(blob))
            }
            None => Ok(LookupState::Store),
        }
    }

    fn admit(&self) -> LookupState {
        match self.blobs.storage.fills.admit(self.repository, self.digest, self.access) {
            Admission::Start(sender, phase, span, kind) => {
                self.start_fill(kind, sender, span);
                LookupState::AwaitBytes(JoinedFill { phase, is_own: true, outcome: Outcome::Miss, kind })
            }
            // The bytes are complete and verified; only the commit is still running.
            Admission::Join(phase, is_own, kind) if phase.borrow().is_verified() => {
                LookupState::AwaitBytes(JoinedFill { phase, is_own, outcome: Outcome::Hit, kind })
            }
            Admission::Join(phase, is_own, kind) => {
                self.blobs.storage.metrics.fills_joined.inc();
                LookupState::AwaitBytes(JoinedFill { phase, is_own, outcome: Outcome::Join, kind })
            }
            Admission::AwaitRemoval(phase) => LookupState::AwaitRemoval(phase),
            Admission::NeedsAccess => LookupState::ConfirmAccess,
        }
    }

    async fn await_bytes(&self, fill: JoinedFill) -> Result<LookupState, CacheError> {
        let upstream = self.blobs.rules.upstream(self.repository)?;
        let bytes = async {
            let bytes = first_bytes(fill.phase.clone());
            if fill.is_own {
                return Ok(Some(bytes.await));
            }
            Ok(timeout(FOREIGN_HEAD_TIMEOUT, bytes).await.ok())
        };
        let Some(bytes) = joined(&upstream, fill.outcome != Outcome::Join, bytes).await? else {
            return Ok(self.fill_beside());
        };
        match bytes {
            FirstBytes::Filling(draft) => Ok(self.follow(fill, &draft)),
            FirstBytes::Stored(entry) => {
                let storage = &self.blobs.storage;
                let Some(pin) = storage.content.pin_for_client(&entry, storage.clock.now()) else {
                    return Ok(LookupState::Store);
                };
                let blob = self.blobs.open_stored(entry, pin, fill.outcome).await?;
                Ok(blob.map_or(LookupState::Store, LookupState::Found))
            }
            FirstBytes::Failed(error) if fill.is_own => Err(error),
            // The failure of another repository is no answer for this one.
            FirstBytes::Failed(_) => Ok(LookupState::Store),
        }
    }

    fn start_fill(&self, kind: FillKind, phase: watch::Sender<FillPhase>, span: Span) {
        let request = FillRequest {
            repository: self.repository.clone(),
            digest: *self.digest,
            size_hint: self.size_hint,
            has_access: self.access.is_linked,
            kind,
        };
        Fill::new(self.blobs, request, phase).start(span);
    }

    /// Starts a fill of its own, which is not stored and cannot be joined: the fill of another repository waits for its
    /// upstream, which may have this blob for nobody.
    fn fill_beside(&self) -> LookupState {
        let (sender, phase) = watch::channel(FillPhase::Starting);
        let kind = FillKind::Prove;
        self.start_fill(kind, sender, trace::fill(self.repository, self.digest));
        LookupState::AwaitBytes(JoinedFill { phase, is_own: true, outcome: Outcome::Miss, kind })
    }

    /// Follows a draft. If the upstream has announced another length to another repository than this repository's descriptor
    /// states, the end of that fill shows which one is right.
    fn follow(&self, fill: JoinedFill, draft: &Arc<Draft>) -> LookupState {
        let progress = draft.progress();
        let is_contradicted =
            self.size_hint.is_some_and(|hint| progress.total.is_some_and(|total| total != hint));
        if is_contradicted && !fill.is_own && progress.end.is_none() {
            return LookupState::AwaitEnd(fill.phase);
        }
        // A draft in memory cannot be joined once its first bytes are gone. It has left the map of fills, and the next
        // round starts another fill.
        let Some(follower) = draft.follow(0) else { return LookupState::Store };
        let outcome = if draft.is_kept() { fill.outcome } else { Outcome::Bypass };
        let source = Some(BlobSource::Filling(follower));
        let (size, size_hint) = (progress.total, self.size_hint);
        let proof = (fill.kind == FillKind::Prove).then_some(fill.phase);
        LookupState::Found(BlobAnswer { size, size_hint, source, outcome, proof })
    }
}

/// Beginning of a fill, as a reader sees it.
enum FirstBytes {
    Filling(Arc<Draft>),
    Stored(BlobEntry),
    Failed(CacheError),
}

/// Waits until a fill has bytes to read, or has ended. The caller bounds the wait; the fill continues.
///
/// An empty blob has no last byte that could be withheld, so for it this waits until the blob is verified.
async fn first_bytes(mut phase: watch::Receiver<FillPhase>) -> FirstBytes {
    let phase = phase.wait_for(|phase| match phase {
        FillPhase::Starting => false,
        FillPhase::Running(draft) => {
            let progress = draft.progress();
            progress.total != Some(0) || progress.end.is_some()
        }
        FillPhase::Stored(_) | FillPhase::Failed(_) => true,
    });
    match phase.await.as_deref() {
        Ok(FillPhase::Running(draft)) => FirstBytes::Filling(Arc::clone(draft)),
        Ok(FillPhase::Stored(entry)) => FirstBytes::Stored(entry.clone()),
        Ok(FillPhase::Failed(error)) => FirstBytes::Failed(error.clone()),
        Ok(FillPhase::Starting) | Err(_) => FirstBytes::Failed(CacheError::Interrupted),
    }
}
