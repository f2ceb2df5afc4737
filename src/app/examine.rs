//! What a larder with some configuration would meet: its upstreams, its store, and what the system allows it.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use bytesize::ByteSize;
use rustix::fs::{Access, access, statfs, statvfs};
use rustix::process::{Resource, getrlimit};
use tokio::task::JoinSet;

use super::offline::{Offline, is_in_use};
use crate::clock::Clock;
use crate::config::Config;
use crate::config::schema::OnCorruption;
use crate::oci::{Name, Reference, UpstreamName};
use crate::store::{StoreSession, exists_in};
use crate::telemetry::Metrics;
pub use crate::upstream::probe::{Known, Step, Verdict, Way};
use crate::upstream::{Upstreams, probe};

/// Sockets to upstreams aside, what a larder has open at once besides its clients' connections.
const OWN_FILES: u64 = 256;

/// Something that is held of an upstream, by which more can be seen than whether somebody is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Whose it is.
    pub upstream: UpstreamName,
    /// The repository.
    pub name: Name,
    /// What of it.
    pub reference: Reference,
}

/// Goes the way to every endpoint of every upstream, to several upstreams at once.
pub async fn upstreams(config: &Config, samples: &[Sample]) -> anyhow::Result<Vec<(String, Way)>> {
    let metrics = Arc::new(Metrics::new());
    let built = Upstreams::build_with(config, metrics, Clock::default(), probe::TIMEOUTS)
        .context("the upstreams cannot be set up")?;
    let mut under_way = JoinSet::new();
    for upstream in built.iter() {
        let name = upstream.name().clone();
        let Some(settings) = config.upstream.get(name.as_str()).cloned() else { continue };
        let known = samples.iter().find(|sample| sample.upstream == name);
        let known = known.map(|sample| (sample.name.clone(), sample.reference.clone()));
        let upstream = Arc::clone(upstream);
        under_way.spawn(async move { (name.to_string(), upstream.probe(settings, known).await) });
    }
    let mut found = under_way.join_all().await;
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(found
        .into_iter()
        .flat_map(|(name, ways)| ways.into_iter().map(move |way| (name.clone(), way)))
        .collect())
}

/// Looks at the store's folder and its disk, and opens the store, which is handed on if it was not in use.
pub async fn store(config: &Config) -> (Vec<Step>, Option<Offline>) {
    let path = &config.store.path;
    let mut steps = vec![folder(path)];
    let there = nearest(path);
    steps.extend(kind(there));
    steps.extend(room(there, config));
    if !exists_in(path) || steps.iter().any(|step| step.verdict == Verdict::Fails) {
        return (steps, None);
    }
    if let Some(step) = of_another(path) {
        steps.push(step);
        return (steps, None);
    }
    let began = Instant::now();
    let mut careful = config.clone();
    // Who only looks moves nothing.
    careful.store.on_corruption = OnCorruption::Refuse;
    let (step, opened) = match Offline::open(&careful).await {
        Ok(offline) => {
            let content = offline.store.run(StoreSession::usage).await.map_or_else(
                |_| String::new(),
                |usage| format!(", {} on disk", ByteSize(usage.total).display().iec()),
            );
            (Step::ok("store", format!("it opens{content}")), Some(offline))
        }
        Err(error) if is_in_use(&error) => (Step::ok("store", "in use by a larder that runs"), None),
        Err(error) => {
            let remedy = match config.store.on_corruption {
                OnCorruption::SetAside => {
                    "if its files are damaged, larder sets it aside at the start and begins with an empty one"
                }
                OnCorruption::Refuse => "larder does not start until this is put right (store.on_corruption)",
            };
            (Step::fails("store", format!("{error:#}"), remedy), None)
        }
    };
    steps.push(step.since(began));
    (steps, opened)
}

/// The nearest folder that is there.
fn nearest(path: &Path) -> &Path {
    let here = Path::new(".");
    path.ancestors().find(|path| path.exists()).unwrap_or(here)
}

/// Whether whoever asks may write there. It is told for whom, because larder may be somebody else.
fn folder(path: &Path) -> Step {
    let there = nearest(path);
    let user = rustix::process::geteuid().as_raw();
    let remedy = "give it to whom larder runs as, run this as that user, or name another in `store.path`";
    match access(there, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) if there == path && !path.is_dir() => {
            Step::fails("folder", format!("{} is no folder", path.display()), "name another in `store.path`")
        }
        Ok(()) if there == path => {
            let store = if exists_in(path) { "" } else { "; there is no store in it yet" };
            Step::ok("folder", format!("{}, which user {user} may write{store}", path.display()))
        }
        Ok(()) => Step::ok("folder", format!("{} is made at the start", path.display())),
        Err(error) => {
            let found = format!("{} cannot be used by user {user}: {error}", there.display());
            Step::fails("folder", found, remedy)
        }
    }
}

