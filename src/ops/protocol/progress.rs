//! Progress of long operations, for the terminal and the admin API.

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Item of work that is running.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Bar)]
pub struct ProgressItem {
    /// Number of the item.
    pub id: u64,
    /// Name of the item.
    pub name: String,
    /// Processed bytes.
    pub done: u64,
    /// Total bytes, as far as known.
    pub total: u64,
    /// Repositories whose downloads the item waits for, one for each blob that they store too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting_for: Vec<String>,
}

/// Progress of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Progress {
    /// Running items.
    pub bars: Vec<ProgressItem>,
    /// Finished items.
    pub ended: u64,
    /// Total items, as far as known.
    pub all: u64,
    /// Number of the next item.
    #[serde(skip)]
    next: u64,
}

/// Reporter of progress. Clones report to the same receiver.
#[derive(Clone, Debug)]
pub struct ProgressReporter(watch::Sender<Progress>);

impl ProgressReporter {
    /// Creates a reporter and its receiver.
    pub fn new() -> (Self, watch::Receiver<Progress>) {
        let (sender, receiver) = watch::channel(Progress::default());
        (Self(sender), receiver)
    }

    /// Adds items to the total.
    pub fn expect(&self, items: usize) {
        self.0.send_modify(|progress| progress.all += items as u64);
    }

    /// Starts an item. It ends when the returned value is dropped.
    pub fn begin(&self, name: impl Into<String>) -> RunningItem {
        let mut id = 0;
        self.0.send_modify(|progress| {
            id = progress.next;
            progress.next += 1;
            progress.bars.push(ProgressItem {
                id,
                name: name.into(),
                done: 0,
                total: 0,
                waiting_for: Vec::new(),
            });
        });
        RunningItem { reporter: self.clone(), id }
    }

    fn change(&self, id: u64, change: impl FnOnce(&mut ProgressItem)) {
        self.0.send_modify(|progress| {
            if let Some(item) = progress.bars.iter_mut().find(|item| item.id == id) {
                change(item);
            }
        });
    }
}

/// Running item of work.
#[derive(Debug)]
pub struct RunningItem {
    reporter: ProgressReporter,
    id: u64,
}

impl RunningItem {
    /// Adds bytes to the total.
    pub fn expect(&self, bytes: u64) {
        self.reporter.change(self.id, |item| item.total = item.total.saturating_add(bytes));
    }

    /// Adds processed bytes.
    pub fn done(&self, bytes: u64) {
        self.reporter.change(self.id, |item| item.done = item.done.saturating_add(bytes));
    }

    /// Begins to wait for a blob that another repository is storing. Several blobs may wait at the same time.
    pub fn begin_wait(&self, repository: String) {
        self.reporter.change(self.id, |item| item.waiting_for.push(repository));
    }

    /// Ends one wait for a repository.
    pub fn end_wait(&self, repository: &str) {
        self.reporter.change(self.id, |item| {
            if let Some(at) = item.waiting_for.iter().position(|other| other == repository) {
                item.waiting_for.remove(at);
            }
        });
    }
}

impl Drop for RunningItem {
    fn drop(&mut self) {
        self.reporter.0.send_modify(|progress| {
            progress.bars.retain(|item| item.id != self.id);
            progress.ended += 1;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_counts_items_and_bytes() {
        let (reporter, seen) = ProgressReporter::new();
        reporter.expect(2);
        let (one, other) = (reporter.begin("one"), reporter.begin("other"));
        one.expect(10);
        one.done(4);
        other.done(1);
        drop(other);
        // The end of one wait leaves another one for the same repository.
        one.begin_wait("quay.io/a".to_owned());
        one.begin_wait("quay.io/a".to_owned());
        one.end_wait("quay.io/a");
        let progress = seen.borrow().clone();
        assert_eq!((progress.ended, progress.all), (1, 2));
        let waiting_for = vec!["quay.io/a".to_owned()];
        assert_eq!(
            progress.bars,
            [ProgressItem { id: 0, name: "one".to_owned(), done: 4, total: 10, waiting_for }]
        );
    }
}
