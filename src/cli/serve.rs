//! `larder serve`: runtime, log and signals of the server process.

use std::future::Future;
use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::output::sentence;
use super::settings::Settings;
use crate::app::{self, App, InheritedSockets, Reload};
use crate::config::file_watch::FileFingerprint;

/// Time for blocking work to end after the server has stopped.
const LAST_WORK: Duration = Duration::from_secs(5);

/// Largest number of threads for blocking work besides the runtime's own threads.
const BLOCKING_THREADS_MAX: usize = 512;

/// Serves until a stop signal.
pub(super) fn run(settings: Settings, release_memory: fn()) -> anyhow::Result<()> {
    let file = settings.file()?;
    let read = FileFingerprint::of(file.as_slice());
    let config = settings.load()?;
    // Before any thread starts: it removes variables from the environment.
    let passed = InheritedSockets::from_environment();
    on_runtime(async {
        let (level, traces) = app::init_telemetry(&config.log, &config.trace)?;
        let shutdown = shutdown_signal()?;
        // Watch SIGHUP before the start, which takes time: an unwatched SIGHUP ends the process.
        let requests = reload_signal()?;
        let load = Box::new(move || settings.load().map_err(|error| sentence(&error)));
        let reload = Reload { requests, load, file, read, level };
        let app = App::build(config, passed).await?.reloading(reload).releasing_memory(release_memory);
        let served = app.run(shutdown).await;
        if let Some(traces) = traces {
            tokio::task::spawn_blocking(move || traces.finish()).await?;
        }
        served
    })
}

/// Runs `work` on a new runtime. Blocking work that does not end in time is abandoned.
pub(super) fn on_runtime<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    // The store limits its own threads. Others look up names and read files; a slow one must not delay the store.
    let runtime = Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .context("the runtime cannot be started")?;
    let result = runtime.block_on(work);
    runtime.shutdown_timeout(LAST_WORK);
    result
}

/// Resolves at the first SIGTERM or SIGINT. A second signal ends the process at once.
///
/// The signals are watched from this call on, so a signal during start-up is not lost.
pub(super) fn shutdown_signal() -> anyhow::Result<impl Future<Output = ()> + Send + use<>> {
    let mut signals = StopSignals {
        terminate: signal(SignalKind::terminate()).context("SIGTERM cannot be watched")?,
        interrupt: signal(SignalKind::interrupt()).context("SIGINT cannot be watched")?,
    };
    let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
    tokio::spawn(async move {
        signals.next().await;
        // The receiver was dropped if the server ended by itself.
        let _ = sender.send(());
        let number = signals.next().await;
        tracing::warn!("a second signal: ending at once");
        std::process::exit(128 + number);
    });
    Ok(async {
        // An error means that the task above has ended and no signal can arrive: stop as well.
        let _ = receiver.await;
    })
}

/// Returns a channel with one message for each SIGHUP. Signals during a reload are coalesced into one.
fn reload_signal() -> anyhow::Result<mpsc::Receiver<()>> {
    let mut hangup = signal(SignalKind::hangup()).context("SIGHUP cannot be watched")?;
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            // Full: a reload is already pending. Closed: the server is stopping, and SIGHUP must not end the process.
            let _ = sender.try_send(());
        }
    });
    Ok(receiver)
}

struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// Waits for a signal and returns its number.
    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate().as_raw_value(),
            _ = self.interrupt.recv() => SignalKind::interrupt().as_raw_value(),
        }
    }
}
