//! Opening a store: its header, its trees, and what a crash or somebody else has left to be put right.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::config::schema::{self, BlobStore, OnCorruption};
use crate::oci::Digest;

use super::bodies::Bodies;
use super::database::Database;
use super::fact::{BlobFact, ManifestFact};
use super::files::{Files, Found};
use super::folder::{self, Folder};
use super::header::{self, Geometry, Header};
use super::key::{self, Key};
use super::pages::Pages;
use super::settling::Settling;
use super::{Census, Counters, Drafted, Store, StoreError, aside, readable};

/// sled, as every store has it.
#[derive(Clone, Debug)]
pub(super) struct Trees {
    pub(super) db: sled::Db,
    pub(super) facts: sled::Tree,
    pub(super) documents: Pages,
    /// The pages of blobs.
    pub(super) pages: Pages,
    pub(super) cache_memory: u64,
}

impl Trees {
    /// Opens sled below `folder`, which nobody else may use.
    pub(super) fn open(folder: &Path, geometry: Geometry, cache_memory: u64) -> Result<Self, StoreError> {
        contained(folder, || Self::open_at(&folder.join(TREE), geometry, cache_memory))
    }

    /// Opens sled in just this folder.
    pub(super) fn open_at(path: &Path, geometry: Geometry, cache_memory: u64) -> Result<Self, StoreError> {
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

    /// Holds sled against the store's header, which is written anew if it is of an earlier format or has no identity
    /// yet: sled takes an empty or foreign file for a new database, and would be as good as new with it.
    fn identify(&self, folder: &Path, header: &mut Header) -> Result<(), StoreError> {
        let held = self.db.get(IDENTITY)?;
        if let Some(identity) = header.identity {
            if held.as_deref() != Some(&identity.to_be_bytes()) {
                let reason = "the database has lost what it held".to_owned();
                return Err(StoreError::Corrupt { path: folder.to_owned(), reason });
            }
            if !header.was_earlier() {
                return Ok(());
            }
        } else {
            let held = held.as_deref().and_then(|held| Some(u32::from_be_bytes(held.try_into().ok()?)));
            let identity = held.unwrap_or_else(|| fastrand::u32(..));
            self.db.insert(IDENTITY, &identity.to_be_bytes())?;
            // Before the header promises it.
            self.db.flush()?;
            header.identity = Some(identity);
        }
        header.write(folder)
    }
}

/// Where sled keeps the store's identity, in a tree of its own.
const IDENTITY: &[u8] = b"identity";
/// Something to write there.
const PROBE: &[u8] = b"probe";
/// sled's folder below the store's.
pub(super) const TREE: &str = "tree";
/// The tree of the pages of blobs.
pub(super) const PAGES: &str = "pages";

/// How a store is opened, the first time and again.
#[derive(Debug)]
pub(super) struct Opening {
    path: PathBuf,
    blobs: BlobStore,
    /// For a store that is new.
    geometry: Geometry,
    cache_memory: u64,
    on_corruption: OnCorruption,
    /// What is held while it is open; locked while it is opened or closed.
    held: Mutex<Option<Held>>,
}

/// What an open store holds on the disk.
#[derive(Debug)]
struct Held {
    _folder: Folder,
    database: FileId,
}

impl Opening {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn database_file(&self) -> PathBuf {
        self.path.join(TREE).join("db")
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        // What is held is put there whole and taken away whole.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For how long sled is waited for that was just closed: until the last operation that still uses it has ended.
const CLOSED_WITHIN: Duration = Duration::from_secs(5);

impl Store {
    /// Opens the store in `options.path`, making it if there is none. One that does not open because its files are not
    /// as they were written is set aside, if `options` says so, and an empty one takes its place. One whose disk takes
    /// nothing, or does not give what it has, is closed until [`reopen`](Self::reopen) has better luck.
    pub fn open(options: &schema::Store) -> Result<Self, StoreError> {
        let store = Self::closed(Opening {
            path: options.path.clone(),
            blobs: options.blobs,
            geometry: Geometry::CHOSEN,
            cache_memory: options.cache_memory.as_u64(),
            on_corruption: options.on_corruption,
            held: Mutex::default(),
        });
        match store.reopen() {
            Err(error) if error.is_of_the_disk() => {
                tracing::error!(%error, "larder starts without its store");
                Ok(store)
            }
            opened => opened.map(|()| store),
        }
    }

