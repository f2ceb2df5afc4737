//! sled's trees: opened, identified, copied.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use crate::store::error::StoreError;
use crate::store::index::page_tree::PageTree;
use crate::store::lifecycle::header::Geometry;

/// Folder of sled below the store's folder.
pub(in crate::store) const TREE: &str = "tree";
/// Tree of the pages of blobs.
pub(in crate::store) const PAGES: &str = "pages";
/// Key of the store's identity, in sled's default tree.
const IDENTITY: &[u8] = b"identity";
/// Key of a test value, in sled's default tree.
const PROBE: &[u8] = b"probe";

/// Open trees of sled; clones share them.
#[derive(Clone, Debug)]
pub(in crate::store) struct Trees {
    db: sled::Db,
    pub(in crate::store) facts: sled::Tree,
    /// Bytes of manifests.
    pub(in crate::store) documents: PageTree,
    /// Bytes of blobs.
    pub(in crate::store) pages: PageTree,
    cache_memory: u64,
}

impl Trees {
    /// Opens sled below `folder`, which this process has locked.
    pub(in crate::store) fn open(
        folder: &Path,
        geometry: Geometry,
        cache_memory: u64,
    ) -> Result<Self, StoreError> {
        contain_panics(folder, || Self::open_at(&folder.join(TREE), geometry, cache_memory))
    }

    /// Opens sled in this very folder.
    pub(in crate::store) fn open_at(
        path: &Path,
        geometry: Geometry,
        cache_memory: u64,
    ) -> Result<Self, StoreError> {
        remove_unfinished(path).map_err(folder_error(path))?;
        let db = sled::Config::new()
            .path(path)
            .cache_capacity(cache_memory)
            .segment_size(geometry.segment_size)
            .mode(sled::Mode::HighThroughput)
            .flush_every_ms(Some(500))
            .open()?;
        let facts = db.open_tree("facts")?;
        let spare = db.open_tree("spare")?;
        let documents = PageTree::new(db.open_tree("documents")?, spare.clone(), geometry.page_size);
        let pages = PageTree::new(db.open_tree(PAGES)?, spare, geometry.page_size);
        Ok(Self { db, facts, documents, pages, cache_memory })
    }

    /// Copies every tree except `omitted` to a new sled in `path`, and closes both. No other handle may exist.
    pub(in crate::store) fn copy_to(
        self,
        path: &Path,
        geometry: Geometry,
        omitted: &[&str],
    ) -> Result<(), StoreError> {
        let copy = Self::open_at(path, geometry, self.cache_memory)?;
        for name in self.db.tree_names() {
            if omitted.iter().any(|omitted| omitted.as_bytes() == &*name) {
                continue;
            }
            let to = copy.db.open_tree(&name)?;
            for item in &self.db.open_tree(&name)? {
                let (key, value) = item?;
                to.insert(key, value)?;
            }
        }
        copy.flush()
    }

    /// Waits until everything written so far is on disk.
    pub(in crate::store) fn flush(&self) -> Result<(), StoreError> {
        self.db.flush()?;
        Ok(())
    }

    /// Returns the size of sled's files.
    pub(in crate::store) fn size_on_disk(&self) -> Result<u64, StoreError> {
        Ok(self.db.size_on_disk()?)
    }

    /// Writes and synchronises a test value.
    pub(in crate::store) fn probe(&self) -> Result<(), StoreError> {
        self.db.insert(PROBE, &fastrand::u64(..).to_be_bytes())?;
        self.flush()
    }

    /// Returns the store's identity.
    pub(in crate::store) fn identity(&self) -> Result<Option<u32>, StoreError> {
        let stored = self.db.get(IDENTITY)?;
        Ok(stored.as_deref().and_then(|bytes| Some(u32::from_be_bytes(bytes.try_into().ok()?))))
    }

    /// Sets the store's identity, and waits until it is on disk.
    pub(in crate::store) fn set_identity(&self, identity: u32) -> Result<(), StoreError> {
        self.db.insert(IDENTITY, &identity.to_be_bytes())?;
        self.flush()
    }
}

