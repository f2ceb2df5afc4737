//! Configuration files of clients: read and atomically replaced below a root folder, with a dated copy of the old file.

use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, bail};

use super::file_edit::FileEdit;

/// File system of the client's machine, below a root folder.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    root: PathBuf,
}

/// Result of writing a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The file already had the content.
    Unchanged,
    /// The file was written; the previous content is in the named backup.
    Written(Option<PathBuf>),
}

impl Outcome {
    /// Returns the name for the JSON output.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Unchanged => "unchanged",
            Self::Written(_) => "written",
        }
    }

    pub(super) fn backup(&self) -> Option<PathBuf> {
        match self {
            Self::Unchanged => None,
            Self::Written(backup) => backup.clone(),
        }
    }
}

impl Disk {
    pub(super) fn new(root: &Path) -> anyhow::Result<Self> {
        let wrong = || format!("{} cannot be used as root", root.display());
        let found = fs::metadata(root).with_context(wrong)?;
        if !found.is_dir() {
            bail!("{}: it is not a folder", wrong());
        }
        Ok(Self { root: root.to_owned() })
    }

    /// Returns the local path of a path on the client. Relative paths are returned unchanged.
    pub(super) fn path(&self, on_client: &Path) -> PathBuf {
        match on_client.strip_prefix("/") {
            Ok(rest) => self.root.join(rest),
            Err(_) => on_client.to_owned(),
        }
    }

    /// Returns the text of a client's file, if it exists.
    pub(super) fn read(&self, on_client: &Path) -> anyhow::Result<Option<String>> {
        let path = self.path(on_client);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("{} cannot be read", path.display())),
        }
    }

    /// Returns the client's files that match a glob pattern.
    pub(super) fn matching(&self, pattern: &Path) -> Vec<PathBuf> {
        let below = self.path(pattern);
        let found = glob::glob(&below.to_string_lossy()).into_iter().flatten().filter_map(Result::ok);
        found.filter_map(|path| Some(Path::new("/").join(path.strip_prefix(&self.root).ok()?))).collect()
    }

    /// Writes the edits. A conflict in one file prevents all writes.
    pub(super) fn write(&self, edits: &[FileEdit]) -> anyhow::Result<Vec<Outcome>> {
        let mut wanted = Vec::new();
        for edit in edits {
            let shown = self.path(&edit.path);
            let existing = self.read(&edit.path)?;
            let text = match &existing {
                None => edit.content.clone(),
                Some(text) => edit
                    .merge
                    .merged(&edit.content, text)
                    .with_context(|| format!("{} was not changed", shown.display()))?,
            };
            let changed = existing.as_ref() != Some(&text);
            let path = if changed { Some(self.resolved(&shown)?) } else { None };
            wanted.push((path, text, existing.is_some()));
        }
        wanted
            .into_iter()
            .map(|(path, text, exists)| match path {
                None => Ok(Outcome::Unchanged),
                Some(path) => replace(&path, &text, exists).with_context(|| {
                    format!("{} cannot be written; run without --write to print it", path.display())
                }),
            })
            .collect()
    }

    /// Resolves symbolic links. The result must be below the root.
    fn resolved(&self, path: &Path) -> anyhow::Result<PathBuf> {
        if path.components().any(|part| part == Component::ParentDir) && self.root != Path::new("/") {
            bail!("{}: `..` is not allowed below a root", path.display());
        }
        let root = self.root.canonicalize()?;
        let mut there = path;
        // The nearest existing ancestor; a dangling link counts as existing.
        while fs::symlink_metadata(there).is_err() {
            there = there.parent().context("no existing parent folder")?;
        }
        let real = there.canonicalize().with_context(|| format!("{} is a dangling link", there.display()))?;
        if !real.starts_with(&root) {
            bail!(
                "{} resolves to {}, which is not below {}",
                there.display(),
                real.display(),
                root.display()
            );
        }
        let rest = path.strip_prefix(there)?;
        Ok(if rest.as_os_str().is_empty() { real } else { real.join(rest) })
    }
}

