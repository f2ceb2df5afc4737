//! Handle of sled that outlives it. After its first I/O error sled accepts no more writes until it is opened again, so the
//! store closes and opens it while other parts of the server keep their handles.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::store::error::StoreError;
use crate::store::index::page_tree::PageTree;
use crate::store::index::trees::Trees;

/// Time for which a reader of a blob waits for sled to be opened again.
const REOPEN_DEADLINE: Duration = Duration::from_secs(10);
/// Interval of checks for it.
const REOPEN_INTERVAL: Duration = Duration::from_millis(20);

/// Handle of sled; clones share it. Drop everything that this returns after each operation: sled closes with its last
/// handle.
#[derive(Clone, Debug, Default)]
pub(in crate::store) struct Database(Arc<RwLock<Option<Trees>>>);

impl Database {
    /// Returns all trees. A caller that writes bytes and then a fact that points at them uses the same trees for both, even
    /// if sled is opened again in between.
    pub(in crate::store) fn trees(&self) -> Result<Trees, StoreError> {
        self.with(Trees::clone)
    }

    pub(in crate::store) fn facts(&self) -> Result<sled::Tree, StoreError> {
        self.with(|trees| trees.facts.clone())
    }

    pub(in crate::store) fn documents(&self) -> Result<PageTree, StoreError> {
        self.with(|trees| trees.documents.clone())
    }

    pub(in crate::store) fn pages(&self) -> Result<PageTree, StoreError> {
        self.with(|trees| trees.pages.clone())
    }

    /// Returns the pages of blobs. Waits if sled is being opened again: for a reader in the middle of a blob.
    pub(in crate::store) fn pages_after_reopen(&self) -> Result<PageTree, StoreError> {
        let end = Instant::now() + REOPEN_DEADLINE;
        loop {
            match self.pages() {
                Err(StoreError::Closed) if Instant::now() < end => std::thread::sleep(REOPEN_INTERVAL),
                pages => return pages,
            }
        }
    }

    fn with<T>(&self, take: impl FnOnce(&Trees) -> T) -> Result<T, StoreError> {
        // No code under this lock can panic in the middle of a change.
        let trees = self.0.read().unwrap_or_else(PoisonError::into_inner);
        trees.as_ref().map(take).ok_or(StoreError::Closed)
    }

    /// Replaces the open trees. The previous trees close with their last handle.
    pub(in crate::store) fn replace(&self, trees: Option<Trees>) {
        let before = std::mem::replace(&mut *self.0.write().unwrap_or_else(PoisonError::into_inner), trees);
        // Dropped outside the lock: closing takes as long as the disk needs.
        drop(before);
    }
}
