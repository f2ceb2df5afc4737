//! Opening a store: its header, its trees, and what a crash or somebody else has left to be put right.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::config::schema::{self, BlobStoreKind, OnCorruption};
use crate::oci::Digest;

use crate::store::blobs::Blobs;
use crate::store::blobs::files::{Files, Found};
use crate::store::draft::commit_queue::CommitQueue;
use crate::store::engine::{Counters, Counts, Engine, readable};
use crate::store::error::StoreError;
use crate::store::index::database::Database;
use crate::store::index::database::{TREE, Trees, contained};
use crate::store::index::fact::{BlobFact, ManifestFact};
use crate::store::index::inventory::DraftUsage;
use crate::store::index::key::{self, Key};
use crate::store::lifecycle::header::{self, Geometry, Header};
use crate::store::lifecycle::lock::{self, Folder};
use crate::store::lifecycle::quarantine;

/// Holds sled against the store's header, which is written anew if it is of an earlier format or has no identity
/// yet: sled takes an empty or foreign file for a new database, and would be as good as new with it.
fn identify(db: &sled::Db, folder: &Path, header: &mut Header) -> Result<(), StoreError> {
    let held = db.get(IDENTITY)?;
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
        db.insert(IDENTITY, &identity.to_be_bytes())?;
        // Before the header promises it.
        db.flush()?;
        header.identity = Some(identity);
    }
    header.write(folder)
}

/// Where sled keeps the store's identity, in a tree of its own.
const IDENTITY: &[u8] = b"identity";
/// Something to write there.
const PROBE: &[u8] = b"probe";

/// How a store is opened, the first time and again.
#[derive(Debug)]
pub(in crate::store) struct Opening {
    path: PathBuf,
    blobs: BlobStoreKind,
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
    pub(in crate::store) fn kind(&self) -> BlobStoreKind {
        self.blobs
    }

    pub(in crate::store) fn path(&self) -> &Path {
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

impl Engine {
    /// Opens the store in `options.path`, making it if there is none. One that does not open because its files are not
    /// as they were written is set aside, if `options` says so, and an empty one takes its place. One whose disk takes
    /// nothing, or does not give what it has, is closed until [`reopen`](Self::reopen) has better luck.
    pub(in crate::store) fn open(options: &schema::Store, geometry: Geometry) -> Result<Self, StoreError> {
        let store = Self::closed(Opening {
            path: options.path.clone(),
            blobs: options.blobs,
            geometry,
            cache_memory: options.cache_memory.as_u64(),
            on_corruption: options.on_corruption,
            held: Mutex::default(),
        });
        match store.reopen() {
            Err(error) if error.is_disk_failure() => {
                tracing::error!(%error, "larder starts without its store");
                Ok(store)
            }
            opened => opened.map(|()| store),
        }
    }

    fn closed(opening: Opening) -> Self {
        let (database, files) = (Database::default(), Files::new(&opening.path));
        let blobs = match opening.blobs {
            BlobStoreKind::Sled => Blobs::Pages(database.clone(), files),
            BlobStoreKind::Files => Blobs::Files(files),
        };
        let (commit_queue, counters) = (CommitQueue::new(), Arc::new(Counters::default()));
        let (opening, changing) = (Arc::new(opening), Arc::default());
        Self { database, blobs, commit_queue, counters, opening, changing }
    }

    /// Whether the store is open, and lies where it was opened.
    pub(in crate::store) fn is_available(&self) -> bool {
        let held = self.opening.held();
        let now = file_id(&self.opening.database_file()).ok();
        held.as_ref().is_some_and(|held| now == Some(held.database))
    }

    /// Finds out whether the disk takes something again, and then whether the store does. One that does not, or that is
    /// known to be `broken`, is opened anew, from what lies in its folder.
    pub(in crate::store) fn recover(&self, broken: bool) -> Result<(), StoreError> {
        let path = self.opening.path();
        // Before anything is closed: what is open can still be read.
        lock::probe(path).map_err(folder_error(path))?;
        if !broken && self.is_available() && self.takes_facts().is_ok() {
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
    pub(in crate::store) fn reopen(&self) -> Result<(), StoreError> {
        let mut held = self.opening.held();
        self.database.replace(None);
        let Opening { path, blobs, on_corruption, .. } = &*self.opening;
        let patience = if held.take().is_some() { CLOSED_WITHIN } else { Duration::ZERO };
        let folder = taken(path, patience)?;
        match self.open_in(path) {
            Err(StoreError::Corrupt { reason, .. }) if *on_corruption == OnCorruption::SetAside => {
                let aside = quarantine::quarantine(path, *blobs, &reason)?;
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
    pub(in crate::store) fn close(&self) -> Result<(), StoreError> {
        if !self.is_available() {
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
            identify(&trees.db, path, &mut header)?;
            match blobs {
                BlobStoreKind::Sled => self.blobs.files().make_ready()?,
                BlobStoreKind::Files => self.blobs.files().make_ready_for_content()?,
            }
            self.count_content(&trees.facts)?;
            Ok(trees)
        })?;
        self.database.replace(Some(trees));
        Ok(())
    }

    /// Counts what is there; once, on opening. Every fact is read: one that cannot be would fail whoever asks for it
    /// or its neighbours, from now on and for ever.
    fn count_content(&self, facts: &sled::Tree) -> Result<(), StoreError> {
        for item in facts {
            item?;
        }
        let mut counts = Counts::default();
        for item in facts.scan_prefix(Key::manifests()) {
            let Some(fact) = readable::<ManifestFact>(&item?.1) else { continue };
            counts.manifests += 1;
            counts.content += fact.size;
        }
        if let Blobs::Files(files) = &self.blobs {
            reconcile(facts, files)?;
        }
        for DraftUsage { digest, .. } in self.blobs.drafts()? {
            // Content is there already: a crash kept its draft from going.
            if facts.contains_key(Key::Blob(&digest).to_bytes())? {
                self.blobs.remove_draft(&digest)?;
            }
        }
        for item in facts.scan_prefix(Key::blobs()) {
            let Some(fact) = readable::<BlobFact>(&item?.1) else { continue };
            counts.blobs += 1;
            counts.content += fact.size;
        }
        self.counters.manifests.store(counts.manifests, Ordering::Relaxed);
        self.counters.blobs.store(counts.blobs, Ordering::Relaxed);
        self.counters.content.store(counts.content, Ordering::Relaxed);
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
fn header_of(path: &Path, blobs: BlobStoreKind, geometry: Geometry) -> Result<Header, StoreError> {
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

fn folder_error(path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    |source| StoreError::Folder { path: path.to_owned(), source }
}

/// Returns true if a folder contains a store, in whatever condition.
pub(in crate::store) fn exists_in(folder: &Path) -> bool {
    folder.join(header::FILE).exists() || folder.join(TREE).exists()
}
