//! Opening and closing of a store, with repairs after a crash or a change by another program.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::config::schema::{self, BlobStoreKind, OnCorruption};
use crate::oci::Digest;
use crate::store::blobs::files::{DraftUsage, FoundFile};
use crate::store::blobs::kind;
use crate::store::draft::budget::MemoryBudget;
use crate::store::draft::commit_queue::CommitQueue;
use crate::store::engine::{Counters, Counts, Engine};
use crate::store::error::StoreError;
use crate::store::index::database::Database;
use crate::store::index::fact::{BlobFact, ManifestFact, readable};
use crate::store::index::key::{self, Key};
use crate::store::index::trees::{TREE, Trees, contain_panics};
use crate::store::lifecycle::deliveries;
use crate::store::lifecycle::header::{self, Geometry, Header};
use crate::store::lifecycle::location::{Location, OpenFolder, file_id};
use crate::store::lifecycle::lock::{self, FolderLock};
use crate::store::lifecycle::quarantine;
use crate::store::work::WorkThreads;

/// Time for which a closed database may still be in use by operations of this process.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

impl Engine {
    /// Opens the store in `options.path`, or creates it with `geometry`. A corrupt store is quarantined if `options` says so,
    /// and an empty one is created. If the disk fails, the store stays closed until [`reopen`](Self::reopen) succeeds.
    pub(in crate::store) fn open(options: &schema::Store, geometry: Geometry) -> Result<Self, StoreError> {
        let store = Self::closed(Location {
            path: options.path.clone(),
            kind: options.blobs,
            geometry,
            cache_memory: options.cache_memory.as_u64(),
            on_corruption: options.on_corruption,
            open: Mutex::default(),
        });
        match store.reopen() {
            Err(error) if error.is_disk_failure() => {
                tracing::error!(%error, "the store cannot be opened; content is passed through without being stored");
                Ok(store)
            }
            opened => opened.map(|()| store),
        }
    }

    fn closed(location: Location) -> Self {
        let database = Database::default();
        let blobs = kind::create(location.kind, &location.path, &database);
        let (commit_queue, counters) = (CommitQueue::new(), Arc::new(Counters::default()));
        let (memory_budget, threads) = (MemoryBudget::default(), WorkThreads::new());
        let (location, manifest_lock) = (Arc::new(location), Arc::default());
        let new_absences = Arc::default();
        Self {
            database,
            blobs,
            commit_queue,
            memory_budget,
            threads,
            counters,
            location,
            manifest_lock,
            new_absences,
        }
    }

    /// Returns true if the store is open and its database file is still where it was opened.
    pub(in crate::store) fn is_available(&self) -> bool {
        let open = self.location.open_folder();
        let now = file_id(&self.location.database_file()).ok();
        open.as_ref().is_some_and(|open| now == Some(open.database))
    }

    /// Tests whether the disk accepts writes, and then whether the store does. Opens the store again if it does not, or if
    /// it is known to be `broken`.
    pub(in crate::store) fn recover(&self, broken: bool) -> Result<(), StoreError> {
        let path = &self.location.path;
        // Before the store is closed: an open store can still be read.
        lock::probe(path).map_err(folder_error(path))?;
        if !broken && self.is_available() && self.database.trees().and_then(|trees| trees.probe()).is_ok() {
            return Ok(());
        }
        self.reopen()
    }

    /// Closes the store, if it is open, and opens it again. Other operations get [`StoreError::Closed`] meanwhile. After an
    /// error the store stays closed.
    pub(in crate::store) fn reopen(&self) -> Result<(), StoreError> {
        let mut open = self.location.open_folder();
        self.database.replace(None);
        let Location { path, kind, on_corruption, .. } = &*self.location;
        let deadline = if open.take().is_some() { CLOSE_DEADLINE } else { Duration::ZERO };
        let lock = FolderLock::acquire_within(path, deadline)?;
        match self.open_in(path) {
            Err(StoreError::Corrupt { reason, .. }) if *on_corruption == OnCorruption::SetAside => {
                let moved_to = quarantine::quarantine(path, *kind, &reason)?;
                tracing::error!(
                    store = %path.display(),
                    moved_to = %moved_to.display(),
                    reason,
                    "the store cannot be opened and was moved into quarantine; an empty store replaces it, and content is \
                     fetched again on request. Remove the quarantined store to free its disk space, or stop the server \
                     and move it back to use it again"
                );
                self.open_in(path)?;
            }
            opened => opened?,
        }
        let file = self.location.database_file();
        let database = file_id(&file).map_err(folder_error(&file))?;
        *open = Some(OpenFolder { _lock: lock, database });
        Ok(())
    }

