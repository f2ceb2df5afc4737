//! Quarantine of a corrupt store: its files move into a dated folder inside the store's folder.
//!
//! The dated folder is inside and not beside the store's folder, which may be a mount point or have a parent that larder
//! cannot write to, as in containers and under service managers. A rename inside it never crosses file systems. Quarantined
//! stores are never removed automatically.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::schema::BlobStoreKind;

use crate::store::blobs::files::folder::CONTENT;
use crate::store::error::StoreError;
use crate::store::index::trees::TREE;
use crate::store::lifecycle::compact::{NEW, OLD};
use crate::store::lifecycle::header;

/// Prefix of the names of quarantine folders.
const PREFIX: &str = "set-aside-";
/// Maximum number of quarantined stores. More of them mean that the cause of the corruption persists, and each may use as
/// much disk space as the store.
const QUARANTINED_MAX: usize = 3;
/// File with the reason.
const REASON: &str = "reason.txt";

/// Moves the store in `folder`, which this process has locked, into a dated folder inside it. Returns the path.
///
/// A store with blobs in files keeps them: each is named by its digest and becomes a draft, which is hashed before it is
/// content again.
pub(in crate::store) fn quarantine(
    folder: &Path,
    blobs: BlobStoreKind,
    reason: &str,
) -> Result<PathBuf, StoreError> {
    let corrupt = |reason| StoreError::Corrupt { path: folder.to_owned(), reason };
    let failed = |error| corrupt(format!("{reason}; the store cannot be quarantined: {error}"));
    let earlier = in_folder(folder)?;
    if earlier.len() >= QUARANTINED_MAX {
        let names: Vec<_> = earlier.iter().map(|path| path.display().to_string()).collect();
        let names = names.join(", ");
        return Err(corrupt(format!(
            "{reason}; the store is not quarantined, because there are {QUARANTINED_MAX} quarantined stores already ({names}): find the cause, and remove them"
        )));
    }
    let target = new_folder(folder, SystemTime::now()).map_err(failed)?;
    let blobs = (blobs == BlobStoreKind::Sled).then_some(CONTENT);
    // The header is last: a crash leaves a store without its database, or no store.
    for name in [TREE, NEW, OLD].into_iter().chain(blobs).chain([header::FILE]) {
        match fs::rename(folder.join(name), target.join(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    // The reason is also in the log.
    let _ = fs::write(target.join(REASON), format!("{reason}\n"));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    Ok(target)
}

/// Returns the quarantined stores in `folder`, oldest first.
pub(in crate::store) fn in_folder(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let failed = |source| StoreError::Folder { path: folder.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Creates a folder whose name has the time, and a number if that name exists.
fn new_folder(folder: &Path, now: SystemTime) -> std::io::Result<PathBuf> {
    let mut date = String::new();
    // A wrong clock may have a time that has no such date.
    if now < UNIX_EPOCH || write!(date, "{}", humantime::format_rfc3339_seconds(now)).is_err() {
        "undated".clone_into(&mut date);
    }
    let date = date.replace(':', "-");
    let mut path = folder.join(format!("{PREFIX}{date}"));
    for number in 2..=QUARANTINED_MAX + 1 {
        match fs::create_dir(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                path = folder.join(format!("{PREFIX}{date}-{number}"));
            }
            made => return made.map(|()| path),
        }
    }
    Err(ErrorKind::AlreadyExists.into())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn quarantine_folder_gets_a_new_name_each_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let [day, century] = [24 * 3600, 36_525 * 24 * 3600].map(Duration::from_secs);
        let times = [
            (SystemTime::UNIX_EPOCH + day, "set-aside-1970-01-02T00-00-00Z"),
            (SystemTime::UNIX_EPOCH + day, "set-aside-1970-01-02T00-00-00Z-2"),
            (SystemTime::UNIX_EPOCH + century * 100, "set-aside-undated"),
            (SystemTime::UNIX_EPOCH + century * 200, "set-aside-undated-2"),
        ];
        for (time, name) in times {
            let made = new_folder(folder.path(), time).expect("made");
            assert_eq!(made, folder.path().join(name));
        }
        let name = new_folder(folder.path(), SystemTime::UNIX_EPOCH - day).expect("made");
        assert!(name.is_dir());
    }
}
