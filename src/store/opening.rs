//! Opening a store: its header, its trees, and what a crash or somebody else has left to be put right.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::config::schema::{self, BlobStore};
use crate::oci::Digest;

use super::bodies::Bodies;
use super::fact::{BlobFact, ManifestFact};
use super::files::{Files, Found};
use super::header::{Geometry, Header};
use super::key::{self, Key};
use super::pages::Pages;
use super::settling::Settling;
use super::{Counters, Store, StoreError, readable};

/// sled, as every store has it.
#[derive(Clone, Debug)]
pub(super) struct Trees {
    pub(super) db: sled::Db,
    pub(super) facts: sled::Tree,
    pub(super) documents: Pages,
    pub(super) cache_memory: u64,
    page_size: usize,
}

impl Trees {
    /// Opens sled below `folder`, which nobody else can from then on.
    pub(super) fn open(folder: &Path, geometry: Geometry, cache_memory: u64) -> Result<Self, StoreError> {
        Self::open_at(&folder.join(TREE), geometry, cache_memory).map_err(|error| match error {
            StoreError::Sled(error) => opening_error(folder, error),
            other => other,
        })
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
        let documents = Pages::new(db.open_tree("documents")?, geometry.page_size);
        Ok(Self { db, facts, documents, cache_memory, page_size: geometry.page_size })
    }

    /// The pages of blobs.
    pub(super) fn pages(&self) -> Result<Pages, StoreError> {
        Ok(Pages::new(self.db.open_tree(PAGES)?, self.page_size))
    }
}

/// sled's folder below the store's.
pub(super) const TREE: &str = "tree";
/// The tree of the pages of blobs.
pub(super) const PAGES: &str = "pages";

impl Store {
    /// Opens the store in `options.path`, making it if there is none.
    pub fn open(options: &schema::Store) -> Result<Self, StoreError> {
        Self::open_with(&options.path, options.blobs, Geometry::CHOSEN, options.cache_memory.as_u64())
    }

    /// Opens a store whose geometry, if it is new, is `geometry`. For the bench that chooses one.
    pub fn open_with(
        path: &Path,
        blobs: BlobStore,
        geometry: Geometry,
        cache_memory: u64,
    ) -> Result<Self, StoreError> {
        std::fs::create_dir_all(path)
            .map_err(|source| StoreError::Folder { path: path.to_owned(), source })?;
        let geometry = if let Some(header) = Header::read(path)? {
            header.require(blobs, path)?;
            header.geometry
        } else {
            Header::new(blobs, geometry).write(path)?;
            geometry
        };
        let trees = Trees::open(path, geometry, cache_memory)?;
        // Once more, now that nobody can begin to move its blobs.
        Header::read(path)?.unwrap_or(Header::new(blobs, geometry)).require(blobs, path)?;
        let bodies = match blobs {
            BlobStore::Sled => Bodies::Pages(trees.pages()?, Files::of_drafts(path)?),
            BlobStore::Files => Bodies::Files(Files::new(path)?),
        };
        let Trees { db, facts, documents, .. } = trees;
        let store = Self {
            path: path.into(),
            db,
            facts,
            documents,
            bodies,
            settling: Settling::new(),
            counters: Arc::new(Counters::default()),
            changing: Arc::default(),
        };
        store.take_census()?;
        Ok(store)
    }

    /// Counts what is there; once, on opening.
    fn take_census(&self) -> Result<(), StoreError> {
        for item in self.facts.scan_prefix(Key::manifests()) {
            let Some(fact) = readable::<ManifestFact>(&item?.1) else { continue };
            self.counters.manifests.fetch_add(1, Ordering::Relaxed);
            self.counters.content.fetch_add(fact.size, Ordering::Relaxed);
        }
        if let Bodies::Files(files) = &self.bodies {
            self.reconcile(files)?;
        }
        for digest in self.bodies.drafts()? {
            // Content is there already: a crash kept its draft from going.
            if self.facts.contains_key(Key::Blob(&digest).to_bytes())? {
                self.bodies.remove_draft(&digest)?;
            }
        }
        for item in self.facts.scan_prefix(Key::blobs()) {
            let Some(fact) = readable::<BlobFact>(&item?.1) else { continue };
            self.counters.blobs.fetch_add(1, Ordering::Relaxed);
            self.counters.content.fetch_add(fact.size, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Brings facts and files together: a fact whose file is not there in its length goes, and a file without a fact
    /// is a draft again, for the next fill to find out what it is.
    fn reconcile(&self, files: &Files) -> Result<(), StoreError> {
        let mut there: HashMap<Digest, Found> =
            files.walk()?.into_iter().map(|found| (found.digest, found)).collect();
        let mut lost = 0_u64;
        for item in self.facts.scan_prefix(Key::blobs()) {
            let (key, value) = item?;
            let (Some(digest), Some(fact)) = (key::blob_of(&key), readable::<BlobFact>(&value)) else {
                continue;
            };
            if there.remove(&digest).is_none_or(|found| found.size != fact.size) {
                self.facts.remove(&key)?;
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
}

/// sled tells a lock that is held and a folder that cannot be written only by their I/O errors.
fn opening_error(path: &Path, error: sled::Error) -> StoreError {
    match error {
        sled::Error::Io(source) if source.to_string().contains("lock") => StoreError::Locked(path.to_owned()),
        sled::Error::Io(source) => StoreError::Folder { path: path.to_owned(), source },
        sled::Error::Unsupported(reason) => StoreError::Foreign { path: path.to_owned(), reason },
        other => StoreError::Sled(other),
    }
}
