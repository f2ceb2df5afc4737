//! Detection of changed files by polling their content.
//!
//! File system notifications do not work everywhere. Kubernetes replaces a symbolic link two directories above the file,
//! certbot replaces links, editors rename files, and network file systems send no notifications.

use std::collections::hash_map::DefaultHasher;
use std::fs::File;
use std::hash::Hasher as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Interval of polling. A change is applied when two polls in a row have found the same content.
pub const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum number of bytes that are compared. No certificate and no configuration is longer.
const COMPARED_MAX: u64 = 1 << 20;

/// Hashes of the content of files; `None` for a file that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileFingerprint(Vec<Option<u64>>);

impl FileFingerprint {
    /// Reads and hashes the files. Blocking.
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
    File::open(path)?.take(COMPARED_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// State of polled files.
#[derive(Debug)]
pub struct FileWatch {
    /// Content in use.
    current: FileFingerprint,
    /// Changed content found by the last poll.
    pending: Option<FileFingerprint>,
}

impl FileWatch {
    /// Starts with the content in use.
    pub fn new(current: FileFingerprint) -> Self {
        Self { current, pending: None }
    }

    /// Returns true if the polled content is new and was found twice in a row. Then it becomes the current content.
    ///
    /// The second poll gives a program time to finish writing several files that belong together.
    pub fn is_new_and_stable(&mut self, found: FileFingerprint) -> bool {
        if found == self.current {
            self.pending = None;
            return false;
        }
        if self.pending.as_ref() == Some(&found) {
            self.set_current(found);
            return true;
        }
        self.pending = Some(found);
        false
    }

    /// Sets the content in use, even if it was found only once.
    pub fn set_current(&mut self, found: FileFingerprint) {
        self.current = found;
        self.pending = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_watch_reports_a_change_after_two_equal_polls() {
        let [a, b, c] = [1, 2, 3].map(|content| FileFingerprint(vec![Some(content)]));
        let mut watch = FileWatch::new(a.clone());
        let seen = [&a, &b, &c, &c, &c, &b, &c, &b, &b];
        let stable = seen.map(|found| watch.is_new_and_stable(found.clone()));
        assert_eq!(stable, [false, false, false, true, false, false, false, false, true]);
        watch.set_current(c.clone());
        assert!(!watch.is_new_and_stable(c));
        assert!(!watch.is_new_and_stable(a.clone()));
        assert!(watch.is_new_and_stable(a));
    }

    #[test]
    fn fingerprint_depends_on_content() {
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
