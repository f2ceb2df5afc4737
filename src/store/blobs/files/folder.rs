//! Files named by their digest, below the store's folder: content in `blobs/sha256/ab/<hex>`, drafts in
//! `drafts/upstreams/<upstream>/sha256/<hex>`, and drafts without an upstream in `drafts/sha256/<hex>`. A store with its content
//! in sled has drafts only.
//!
//! A draft becomes content by a rename, after its bytes are on disk and before a fact points at them. So a crash leaves a
//! draft, content, or content without its fact, which becomes a draft without an upstream. Content never changes. Its modification time is the time of its fact, so that a write by another program is visible.

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

use super::buffers::Buffers;
use crate::store::error::StoreError;

/// Folder of content.
pub(in crate::store) const CONTENT: &str = "blobs";

/// Files of one store; clones share them.
#[derive(Clone, Debug)]
pub(in crate::store) struct Files(pub(super) Arc<FilesState>);

#[derive(Debug)]
pub(super) struct FilesState {
    folder: PathBuf,
    names: Mutex<()>,
    pub(super) verifying: Mutex<()>,
    pub(super) disk: DiskCounter,
    pub(super) buffers: Arc<Buffers>,
    /// Number of lists of all drafts.
    #[cfg(test)]
    lists: AtomicU64,
    /// True if the file system preserves the modification time that a file is given.
    keeps_times: AtomicBool,
    /// True if the operating system can read from its page cache only.
    pub(super) reads_now: AtomicBool,
}

/// Counter of the bytes that content uses on disk.
#[derive(Debug, Default)]
pub(super) struct DiskCounter {
    bytes: AtomicU64,
    /// True if another program has changed files, so that all of them must be measured again.
    unsure: AtomicBool,
}

/// File of content or of a draft.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct FoundFile {
    pub(in crate::store) digest: Digest,
    /// Length in bytes.
    pub(in crate::store) size: u64,
    /// Bytes on disk.
    pub(in crate::store) disk: u64,
    /// Time of the last write.
    pub(in crate::store) changed: Timestamp,
}

impl Files {
    /// Creates the handle of the files in the store's folder. Does not access the disk.
    pub(in crate::store) fn new(folder: &Path) -> Self {
        Self(Arc::new(FilesState {
            folder: folder.to_owned(),
            names: Mutex::default(),
            verifying: Mutex::default(),
            disk: DiskCounter::default(),
            buffers: Arc::default(),
            #[cfg(test)]
            lists: AtomicU64::new(0),
            keeps_times: AtomicBool::new(true),
            reads_now: AtomicBool::new(true),
        }))
    }

    /// Returns the store's folder.
    pub(super) fn folder(&self) -> &Path {
        &self.0.folder
    }

    /// Tests whether files preserve a modification time.
    pub(super) fn test_times(&self, probe: &Path) -> Result<(), StoreError> {
        let keeps_times = keeps_times(probe).map_err(failed(probe))?;
        self.0.keeps_times.store(keeps_times, Ordering::Relaxed);
        Ok(())
    }

    /// Creates the folders of content.
    pub(in crate::store) fn prepare_content(&self) -> Result<(), StoreError> {
        make_folders(&self.0.folder.join(CONTENT))
    }

    pub(super) fn keeps_times(&self) -> bool {
        self.0.keeps_times.load(Ordering::Relaxed)
    }

