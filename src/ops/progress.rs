//! How far long work has come, for whoever looks on: on this terminal, or on another machine.

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// One piece of long work that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Bar)]
pub struct ProgressItem {
    /// Tells it from others.
    pub id: u64,
    /// What it is.
    pub name: String,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all, as far as they are known.
    pub total: u64,
}

/// All that is under way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Progress {
    /// What is under way now.
    pub bars: Vec<ProgressItem>,
    /// Pieces that have ended.
    pub ended: u64,
    /// Pieces in all, as far as they are known.
    pub all: u64,
    /// The next bar's number.
    #[serde(skip)]
    next: u64,
}

/// Tells how far work has come. Clones tell the same.
#[derive(Clone, Debug)]
pub struct ProgressReporter(watch::Sender<Progress>);

impl ProgressReporter {
    /// A reporter, and what looks on.
    pub fn new() -> (Self, watch::Receiver<Progress>) {
        let (sender, receiver) = watch::channel(Progress::default());
        (Self(sender), receiver)
    }

    /// There will be so many pieces.
    pub fn expect(&self, pieces: usize) {
        self.0.send_modify(|progress| progress.all += pieces as u64);
    }

    /// A piece of work begins; it ends when what is returned is dropped.
    pub fn begin(&self, name: impl Into<String>) -> ProgressPiece {
        let mut id = 0;
        self.0.send_modify(|progress| {
            id = progress.next;
            progress.next += 1;
            progress.bars.push(ProgressItem { id, name: name.into(), done: 0, total: 0 });
        });
        ProgressPiece { reporter: self.clone(), id }
    }

    fn change(&self, id: u64, change: impl FnOnce(&mut ProgressItem)) {
        self.0.send_modify(|progress| {
            if let Some(bar) = progress.bars.iter_mut().find(|bar| bar.id == id) {
                change(bar);
            }
        });
    }
}

/// One piece of work.
#[derive(Debug)]
pub struct ProgressPiece {
    reporter: ProgressReporter,
    id: u64,
}

impl ProgressPiece {
    /// So many bytes more are to be done.
    pub fn expect(&self, bytes: u64) {
        self.reporter.change(self.id, |bar| bar.total = bar.total.saturating_add(bytes));
    }

    /// So many bytes more are done.
    pub fn done(&self, bytes: u64) {
        self.reporter.change(self.id, |bar| bar.done = bar.done.saturating_add(bytes));
    }
}

impl Drop for ProgressPiece {
    fn drop(&mut self) {
        self.reporter.0.send_modify(|progress| {
            progress.bars.retain(|bar| bar.id != self.id);
            progress.ended += 1;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_and_go() {
        let (reporter, seen) = ProgressReporter::new();
        reporter.expect(2);
        let (one, other) = (reporter.begin("one"), reporter.begin("other"));
        one.expect(10);
        one.done(4);
        other.done(1);
        drop(other);
        let progress = seen.borrow().clone();
        assert_eq!((progress.ended, progress.all), (1, 2));
        assert_eq!(progress.bars, [ProgressItem { id: 0, name: "one".to_owned(), done: 4, total: 10 }]);
    }
}
