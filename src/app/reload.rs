//! A configuration that is read again while larder runs: followed where that is safe, and what takes a restart is said.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use crate::api::RegistryApi;
use crate::cache::Cache;
use crate::config::Config;
use crate::config::change::{self, KeyChange};
use crate::config::file_watch::{FileFingerprint, FileWatch, POLL_INTERVAL};
use crate::config::schema::Scrub;
use crate::ops::Operations;
use crate::server::ConnectionLimits;
use crate::telemetry::{LogLevel, NO_DEDUP};
use crate::tls::Certificate;
use crate::upstream;

/// Puts the configuration together again, checked; the error is one sentence for people.
pub type Load = Box<dyn Fn() -> Result<Config, String> + Send + Sync>;

/// Where another configuration comes from, and when.
pub struct Reload {
    /// Brings something whenever all is to be read again, whether or not it has changed.
    pub asked: mpsc::Receiver<()>,
    /// Puts the configuration together again.
    pub load: Load,
    /// The file that is watched, if there is one.
    pub file: Option<PathBuf>,
    /// What it held before it was read: what has changed since then is found.
    pub read: FileFingerprint,
    /// The log's level, to be changed.
    pub level: LogLevel,
}

impl std::fmt::Debug for Reload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reload").field("file", &self.file).finish_non_exhaustive()
    }
}

/// What runs and can follow another configuration.
pub(super) struct Running {
    pub(super) config: Config,
    pub(super) cache: Cache,
    pub(super) operations: Operations,
    pub(super) registry: RegistryApi,
    pub(super) limits: watch::Sender<ConnectionLimits>,
    pub(super) admin_limits: watch::Sender<ConnectionLimits>,
    pub(super) scrub: watch::Sender<Scrub>,
    pub(super) certificates: Vec<Certificate>,
    /// What the service manager shows.
    pub(super) status: String,
}

/// The files that are watched: the configuration's own, and those that it names and that are read only once.
struct Watched {
    file: Vec<PathBuf>,
    named: Vec<PathBuf>,
    watches: [FileWatch; 2],
}

impl Watched {
    /// What has been read of both is what was there before it was read.
    fn new(file: Option<PathBuf>, read: [FileFingerprint; 2], config: &Config) -> Self {
        Self { file: file.into_iter().collect(), named: named(config), watches: read.map(FileWatch::new) }
    }

    fn look(&self) -> [FileFingerprint; 2] {
        [FileFingerprint::of(&self.file), FileFingerprint::of(&self.named)]
    }

    /// Whether all is to be read again: because somebody `told` so, or because something has changed and come to rest.
    /// Blocks.
    fn is_due(&mut self, told: bool) -> bool {
        let found = self.look();
        let mut due = told;
        for (watch, found) in self.watches.iter_mut().zip(found) {
            if told {
                watch.set_current(found);
            } else {
                due |= watch.is_new_and_stable(found);
            }
        }
        due
    }

    /// Watches what another configuration names. Blocks.
    fn follow(&mut self, config: &Config) {
        let now = named(config);
        if now != self.named {
            self.named = now;
            self.watches[1].set_current(FileFingerprint::of(&self.named));
        }
    }
}

/// The files that a configuration names and that are read when it is followed. Certificates of our own are watched where
/// they are used, and files with credentials are read when they are needed.
pub(super) fn named(config: &Config) -> Vec<PathBuf> {
    config.upstream.values().flat_map(upstream::files).collect()
}

/// Follows the configuration until nobody can ask for it any more. `read` is what the named files held before.
pub(super) async fn attend(mut running: Running, reload: Reload, read: FileFingerprint) {
    let Reload { mut asked, load, file, read: file_read, level } = reload;
    let mut watched = Watched::new(file, [file_read, read], &running.config);
    let load = Arc::new(load);
    let mut ticks = tokio::time::interval(POLL_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let told = tokio::select! {
            told = asked.recv() => match told {
                Some(()) => true,
                None => return,
            },
            _ = ticks.tick() => false,
        };
        level.report_suppressed(Instant::now());
        let (load, level) = (Arc::clone(&load), level.clone());
        let turn = tokio::task::spawn_blocking(move || {
            if watched.is_due(told) {
                super::systemd::reloading();
                if told {
                    running.certificates.iter().for_each(Certificate::reload);
                }
                running.read(&load, &level);
                watched.follow(&running.config);
                super::systemd::ready(&running.status);
            }
            (running, watched)
        });
        match turn.await {
            Ok(back) => (running, watched) = back,
            // The runtime ends.
            Err(_) => return,
        }
    }
}

impl Running {
    /// Reads the configuration and follows it; after an error all stays as it is. Blocks.
    fn read(&mut self, load: &Load, level: &LogLevel) {
        match load().and_then(|config| self.follow(&config, level)) {
            Ok(changes) => report(&changes),
            Err(error) => {
                tracing::error!(target: NO_DEDUP, error, "the configuration cannot be used and stays as it was");
            }
        }
    }

    fn follow(&mut self, config: &Config, level: &LogLevel) -> Result<Vec<KeyChange>, String> {
        let turn = change::compare(&self.config, config).map_err(|error| error.to_string())?;
        let next = turn.next;
        // First what may fail, so that it can be taken back.
        if next.log.level != self.config.log.level {
            level.follow(&next.log.level).map_err(|error| error.to_string())?;
        }
        if let Err(error) = self.cache.reload(&next) {
            // This level was right before, and is so again.
            let _ = level.follow(&self.config.log.level);
            return Err(error.to_string());
        }
        self.registry.follow(super::registry_options(&next));
        self.limits.send_replace(super::limits(&next));
        self.admin_limits.send_replace(super::admin_limits(&next));
        self.scrub.send_replace(next.scrub.clone());
        self.operations.follow(next.clone());
        self.config = next;
        Ok(turn.changes)
    }
}

/// Says what is different now, and what will only be after a restart.
fn report(changes: &[KeyChange]) {
    let (later, now): (Vec<_>, Vec<_>) = changes.iter().partition(|change| change.needs_restart());
    let listed =
        |changes: &[&KeyChange]| changes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    match now.as_slice() {
        [] => tracing::info!("the configuration was read again, and no key has changed"),
        now => tracing::info!(changed = listed(now), "the configuration was read again and is followed"),
    }
    if !later.is_empty() {
        tracing::warn!(target: NO_DEDUP, keys = listed(&later), "these changes need a restart and are not followed until then");
    }
}
