//! Life of the server: serves until shutdown is requested, then drains, flushes and closes the store.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::api::AdminApi;
use crate::cache::Cache;
use crate::ops::{self, Operations};
use crate::server::{self, ConnectionLimits, ConnectionMetrics, Listener};
use crate::store::Store;
use crate::telemetry::Metrics;

use super::background::BackgroundTasks;
use super::build::App;
use super::limits::{admin_limits, client_limits, raise_open_files};
use super::offline::flush;
use super::{memory, reload, systemd};

/// Phase of the server's life. The log names each phase that the server enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Requests are answered.
    Serving,
    /// New connections are refused; running transfers may finish within the grace period.
    Draining,
    /// Background tasks are cancelled, and everything is written to the disk.
    Flushing,
    /// The store is closed, so that the next start is quick.
    Closing,
    /// The process can end.
    Stopped,
}

impl Phase {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Draining => "draining",
            Self::Flushing => "flushing",
            Self::Closing => "closing",
            Self::Stopped => "stopped",
        }
    }
}

/// Port of the server. Dropping it stops the port without waiting.
struct Port {
    /// The tasks; each returns true if all responses were complete at its end.
    serving: Vec<JoinHandle<bool>>,
    stop: DropGuard,
}

impl Port {
    /// Refuses new connections and waits for running responses. Returns true if all of them were complete.
    async fn drain(self, name: &'static str) -> anyhow::Result<bool> {
        drop(self.stop);
        let mut complete = true;
        for serving in self.serving {
            complete &= serving.await.with_context(|| format!("the {name} port failed"))?;
        }
        Ok(complete)
    }
}

/// Server that answers requests.
struct RunningServer {
    store: Store,
    cache: Cache,
    operations: Operations,
    /// Answer of the readiness check.
    ready: Arc<AtomicBool>,
    clients: Port,
    admin: Port,
    background: BackgroundTasks,
    limits: watch::Receiver<ConnectionLimits>,
}

impl App {
    /// Serves until `shutdown` resolves. Then running transfers may finish within the grace period, and the store is
    /// flushed and closed.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> anyhow::Result<()> {
        let server = RunningServer::start(self);
        shutdown.await;
        server.stop().await
    }
}

impl RunningServer {
    /// Starts the ports and the background tasks.
    fn start(app: App) -> Self {
        raise_open_files(&app.config);
        reload::log_advice(&app.config);
        log_listening(&app);
        let addresses: Vec<_> = app.client_listeners.iter().map(ToString::to_string).collect();
        let status = format!("serving on {}", addresses.join(", "));
        let warnings = app.reload.as_ref().map(|reload| reload.level.warnings()).unwrap_or_default();
        app.operations.set_service(app.client_listeners.iter().map(url).collect(), warnings);

        let ready = Arc::new(AtomicBool::new(true));
        let (limits, client_limits) = watch::channel(client_limits(&app.config));
        let (admin_limits_sender, admin_limits) = watch::channel(admin_limits(&app.config));
        let (scrub, scrub_settings) = watch::channel(app.config.scrub.clone());

        let background = BackgroundTasks::default();
        background.spawn(app.cache.clone().run_evictor());
        background.spawn(app.cache.clone().run_prefetch());
        background.spawn(app.cache.clone().watch_store());
        let (cache, metrics, clock) = (app.cache.clone(), Arc::clone(&app.metrics), app.clock);
        background
            .spawn(async move { ops::scrub::run_periodically(cache, &metrics, clock, scrub_settings).await });
        for certificate in app.certificates.iter().cloned() {
            background.spawn(certificate.watch_files());
        }
        if let Some(release) = app.release_memory {
            background.spawn(memory::release_periodically(release));
        }
        if let Some(watchdog) = systemd::watchdog() {
            background.spawn(watchdog);
        }
        let targets = reload::ReloadTargets {
            config: app.config,
            cache: app.cache.clone(),
            operations: app.operations.clone(),
            registry: app.registry.clone(),
            limits,
            admin_limits: admin_limits_sender,
            scrub,
            certificates: app.certificates,
            status: status.clone(),
        };
        if let Some(reload) = app.reload {
            background.spawn(reload::run(targets, reload, app.referenced));
        }

        let admin = AdminApi::new(Arc::clone(&app.metrics), Arc::clone(&ready), app.operations.clone());
        let admin = serve_admin(app.admin_listeners, &admin, &admin_limits);
        let stop = CancellationToken::new();
        let registry = app.registry;
        let metrics = Some(connection_metrics(&app.metrics));
        let answer = move |request, client| {
            let registry = registry.clone();
            async move { Ok(registry.answer(request, client).await) }
        };
        let serving =
            server::serve(app.client_listeners, client_limits.clone(), metrics, stop.clone(), answer);
        let clients = Port { serving: vec![tokio::spawn(serving)], stop: stop.drop_guard() };
        tracing::debug!(phase = Phase::Serving.as_str(), "phase");
        systemd::ready(&status);
        let (store, cache, operations) = (app.store, app.cache, app.operations);
        Self { store, cache, operations, ready, clients, admin, background, limits: client_limits }
    }

