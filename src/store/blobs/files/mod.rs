//! Bytes as files that are named by their digest: content is `blobs/sha256/ab/<hex>`, what still grows
//! `drafts/sha256/<hex>`, below the store's folder. A store that keeps its content in sled has drafts alone.
//!
//! A draft becomes content of this kind by a rename, once its bytes are on the disk and before a fact points at them. So whatever a
//! crash leaves is a draft, content, or content without its fact, which is made a draft again: its hash tells the next
//! fill what it is. Content never changes. Its time is set to its fact's, so that a file that somebody wrote to shows.

mod body;
mod buffers;
mod draft;
#[cfg(test)]
mod tests;

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::clock::Timestamp;
use crate::oci::{Algorithm, Digest};

use crate::store::error::StoreError;
pub(in crate::store) use body::FileBody;
use buffers::Buffers;
pub(in crate::store) use draft::FileDraft;

/// The folder of content.
pub(in crate::store) const CONTENT: &str = "blobs";
const DRAFTS: &str = "drafts";
const ALGORITHMS: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

/// The files of one store; clones share them.
#[derive(Clone, Debug)]
pub(in crate::store) struct Files(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    names: Mutex<()>,
    verifying: Mutex<()>,
    disk: Disk,
    buffers: Arc<Buffers>,
    /// Whether the file system keeps the time that a file is given.
    keeps_times: AtomicBool,
    /// Whether the system can be asked for just what it has in memory.
    reads_now: AtomicBool,
}

/// What content takes on disk.
#[derive(Debug, Default)]
struct Disk {
    bytes: AtomicU64,
    /// Somebody else has changed files: only looking at all of them tells.
    unsure: AtomicBool,
}

/// Content that is there.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Found {
    pub(in crate::store) digest: Digest,
    /// Its length.
    pub(in crate::store) size: u64,
    /// Bytes on disk.
    pub(in crate::store) disk: u64,
    /// When its bytes last changed, in milliseconds since 1970.
    pub(in crate::store) changed: Timestamp,
}

impl Files {
    /// Drafts, and perhaps content, in the store's `folder`, which is to be made ready.
    pub(in crate::store) fn new(folder: &Path) -> Self {
        Self(Arc::new(Shared {
            folder: folder.to_owned(),
            names: Mutex::default(),
            verifying: Mutex::default(),
            disk: Disk::default(),
            buffers: Arc::default(),
            keeps_times: AtomicBool::new(true),
            reads_now: AtomicBool::new(true),
        }))
    }

    /// Makes the folder ready for drafts.
    pub(in crate::store) fn make_ready(&self) -> Result<(), StoreError> {
        make_folders(&self.0.folder, DRAFTS)?;
        let probe = self.0.folder.join(DRAFTS).join("time");
        let keeps_times = keeps_times(&probe).map_err(failed(&probe))?;
        self.0.keeps_times.store(keeps_times, Ordering::Relaxed);
        Ok(())
    }

    /// Makes the folder ready for drafts and content.
    pub(in crate::store) fn make_ready_for_content(&self) -> Result<(), StoreError> {
        make_folders(&self.0.folder, CONTENT)?;
        self.make_ready()
    }

    fn keeps_times(&self) -> bool {
        self.0.keeps_times.load(Ordering::Relaxed)
    }

    /// Held while a file gets its name, changes or loses it.
    pub(in crate::store) fn names(&self) -> MutexGuard<'_, ()> {
        // What stands under a name is decided by the file system; there is nothing to be left halfway.
        self.0.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn content(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        let shard = hex.get(..2).unwrap_or_default();
        [
            &self.0.folder,
            Path::new(CONTENT),
            Path::new(digest.algorithm().as_str()),
            shard.as_ref(),
            hex.as_ref(),
        ]
        .iter()
        .collect()
    }

    fn growing(&self, digest: &Digest) -> PathBuf {
        self.0.folder.join(DRAFTS).join(digest.algorithm().as_str()).join(digest.hex())
    }

    /// Whether a file is the one that was kept, as far as that shows from outside.
    fn is_kept(&self, found: &Metadata, size: u64, stored_at: Timestamp) -> bool {
        let in_time = !self.keeps_times() || found.modified().is_ok_and(|time| time == time_of(stored_at));
        found.is_file() && found.len() == size && in_time
    }

    /// Removes content. Readers that have it open read on.
    pub(in crate::store) fn remove_content(&self, digest: &Digest) -> Result<(), StoreError> {
        let path = self.content(digest);
        match fs::symlink_metadata(&path) {
            Ok(found) => {
                remove(&path)?;
                self.0.disk.left(&found);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed(&path)(error)),
        }
    }

    /// As `remove_content`, for content that is not as it was counted.
    pub(in crate::store) fn remove_damaged(&self, digest: &Digest) -> Result<(), StoreError> {
        self.0.disk.is_unsure();
        self.remove_content(digest)
    }

    /// Removes a draft. Readers that have it open read on.
    pub(in crate::store) fn remove_draft(&self, digest: &Digest) -> Result<(), StoreError> {
        let _names = self.names();
        remove(&self.growing(digest))
    }