/// Replaces a file atomically and keeps its previous content as a backup.
fn replace(path: &Path, text: &str, exists: bool) -> anyhow::Result<Outcome> {
    let folder = path.parent().context("the path has no parent folder")?;
    fs::create_dir_all(folder)?;
    let mut file = tempfile::Builder::new().prefix(".larder-").tempfile_in(folder)?;
    file.write_all(text.as_bytes())?;
    let mut mode = 0o644;
    if exists {
        let was = fs::metadata(path)?;
        mode = was.permissions().mode();
        let ours = file.as_file().metadata()?;
        if (ours.uid(), ours.gid()) != (was.uid(), was.gid()) {
            fchown(file.as_file(), Some(was.uid()), Some(was.gid()))?;
        }
    }
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    let backup = if exists { Some(kept(path)?) } else { None };
    file.persist(path)?;
    File::open(folder)?.sync_all()?;
    Ok(Outcome::Written(backup))
}

/// Creates a hard link to the current content under a dated name.
fn kept(path: &Path) -> anyhow::Result<PathBuf> {
    let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string().replace(':', "-");
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut backup = path.with_file_name(format!("{name}.{date}"));
    for number in 2..100 {
        match fs::hard_link(path, &backup) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                backup = path.with_file_name(format!("{name}.{date}-{number}"));
            }
            linked => return linked.map(|()| backup).context("the backup cannot be created"),
        }
    }
    bail!("too many backups from the same second")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::file_edit::Merge;
    use super::*;

    fn edit(path: &str, content: &str) -> FileEdit {
        let merge = Merge::Into(Box::new(|text| Ok(format!("{text}more\n"))));
        FileEdit { path: path.into(), content: content.to_owned(), after: String::new(), merge }
    }

    #[test]
    fn write_keeps_a_backup_and_the_mode() {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = Disk::new(folder.path()).expect("a root");
        let path = folder.path().join("etc/a.conf");
        let first = disk.write(&[edit("/etc/a.conf", "new\n")]).expect("written");
        assert_eq!(first, [Outcome::Written(None)]);
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("rights");
        let second = disk.write(&[edit("/etc/a.conf", "new\n")]).expect("written");
        let [Outcome::Written(Some(backup))] = second.as_slice() else { panic!("{second:?}") };
        assert_eq!(fs::read_to_string(backup).expect("a copy"), "new\n");
        assert_eq!(fs::read_to_string(&path).expect("text"), "new\nmore\n");
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
        let third = disk.write(&[edit("/etc/a.conf", "new\n")]).expect("written");
        assert_ne!(third, second, "two copies of one second have two names");
    }

    #[test]
    fn write_stays_below_the_root() {
        let (folder, outside) =
            (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let disk = Disk::new(folder.path()).expect("a root");
        symlink(outside.path(), folder.path().join("etc")).expect("a link");
        let error = disk.write(&[edit("/etc/a.conf", "new\n")]).expect_err("refused");
        assert!(format!("{error:#}").contains("not below"), "{error:#}");
        assert_eq!(fs::read_dir(outside.path()).expect("a folder").count(), 0);
        // Within it, a link stays one.
        fs::create_dir(folder.path().join("real")).expect("a folder");
        fs::write(folder.path().join("real/b"), "old\n").expect("a file");
        symlink("real/b", folder.path().join("b")).expect("a link");
        disk.write(&[edit("/b", "new\n")]).expect("written");
        assert!(fs::symlink_metadata(folder.path().join("b")).expect("there").is_symlink());
        assert_eq!(fs::read_to_string(folder.path().join("real/b")).expect("text"), "old\nmore\n");
    }

    #[test]
    fn one_refusal_keeps_all_as_they_are() {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = Disk::new(folder.path()).expect("a root");
        fs::write(folder.path().join("b"), "theirs").expect("a file");
        let ours = FileEdit { merge: Merge::Ours(|_| Ok(())), ..edit("/b", "ours") };
        disk.write(&[edit("/a", "new\n"), ours]).expect_err("refused");
        assert!(!folder.path().join("a").exists());
    }
}