    /// Closes the store for good. Opens and closes its database once more: sled saves the positions of its pages only when
    /// it opens, and would otherwise read everything written since then at the next start. Takes as long as that start.
    pub(in crate::store) fn close(&self) -> Result<(), StoreError> {
        if !self.is_available() {
            return Ok(());
        }
        let mut open = self.location.open_folder();
        self.database.replace(None);
        drop(open.take());
        let path = &self.location.path;
        let _lock = FolderLock::acquire_within(path, CLOSE_DEADLINE)?;
        if let Some(header) = Header::read(path)? {
            drop(Trees::open(path, header.geometry, self.location.cache_memory)?);
        }
        Ok(())
    }

    fn open_in(&self, path: &Path) -> Result<(), StoreError> {
        let Location { kind, geometry, cache_memory, .. } = *self.location;
        let mut header = read_or_create_header(path, kind, geometry)?;
        let trees = contain_panics(path, || {
            let trees = Trees::open_at(&path.join(TREE), header.geometry, cache_memory)?;
            identify(&trees, path, &mut header)?;
            self.blobs.prepare()?;
            self.count_content(&trees)?;
            deliveries::record(&trees)?;
            Ok(trees)
        })?;
        self.database.replace(Some(trees));
        Ok(())
    }

    /// Counts the stored content, and repairs differences between facts and files. Reads every fact, so that a damaged
    /// database is found now and not by a later request.
    fn count_content(&self, trees: &Trees) -> Result<(), StoreError> {
        let facts = &trees.facts;
        for item in facts {
            item?;
        }
        let mut counts = Counts::default();
        for item in facts.scan_prefix(Key::manifests()) {
            let Some(fact) = readable::<ManifestFact>(&item?.1) else { continue };
            counts.manifests += 1;
            counts.content += fact.size;
        }
        if let Some(files) = self.blobs.list()? {
            self.reconcile(trees, files)?;
        }
        for DraftUsage { key, .. } in self.blobs.files().drafts()? {
            // A crash after the commit has left the draft, or another upstream has filled the blob.
            if facts.contains_key(Key::Blob(&key.digest).to_bytes())? {
                self.blobs.files().remove_draft(&key)?;
            }
        }
        for item in facts.scan_prefix(Key::blobs()) {
            let Some(fact) = readable::<BlobFact>(&item?.1) else { continue };
            counts.blobs += 1;
            counts.content += fact.size;
        }
        self.counters.set(counts);
        Ok(())
    }

    /// Removes facts whose file is missing or has another length. Makes drafts of files without a fact, so that the next
    /// fill of an upstream that has delivered them verifies them.
    fn reconcile(&self, trees: &Trees, files: Vec<FoundFile>) -> Result<(), StoreError> {
        let mut files: HashMap<Digest, FoundFile> =
            files.into_iter().map(|file| (file.digest, file)).collect();
        let mut missing = 0_u64;
        for item in trees.facts.scan_prefix(Key::blobs()) {
            let (key, value) = item?;
            let (Some(digest), Some(fact)) = (key::blob_of(&key), readable::<BlobFact>(&value)) else {
                continue;
            };
            if files.remove(&digest).is_none_or(|file| file.size != fact.size) {
                trees.facts.remove(&key)?;
                self.blobs.remove(&digest)?;
                missing += 1;
            }
        }
        for digest in files.keys() {
            self.blobs.files().demote(digest)?;
        }
        if missing > 0 {
            tracing::warn!(
                blobs = missing,
                "files of blobs are missing or truncated; they will be fetched again"
            );
        }
        if !files.is_empty() {
            tracing::info!(files = files.len(), "files of blobs without a fact become drafts");
        }
        Ok(())
    }
}

/// Compares the identity in sled with the header's. sled opens an empty or foreign file as a new database, whose identity
/// differs. Writes the header if it is of an earlier format, or has no identity yet.
fn identify(trees: &Trees, folder: &Path, header: &mut Header) -> Result<(), StoreError> {
    let stored = trees.identity()?;
    if let Some(identity) = header.identity {
        if stored != Some(identity) {
            let reason = "the database is empty, or belongs to another store".to_owned();
            return Err(StoreError::Corrupt { path: folder.to_owned(), reason });
        }
        if !header.was_earlier() {
            return Ok(());
        }
    } else {
        let identity = stored.unwrap_or_else(|| fastrand::u32(..));
        // On disk before the header refers to it.
        trees.set_identity(identity)?;
        header.identity = Some(identity);
    }
    header.write(folder)
}

/// Returns the header of the store in a folder, and creates it if there is no store.
fn read_or_create_header(
    path: &Path,
    blobs: BlobStoreKind,
    geometry: Geometry,
) -> Result<Header, StoreError> {
    let header = Header::read(path)?;
    let tree = path.join(TREE).try_exists().map_err(folder_error(path))?;
    match header {
        Some(mut header) => {
            header.require(blobs, path)?;
            if header.identity.is_some() && !tree {
                tracing::error!(store = %path.display(), "the database of the store is missing; an empty one replaces it");
                header.identity = None;
            }
            Ok(header)
        }
        // The header is written first and quarantined last, so no crash leaves this state.
        None if tree => {
            let reason = format!("its {} is missing", header::FILE);
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
