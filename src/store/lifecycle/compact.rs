//! Puts a sled that holds only what is still needed into the place of one that held more: sled never gives disk back.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;

use crate::store::error::StoreError;
use crate::store::index::database::{TREE, Trees};
use crate::store::lifecycle::header::Geometry;

pub(in crate::store) const NEW: &str = "tree.new";
pub(in crate::store) const OLD: &str = "tree.old";

/// Copies every tree but those that `left_out` names into a new sled, and puts that in the place of `trees`, which
/// nobody else may hold.
pub(in crate::store) fn compact(
    folder: &Path,
    geometry: Geometry,
    trees: Trees,
    left_out: &[&str],
) -> Result<(), StoreError> {
    let failed = |source| StoreError::Folder { path: folder.to_owned(), source };
    let (new, old, tree) = (folder.join(NEW), folder.join(OLD), folder.join(TREE));
    for left in [&new, &old] {
        remove(left).map_err(failed)?;
    }
    let fresh = Trees::open_at(&new, geometry, trees.cache_memory)?;
    for name in trees.db.tree_names() {
        if left_out.iter().any(|left_out| left_out.as_bytes() == &*name) {
            continue;
        }
        let to = fresh.db.open_tree(&name)?;
        for item in &trees.db.open_tree(&name)? {
            let (key, value) = item?;
            to.insert(key, value)?;
        }
    }
    fresh.db.flush()?;
    // Both are closed before a name changes: sled goes by names.
    drop((fresh, trees));
    fs::rename(&tree, &old).map_err(failed)?;
    fs::rename(&new, &tree).map_err(failed)?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    remove(&old).map_err(failed)
}

/// Ends what was interrupted between the two renames: without it an empty sled would come into being.
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
