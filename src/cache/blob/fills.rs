//! The board of fills under way: who fills which digest, and how far that is.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, watch};
use tracing::Span;

use crate::oci::{Digest, Repository};
use crate::store::{BlobEntry, Draft, DraftEnd};

use crate::cache::error::CacheError;
use crate::telemetry::trace;

/// How far a fill has come, as far as somebody who wants to start reading must know.
#[derive(Clone, Debug)]
pub(in crate::cache) enum FillPhase {
    /// The upstream has not answered yet.
    Starting,
    /// Bytes are coming.
    Running(Arc<Draft>),
    /// It was there already, or is by now.
    Stored(BlobEntry),
    /// There will be nothing to read.
    Failed(CacheError),
}

impl FillPhase {
    /// Whether all bytes have come and are right.
    pub(in crate::cache) fn is_verified(&self) -> bool {
        matches!(self, Self::Running(draft) if draft.progress().end == Some(DraftEnd::Verified))
    }
}

/// Waits until a fill has ended, in whatever way, or a removal: one whose sender goes has ended too.
pub(in crate::cache) async fn fill_ended(mut phase: watch::Receiver<FillPhase>) {
    let ended = phase.wait_for(|phase| matches!(phase, FillPhase::Stored(_) | FillPhase::Failed(_)));
    drop(ended.await);
}

/// A place at a fill.
#[derive(Debug)]
pub(in crate::cache) enum Admission {
    /// Nobody fills this digest: the caller is to, and tells how it goes through this.
    Start(watch::Sender<FillPhase>, watch::Receiver<FillPhase>, Span),
    /// A fill runs that the asker may join; whether it is the asker's own repository that fills.
    Join(watch::Receiver<FillPhase>, bool),
    /// A fill runs for another repository, and the asker's must have a right of its own first.
    NeedsAccess,
    /// What was held of it is being removed; nothing comes before this ends.
    WaitForRemoval(watch::Receiver<FillPhase>),
}

#[derive(Debug)]
enum FillEntry {
    Fill {
        /// `None` for what comes in from elsewhere than an upstream: nobody has a right to it by that.
        owner: Option<Repository>,
        /// What a descriptor promised of the size.
        promised: u64,
        phase: watch::Receiver<FillPhase>,
        span: Span,
        since: Instant,
    },
    /// The sender is dropped when the removal has ended.
    Removal(watch::Sender<FillPhase>),
}

/// A fill, for who looks on.
pub(in crate::cache) struct RunningFill {
    pub(in crate::cache) digest: Digest,
    pub(in crate::cache) repository: Repository,
    pub(in crate::cache) since: Instant,
    /// None while the upstream has not answered.
    pub(in crate::cache) draft: Option<Arc<Draft>>,
}

/// The fills under way, by digest.
#[derive(Debug, Default)]
pub(in crate::cache) struct Fills {
    running: Mutex<HashMap<Digest, FillEntry>>,
    /// A fill has left.
    left: Notify,
}

impl Fills {
    /// Finds a place for `repository`, which may have a `right` to the digest already. Decided under one lock, so
    /// that no fill is joined without a right and none is started twice. `promised` is what a descriptor says of the size.
    pub(in crate::cache) fn admit(
        &self,
        repository: &Repository,
        digest: &Digest,
        promised: Option<u64>,
        has_access: bool,
    ) -> Admission {
        let mut running = self.lock();
        match running.get(digest) {
            Some(FillEntry::Fill { owner, phase, span, .. }) => {
                let own = owner.as_ref() == Some(repository);
                if !own && !has_access {
                    return Admission::NeedsAccess;
                }
                trace::join(span);
                return Admission::Join(phase.clone(), own);
            }
            Some(FillEntry::Removal(sender)) => return Admission::WaitForRemoval(sender.subscribe()),
            None => {}
        }
        let (sender, phase) = watch::channel(FillPhase::Starting);
        let (owner, span) = (Some(repository.clone()), trace::fill(repository, digest));
        let promised = promised.unwrap_or_default();
        let fill = FillEntry::Fill {
            owner,
            promised,
            phase: phase.clone(),
            span: span.clone(),
            since: Instant::now(),
        };
        running.insert(*digest, fill);
        Admission::Start(sender, phase, span)
    }

    /// A place for who brings a digest from elsewhere than an upstream. Where something goes on with it already, that has
    /// to end first: the error is what to wait for.
    pub(in crate::cache) fn start_import(
        &self,
        digest: &Digest,
    ) -> Result<watch::Sender<FillPhase>, watch::Receiver<FillPhase>> {
        let mut running = self.lock();
        match running.get(digest) {
            Some(FillEntry::Fill { phase, .. }) => return Err(phase.clone()),
            Some(FillEntry::Removal(sender)) => return Err(sender.subscribe()),
            None => {}
        }
        let (sender, phase) = watch::channel(FillPhase::Starting);
        running.insert(
            *digest,
            FillEntry::Fill { owner: None, promised: 0, phase, span: Span::none(), since: Instant::now() },
        );
        Ok(sender)
    }

    /// Takes a fill off the board, if it is there: one that nobody can join any more has left before its end.
    pub(in crate::cache) fn remove(&self, digest: &Digest, phase: &watch::Sender<FillPhase>) {
        let mut running = self.lock();
        if let Some(FillEntry::Fill { phase: held, .. }) = running.get(digest)
            && held.same_channel(&phase.subscribe())
        {
            running.remove(digest);
            self.left.notify_waiters();
        }
    }

