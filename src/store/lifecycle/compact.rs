//! Compaction: copies sled into a new folder, because sled never returns disk space to the file system.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;

use crate::store::error::StoreError;
use crate::store::index::trees::{TREE, Trees};
use crate::store::lifecycle::header::Geometry;

/// Folder of an unfinished copy.
pub(in crate::store) const NEW: &str = "tree.new";
/// Folder that a copy has replaced.
pub(in crate::store) const OLD: &str = "tree.old";

/// Copies every tree except `omitted` into a new sled, and replaces `trees` with it. No other handle may exist.
pub(in crate::store) fn compact(
    folder: &Path,
    geometry: Geometry,
    trees: Trees,
    omitted: &[&str],
) -> Result<(), StoreError> {
    let failed = |source| StoreError::Folder { path: folder.to_owned(), source };
    let (new, old, tree) = (folder.join(NEW), folder.join(OLD), folder.join(TREE));
    for path in [&new, &old] {
        remove(path).map_err(failed)?;
    }
    // Both are closed before the renames: sled opens its files by name.
    trees.copy_to(&new, geometry, omitted)?;
    fs::rename(&tree, &old).map_err(failed)?;
    fs::rename(&new, &tree).map_err(failed)?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    remove(&old).map_err(failed)
}

/// Completes a compaction that was interrupted between its two renames. Otherwise an empty sled would be created.
pub(in crate::store) fn recover(folder: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::Folder { path: folder.to_owned(), source };
    let (new, tree) = (folder.join(NEW), folder.join(TREE));
    if !tree.try_exists().map_err(failed)? && new.try_exists().map_err(failed)? {
        fs::rename(new, tree).map_err(failed)?;
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