    /// Opens a store whose geometry, if it is new, is `geometry`. For the bench that chooses one.
    pub fn open_with(
        path: &Path,
        blobs: BlobStore,
        geometry: Geometry,
        cache_memory: u64,
    ) -> Result<Self, StoreError> {
        let (path, on_corruption, held) = (path.to_owned(), OnCorruption::Refuse, Mutex::default());
        let store = Self::closed(Opening { path, blobs, geometry, cache_memory, on_corruption, held });
        store.reopen().map(|()| store)
    }

    fn closed(opening: Opening) -> Self {
        let (database, files) = (Database::default(), Files::new(&opening.path));
        let bodies = match opening.blobs {
            BlobStore::Sled => Bodies::Pages(database.clone(), files),
            BlobStore::Files => Bodies::Files(files),
        };
        let (settling, counters) = (Settling::new(), Arc::new(Counters::default()));
        let (opening, changing) = (Arc::new(opening), Arc::default());
        Self { database, bodies, settling, counters, opening, changing }
    }

    /// Whether there is a store in a folder, in whatever state it may be.
    pub fn is_in(folder: &Path) -> bool {
        folder.join(header::FILE).exists() || folder.join(TREE).exists()
    }

    /// Whether the store is open, and lies where it was opened.
    pub fn is_there(&self) -> bool {
        let held = self.opening.held();
        let now = file_id(&self.opening.database_file()).ok();
        held.as_ref().is_some_and(|held| now == Some(held.database))
    }

    /// Finds out whether the disk takes something again, and then whether the store does. One that does not, or that is
    /// known to be `broken`, is opened anew, from what lies in its folder.
    pub fn mend(&self, broken: bool) -> Result<(), StoreError> {
        let path = self.opening.path();
        // Before anything is closed: what is open can still be read.
        folder::probe(path).map_err(folder_error(path))?;
        if !broken && self.is_there() && self.takes_facts().is_ok() {
            return Ok(());
        }
        self.reopen()
    }

    fn takes_facts(&self) -> Result<(), StoreError> {
        let db = self.database.db()?;
        db.insert(PROBE, &fastrand::u64(..).to_be_bytes())?;
        db.flush()?;
        Ok(())
    }

    /// Closes the store, if it is open, and opens what lies in its folder. Meanwhile everybody else is told that it is
    /// closed, and it stays so if it does not open.
    pub fn reopen(&self) -> Result<(), StoreError> {
        let mut held = self.opening.held();
        self.database.replace(None);
        let Opening { path, blobs, on_corruption, .. } = &*self.opening;
        let patience = if held.take().is_some() { CLOSED_WITHIN } else { Duration::ZERO };
        let folder = taken(path, patience)?;
        match self.open_in(path) {
            Err(StoreError::Corrupt { reason, .. }) if *on_corruption == OnCorruption::SetAside => {
                let aside = aside::set_aside(path, *blobs, &reason)?;
                tracing::error!(
                    store = %path.display(),
                    aside = %aside.display(),
                    reason,
                    "the store does not open and was set aside; an empty one takes its place, and all is fetched \
                     again when it is asked for. What lies aside holds disk until you remove it; to try it again, stop \
                     larder and move it back"
                );
                self.open_in(path)?;
            }
            opened => opened?,
        }
        let file = self.opening.database_file();
        let database = file_id(&file).map_err(folder_error(&file))?;
        *held = Some(Held { _folder: folder, database });
        Ok(())
    }

    /// Closes the store for good, and opens its database once more on the way: sled notes where everything is only when
    /// it opens, and reads what was written since then at the next start, which somebody may wait for. Takes as long as
    /// that start would have.
    pub fn close(&self) -> Result<(), StoreError> {
        if !self.is_there() {
            return Ok(());
        }
        let mut held = self.opening.held();
        self.database.replace(None);
        drop(held.take());
        let path = self.opening.path();
        let _folder = taken(path, CLOSED_WITHIN)?;
        if let Some(header) = Header::read(path)? {
            drop(Trees::open(path, header.geometry, self.opening.cache_memory)?);
        }
        Ok(())
    }

    fn open_in(&self, path: &Path) -> Result<(), StoreError> {
        let Opening { blobs, geometry, cache_memory, .. } = *self.opening;
        let mut header = header_of(path, blobs, geometry)?;
        let trees = contained(path, || {
            let trees = Trees::open_at(&path.join(TREE), header.geometry, cache_memory)?;
            trees.identify(path, &mut header)?;
            match blobs {
                BlobStore::Sled => self.bodies.files().make_ready()?,
                BlobStore::Files => self.bodies.files().make_ready_for_content()?,
            }
            self.take_census(&trees.facts)?;
            Ok(trees)
        })?;
        self.database.replace(Some(trees));
        Ok(())
    }

