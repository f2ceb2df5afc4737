//! Moves the blobs of a store to the other place, one after the other: from pages into files, or back.
//!
//! The header says so before the first one is moved, so that nobody takes the store for whole until it is. The bytes of
//! a blob are verified and on the disk in their new place before they leave the old one, and a blob is in its new
//! place when it is there whole: an interruption at any moment is made good by beginning again, in either direction.
//! Pages leave all at once, at the end: sled would not give their room back before.

use std::path::PathBuf;

use bytes::Bytes;

use crate::config::schema::{self, BlobStoreKind};
use crate::oci::{Digest, Hasher};

use crate::store::blobs::BlobBody;
use crate::store::blobs::files::Files;
use crate::store::engine::readable;
use crate::store::error::StoreError;
use crate::store::index::database::Database;
use crate::store::index::database::{PAGES, Trees};
use crate::store::index::fact::BlobFact;
use crate::store::index::key::{self, Key};
use crate::store::lifecycle::compact;
use crate::store::lifecycle::header::Header;
use crate::store::lifecycle::lock::Folder;

/// How much is read at a time.
const STEP: u64 = 1 << 20;

/// A store whose blobs are being moved; nobody else can open it. Every step moves one blob.
#[derive(Debug)]
pub struct Conversion {
    folder: PathBuf,
    /// Taken, against larders and other conversions.
    _taken: Folder,
    header: Header,
    trees: Trees,
    /// The same, for who reads pages.
    database: Database,
    files: Files,
    waiting: std::vec::IntoIter<(Digest, BlobFact)>,
    bytes: u64,
}

/// What became of one blob.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// The blob.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Where it is now.
    pub end: StepEnd,
}

/// Where a blob is after its step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepEnd {
    /// In its new place.
    Moved,
    /// In its new place, where an earlier run had brought it.
    Found,
    /// Nowhere: its bytes were damaged, and will be fetched again when somebody asks for them.
    Dropped,
}

impl Conversion {
    /// Opens the store in `options.path` to move its blobs to `to`.
    pub fn begin(options: &schema::Store, to: BlobStoreKind) -> Result<Self, StoreError> {
        let folder = options.path.clone();
        let none = || StoreError::Foreign {
            path: folder.clone(),
            reason: "there is none; name the right folder with --data or --config".to_owned(),
        };
        if Header::read(&folder)?.is_none() {
            return Err(none());
        }
        let taken = Folder::take_existing(&folder)?;
        compact::recover(&folder)?;
        // Read once more, now that nobody else can write it.
        let mut header = Header::read(&folder)?.ok_or_else(none)?;
        let trees = Trees::open(&folder, header.geometry, options.cache_memory.as_u64())?;
        if header.blobs != to {
            (header.moving_from, header.blobs) = (Some(header.blobs), to);
            header.write(&folder)?;
        }
        let mut waiting = Vec::new();
        if header.moving_from.is_some() {
            for item in trees.facts.scan_prefix(Key::blobs()) {
                let (key, value) = item?;
                if let (Some(digest), Some(fact)) = (key::blob_of(&key), readable::<BlobFact>(&value)) {
                    waiting.push((digest, fact));
                }
            }
        }
        let bytes = waiting.iter().map(|(_, fact)| fact.size).sum();
        let (database, files) = (Database::default(), Files::new(&folder));
        database.replace(Some(trees.clone()));
        files.make_ready_for_content()?;
        Ok(Self {
            folder,
            _taken: taken,
            header,
            trees,
            database,
            files,
            waiting: waiting.into_iter(),
            bytes,
        })
    }

    /// Blobs that have not had their step.
    pub fn blobs_left(&self) -> usize {
        self.waiting.len()
    }

    /// Bytes of all blobs that had not had their step at the beginning.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where the blobs come from; `None` if all of them were where they should be.
    pub fn from(&self) -> Option<BlobStoreKind> {
        self.header.moving_from
    }

    fn step(&self, digest: &Digest, fact: &BlobFact) -> Result<StepEnd, StoreError> {
        let end = match self.header.blobs {
            BlobStoreKind::Files => self.to_file(digest, fact)?,
            BlobStoreKind::Sled => self.to_pages(digest, fact)?,
        };
        if end == StepEnd::Dropped {
            self.trees.facts.remove(Key::Blob(digest).to_bytes())?;
            self.files.remove_content(digest)?;
        }
        Ok(end)
    }

