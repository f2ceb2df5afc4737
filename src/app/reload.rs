//! Reload of the configuration: applies changed keys while the server runs, and reports keys that need a restart.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use crate::api::RegistryApi;
use crate::cache::Cache;
use crate::config::Config;
use crate::config::advice::advice;
use crate::config::change::{self, KeyChange};
use crate::config::file_watch::{FileFingerprint, FileWatch, POLL_INTERVAL};
use crate::config::schema::Scrub;
use crate::ops::Operations;
use crate::server::ConnectionLimits;
use crate::telemetry::{LogLevel, NO_DEDUP};
use crate::tls::Certificate;
use crate::upstream;

use super::limits::{admin_limits, client_limits, registry_options};
use super::systemd;

/// Loads and validates the configuration. The error is a message for people.
pub type Load = Box<dyn Fn() -> Result<Config, String> + Send + Sync>;

/// Source of a changed configuration.
pub struct Reload {
    /// Requests to reload, for example by SIGHUP. They reload even if no file has changed.
    pub requests: mpsc::Receiver<()>,
    /// Loads the configuration.
    pub load: Load,
    /// Configuration file to watch.
    pub file: Option<PathBuf>,
    /// State of the file from before it was read, so that a change since then is found.
    pub read: FileFingerprint,
    /// Level of the log.
    pub level: LogLevel,
}

impl std::fmt::Debug for Reload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reload").field("file", &self.file).finish_non_exhaustive()
    }
}

/// Parts of the server that apply a changed configuration.
pub(super) struct ReloadTargets {
    pub(super) config: Config,
    pub(super) cache: Cache,
    pub(super) operations: Operations,
    pub(super) registry: RegistryApi,
    pub(super) limits: watch::Sender<ConnectionLimits>,
    pub(super) admin_limits: watch::Sender<ConnectionLimits>,
    pub(super) scrub: watch::Sender<Scrub>,
    pub(super) certificates: Vec<Certificate>,
    /// Status text for the service manager.
    pub(super) status: String,
}

/// Watched files: the configuration file, and files that it refers to and that are read only at a reload.
struct WatchedFiles {
    file: Vec<PathBuf>,
    referenced: Vec<PathBuf>,
    watches: [FileWatch; 2],
}

impl WatchedFiles {
    /// Starts with the state of the files from before they were read.
    fn new(file: Option<PathBuf>, read: [FileFingerprint; 2], config: &Config) -> Self {
        Self {
            file: file.into_iter().collect(),
            referenced: referenced_files(config),
            watches: read.map(FileWatch::new),
        }
    }

    fn fingerprints(&self) -> [FileFingerprint; 2] {
        [FileFingerprint::of(&self.file), FileFingerprint::of(&self.referenced)]
    }

    /// Returns true if the configuration must be reloaded: on request, or after a file has changed and is stable again.
    /// Blocks.
    fn is_due(&mut self, requested: bool) -> bool {
        let found = self.fingerprints();
        let mut due = requested;
        for (watch, found) in self.watches.iter_mut().zip(found) {
            if requested {
                watch.set_current(found);
            } else {
                due |= watch.is_new_and_stable(found);
            }
        }
        due
    }

    /// Watches the files that a changed configuration refers to. Blocks.
    fn update(&mut self, config: &Config) {
        let files = referenced_files(config);
        if files != self.referenced {
            self.referenced = files;
            self.watches[1].set_current(FileFingerprint::of(&self.referenced));
        }
    }
}

/// Returns the files that a configuration refers to and that are read only when it is applied. The server's own
/// certificates are watched by the TLS layer, and files with credentials are read when they are needed.
pub(super) fn referenced_files(config: &Config) -> Vec<PathBuf> {
    config.upstream.values().flat_map(upstream::files).collect()
}

/// Reloads the configuration on request and after changes of files, until the sender of requests is dropped.
///
/// `referenced` is the state of the referenced files from before they were read.
pub(super) async fn run(mut targets: ReloadTargets, reload: Reload, referenced: FileFingerprint) {
    let Reload { mut requests, load, file, read, level } = reload;
    let mut watched = WatchedFiles::new(file, [read, referenced], &targets.config);
    let load = Arc::new(load);
    let mut ticks = tokio::time::interval(POLL_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let requested = tokio::select! {
            request = requests.recv() => match request {
                Some(()) => true,
                None => return,
            },
            _ = ticks.tick() => false,
        };
        level.report_suppressed(Instant::now());
        let (load, level) = (Arc::clone(&load), level.clone());
        let pass = tokio::task::spawn_blocking(move || {
            if watched.is_due(requested) {
                systemd::reloading();
                if requested {
                    targets.certificates.iter().for_each(Certificate::reload);
                }
                targets.reload(&load, &level);
                watched.update(&targets.config);
                systemd::ready(&targets.status);
            }
            (targets, watched)
        });
        match pass.await {
            Ok(state) => (targets, watched) = state,
            // The runtime ends.
            Err(_) => return,
        }
    }
}

impl ReloadTargets {
    /// Loads and applies the configuration. After an error, nothing has changed. Blocks.
    fn reload(&mut self, load: &Load, level: &LogLevel) {
        match load().and_then(|config| self.apply(&config, level)) {
            Ok(changes) => {
                self.operations.record_reload(Ok(()));
                report(&changes);
            }
            Err(error) => {
                self.operations.record_reload(Err(&error));
                tracing::error!(target: NO_DEDUP, error, "configuration not reloaded; the previous one stays in effect");
            }
        }
    }

    fn apply(&mut self, config: &Config, level: &LogLevel) -> Result<Vec<KeyChange>, String> {
        let comparison = change::compare(&self.config, config).map_err(|error| error.to_string())?;
        let next = comparison.next;
        // Steps that can fail come first, so that they can be undone.
        if next.log.level != self.config.log.level {
            level.follow(&next.log.level).map_err(|error| error.to_string())?;
        }
        if let Err(error) = self.cache.reload(&next) {
            // The old level was valid, so this cannot fail.
            let _ = level.follow(&self.config.log.level);
            return Err(error.to_string());
        }
        self.registry.set_options(registry_options(&next));
        self.limits.send_replace(client_limits(&next));
        self.admin_limits.send_replace(admin_limits(&next));
        self.scrub.send_replace(next.scrub.clone());
        self.operations.set_config(next.clone());
        log_advice(&next);
        self.config = next;
        Ok(comparison.changes)
    }
}

/// Logs endpoints that are probably wrong.
pub(super) fn log_advice(config: &Config) {
    for advice in advice(config) {
        tracing::warn!(advice, "an endpoint is probably wrong");
    }
}

/// Logs the changed keys that are in effect, and those that need a restart.
fn report(changes: &[KeyChange]) {
    let (later, now): (Vec<_>, Vec<_>) = changes.iter().partition(|change| change.needs_restart());
    let listed =
        |changes: &[&KeyChange]| changes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    match now.as_slice() {
        [] => tracing::info!("configuration reloaded, no key has changed"),
        now => tracing::info!(changed = listed(now), "configuration reloaded, changes are in effect"),
    }
    if !later.is_empty() {
        tracing::warn!(target: NO_DEDUP, keys = listed(&later), "changed keys that take effect after a restart");
    }
}