/// Whoever opens a store leaves files in it that are theirs, and may shut out whom it belongs to.
fn of_another(path: &Path) -> Option<Step> {
    let (owner, user) = (path.metadata().ok()?.uid(), rustix::process::geteuid().as_raw());
    (owner != user).then(|| {
        let found = format!("it belongs to user {owner}, and is not opened as user {user}");
        Step::warning("store", found, "run this as that user, or while larder runs")
    })
}

/// What a file system is, where that matters to a database.
fn kind(path: &Path) -> Option<Step> {
    // As in statfs(2).
    let (name, remedy) = match statfs(path).ok()?.f_type {
        0x6969 => ("NFS", "a database wants a disk of its own machine; name a folder on one in `store.path`"),
        0xff53_4d42 | 0xfe53_4d42 | 0x517b => {
            ("SMB", "a database wants a disk of its own machine; name a folder on one in `store.path`")
        }
        0x00c3_6400 => {
            ("CephFS", "a database wants a disk of its own machine; name a folder on one in `store.path`")
        }
        0x0102_1997 => {
            ("9p", "a database wants a disk of its own machine; name a folder on one in `store.path`")
        }
        0x6573_5546 => {
            ("FUSE", "if that is a network's, name a folder on a disk of this machine in `store.path`")
        }
        0x0102_1994 | 0x8584_58f6 => (
            "tmpfs",
            "what is held is lost with the machine, and takes its memory; name a folder on a disk in `store.path`",
        ),
        0x794c_7630 => (
            "an overlay",
            "what is held is lost with the container; mount a volume there, or name one in `store.path`",
        ),
        _ => return None,
    };
    Some(Step::warning("disk", format!("{} is on {name}", path.display()), remedy))
}

/// Whether the disk has what the configuration wants of it.
fn room(path: &Path, config: &Config) -> Option<Step> {
    let found = statvfs(path).ok()?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let whole = found.f_blocks.saturating_mul(found.f_frsize);
    let (max, min) = (config.store.max_size.as_u64(), config.store.min_free.as_u64());
    let shown = |bytes: u64| ByteSize(bytes).display().iec().to_string();
    let left = format!("{} of {} are free", shown(free), shown(whole));
    Some(if free < min {
        Step::warning(
            "room",
            format!("{left}, less than store.min_free ({})", shown(min)),
            "larder lets go of what it holds until that much is free; make room, or lower `store.min_free`",
        )
    } else if max > whole.saturating_sub(min) {
        Step::warning(
            "room",
            format!("{left}, and store.max_size ({}) is more than there can be", shown(max)),
            "`store.min_free` is what bounds the store then; set `store.max_size` to what it may have",
        )
    } else {
        Step::ok("room", left)
    })
}

/// Whether this process, and a larder that is started like it, may open as many files as the configuration wants.
pub fn open_files(config: &Config) -> Step {
    files(config, getrlimit(Resource::Nofile).current, "here")
}

/// The same for a larder that runs and says how many it may.
pub fn open_files_of(config: &Config, allowed: u64) -> Step {
    files(config, Some(allowed), "to the larder that runs")
}

fn files(config: &Config, allowed: Option<u64>, whom: &str) -> Step {
    let clients = config.server.max_connections as u64;
    let upstreams: u64 = config.upstream.values().map(|upstream| upstream.max_connections as u64).sum();
    let wanted = clients.saturating_add(upstreams).saturating_add(OWN_FILES);
    match allowed {
        Some(allowed) if allowed < wanted => Step::warning(
            "open files",
            format!("{allowed} are allowed {whom}, and server.max_connections ({clients}) may need {wanted}"),
            "raise the limit (systemd: LimitNOFILE=, a shell: ulimit -n), or lower `server.max_connections`",
        ),
        Some(allowed) => Step::ok("open files", format!("{allowed} are allowed {whom}")),
        None => Step::ok("open files", format!("any number is allowed {whom}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_held_against_what_is_wanted() {
        let config = Config::default();
        assert_eq!(files(&config, Some(1024), "here").verdict, Verdict::Warning);
        assert_eq!(files(&config, Some(1 << 20), "here").verdict, Verdict::Ok);
        assert_eq!(files(&config, None, "here").verdict, Verdict::Ok);
    }

    #[test]
    fn room_is_held_against_what_is_wanted() {
        let folder = tempfile::tempdir().expect("a folder");
        let verdict = |max: ByteSize, min: ByteSize| {
            let mut config = Config::default();
            (config.store.max_size, config.store.min_free) = (max, min);
            room(folder.path(), &config).map(|step| step.verdict)
        };
        assert_eq!(verdict(ByteSize::b(1), ByteSize::b(0)), Some(Verdict::Ok));
        assert_eq!(verdict(ByteSize::b(1), ByteSize::pib(1)), Some(Verdict::Warning));
        assert_eq!(verdict(ByteSize::pib(1), ByteSize::b(0)), Some(Verdict::Warning));
    }

    #[test]
    fn a_folder_that_is_not_there_will_be_made() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(super::folder(&folder.path().join("a/b")).found.ends_with("is made at the start"));
        let file = folder.path().join("file");
        std::fs::write(&file, "").expect("a file");
        assert_eq!(super::folder(&file).verdict, Verdict::Fails);
    }
}
