//! Store check: permissions of the folder, kind and free space of its disk, and whether the store can be opened.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use bytesize::ByteSize;
use rustix::fs::{Access, access, statfs, statvfs};

use super::report::{Step, Verdict};
use crate::config::Config;
use crate::config::schema::OnCorruption;
use crate::store::exists_in;

const USE_LOCAL_DISK: &str = "a database needs a local disk; name a folder on one in `store.path`";

/// Result of the checks that do not open the store.
#[derive(Debug)]
pub struct FolderCheck {
    /// Steps in order.
    pub steps: Vec<Step>,
    /// True if the folder has a store that may be opened for further checks.
    pub can_open: bool,
}

/// Checks the folder of the store and its disk.
pub fn check_folder(config: &Config) -> FolderCheck {
    let path = &config.store.path;
    let existing = nearest_existing(path);
    let mut steps = vec![permissions(path)];
    steps.extend(file_system(existing));
    steps.extend(disk_space(existing, config));
    let can_open = exists_in(path) && steps.iter().all(|step| step.verdict != Verdict::Fails);
    let other_owner = if can_open { owned_by_another(path) } else { None };
    let can_open = can_open && other_owner.is_none();
    steps.extend(other_owner);
    FolderCheck { steps, can_open }
}

/// Returns the configuration with which the store is opened for the check: a damaged store stays where it is.
#[must_use]
pub fn without_quarantine(config: &Config) -> Config {
    let mut config = config.clone();
    config.store.on_corruption = OnCorruption::Refuse;
    config
}

/// Returns the step for a store that was opened. `usage` is its size in bytes, if it could be measured.
pub fn opened(usage: Option<u64>) -> Step {
    let usage =
        usage.map_or_else(String::new, |usage| format!(", {} on disk", ByteSize(usage).display().iec()));
    Step::ok("store", format!("the store can be opened{usage}"))
}

/// Returns the step for a store that a running server has open.
pub fn in_use() -> Step {
    Step::ok("store", "in use by a running server")
}

/// Returns the step for a store that cannot be opened.
pub fn not_opened(config: &Config, error: String) -> Step {
    let remedy = match config.store.on_corruption {
        OnCorruption::SetAside => {
            "if its files are damaged, the server moves the store into quarantine at the next start and begins with an \
             empty one"
        }
        OnCorruption::Refuse => "the server does not start until this is repaired (store.on_corruption)",
    };
    Step::fails("store", error, remedy)
}

/// Returns the path itself or its nearest parent folder that exists.
fn nearest_existing(path: &Path) -> &Path {
    let here = Path::new(".");
    path.ancestors().find(|path| path.exists()).unwrap_or(here)
}

/// Checks that the current user may write to the folder. Names the user, because the server may run as another one.
fn permissions(path: &Path) -> Step {
    let existing = nearest_existing(path);
    let user = rustix::process::geteuid().as_raw();
    match access(existing, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) if existing == path && !path.is_dir() => Step::fails(
            "folder",
            format!("{} is not a folder", path.display()),
            "name another in `store.path`",
        ),
        Ok(()) if existing == path => {
            let store = if exists_in(path) { "" } else { "; it contains no store yet" };
            Step::ok("folder", format!("user {user} may write to {}{store}", path.display()))
        }
        Ok(()) => Step::ok("folder", format!("{} is created at the start", path.display())),
        Err(error) => Step::fails(
            "folder",
            format!("user {user} cannot use {}: {error}", existing.display()),
            "change its owner to the user of the server, run this as that user, or name another in `store.path`",
        ),
    }
}

/// Returns a step if another user owns the store: new files in it would belong to the current user, and the server could
/// not open them.
fn owned_by_another(path: &Path) -> Option<Step> {
    let (owner, user) = (path.metadata().ok()?.uid(), rustix::process::geteuid().as_raw());
    (owner != user).then(|| {
        let found = format!("the store belongs to user {owner}, so user {user} does not open it");
        Step::warning("store", found, "run this as that user, or while the server is running")
    })
}

/// Returns a step if the file system is unsuitable for a database.
fn file_system(path: &Path) -> Option<Step> {
    // Magic numbers of statfs(2).
    let (name, remedy) = match statfs(path).ok()?.f_type {
        0x6969 => ("NFS", USE_LOCAL_DISK),
        0xff53_4d42 | 0xfe53_4d42 | 0x517b => ("SMB", USE_LOCAL_DISK),
        0x00c3_6400 => ("CephFS", USE_LOCAL_DISK),
        0x0102_1997 => ("9p", USE_LOCAL_DISK),
        0x6573_5546 => {
            ("FUSE", "if this is a network file system, name a folder on a local disk in `store.path`")
        }
        0x0102_1994 | 0x8584_58f6 => (
            "tmpfs",
            "cached content uses memory and is lost at a restart of the machine; name a folder on a disk in `store.path`",
        ),
        0x794c_7630 => (
            "an overlay",
            "cached content is lost with the container; mount a volume there, or name one in `store.path`",
        ),
        _ => return None,
    };
    Some(Step::warning("disk", format!("{} is on {name}", path.display()), remedy))
}

/// Compares the disk with `store.max_size` and `store.min_free`.
fn disk_space(path: &Path, config: &Config) -> Option<Step> {
    let found = statvfs(path).ok()?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let size = found.f_blocks.saturating_mul(found.f_frsize);
    let (max, min) = (config.store.max_size.as_u64(), config.store.min_free.as_u64());
    let shown = |bytes: u64| ByteSize(bytes).display().iec().to_string();
    let left = format!("{} of {} are free", shown(free), shown(size));
    Some(if free < min {
        Step::warning(
            "room",
            format!("{left}, less than store.min_free ({})", shown(min)),
            "the server evicts content until this much is free; free disk space, or lower `store.min_free`",
        )
    } else if max > size.saturating_sub(min) {
        Step::warning(
            "room",
            format!("{left}; store.max_size ({}) is more than the disk can hold", shown(max)),
            "the store is limited by `store.min_free` only; lower `store.max_size`",
        )
    } else {
        Step::ok("room", left)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_space_is_compared_with_the_configuration() {
        let folder = tempfile::tempdir().expect("a folder");
        let verdict = |max: ByteSize, min: ByteSize| {
            let mut config = Config::default();
            (config.store.max_size, config.store.min_free) = (max, min);
            disk_space(folder.path(), &config).map(|step| step.verdict)
        };
        assert_eq!(verdict(ByteSize::b(1), ByteSize::b(0)), Some(Verdict::Ok));
        assert_eq!(verdict(ByteSize::b(1), ByteSize::pib(1)), Some(Verdict::Warning));
        assert_eq!(verdict(ByteSize::pib(1), ByteSize::b(0)), Some(Verdict::Warning));
    }

    #[test]
    fn missing_folder_is_created_and_a_file_fails() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(permissions(&folder.path().join("a/b")).found.ends_with("is created at the start"));
        let file = folder.path().join("file");
        std::fs::write(&file, "").expect("a file");
        assert_eq!(permissions(&file).verdict, Verdict::Fails);
    }
}
