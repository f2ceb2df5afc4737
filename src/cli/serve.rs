//! `larder serve`: the process around the application: runtime, log, signals.

use std::future::Future;
use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::{Settings, sentence};
use crate::app::{self, App, InheritedSockets, Reload};
use crate::config::file_watch::FileFingerprint;

/// How long work that blocks a thread may go on after the application has stopped.
const LAST_WORK: Duration = Duration::from_secs(5);

/// Serves until a signal asks for the end.
pub(super) fn run(settings: Settings) -> anyhow::Result<()> {
    let file = settings.file()?;
    let read = FileFingerprint::of(file.as_slice());
    let config = settings.load()?;
    // Before any thread: it takes what it finds out of the environment.
    let passed = InheritedSockets::from_environment();
    on_runtime(async {
        let (level, traces) = app::init_telemetry(&config.log, &config.trace)?;
        let shutdown = shutdown_signal()?;
        // Before the start, which takes a moment: until then this signal would end the process.
        let asked = reload_signal()?;
        let load = Box::new(move || settings.load().map_err(|error| sentence(&error)));
        let reload = Reload { asked, load, file, read, level };
        let served = App::build(config, passed).await?.reloading(reload).run(shutdown).await;
        if let Some(traces) = traces {
            tokio::task::spawn_blocking(move || traces.finish()).await?;
        }
        served
    })
}

/// Drives `work` on a runtime of its own, and does not wait for stragglers for ever.
pub(super) fn on_runtime<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    // Each running fill holds a blocking thread; reads of what is held must never wait for one of theirs.
    let runtime = Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(2048)
        .build()
        .context("the runtime cannot be started")?;
    let result = runtime.block_on(work);
    runtime.shutdown_timeout(LAST_WORK);
    result
}

/// Resolves at the first SIGTERM or SIGINT; the second one ends the process at once.
///
/// The signals are watched from the call on, so one that comes during start-up is not lost.
pub(super) fn shutdown_signal() -> anyhow::Result<impl Future<Output = ()> + Send + use<>> {
    let mut watch = FileWatch {
        terminate: signal(SignalKind::terminate()).context("SIGTERM cannot be watched")?,
        interrupt: signal(SignalKind::interrupt()).context("SIGINT cannot be watched")?,
    };
    let (tell, told) = tokio::sync::oneshot::channel::<()>();
    tokio::spawn(async move {
        watch.next().await;
        // Nobody listens when the application has ended by itself.
        let _ = tell.send(());
        let number = watch.next().await;
        tracing::warn!("a second signal: ending at once");
        std::process::exit(128 + number);
    });
    Ok(async {
        // An error would mean that the task above is gone, and with it every hope of a signal: stop as well.
        let _ = told.await;
    })
}

/// Brings something for each SIGHUP; those that come while one is dealt with are one more.
fn reload_signal() -> anyhow::Result<mpsc::Receiver<()>> {
    let mut hangup = signal(SignalKind::hangup()).context("SIGHUP cannot be watched")?;
    let (tell, told) = mpsc::channel(1);
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            // Full: one is waiting already. Closed: nobody reads any more, and the signal must still do no harm.
            let _ = tell.try_send(());
        }
    });
    Ok(told)
}

struct FileWatch {
    terminate: Signal,
    interrupt: Signal,
}

impl FileWatch {
    /// Waits for a signal and gives its number.
    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate().as_raw_value(),
            _ = self.interrupt.recv() => SignalKind::interrupt().as_raw_value(),
        }
    }
}