    /// Makes content a draft again.
    pub(in crate::store) fn demote(&self, digest: &Digest) -> Result<(), StoreError> {
        let (content, draft) = (self.content(digest), self.growing(digest));
        let found = match fs::symlink_metadata(&content) {
            Ok(found) => found,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(&content)(error)),
        };
        fs::rename(&content, draft).map_err(failed(&content))?;
        self.0.disk.left(&found);
        Ok(())
    }

    /// All content, in no order. Counts on the way what it takes on disk.
    pub(in crate::store) fn walk(&self) -> Result<Vec<Found>, StoreError> {
        let mut found = Vec::new();
        for algorithm in ALGORITHMS {
            let top = self.0.folder.join(CONTENT).join(algorithm.as_str());
            for shard in list(&top)? {
                let shard = shard.map_err(failed(&top))?.path();
                if shard.is_dir() {
                    files_in(&shard, algorithm, &mut found)?;
                }
            }
        }
        self.0.disk.bytes.store(found.iter().map(|found| found.disk).sum(), Ordering::Relaxed);
        Ok(found)
    }

    /// All drafts, in no order.
    pub(in crate::store) fn drafts(&self) -> Result<Vec<Found>, StoreError> {
        let mut found = Vec::new();
        for algorithm in ALGORITHMS {
            files_in(&self.0.folder.join(DRAFTS).join(algorithm.as_str()), algorithm, &mut found)?;
        }
        Ok(found)
    }

    /// Bytes on disk, of drafts.
    pub(in crate::store) fn size_of_drafts(&self) -> Result<u64, StoreError> {
        Ok(self.drafts()?.iter().map(|draft| draft.disk).sum())
    }

    /// Bytes on disk, of content and of drafts.
    pub(in crate::store) fn size_on_disk(&self) -> Result<u64, StoreError> {
        if self.0.disk.unsure.swap(false, Ordering::Relaxed) {
            let _names = self.names();
            self.walk()?;
        }
        Ok(self.0.disk.bytes.load(Ordering::Relaxed) + self.size_of_drafts()?)
    }

    /// Removes all content and its folder; for a store that keeps it elsewhere from now on.
    pub(in crate::store) fn remove_all_content(&self) -> Result<(), StoreError> {
        let path = self.0.folder.join(CONTENT);
        fs::remove_dir_all(&path).map_err(failed(&path))
    }
}

impl Disk {
    fn came(&self, file: &Metadata) {
        self.bytes.fetch_add(taken(file), Ordering::Relaxed);
    }

    fn left(&self, file: &Metadata) {
        let taken = taken(file);
        let before =
            self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bytes| bytes.checked_sub(taken));
        if before.is_err() {
            self.is_unsure();
        }
    }

    fn is_unsure(&self) {
        self.unsure.store(true, Ordering::Relaxed);
    }
}

/// Bytes that a file takes on disk.
fn taken(file: &Metadata) -> u64 {
    // POSIX leaves the unit open; Linux and the BSDs count in 512 bytes whatever the file system's own block is.
    file.blocks() * 512
}

/// The time that content stored at `stored_at` (milliseconds since 1970) carries: in whole seconds, which archives keep,
/// and in 31 bits, which every file system keeps, wherever the clock stood.
fn time_of(stored_at: Timestamp) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(stored_at.as_millis() / 1000 % (1 << 31))
}

/// What is in a folder. One that somebody has removed holds nothing; it is made again when something comes into it.
fn list(folder: &Path) -> Result<impl Iterator<Item = io::Result<fs::DirEntry>>, StoreError> {
    match fs::read_dir(folder) {
        Ok(found) => Ok(Some(found).into_iter().flatten()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None.into_iter().flatten()),
        Err(error) => Err(failed(folder)(error)),
    }
}

/// The files in one folder whose names are digests. What else lies there is somebody's, and left alone.
fn files_in(folder: &Path, algorithm: Algorithm, into: &mut Vec<Found>) -> Result<(), StoreError> {
    for entry in list(folder)? {
        let entry = entry.map_err(failed(folder))?;
        let Some(digest) = digest_of(&entry.file_name(), algorithm) else {
            tracing::warn!(path = %entry.path().display(), "a file that is not larder's is left alone");
            continue;
        };
        match entry.metadata() {
            Ok(file) => {
                // Before 1970 is as good as never.
                let seconds = u64::try_from(file.mtime()).unwrap_or_default();
                let changed = Timestamp::from_millis(seconds.saturating_mul(1000));
                into.push(Found { digest, size: file.len(), disk: taken(&file), changed });
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(failed(&entry.path())(error)),
        }
    }
    Ok(())
}

fn digest_of(name: &OsStr, algorithm: Algorithm) -> Option<Digest> {
    format!("{}:{}", algorithm.as_str(), name.to_str()?).parse().ok()
}

/// Whether a file keeps a time that it is given, to the second.
fn keeps_times(probe: &Path) -> io::Result<bool> {
    let file = File::create(probe)?;
    let time = time_of(Timestamp::from_millis(1_234_567_891_000));
    let kept =
        file.set_modified(time).is_ok() && file.metadata()?.modified().is_ok_and(|found| found == time);
    fs::remove_file(probe)?;
    Ok(kept)
}

fn make_folders(folder: &Path, below: &str) -> Result<(), StoreError> {
    for algorithm in ALGORITHMS {
        let path = folder.join(below).join(algorithm.as_str());
        make_folder(&path).map_err(failed(&path))?;
    }
    Ok(())
}

/// Makes a folder, and those above it, so that they stay.
fn make_folder(path: &Path) -> io::Result<()> {
    let made = match fs::create_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            path.parent().map_or(Ok(()), make_folder)?;
            fs::create_dir(path)
        }
        made => made,
    };
    match made {
        Ok(()) => path.parent().map_or(Ok(()), sync_folder),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Waits until the names in a folder are on the disk.
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(path)(error)),
        _ => Ok(()),
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    |source| StoreError::File { path: path.to_owned(), source }
}