    /// Goes through the phases of shutdown.
    async fn stop(self) -> anyhow::Result<()> {
        systemd::stopping("draining: running transfers may finish");
        let (requested, grace) = (Instant::now(), self.limits.borrow().grace);
        tracing::info!(phase = Phase::Draining.as_str(), ?grace, "stopping: running transfers may finish");
        self.ready.store(false, Ordering::Relaxed);
        if !self.clients.drain("client").await? {
            tracing::warn!("running transfers were cut off at the end of the grace period");
        }
        self.operations.jobs().stop().await;
        // The admin port is stopped last: it shows the state of the shutdown.
        self.admin.drain("admin").await?;

        tracing::debug!(phase = Phase::Flushing.as_str(), "phase");
        self.background.stop().await;
        self.cache.save_access_times().await;
        flush(self.store.clone()).await?;

        tracing::debug!(phase = Phase::Closing.as_str(), "phase");
        close(self.store, grace.saturating_sub(requested.elapsed())).await;
        tracing::info!(phase = Phase::Stopped.as_str(), "stopped");
        Ok(())
    }
}

fn connection_metrics(metrics: &Metrics) -> ConnectionMetrics {
    ConnectionMetrics {
        open: metrics.connections.clone(),
        refused: metrics.connections_refused.clone(),
        reclaimed: metrics.connections_reclaimed.clone(),
    }
}

/// Serves the admin port. Listeners that only this machine can reach require no token.
fn serve_admin(
    listeners: Vec<Listener>,
    admin: &AdminApi,
    limits: &watch::Receiver<ConnectionLimits>,
) -> Port {
    let stop = CancellationToken::new();
    let is_local = |it: &Listener| it.local().is_none_or(|address| address.ip().is_loopback());
    let (local, remote): (Vec<_>, Vec<_>) = listeners.into_iter().partition(is_local);
    let services = [(local, admin.clone().local()), (remote, admin.clone())];
    let serving = services.map(|(listeners, service)| {
        tokio::spawn(server::serve(listeners, limits.clone(), None, stop.clone(), move |request, _| {
            let service = service.clone();
            async move { Ok(Box::pin(service.answer(request)).await) }
        }))
    });
    Port { serving: serving.into(), stop: stop.drop_guard() }
}

fn log_listening(app: &App) {
    let (clients, admin) = (&app.client_listeners, &app.admin_listeners);
    tracing::info!(
        api = addresses(clients, false),
        api_tls = addresses(clients, true),
        admin = addresses(admin, false),
        admin_tls = addresses(admin, true),
        store = %app.config.store.path.display(),
        version = env!("CARGO_PKG_VERSION"),
        "listening"
    );
}

/// Returns the addresses with or without TLS, for the log.
fn addresses(listeners: &[Listener], tls: bool) -> Option<String> {
    let names: Vec<_> = listeners.iter().filter(|it| it.is_tls() == tls).map(ToString::to_string).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// Returns the URL of a listener, or its path if it is a unix socket.
fn url(listener: &Listener) -> String {
    let scheme = if listener.is_tls() { "https://" } else { "http://" };
    if listener.local().is_some() { format!("{scheme}{listener}") } else { listener.to_string() }
}

/// Closes the store. Stops waiting after `time_left`.
async fn close(store: Store, time_left: Duration) {
    let reason = match tokio::time::timeout(time_left, store.close()).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the grace period is over".to_owned(),
    };
    tracing::info!(reason, "the store was not closed; the next start takes longer, no data is lost");
}
