//! sled, behind a handle that outlives it. After its first I/O error sled takes nothing more until it is opened anew, and
//! what else it held of files that somebody removed goes nowhere; so it can be closed and opened behind everybody's back.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::store::error::StoreError;
use crate::store::index::page_tree::Pages;
use crate::store::lifecycle::header::Geometry;

/// sled's folder below the store's.
pub(in crate::store) const TREE: &str = "tree";
/// The tree of the pages of blobs.
pub(in crate::store) const PAGES: &str = "pages";

/// How long somebody who reads a blob waits for the store to be opened anew.
const SOON: Duration = Duration::from_secs(10);
/// How often that is looked for.
const AGAIN: Duration = Duration::from_millis(20);

/// sled, as every store has it.
#[derive(Clone, Debug)]
pub(in crate::store) struct Trees {
    pub(in crate::store) db: sled::Db,
    pub(in crate::store) facts: sled::Tree,
    pub(in crate::store) documents: Pages,
    /// The pages of blobs.
    pub(in crate::store) pages: Pages,
    pub(in crate::store) cache_memory: u64,
}

impl Trees {
    /// Opens sled below `folder`, which nobody else may use.
    pub(in crate::store) fn open(
        folder: &Path,
        geometry: Geometry,
        cache_memory: u64,
    ) -> Result<Self, StoreError> {
        contained(folder, || Self::open_at(&folder.join(TREE), geometry, cache_memory))
    }

    /// Opens sled in just this folder.
    pub(in crate::store) fn open_at(
        path: &Path,
        geometry: Geometry,
        cache_memory: u64,
    ) -> Result<Self, StoreError> {
        let db = sled::Config::new()
            .path(path)
            .cache_capacity(cache_memory)
            .segment_size(geometry.segment_size)
            .mode(sled::Mode::HighThroughput)
            .flush_every_ms(Some(500))
            .open()?;
        let facts = db.open_tree("facts")?;
        let spare = db.open_tree("spare")?;
        let documents = Pages::new(db.open_tree("documents")?, spare.clone(), geometry.page_size);
        let pages = Pages::new(db.open_tree(PAGES)?, spare, geometry.page_size);
        Ok(Self { db, facts, documents, pages, cache_memory })
    }
}

/// sled, while it is open; clones share it. What is taken from here must be let go of after each operation: sled closes
/// with the last of it.
#[derive(Clone, Debug, Default)]
pub(in crate::store) struct Database(Arc<RwLock<Option<Trees>>>);

impl Database {
    /// All of it, for who writes bytes and then the fact that points at them: both must go to the same database, even if
    /// another one takes its place in between.
    pub(in crate::store) fn trees(&self) -> Result<Trees, StoreError> {
        self.with(Trees::clone)
    }

    pub(in crate::store) fn facts(&self) -> Result<sled::Tree, StoreError> {
        self.with(|trees| trees.facts.clone())
    }

    pub(in crate::store) fn documents(&self) -> Result<Pages, StoreError> {
        self.with(|trees| trees.documents.clone())
    }

    pub(in crate::store) fn pages(&self) -> Result<Pages, StoreError> {
        self.with(|trees| trees.pages.clone())
    }

    /// As `pages`, for who is in the middle of a blob: if the store is being opened anew, it is waited for.
    pub(in crate::store) fn pages_soon(&self) -> Result<Pages, StoreError> {
        let end = Instant::now() + SOON;
        loop {
            match self.pages() {
                Err(StoreError::Closed) if Instant::now() < end => std::thread::sleep(AGAIN),
                pages => return pages,
            }
        }
    }

    pub(in crate::store) fn db(&self) -> Result<sled::Db, StoreError> {
        self.with(|trees| trees.db.clone())
    }

    fn with<T>(&self, take: impl FnOnce(&Trees) -> T) -> Result<T, StoreError> {
        // Nothing under this lock can panic halfway through a change.
        let held = self.0.read().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().map(take).ok_or(StoreError::Closed)
    }

    /// Puts something in the place of what is open, if anything is. What was open closes when nobody uses it any more.
    pub(in crate::store) fn replace(&self, trees: Option<Trees>) {
        let before = std::mem::replace(&mut *self.0.write().unwrap_or_else(PoisonError::into_inner), trees);
        // Outside the lock: to close may take as long as the disk needs.
        drop(before);
    }
}

/// Opens something of sled's in a thread of its own. sled asserts what it expects of its files, so that wrong bytes may be
/// a panic as well as an error; a panic there is the end of the thread, and what it says the reason.
pub(in crate::store) fn contained<T: Send>(
    path: &Path,
    open: impl FnOnce() -> Result<T, StoreError> + Send,
) -> Result<T, StoreError> {
    let opened = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("opening".to_owned()).spawn_scoped(scope, open);
        thread.map(std::thread::ScopedJoinHandle::join)
    });
    match opened.map_err(folder_error(path))? {
        Ok(Err(StoreError::Sled(error))) => Err(opening_error(path, error)),
        Ok(opened) => opened,
        Err(panic) => {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("nothing");
            // What it says may hold a whole page.
            let said: String = said.chars().take(200).collect();
            let reason = format!("sled gave up on it, saying: {said}");
            Err(StoreError::Corrupt { path: path.to_owned(), reason })
        }
    }
}

/// What sled's errors mean while it opens: files that are not as it wrote them, or a folder that cannot be used.
fn opening_error(path: &Path, error: sled::Error) -> StoreError {
    let corrupt = |reason| StoreError::Corrupt { path: path.to_owned(), reason };
    match error {
        error if is_locked(&error) => StoreError::Locked(path.to_owned()),
        sled::Error::Io(source) => match source.kind() {
            ErrorKind::NotADirectory
            | ErrorKind::IsADirectory
            | ErrorKind::InvalidData
            | ErrorKind::UnexpectedEof => corrupt(source.to_string()),
            _ => folder_error(path)(source),
        },
        sled::Error::Unsupported(reason) => corrupt(reason),
        other => corrupt(other.to_string()),
    }
}

/// sled tells a lock that is held only by what its I/O error says.
fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(source) if source.to_string().contains("could not acquire lock"))
}

fn folder_error(path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    |source| StoreError::Folder { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sled_gives_up_on_is_corrupt() {
        let error = contained(Path::new("/x"), || -> Result<(), _> { panic!("no {}", "page") });
        let said = error.expect_err("corrupt").to_string();
        assert!(said.contains("/x") && said.contains("no page"), "{said}");
        let error = contained(Path::new("/x"), || -> Result<(), _> { panic!("{}", "a".repeat(9000)) });
        assert!(error.expect_err("corrupt").to_string().len() < 1000);
        let io = |kind: ErrorKind| opening_error(Path::new("/x"), sled::Error::Io(kind.into()));
        assert!(matches!(io(ErrorKind::UnexpectedEof), StoreError::Corrupt { .. }));
        for kind in [ErrorKind::PermissionDenied, ErrorKind::StorageFull, ErrorKind::ReadOnlyFilesystem] {
            assert!(matches!(io(kind), StoreError::Folder { .. }), "{kind}");
        }
    }
}
