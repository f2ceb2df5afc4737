//! The board of fills under way: who fills which digest, and how far that is.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, watch};
use tracing::Span;

use crate::oci::{Digest, Repository};
use crate::store::{BlobEntry, Draft, DraftEnd};

use super::CacheError;
use crate::telemetry::trace;

/// How far a fill has come, as far as somebody who wants to start reading must know.
#[derive(Clone, Debug)]
pub(super) enum Phase {
    /// The upstream has not answered yet.
    Starting,
    /// Bytes are coming.
    Running(Arc<Draft>),
    /// It was there already, or is by now.
    Stored(BlobEntry),
    /// There will be nothing to read.
    Failed(CacheError),
}

impl Phase {
    /// Whether all bytes have come and are right.
    pub(super) fn is_verified(&self) -> bool {
        matches!(self, Self::Running(draft) if draft.progress().end == Some(DraftEnd::Verified))
    }
}

/// Waits until a fill has ended, in whatever way, or a removal: one whose sender goes has ended too.
pub(super) async fn ended(mut phase: watch::Receiver<Phase>) {
    let ended = phase.wait_for(|phase| matches!(phase, Phase::Stored(_) | Phase::Failed(_)));
    drop(ended.await);
}

/// A place at a fill.
#[derive(Debug)]
pub(super) enum Place {
    /// Nobody fills this digest: the caller is to, and tells how it goes through this.
    Fills(watch::Sender<Phase>, watch::Receiver<Phase>, Span),
    /// A fill runs that the asker may join; whether it is the asker's own repository that fills.
    Joins(watch::Receiver<Phase>, bool),
    /// A fill runs for another repository, and the asker's must have a right of its own first.
    NeedsRight,
    /// What was held of it is being removed; nothing comes before this ends.
    Waits(watch::Receiver<Phase>),
}

#[derive(Debug)]
enum Running {
    Fill {
        /// `None` for what comes in from elsewhere than an upstream: nobody has a right to it by that.
        owner: Option<Repository>,
        /// What a descriptor promised of the size.
        promised: u64,
        phase: watch::Receiver<Phase>,
        span: Span,
        since: Instant,
    },
    /// The sender is dropped when the removal has ended.
    Removal(watch::Sender<Phase>),
}

/// A fill, for who looks on.
pub(super) struct UnderWay {
    pub(super) digest: Digest,
    pub(super) repository: Repository,
    pub(super) since: Instant,
    /// None while the upstream has not answered.
    pub(super) draft: Option<Arc<Draft>>,
}

/// The fills under way, by digest.
#[derive(Debug, Default)]
pub(super) struct Board {
    running: Mutex<HashMap<Digest, Running>>,
    /// A fill has left.
    left: Notify,
}

impl Board {
    /// Finds a place for `repository`, which may have a `right` to the digest already. Decided under one lock, so
    /// that no fill is joined without a right and none is started twice. `promised` is what a descriptor says of the size.
    pub(super) fn place(
        &self,
        repository: &Repository,
        digest: &Digest,
        promised: Option<u64>,
        right: bool,
    ) -> Place {
        let mut running = self.lock();
        match running.get(digest) {
            Some(Running::Fill { owner, phase, span, .. }) => {
                let own = owner.as_ref() == Some(repository);
                if !own && !right {
                    return Place::NeedsRight;
                }
                trace::join(span);
                return Place::Joins(phase.clone(), own);
            }
            Some(Running::Removal(sender)) => return Place::Waits(sender.subscribe()),
            None => {}
        }
        let (sender, phase) = watch::channel(Phase::Starting);
        let (owner, span) = (Some(repository.clone()), trace::fill(repository, digest));
        let promised = promised.unwrap_or_default();
        let fill = Running::Fill {
            owner,
            promised,
            phase: phase.clone(),
            span: span.clone(),
            since: Instant::now(),
        };
        running.insert(*digest, fill);
        Place::Fills(sender, phase, span)
    }

    /// A place for who brings a digest from elsewhere than an upstream. Where something goes on with it already, that has
    /// to end first: the error is what to wait for.
    pub(super) fn take_in(&self, digest: &Digest) -> Result<watch::Sender<Phase>, watch::Receiver<Phase>> {
        let mut running = self.lock();
        match running.get(digest) {
            Some(Running::Fill { phase, .. }) => return Err(phase.clone()),
            Some(Running::Removal(sender)) => return Err(sender.subscribe()),
            None => {}
        }
        let (sender, phase) = watch::channel(Phase::Starting);
        running.insert(
            *digest,
            Running::Fill { owner: None, promised: 0, phase, span: Span::none(), since: Instant::now() },
        );
        Ok(sender)
    }

    /// Takes a fill off the board, if it is there: one that nobody can join any more has left before its end.
    pub(super) fn leave(&self, digest: &Digest, phase: &watch::Sender<Phase>) {
        let mut running = self.lock();
        if let Some(Running::Fill { phase: held, .. }) = running.get(digest)
            && held.same_channel(&phase.subscribe())
        {
            running.remove(digest);
            self.left.notify_waiters();
        }
    }