    /// Locks all names: hold it while a file gets, changes or loses its name.
    pub(in crate::store) fn names(&self) -> MutexGuard<'_, ()> {
        // The file system has the state; a panic cannot leave it inconsistent.
        self.0.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn content(&self, digest: &Digest) -> PathBuf {
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

    /// Returns true if length and time of a file are those of the stored content.
    pub(super) fn is_kept(&self, found: &Metadata, size: u64, stored_at: Timestamp) -> bool {
        let in_time = !self.keeps_times() || found.modified().is_ok_and(|time| time == time_of(stored_at));
        found.is_file() && found.len() == size && in_time
    }

    /// Removes content. Open readers are not disturbed.
    pub(in crate::store) fn remove_content(&self, digest: &Digest) -> Result<(), StoreError> {
        let path = self.content(digest);
        match fs::symlink_metadata(&path) {
            Ok(found) => {
                remove(&path)?;
                self.0.disk.subtract(&found);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed(&path)(error)),
        }
    }

    /// Removes content whose size on disk may differ from the counted size.
    pub(in crate::store) fn remove_damaged(&self, digest: &Digest) -> Result<(), StoreError> {
        self.0.disk.set_unsure();
        self.remove_content(digest)
    }

    /// Lists all content, and measures its size on disk.
    pub(in crate::store) fn list(&self) -> Result<Vec<FoundFile>, StoreError> {
        let mut found = Vec::new();
        for algorithm in Algorithm::ALL.iter().copied() {
            let top = self.0.folder.join(CONTENT).join(algorithm.as_str());
            for shard in read_dir(&top)? {
                let shard = shard.map_err(failed(&top))?.path();
                if shard.is_dir() {
                    files_in(&shard, algorithm, &mut found)?;
                }
            }
        }
        self.0.disk.bytes.store(found.iter().map(|found| found.disk).sum(), Ordering::Relaxed);
        Ok(found)
    }

    /// Returns the bytes on disk of content.
    pub(in crate::store) fn size_on_disk(&self) -> Result<u64, StoreError> {
        if self.0.disk.unsure.swap(false, Ordering::Relaxed) {
            let _names = self.names();
            self.list()?;
        }
        Ok(self.0.disk.bytes.load(Ordering::Relaxed))
    }

    /// Counts a list of all drafts.
    #[cfg(test)]
    pub(super) fn count_draft_list(&self) {
        self.0.lists.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of lists of all drafts.
    #[cfg(test)]
    pub(in crate::store) fn draft_lists(&self) -> u64 {
        self.0.lists.load(Ordering::Relaxed)
    }

    /// Removes all content with its folder, after a conversion to another kind of blob store.
    pub(in crate::store) fn remove_all_content(&self) -> Result<(), StoreError> {
        let path = self.0.folder.join(CONTENT);
        fs::remove_dir_all(&path).map_err(failed(&path))
    }
}

impl DiskCounter {
    pub(super) fn add(&self, file: &Metadata) {
        self.bytes.fetch_add(taken(file), Ordering::Relaxed);
    }

    pub(super) fn subtract(&self, file: &Metadata) {
        let taken = taken(file);
        let before =
            self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bytes| bytes.checked_sub(taken));
        if before.is_err() {
            self.set_unsure();
        }
    }

    fn set_unsure(&self) {
        self.unsure.store(true, Ordering::Relaxed);
    }
}

/// Returns the bytes that a file uses on disk.
fn taken(file: &Metadata) -> u64 {
    // POSIX does not define the unit. Linux and the BSDs count units of 512 bytes, whatever the block size.
    file.blocks() * 512
}

/// Returns the modification time of content stored at `stored_at`: in whole seconds, which archives preserve, and in 31
/// bits, which every file system preserves.
pub(super) fn time_of(stored_at: Timestamp) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(stored_at.as_secs() % (1 << 31))
}

/// Lists a folder. A missing folder is empty; it is created again with the next file.
pub(super) fn read_dir(folder: &Path) -> Result<impl Iterator<Item = io::Result<fs::DirEntry>>, StoreError> {
    match fs::read_dir(folder) {
        Ok(found) => Ok(Some(found).into_iter().flatten()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None.into_iter().flatten()),
        Err(error) => Err(failed(folder)(error)),
    }
}

/// Collects the files of one folder whose names are digests. Other files belong to other programs and stay.
pub(super) fn files_in(
    folder: &Path,
    algorithm: Algorithm,
    into: &mut Vec<FoundFile>,
) -> Result<(), StoreError> {
    for entry in read_dir(folder)? {
        let entry = entry.map_err(failed(folder))?;
        let Some(digest) = digest_of(&entry.file_name(), algorithm) else {
            tracing::warn!(path = %entry.path().display(), "ignored a file that larder did not create");
            continue;
        };
        match entry.metadata() {
            Ok(file) => {
                // A time before 1970 becomes 1970.
                let seconds = u64::try_from(file.mtime()).unwrap_or_default();
                let changed = Timestamp::from_millis(seconds.saturating_mul(1000));
                into.push(FoundFile { digest, size: file.len(), disk: taken(&file), changed });
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

/// Returns true if a file preserves a modification time to the second.
fn keeps_times(probe: &Path) -> io::Result<bool> {
    let file = File::create(probe)?;
    let time = time_of(Timestamp::from_millis(1_234_567_891_000));
    let kept =
        file.set_modified(time).is_ok() && file.metadata()?.modified().is_ok_and(|found| found == time);
    fs::remove_file(probe)?;
    Ok(kept)
}

/// Creates a folder for each algorithm.
pub(super) fn make_folders(folder: &Path) -> Result<(), StoreError> {
    for algorithm in Algorithm::ALL.iter().copied() {
        let path = folder.join(algorithm.as_str());
        make_folder(&path).map_err(failed(&path))?;
    }
    Ok(())
}

/// Creates a folder with its parents, and synchronises the new names.
pub(super) fn make_folder(path: &Path) -> io::Result<()> {
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

/// Waits until the names in a folder are on disk.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(path)(error)),
        _ => Ok(()),
    }
}

pub(super) fn failed(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    |source| StoreError::File { path: path.to_owned(), source }
}
