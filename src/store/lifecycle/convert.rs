//! Conversion of a store to another kind of blob store, one blob at a time.
//!
//! The header records the conversion before the first blob is moved, so that the store cannot be opened before all blobs
//! are moved. The bytes of a blob are verified and on disk in the new place before they are removed from the old one. An
//! interrupted conversion is repeated from its start, in either direction. Pages are removed all at once at the end, because
//! sled does not return their space before.

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::schema::{self, BlobStoreKind};
use crate::oci::Digest;
use crate::store::blobs::{Blobs, kind};
use crate::store::error::StoreError;
use crate::store::index::database::Database;
use crate::store::index::fact::{BlobFact, readable};
use crate::store::index::key::{self, Key};
use crate::store::index::trees::Trees;
use crate::store::lifecycle::compact;
use crate::store::lifecycle::header::Header;
use crate::store::lifecycle::lock::FolderLock;

/// Store whose blobs are being moved; no other process can open it. Each item of the iterator moves one blob.
#[derive(Debug)]
pub struct Conversion {
    folder: PathBuf,
    _lock: FolderLock,
    header: Header,
    trees: Trees,
    database: Database,
    /// Blob store to move from; `None` if all blobs are in the right place.
    source: Option<Arc<dyn Blobs>>,
    target: Arc<dyn Blobs>,
    pending: std::vec::IntoIter<(Digest, BlobFact)>,
    bytes: u64,
}

/// Result of one step.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// The blob.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Its place after the step.
    pub end: StepEnd,
}

/// Place of a blob after its step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepEnd {
    /// Moved to the new place.
    Moved,
    /// In the new place already, since an earlier run.
    Found,
    /// Removed, because its bytes were damaged. The next request fetches it again.
    Dropped,
}

impl Conversion {
    /// Opens the store in `options.path` to move its blobs to the kind `to`.
    pub fn begin(options: &schema::Store, to: BlobStoreKind) -> Result<Self, StoreError> {
        let folder = options.path.clone();
        let none = || StoreError::Foreign {
            path: folder.clone(),
            reason: "there is none; name the right folder with --data or --config".to_owned(),
        };
        if Header::read(&folder)?.is_none() {
            return Err(none());
        }
        let lock = FolderLock::acquire_existing(&folder)?;
        compact::recover(&folder)?;
        // Read again, now that no other process can write it.
        let mut header = Header::read(&folder)?.ok_or_else(none)?;
        let trees = Trees::open(&folder, header.geometry, options.cache_memory.as_u64())?;
        if header.blobs != to {
            (header.moving_from, header.blobs) = (Some(header.blobs), to);
            header.write(&folder)?;
        }
        let mut pending = Vec::new();
        if header.moving_from.is_some() {
            for item in trees.facts.scan_prefix(Key::blobs()) {
                let (key, value) = item?;
                if let (Some(digest), Some(fact)) = (key::blob_of(&key), readable::<BlobFact>(&value)) {
                    pending.push((digest, fact));
                }
            }
        }
        let bytes = pending.iter().map(|(_, fact)| fact.size).sum();
        let database = Database::default();
        database.replace(Some(trees.clone()));
        let target = kind::create(header.blobs, &folder, &database);
        let source = header.moving_from.map(|kind| kind::create(kind, &folder, &database));
        target.prepare()?;
        if let Some(source) = &source {
            source.prepare()?;
        }
        Ok(Self {
            folder,
            _lock: lock,
            header,
            trees,
            database,
            source,
            target,
            pending: pending.into_iter(),
            bytes,
        })
    }

    /// Returns the number of blobs without a step.
    pub fn blobs_left(&self) -> usize {
        self.pending.len()
    }

    /// Returns the bytes of all blobs without a step at the start.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the kind of blob store to move from; `None` if all blobs are in the right place.
    pub fn from(&self) -> Option<BlobStoreKind> {
        self.header.moving_from
    }

    fn step(&self, source: &dyn Blobs, digest: &Digest, fact: &BlobFact) -> Result<StepEnd, StoreError> {
        let (target, BlobFact { size, stored_at }) = (&self.target, *fact);
        let end = if target.is_complete(digest, size, stored_at)? {
            StepEnd::Found
        } else {
            let moved = match source.open(digest, size, stored_at) {
                Ok(bytes) => target.import(&*bytes, digest, size, stored_at)?,
                Err(StoreError::Damaged(_)) => false,
                Err(error) => return Err(error),
            };
            if moved { StepEnd::Moved } else { StepEnd::Dropped }
        };
        if end == StepEnd::Dropped {
            self.trees.facts.remove(Key::Blob(digest).to_bytes())?;
        }
        // Trees with nothing but content are removed at the end.
        if source.trees().is_empty() {
            source.remove(digest)?;
        }
        Ok(end)
    }

    /// Completes the conversion after the last step: removes the rest of the old place, and then records in the header that
    /// the store is complete. Drafts are the same in every kind.
    pub fn finish(self) -> Result<(), StoreError> {
        let Self { folder, mut header, trees, database, source, target, pending, .. } = self;
        let Some(source) = source.filter(|_| pending.len() == 0) else { return Ok(()) };
        for key in trees.facts.scan_prefix(Key::leftovers()).keys() {
            trees.facts.remove(key?)?;
        }
        let omitted = source.trees();
        database.replace(None);
        drop(target);
        if omitted.is_empty() {
            trees.flush()?;
        } else {
            compact::compact(&folder, header.geometry, trees, omitted)?;
        }
        source.remove_all()?;
        header.moving_from = None;
        header.write(&folder)
    }
}

impl Iterator for Conversion {
    type Item = Result<Step, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (digest, fact) = self.pending.next()?;
        // There are pending blobs only if there is a place to move from.
        let source = Arc::clone(self.source.as_ref()?);
        Some(self.step(&*source, &digest, &fact).map(|end| Step { digest, size: fact.size, end }))
    }
}
