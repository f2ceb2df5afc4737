//! Map of running fills and removals by digest. It guarantees that a digest is filled once at a time, and never while it is
//! being removed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;
use tracing::Span;

use crate::oci::{Digest, Repository};
use crate::store::{BlobEntry, Draft, DraftEnd};
use crate::telemetry::trace;

use super::error::CacheError;

/// Progress of a fill, as far as a new reader must know it.
#[derive(Clone, Debug)]
pub(super) enum FillPhase {
    /// The upstream has not answered yet.
    Starting,
    /// The draft can be read.
    Running(Arc<Draft>),
    /// The blob is stored.
    Stored(BlobEntry),
    /// The fill ended without content.
    Failed(CacheError),
}

impl FillPhase {
    /// Returns true if all bytes have arrived and match the digest.
    pub(super) fn is_verified(&self) -> bool {
        matches!(self, Self::Running(draft) if draft.progress().end == Some(DraftEnd::Verified))
    }
}

/// Waits for the end of a fill or a removal. A dropped sender ends it too.
pub(super) async fn fill_ended(mut phase: watch::Receiver<FillPhase>) {
    let ended = phase.wait_for(|phase| matches!(phase, FillPhase::Stored(_) | FillPhase::Failed(_)));
    drop(ended.await);
}

/// Answer to a request to take part in a fill.
#[derive(Debug)]
pub(super) enum Admission {
    /// No fill is running: the caller starts one, and reports its progress through the sender.
    Start(watch::Sender<FillPhase>, watch::Receiver<FillPhase>, Span),
    /// A fill is running. The flag is true if it runs for the same repository.
    Join(watch::Receiver<FillPhase>, bool),
    /// A fill is running for another repository: this repository must confirm its access first.
    NeedsAccess,
    /// The old bytes of the digest are being removed: the caller waits for the end of the removal.
    AwaitRemoval(watch::Receiver<FillPhase>),
}

#[derive(Debug)]
enum FillEntry {
    Fill {
        /// Repository of the fill; `None` for an import, which gives no repository access.
        owner: Option<Repository>,
        phase: watch::Receiver<FillPhase>,
        span: Span,
        since: Instant,
    },
    /// Removal; the sender is dropped when it has ended.
    Removal(watch::Sender<FillPhase>),
}

/// Fill in progress, for status output.
pub(super) struct RunningFill {
    pub(super) digest: Digest,
    pub(super) repository: Repository,
    pub(super) since: Instant,
    /// Draft; `None` until the upstream has answered.
    pub(super) draft: Option<Arc<Draft>>,
}

/// Running fills and removals, by digest.
#[derive(Debug, Default)]
pub(super) struct Fills {
    entries: Mutex<HashMap<Digest, FillEntry>>,
}

impl Fills {
    /// Decides how a repository takes part in the fill of a digest.
    ///
    /// The decision is made under one lock, so that no fill is joined without access and none is started twice.
    pub(super) fn admit(&self, repository: &Repository, digest: &Digest, has_access: bool) -> Admission {
        let mut entries = self.lock();
        match entries.get(digest) {
            Some(FillEntry::Fill { owner, phase, span, .. }) => {
                let is_own = owner.as_ref() == Some(repository);
                if !is_own && !has_access {
                    return Admission::NeedsAccess;
                }
                trace::join(span);
                return Admission::Join(phase.clone(), is_own);
            }
            Some(FillEntry::Removal(sender)) => return Admission::AwaitRemoval(sender.subscribe()),
            None => {}
        }
        let (sender, phase) = watch::channel(FillPhase::Starting);
        let span = trace::fill(repository, digest);
        let fill = FillEntry::Fill {
            owner: Some(repository.clone()),
            phase: phase.clone(),
            span: span.clone(),
            since: Instant::now(),
        };
        entries.insert(*digest, fill);
        Admission::Start(sender, phase, span)
    }

    /// Adds the import of a digest. Fails while a fill or a removal of the digest is running: the caller waits for the end
    /// of the returned phase.
    pub(super) fn start_import(
        &self,
        digest: &Digest,
    ) -> Result<watch::Sender<FillPhase>, watch::Receiver<FillPhase>> {
        let mut entries = self.lock();
        match entries.get(digest) {
            Some(FillEntry::Fill { phase, .. }) => return Err(phase.clone()),
            Some(FillEntry::Removal(sender)) => return Err(sender.subscribe()),
            None => {}
        }
        let (sender, phase) = watch::channel(FillPhase::Starting);
        let import = FillEntry::Fill { owner: None, phase, span: Span::none(), since: Instant::now() };
        entries.insert(*digest, import);
        Ok(sender)
    }

    /// Removes a fill from the map, if it is still there: a fill that can no longer be joined is removed before its end.
    pub(super) fn remove(&self, digest: &Digest, phase: &watch::Sender<FillPhase>) {
        let mut entries = self.lock();
        if let Some(FillEntry::Fill { phase: current, .. }) = entries.get(digest)
            && current.same_channel(&phase.subscribe())
        {
            entries.remove(digest);
        }
    }