    /// Counts what is there; once, on opening. Every fact is read: one that cannot be would fail whoever asks for it
    /// or its neighbours, from now on and for ever.
    fn take_census(&self, facts: &sled::Tree) -> Result<(), StoreError> {
        for item in facts {
            item?;
        }
        let mut census = Census::default();
        for item in facts.scan_prefix(Key::manifests()) {
            let Some(fact) = readable::<ManifestFact>(&item?.1) else { continue };
            census.manifests += 1;
            census.content += fact.size;
        }
        if let Bodies::Files(files) = &self.bodies {
            reconcile(facts, files)?;
        }
        for Drafted { digest, .. } in self.bodies.drafts()? {
            // Content is there already: a crash kept its draft from going.
            if facts.contains_key(Key::Blob(&digest).to_bytes())? {
                self.bodies.remove_draft(&digest)?;
            }
        }
        for item in facts.scan_prefix(Key::blobs()) {
            let Some(fact) = readable::<BlobFact>(&item?.1) else { continue };
            census.blobs += 1;
            census.content += fact.size;
        }
        self.counters.manifests.store(census.manifests, Ordering::Relaxed);
        self.counters.blobs.store(census.blobs, Ordering::Relaxed);
        self.counters.content.store(census.content, Ordering::Relaxed);
        Ok(())
    }
}

/// Brings facts and files together: a fact whose file is not there in its length goes, and a file without a fact is a
/// draft again, for the next fill to find out what it is.
fn reconcile(facts: &sled::Tree, files: &Files) -> Result<(), StoreError> {
    let mut there: HashMap<Digest, Found> =
        files.walk()?.into_iter().map(|found| (found.digest, found)).collect();
    let mut lost = 0_u64;
    for item in facts.scan_prefix(Key::blobs()) {
        let (key, value) = item?;
        let (Some(digest), Some(fact)) = (key::blob_of(&key), readable::<BlobFact>(&value)) else {
            continue;
        };
        if there.remove(&digest).is_none_or(|found| found.size != fact.size) {
            facts.remove(&key)?;
            files.remove_content(&digest)?;
            lost += 1;
        }
    }
    for digest in there.keys() {
        files.demote(digest)?;
    }
    if lost > 0 {
        tracing::warn!(lost, "files of blobs are missing or cut off; they will be fetched again");
    }
    if !there.is_empty() {
        tracing::info!(found = there.len(), "files of blobs that no fact speaks of are drafts again");
    }
    Ok(())
}

/// Takes a folder, which this process itself may still use for a while.
fn taken(path: &Path, patience: Duration) -> Result<Folder, StoreError> {
    let end = Instant::now() + patience;
    loop {
        match Folder::take(path) {
            Err(StoreError::Locked(_)) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(10));
            }
            taken => return taken,
        }
    }
}

/// Which file a name stands for.
type FileId = (u64, u64);

fn file_id(path: &Path) -> std::io::Result<FileId> {
    let found = std::fs::metadata(path)?;
    Ok((found.dev(), found.ino()))
}

/// The header of the store in a folder, made if there is no store.
fn header_of(path: &Path, blobs: BlobStore, geometry: Geometry) -> Result<Header, StoreError> {
    let held = Header::read(path)?;
    let tree = path.join(TREE).try_exists().map_err(folder_error(path))?;
    match held {
        Some(mut header) => {
            header.require(blobs, path)?;
            if header.identity.is_some() && !tree {
                tracing::error!(store = %path.display(), "the store's database is gone; an empty one takes its place");
                header.identity = None;
            }
            Ok(header)
        }
        // The header comes first and goes last, so that no crash leaves this.
        None if tree => {
            let reason = format!("its {} is gone", header::FILE);
            Err(StoreError::Corrupt { path: path.to_owned(), reason })
        }
        None => {
            let header = Header::new(blobs, geometry);
            header.write(path)?;
            Ok(header)
        }
    }
}

/// Opens something of sled's in a thread of its own. sled asserts what it expects of its files, so that wrong bytes may be
/// a panic as well as an error; a panic there is the end of the thread, and what it says the reason.
fn contained<T: Send>(
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