    /// Keeps fills of a digest away until it is opened again. Tells whether that can be: one may be running.
    pub(super) fn close(&self, digest: &Digest) -> bool {
        match self.lock().entry(*digest) {
            Entry::Occupied(_) => false,
            Entry::Vacant(entry) => {
                entry.insert(Running::Removal(watch::Sender::new(Phase::Starting)));
                true
            }
        }
    }

    /// Lets fills of a closed digest come.
    pub(super) fn open(&self, digest: &Digest) {
        self.lock().remove(digest);
    }

    /// Whether a digest is being filled or removed.
    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.lock().contains_key(digest)
    }

    /// Bytes of the blobs that fills are bringing into the store, and how many of them have not come yet, as far as is
    /// known.
    pub(super) fn coming(&self) -> (u64, u64) {
        Self::sum(self.lock().values())
    }

    /// What fills of other blobs are bringing into the store.
    pub(super) fn coming_beside(&self, digest: &Digest) -> u64 {
        Self::sum(self.lock().iter().filter(|(other, _)| *other != digest).map(|(_, running)| running)).0
    }

    fn sum<'a>(running: impl Iterator<Item = &'a Running>) -> (u64, u64) {
        let (mut all, mut left) = (0_u64, 0_u64);
        for running in running {
            let Running::Fill { phase, promised, .. } = running else { continue };
            let (total, written) = match &*phase.borrow() {
                Phase::Starting => (*promised, 0),
                Phase::Running(draft) if draft.is_kept() => {
                    let progress = draft.progress();
                    (progress.total.unwrap_or(progress.received.max(*promised)), progress.written)
                }
                Phase::Running(_) | Phase::Stored(_) | Phase::Failed(_) => continue,
            };
            all = all.saturating_add(total);
            left = left.saturating_add(total.saturating_sub(written));
        }
        (all, left)
    }

    /// Waits until `enough`, which is asked again whenever a fill has left.
    pub(super) async fn until(&self, enough: impl Fn() -> bool) {
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
    pub(super) fn under_way(&self) -> Vec<UnderWay> {
        let running = self.lock();
        let fills = running.iter().filter_map(|(digest, running)| {
            let Running::Fill { owner, phase, since, .. } = running else { return None };
            let draft = match &*phase.borrow() {
                Phase::Starting => None,
                Phase::Running(draft) => Some(Arc::clone(draft)),
                Phase::Stored(_) | Phase::Failed(_) => return None,
            };
            // What an import brings is nobody's fill.
            let repository = owner.clone()?;
            Some(UnderWay { digest: *digest, repository, since: *since, draft })
        });
        fills.collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Running>> {
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
        let board = Board::default();
        let repository = |name: &str| Repository {
            upstream: "docker.io".parse().expect("a name"),
            name: name.parse().expect("a name"),
        };
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let Place::Fills(sender, ..) = board.place(&repository("a"), &digest, None, false) else {
            panic!("joined")
        };
        assert!(matches!(board.place(&repository("a"), &digest, None, false), Place::Joins(_, true)));
        assert!(matches!(board.place(&repository("b"), &digest, None, false), Place::NeedsRight));
        assert!(matches!(board.place(&repository("b"), &digest, None, true), Place::Joins(_, false)));
        board.leave(&digest, &sender);
        let Place::Fills(next, ..) = board.place(&repository("b"), &digest, None, false) else {
            panic!("joined")
        };
        // It has left, and takes nobody else with it.
        board.leave(&digest, &sender);
        assert!(matches!(board.place(&repository("b"), &digest, None, false), Place::Joins(..)));
        board.leave(&digest, &next);
        assert!(matches!(board.place(&repository("b"), &digest, None, false), Place::Fills(..)));
    }

    #[test]
    fn what_is_brought_from_elsewhere_is_nobodys() {
        let board = Board::default();
        let repository =
            Repository { upstream: "docker.io".parse().expect("a name"), name: "a".parse().expect("a name") };
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let sender = board.take_in(&digest).expect("a place");
        assert!(board.take_in(&digest).is_err() && !board.close(&digest));
        assert!(matches!(board.place(&repository, &digest, None, false), Place::NeedsRight));
        assert!(matches!(board.place(&repository, &digest, None, true), Place::Joins(_, false)));
        board.leave(&digest, &sender);
        assert!(matches!(board.place(&repository, &digest, None, true), Place::Fills(..)));
    }

    #[tokio::test]
    async fn what_is_being_removed_is_not_filled() {
        let board = Board::default();
        let repository =
            Repository { upstream: "docker.io".parse().expect("a name"), name: "a".parse().expect("a name") };
        let digest = Digest::of(Algorithm::Sha256, b"x");
        assert!(board.close(&digest) && !board.close(&digest));
        let Place::Waits(mut phase) = board.place(&repository, &digest, None, true) else {
            panic!("no removal")
        };
        board.open(&digest);
        assert!(phase.changed().await.is_err());
        assert!(matches!(board.place(&repository, &digest, None, true), Place::Fills(..)));
        assert!(!board.close(&digest));
    }
}