impl From<sled::Error> for StoreError {
    fn from(error: sled::Error) -> Self {
        Self::Database(Box::new(error))
    }
}

/// Removes the files that sled was writing when its process was killed while it opened the database. sled takes them for
/// complete files at the next open, and reports corruption.
///
/// * A snapshot of the positions of all pages has this suffix until it is complete. sled still has the previous one.
/// * `conf` is written before `db` is created.
fn remove_unfinished(path: &Path) -> io::Result<()> {
    // A missing folder is created by sled, and sled reports everything else that is wrong with it.
    let Ok(entries) = fs::read_dir(path) else { return Ok(()) };
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|suffix| suffix == "generating") {
            fs::remove_file(path)?;
        }
    }
    let conf = path.join("conf");
    if conf.exists() && !path.join("db").try_exists()? {
        fs::remove_file(conf)?;
    }
    Ok(())
}

/// Opens something of sled on a thread of its own. sled asserts its expectations of its files, so wrong bytes may cause an
/// error or a panic. A panic ends that thread only, and becomes [`StoreError::Corrupt`].
pub(in crate::store) fn contain_panics<T: Send>(
    path: &Path,
    open: impl FnOnce() -> Result<T, StoreError> + Send,
) -> Result<T, StoreError> {
    let opened = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("opening".to_owned()).spawn_scoped(scope, open);
        thread.map(std::thread::ScopedJoinHandle::join)
    });
    match opened.map_err(folder_error(path))? {
        Ok(Err(StoreError::Database(error))) => match error.downcast() {
            Ok(error) => Err(opening_error(path, *error)),
            Err(error) => Err(StoreError::Database(error)),
        },
        Ok(opened) => opened,
        Err(panic) => {
            let message = panic.downcast_ref::<String>().map(String::as_str);
            let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            // The message may contain a whole page.
            let message: String = message.chars().take(200).collect();
            let reason = format!("sled panicked: {message}");
            Err(StoreError::Corrupt { path: path.to_owned(), reason })
        }
    }
}

/// Converts an error of sled during open: either its files are damaged, or the folder cannot be used.
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

/// Returns true if another process has locked sled's file. sled reports this only in the text of an I/O error.
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
    fn database_opens_after_a_kill_during_its_previous_open() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tree");
        let geometry = Geometry { page_size: 1024, segment_size: 512 << 10 };
        let open = || Trees::open_at(&path, geometry, 1 << 20).expect("opened");
        // The process was killed between two writes of the first file.
        fs::create_dir(&path).expect("created");
        fs::write(path.join("conf"), "segment_size: 524288\nuse_compression: false\nversion: 0")
            .expect("written");
        open().facts.insert("key", "value").expect("inserted");
        // It was killed while it wrote a snapshot, which is newer than every complete one.
        fs::write(path.join("snap.00000000FFFFFFFF.generating"), [7; 100]).expect("written");
        let facts = open().facts;
        assert_eq!(facts.get("key").expect("read").as_deref(), Some(&b"value"[..]));
    }

    #[test]
    fn panic_of_sled_is_corruption() {
        let error = contain_panics(Path::new("/x"), || -> Result<(), _> { panic!("no {}", "page") });
        let message = error.expect_err("corrupt").to_string();
        assert!(message.contains("/x") && message.contains("no page"), "{message}");
        let error = contain_panics(Path::new("/x"), || -> Result<(), _> { panic!("{}", "a".repeat(9000)) });
        assert!(error.expect_err("corrupt").to_string().len() < 1000);
        let io = |kind: ErrorKind| opening_error(Path::new("/x"), sled::Error::Io(kind.into()));
        assert!(matches!(io(ErrorKind::UnexpectedEof), StoreError::Corrupt { .. }));
        for kind in [ErrorKind::PermissionDenied, ErrorKind::StorageFull, ErrorKind::ReadOnlyFilesystem] {
            assert!(matches!(io(kind), StoreError::Folder { .. }), "{kind}");
        }
    }
}
