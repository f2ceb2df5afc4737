//! Files whose content is watched: when they have changed, and come to rest.
//!
//! Looked at by content and again and again, because nothing else holds everywhere: Kubernetes swaps a symbolic link
//! two folders above the file, certbot replaces links, editors rename, and network file systems tell nobody.

use std::collections::hash_map::DefaultHasher;
use std::fs::File;
use std::hash::Hasher as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often files are looked at; what has changed is used after it was found the same once more.
pub const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Of a larger file the rest is not looked at; no certificate and no configuration is that long.
const LARGEST: u64 = 1 << 20;

/// What files hold, as far as it takes to tell a change; `None` for one that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileFingerprint(Vec<Option<u64>>);

impl FileFingerprint {
    /// Reads the files; blocks.
    pub fn of(paths: &[PathBuf]) -> Self {
        let one = |path: &PathBuf| {
            content(path).ok().map(|bytes| {
                let mut hasher = DefaultHasher::new();
                hasher.write(&bytes);
                hasher.finish()
            })
        };
        Self(paths.iter().map(one).collect())
    }
}

fn content(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LARGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What is known of watched files.
#[derive(Debug)]
pub struct FileWatch {
    used: FileFingerprint,
    moving: Option<FileFingerprint>,
}

impl FileWatch {
    /// Begins with what is used now.
    pub fn new(used: FileFingerprint) -> Self {
        Self { used, moving: None }
    }

    /// Whether what was found is to be used now: it is new, and was found twice in a row, so that whoever writes it,
    /// or writes several files that belong together, has had time to finish.
    pub fn is_new_and_stable(&mut self, found: FileFingerprint) -> bool {
        if found == self.used {
            self.moving = None;
            return false;
        }
        if self.moving.as_ref() == Some(&found) {
            self.set_current(found);
            return true;
        }
        self.moving = Some(found);
        false
    }

    /// Notes what is used from now on, settled or not.
    pub fn set_current(&mut self, found: FileFingerprint) {
        self.used = found;
        self.moving = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_counts_once_it_has_come_to_rest() {
        let [a, b, c] = [1, 2, 3].map(|content| FileFingerprint(vec![Some(content)]));
        let mut watch = FileWatch::new(a.clone());
        let seen = [&a, &b, &c, &c, &c, &b, &c, &b, &b];
        let settled = seen.map(|found| watch.is_new_and_stable(found.clone()));
        assert_eq!(settled, [false, false, false, true, false, false, false, false, true]);
        watch.set_current(c.clone());
        assert!(!watch.is_new_and_stable(c));
        assert!(!watch.is_new_and_stable(a.clone()));
        assert!(watch.is_new_and_stable(a));
    }

    #[test]
    fn files_are_told_apart_by_content() {
        let folder = tempfile::tempdir().expect("a folder");
        let paths = [folder.path().join("a"), folder.path().join("b")];
        let none = FileFingerprint::of(&paths);
        assert_eq!(none, FileFingerprint(vec![None, None]));
        std::fs::write(&paths[0], "one").expect("a file");
        let one = FileFingerprint::of(&paths);
        assert_ne!(one, none);
        std::fs::write(&paths[0], "two").expect("a file");
        assert_ne!(FileFingerprint::of(&paths), one);
        std::fs::write(&paths[0], "one").expect("a file");
        assert_eq!(FileFingerprint::of(&paths), one);
    }
}