    /// Keeps fills of a digest away until it is opened again. Tells whether that can be: one may be running.
    pub(in crate::cache) fn block(&self, digest: &Digest) -> bool {
        match self.lock().entry(*digest) {
            Entry::Occupied(_) => false,
            Entry::Vacant(entry) => {
                entry.insert(FillEntry::Removal(watch::Sender::new(FillPhase::Starting)));
                true
            }
        }
    }

    /// Lets fills of a closed digest come.
    pub(in crate::cache) fn unblock(&self, digest: &Digest) {
        self.lock().remove(digest);
    }

    /// Whether a digest is being filled or removed.
    pub(in crate::cache) fn contains(&self, digest: &Digest) -> bool {
        self.lock().contains_key(digest)
    }

    /// Bytes of the blobs that fills are bringing into the store, and how many of them have not come yet, as far as is
    /// known.
    pub(in crate::cache) fn pending(&self) -> (u64, u64) {
        Self::sum(self.lock().values())
    }

    /// What fills of other blobs are bringing into the store.
    pub(in crate::cache) fn pending_except(&self, digest: &Digest) -> u64 {
        Self::sum(self.lock().iter().filter(|(other, _)| *other != digest).map(|(_, running)| running)).0
    }

    fn sum<'a>(running: impl Iterator<Item = &'a FillEntry>) -> (u64, u64) {
        let (mut all, mut left) = (0_u64, 0_u64);
        for running in running {
            let FillEntry::Fill { phase, promised, .. } = running else { continue };
            let (total, written) = match &*phase.borrow() {
                FillPhase::Starting => (*promised, 0),
                FillPhase::Running(draft) if draft.is_kept() => {
                    let progress = draft.progress();
                    (progress.total.unwrap_or(progress.received.max(*promised)), progress.written)
                }
                FillPhase::Running(_) | FillPhase::Stored(_) | FillPhase::Failed(_) => continue,
            };
            all = all.saturating_add(total);
            left = left.saturating_add(total.saturating_sub(written));
        }
        (all, left)
    }

    /// Waits until `enough`, which is asked again whenever a fill has left.
    pub(in crate::cache) async fn wait_until(&self, enough: impl Fn() -> bool) {
        loop {
            let left = self.left.notified();
            tokio::pin!(left);
            // Asked only after listening, so that no leaving is missed.
            left.as_mut().enable();
            if enough() {
                return;
            }
            left.await;
        }
    }

    /// All fills, in no order.
    pub(in crate::cache) fn running(&self) -> Vec<RunningFill> {
        let running = self.lock();
        let fills = running.iter().filter_map(|(digest, running)| {
            let FillEntry::Fill { owner, phase, since, .. } = running else { return None };
            let draft = match &*phase.borrow() {
                FillPhase::Starting => None,
                FillPhase::Running(draft) => Some(Arc::clone(draft)),
                FillPhase::Stored(_) | FillPhase::Failed(_) => return None,
            };
            // What an import brings is nobody's fill.
            let repository = owner.clone()?;
            Some(RunningFill { digest: *digest, repository, since: *since, draft })
        });
        fills.collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, FillEntry>> {
        // Nothing under this lock can panic halfway through a change.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn a_fill_is_started_once_and_joined_by_right() {
        let fills = Fills::default();
        let repository = |name: &str| Repository {
            upstream: "docker.io".parse().expect("a name"),
            name: name.parse().expect("a name"),
        };
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let Admission::Start(sender, ..) = fills.admit(&repository("a"), &digest, None, false) else {
            panic!("joined")
        };
        assert!(matches!(fills.admit(&repository("a"), &digest, None, false), Admission::Join(_, true)));
        assert!(matches!(fills.admit(&repository("b"), &digest, None, false), Admission::NeedsAccess));
        assert!(matches!(fills.admit(&repository("b"), &digest, None, true), Admission::Join(_, false)));
        fills.remove(&digest, &sender);
        let Admission::Start(next, ..) = fills.admit(&repository("b"), &digest, None, false) else {
            panic!("joined")
        };
        // It has left, and takes nobody else with it.
        fills.remove(&digest, &sender);
        assert!(matches!(fills.admit(&repository("b"), &digest, None, false), Admission::Join(..)));
        fills.remove(&digest, &next);
        assert!(matches!(fills.admit(&repository("b"), &digest, None, false), Admission::Start(..)));
    }

    #[test]
    fn what_is_brought_from_elsewhere_is_nobodys() {
        let fills = Fills::default();
        let repository =
            Repository { upstream: "docker.io".parse().expect("a name"), name: "a".parse().expect("a name") };
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let sender = fills.start_import(&digest).expect("a place");
        assert!(fills.start_import(&digest).is_err() && !fills.block(&digest));
        assert!(matches!(fills.admit(&repository, &digest, None, false), Admission::NeedsAccess));
        assert!(matches!(fills.admit(&repository, &digest, None, true), Admission::Join(_, false)));
        fills.remove(&digest, &sender);
        assert!(matches!(fills.admit(&repository, &digest, None, true), Admission::Start(..)));
    }

    #[tokio::test]
    async fn what_is_being_removed_is_not_filled() {
        let fills = Fills::default();
        let repository =
            Repository { upstream: "docker.io".parse().expect("a name"), name: "a".parse().expect("a name") };
        let digest = Digest::of(Algorithm::Sha256, b"x");
        assert!(fills.block(&digest) && !fills.block(&digest));
        let Admission::WaitForRemoval(mut phase) = fills.admit(&repository, &digest, None, true) else {
            panic!("no removal")
        };
        fills.unblock(&digest);
        assert!(phase.changed().await.is_err());
        assert!(matches!(fills.admit(&repository, &digest, None, true), Admission::Start(..)));
        assert!(!fills.block(&digest));
    }
}