    /// Blocks fills of a digest until [`unblock`](Self::unblock). Returns false if a fill or a removal is running.
    pub(super) fn block(&self, digest: &Digest) -> bool {
        match self.lock().entry(*digest) {
            Entry::Occupied(_) => false,
            Entry::Vacant(entry) => {
                entry.insert(FillEntry::Removal(watch::Sender::new(FillPhase::Starting)));
                true
            }
        }
    }

    /// Allows fills of a blocked digest.
    pub(super) fn unblock(&self, digest: &Digest) {
        self.lock().remove(digest);
    }

    /// Waits until a digest is not being filled, and so is stored or cannot be stored.
    pub(super) async fn wait_for_end(&self, digest: &Digest) {
        let phase = match self.lock().get(digest) {
            Some(FillEntry::Fill { phase, .. }) => phase.clone(),
            Some(FillEntry::Removal(_)) | None => return,
        };
        fill_ended(phase).await;
    }

    /// Returns the length that the upstream announced to the running fill of a repository.
    pub(super) fn announced_length(&self, repository: &Repository, digest: &Digest) -> Option<u64> {
        let entries = self.lock();
        let FillEntry::Fill { owner, phase, .. } = entries.get(digest)? else { return None };
        let phase = phase.borrow();
        match &*phase {
            FillPhase::Running(draft) if owner.as_ref() == Some(repository) => draft.progress().total,
            _ => None,
        }
    }

    /// Returns true if a digest is being filled or removed.
    pub(super) fn contains(&self, digest: &Digest) -> bool {
        self.lock().contains_key(digest)
    }

    /// Returns all fills of repositories, in no particular order. Imports are not listed.
    pub(super) fn running(&self) -> Vec<RunningFill> {
        let entries = self.lock();
        let fills = entries.iter().filter_map(|(digest, entry)| {
            let FillEntry::Fill { owner, phase, since, .. } = entry else { return None };
            let draft = match &*phase.borrow() {
                FillPhase::Starting => None,
                FillPhase::Running(draft) => Some(Arc::clone(draft)),
                FillPhase::Stored(_) | FillPhase::Failed(_) => return None,
            };
            let repository = owner.clone()?;
            Some(RunningFill { digest: *digest, repository, since: *since, draft })
        });
        fills.collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, FillEntry>> {
        // A poisoned lock is usable: no change under it can panic half-way.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn fill_starts_once_and_is_joined_with_access() {
        let fills = Fills::default();
        let repository = |name: &str| Repository {
            upstream: "docker.io".parse().expect("a name"),
            name: name.parse().expect("a name"),
        };
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let Admission::Start(sender, ..) = fills.admit(&repository("a"), &digest, false) else {
            panic!("joined")
        };
        assert!(matches!(fills.admit(&repository("a"), &digest, false), Admission::Join(_, true)));
        assert!(matches!(fills.admit(&repository("b"), &digest, false), Admission::NeedsAccess));
        assert!(matches!(fills.admit(&repository("b"), &digest, true), Admission::Join(_, false)));
        fills.remove(&digest, &sender);
        let Admission::Start(next, ..) = fills.admit(&repository("b"), &digest, false) else {
            panic!("joined")
        };
        // The first fill has ended; it must not remove the second one.
        fills.remove(&digest, &sender);
        assert!(matches!(fills.admit(&repository("b"), &digest, false), Admission::Join(..)));
        fills.remove(&digest, &next);
        assert!(matches!(fills.admit(&repository("b"), &digest, false), Admission::Start(..)));
    }

    #[test]
    fn import_gives_no_repository_access() {
        let fills = Fills::default();
        let repository =
            Repository { upstream: "docker.io".parse().expect("a name"), name: "a".parse().expect("a name") };
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let sender = fills.start_import(&digest).expect("a place");
        assert!(fills.start_import(&digest).is_err() && !fills.block(&digest));
        assert!(matches!(fills.admit(&repository, &digest, false), Admission::NeedsAccess));
        assert!(matches!(fills.admit(&repository, &digest, true), Admission::Join(_, false)));
        fills.remove(&digest, &sender);
        assert!(matches!(fills.admit(&repository, &digest, true), Admission::Start(..)));
    }

    #[tokio::test]
    async fn fill_waits_for_a_removal() {
        let fills = Fills::default();
        let repository =
            Repository { upstream: "docker.io".parse().expect("a name"), name: "a".parse().expect("a name") };
        let digest = Digest::of(Algorithm::Sha256, b"x");
        assert!(fills.block(&digest) && !fills.block(&digest));
        let Admission::AwaitRemoval(mut phase) = fills.admit(&repository, &digest, true) else {
            panic!("no removal")
        };
        fills.unblock(&digest);
        assert!(phase.changed().await.is_err());
        assert!(matches!(fills.admit(&repository, &digest, true), Admission::Start(..)));
        assert!(!fills.block(&digest));
    }
}