    fn to_file(&self, digest: &Digest, fact: &BlobFact) -> Result<StepEnd, StoreError> {
        // A file has this name only if it was verified.
        let mut end = match self.files.open(digest, fact.size, fact.stored_at) {
            Ok(_) => StepEnd::Found,
            Err(StoreError::Damaged(_)) => StepEnd::Dropped,
            Err(error) => return Err(error),
        };
        if end == StepEnd::Dropped {
            self.files.remove_content(digest)?;
            self.files.remove_draft(digest)?;
            let mut file = self.files.draft(digest)?;
            let pages = BlobBody::Pages(self.database.clone(), *digest);
            if copy(&pages, digest, fact.size, |piece| file.append(piece))? {
                file.commit(fact.stored_at)?;
                end = StepEnd::Moved;
            } else {
                self.files.remove_draft(digest)?;
            }
        }
        Ok(end)
    }

    fn to_pages(&self, digest: &Digest, fact: &BlobFact) -> Result<StepEnd, StoreError> {
        let mut end = StepEnd::Dropped;
        match self.files.open(digest, fact.size, fact.stored_at) {
            Ok(file) => {
                self.trees.pages.remove(digest)?;
                let mut pages = self.trees.pages.writer(digest, fact.size);
                if copy(&BlobBody::File(file), digest, fact.size, |piece| pages.append(piece))? {
                    pages.complete()?;
                    end = StepEnd::Moved;
                } else {
                    self.trees.pages.remove(digest)?;
                }
            }
            // A file goes only when its pages are whole and on the disk.
            Err(StoreError::Damaged(_)) => {
                if is_whole(&BlobBody::Pages(self.database.clone(), *digest), digest, fact.size)? {
                    end = StepEnd::Found;
                }
            }
            Err(error) => return Err(error),
        }
        if end == StepEnd::Moved {
            self.trees.db.flush()?;
        }
        if end != StepEnd::Dropped {
            self.files.remove_content(digest)?;
        }
        Ok(end)
    }

    /// Ends the work once every blob has had its step: what is left of the old place goes, and then the header
    /// says that the store is whole. Drafts are the same in either place.
    pub fn finish(self) -> Result<(), StoreError> {
        if self.header.moving_from.is_none() || self.waiting.len() > 0 {
            return Ok(());
        }
        let Self { folder, trees, database, files, mut header, .. } = self;
        for key in trees.facts.scan_prefix(Key::drafts()).keys() {
            trees.facts.remove(key?)?;
        }
        database.replace(None);
        match header.blobs {
            BlobStoreKind::Files => compact::compact(&folder, header.geometry, trees, &[PAGES])?,
            BlobStoreKind::Sled => {
                trees.db.flush()?;
                files.remove_all_content()?;
            }
        }
        header.moving_from = None;
        header.write(&folder)
    }
}

impl Iterator for Conversion {
    type Item = Result<Step, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (digest, fact) = self.waiting.next()?;
        Some(self.step(&digest, &fact).map(|end| Step { digest, size: fact.size, end }))
    }
}

/// Copies a blob, and tells whether what was copied is the blob.
fn copy(
    from: &BlobBody,
    digest: &Digest,
    size: u64,
    mut to: impl FnMut(Bytes) -> Result<(), StoreError>,
) -> Result<bool, StoreError> {
    let mut hasher = Hasher::new(digest.algorithm());
    let mut at = 0;
    while at < size {
        let pieces = match from.read(at..size, STEP) {
            Ok(pieces) => pieces,
            Err(StoreError::Damaged(_)) => return Ok(false),
            Err(error) => return Err(error),
        };
        for piece in pieces {
            at += piece.len() as u64;
            hasher.update(&piece);
            to(piece)?;
        }
    }
    Ok(hasher.finish() == *digest)
}

/// Whether all bytes of a blob are there, and right.
fn is_whole(body: &BlobBody, digest: &Digest, size: u64) -> Result<bool, StoreError> {
    let mut hasher = Hasher::new(digest.algorithm());
    let mut at = 0;
    while at < size {
        match body.read(at..size, STEP) {
            Ok(pieces) => pieces.iter().for_each(|piece| {
                at += piece.len() as u64;
                hasher.update(piece);
            }),
            Err(StoreError::Damaged(_)) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(hasher.finish() == *digest)
}
