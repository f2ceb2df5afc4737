//! The board of fills under way: who fills which digest, and how far that is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::oci::{Digest, Repository};
use crate::store::{BlobEntry, Draft};

use super::CacheError;

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

/// A place at a fill.
#[derive(Debug)]
pub(super) enum Place {
    /// Nobody fills this digest: the caller is to, and tells how it goes through this.
    Fills(watch::Sender<Phase>, watch::Receiver<Phase>),
    /// A fill runs that the asker may join; whether it is the asker's own repository that fills.
    Joins(watch::Receiver<Phase>, bool),
    /// A fill runs for another repository, and the asker's must have a right of its own first.
    NeedsRight,
}

#[derive(Debug)]
struct Running {
    owner: Repository,
    phase: watch::Receiver<Phase>,
}

/// The fills under way, by digest.
#[derive(Debug, Default)]
pub(super) struct Board(Mutex<HashMap<Digest, Running>>);

impl Board {
    /// Finds a place for `repository`, which may have a `right` to the digest already. Decided under one lock, so
    /// that no fill is joined without a right and none is started twice.
    pub(super) fn place(&self, repository: &Repository, digest: &Digest, right: bool) -> Place {
        let mut running = self.lock();
        if let Some(fill) = running.get(digest) {
            let own = fill.owner == *repository;
            return if own || right { Place::Joins(fill.phase.clone(), own) } else { Place::NeedsRight };
        }
        let (sender, phase) = watch::channel(Phase::Starting);
        running.insert(*digest, Running { owner: repository.clone(), phase: phase.clone() });
        Place::Fills(sender, phase)
    }

    /// Takes a fill off the board.
    pub(super) fn leave(&self, digest: &Digest) {
        self.lock().remove(digest);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Running>> {
        // Nothing under this lock can panic halfway through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        assert!(matches!(board.place(&repository("a"), &digest, false), Place::Fills(..)));
        assert!(matches!(board.place(&repository("a"), &digest, false), Place::Joins(_, true)));
        assert!(matches!(board.place(&repository("b"), &digest, false), Place::NeedsRight));
        assert!(matches!(board.place(&repository("b"), &digest, true), Place::Joins(_, false)));
        board.leave(&digest);
        assert!(matches!(board.place(&repository("b"), &digest, false), Place::Fills(..)));
    }
}
