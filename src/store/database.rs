//! sled, behind a handle that outlives it. After its first I/O error sled takes nothing more until it is opened anew, and
//! what else it held of files that somebody removed goes nowhere; so it can be closed and opened behind everybody's back.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::StoreError;
use super::opening::Trees;
use super::pages::Pages;

/// How long somebody who reads a blob waits for the store to be opened anew.
const SOON: Duration = Duration::from_secs(10);
/// How often that is looked for.
const AGAIN: Duration = Duration::from_millis(20);

/// sled, while it is open; clones share it. What is taken from here must be let go of after each operation: sled closes
/// with the last of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Database(Arc<RwLock<Option<Trees>>>);

impl Database {
    /// All of it, for who writes bytes and then the fact that points at them: both must go to the same database, even if
    /// another one takes its place in between.
    pub(super) fn trees(&self) -> Result<Trees, StoreError> {
        self.with(Trees::clone)
    }

    pub(super) fn facts(&self) -> Result<sled::Tree, StoreError> {
        self.with(|trees| trees.facts.clone())
    }

    pub(super) fn documents(&self) -> Result<Pages, StoreError> {
        self.with(|trees| trees.documents.clone())
    }

    pub(super) fn pages(&self) -> Result<Pages, StoreError> {
        self.with(|trees| trees.pages.clone())
    }

    /// As `pages`, for who is in the middle of a blob: if the store is being opened anew, it is waited for.
    pub(super) fn pages_soon(&self) -> Result<Pages, StoreError> {
        let end = Instant::now() + SOON;
        loop {
            match self.pages() {
                Err(StoreError::Closed) if Instant::now() < end => std::thread::sleep(AGAIN),
                pages => return pages,
            }
        }
    }

    pub(super) fn db(&self) -> Result<sled::Db, StoreError> {
        self.with(|trees| trees.db.clone())
    }

    fn with<T>(&self, take: impl FnOnce(&Trees) -> T) -> Result<T, StoreError> {
        // Nothing under this lock can panic halfway through a change.
        let held = self.0.read().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().map(take).ok_or(StoreError::Closed)
    }

    /// Puts something in the place of what is open, if anything is. What was open closes when nobody uses it any more.
    pub(super) fn replace(&self, trees: Option<Trees>) {
        let before = std::mem::replace(&mut *self.0.write().unwrap_or_else(PoisonError::into_inner), trees);
        // Outside the lock: to close may take as long as the disk needs.
        drop(before);
    }
}
