//! The composition root: builds every layer from a configuration, serves, drains and flushes.

pub mod examine;
mod reload;
mod systemd;

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::api::{AdminApi, RegistryApi, RegistryOptions};
use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::Config;
use crate::config::file_watch::FileFingerprint;
use crate::config::schema::ServerMode;
use crate::ops::{self, Operations};
pub use crate::server::InheritedSockets;
use crate::server::{self, ConnectionLimits, Listener};
use crate::store::{Store, StoreError};
use crate::telemetry::Metrics;
pub use crate::telemetry::{init as init_telemetry, init_log};
use crate::tls::{Certificate, CertificateFiles};
use crate::upstream::Upstreams;
pub use reload::{Load, Reload};

/// How long a client may leave an answer untouched before its connection, and what it holds, is given up.
const WRITE_PATIENCE: Duration = Duration::from_mins(1);

/// A cache over its store, without anybody who asks: for work on a store that nobody serves from.
#[derive(Debug)]
pub struct Offline {
    store: Store,
    metrics: Arc<Metrics>,
    cache: Cache,
    operations: Operations,
}

/// Whether a store was not opened because another larder has it.
pub fn is_in_use(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(StoreError::Locked(_)))
}

impl Offline {
    /// Opens the store and takes stock of it; contacts no upstream.
    pub async fn open(config: &Config) -> anyhow::Result<Self> {
        let opened = Self::open_with(config, Clock::default()).await?;
        opened.cache.rebuild_index().await?;
        Ok(opened)
    }

    async fn open_with(config: &Config, clock: Clock) -> anyhow::Result<Self> {
        let metrics = Arc::new(Metrics::new());
        let upstreams = Upstreams::build(config, Arc::clone(&metrics), clock.clone())
            .context("the upstreams cannot be set up")?;
        let options = config.store.clone();
        let store = Store::open(&options, None).await?;
        let kept = (store.clone(), &config.store);
        let cache = Cache::new(kept, upstreams, Arc::clone(&metrics), clock.clone(), config.prefetch.clone());
        let operations = Operations::new(cache.clone(), Arc::clone(&metrics), clock, config.clone());
        Ok(Self { store, metrics, cache, operations })
    }

    /// What can be asked of it.
    pub fn operations(&self) -> &Operations {
        &self.operations
    }

    /// Waits until everything is on the disk.
    pub async fn close(self) -> anyhow::Result<()> {
        self.cache.save_access_times().await;
        flush(self.store).await
    }
}

/// A larder that is listening and has not begun to serve.
#[derive(Debug)]
pub struct App {
    config: Config,
    store: Store,
    metrics: Arc<Metrics>,
    cache: Cache,
    operations: Operations,
    registry: RegistryApi,
    clock: Clock,
    api: Vec<Listener>,
    admin: Vec<Listener>,
    certificates: Vec<Certificate>,
    reload: Option<Reload>,
    /// What the files that the configuration names held before they were read.
    read: FileFingerprint,
}

impl App {
    /// Opens the store and binds the listeners; contacts no upstream. `passed` are the service manager's sockets.
    pub async fn build(config: Config, passed: InheritedSockets) -> anyhow::Result<Self> {
        Self::assemble(config, passed, Clock::default()).await
    }

    /// The same with a clock of the caller's own, and without a service manager.
    pub async fn build_with(config: Config, clock: Clock) -> anyhow::Result<Self> {
        Self::assemble(config, InheritedSockets::none(), clock).await
    }

    async fn assemble(config: Config, mut passed: InheritedSockets, clock: Clock) -> anyhow::Result<Self> {
        let files = reload::named(&config);
        let read = tokio::task::spawn_blocking(move || FileFingerprint::of(&files)).await?;
        let Config { server, admin, .. } = &config;
        let own = certificate(server.tls_cert.as_deref(), server.tls_key.as_deref()).await?;
        let admins = certificate(admin.tls_cert.as_deref(), admin.tls_key.as_deref()).await?;
        let for_admin = admins.as_ref().or(own.as_ref());
        let mut api = Listener::open(&server.listen, "server.listen", None, &mut passed).await?;
        api.extend(Listener::open(&server.tls_listen, "server.tls_listen", own.as_ref(), &mut passed).await?);
        let mut operator = Listener::open(&admin.listen, "admin.listen", None, &mut passed).await?;
        operator.extend(Listener::open(&admin.tls_listen, "admin.tls_listen", for_admin, &mut passed).await?);
        let left = passed.remaining();
        if !left.is_empty() {
            tracing::warn!(
                sockets = left.join(", "),
                "passed by the service manager, but named by no `listen` key"
            );
        }
        let Offline { store, metrics, cache, operations } =
            Offline::open_with(&config, clock.clone()).await?;
        let registry = RegistryApi::new(cache.clone(), Arc::clone(&metrics), registry_options(&config));
        let certificates = own.into_iter().chain(admins).collect();
        Ok(Self {
            config,
            store,
            metrics,
            cache,
            operations,
            registry,
            clock,
            api,
            admin: operator,
            certificates,
            reload: None,
            read,
        })
    }

    /// The first address that clients pull from without TLS; the real port where the configuration said 0.
    pub fn api_addr(&self) -> Option<SocketAddr> {
        plain(&self.api)
    }

    /// The first address where the operator looks without TLS.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        plain(&self.admin)
    }

    /// Makes it follow another configuration while it runs.
    #[must_use]
    pub fn reloading(mut self, reload: Reload) -> Self {
        self.reload = Some(reload);
        self
    }

    /// Serves until `shutdown` resolves, then finishes running transfers within the grace period and flushes.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> anyhow::Result<()> {
        let Self { config, store, metrics, cache, operations, registry, clock, .. } = self;
        let Self { api, admin, certificates, reload, read, .. } = self;
        let ready = Arc::new(AtomicBool::new(true));
        let (stop, stopped) = watch::channel(false);
        let (limits, bounds) = watch::channel(limits(&config));
        let (admin_limits, admin_bounds) = watch::channel(admin_limits(&config));
        tracing::info!(
            api = named(&api, false),
            api_tls = named(&api, true),
            admin = named(&admin, false),
            admin_tls = named(&admin, true),
            store = %config.store.path.display(),
            version = env!("CARGO_PKG_VERSION"),
            "listening"
        );
        let places: Vec<_> = api.iter().map(ToString::to_string).collect();
        let status = format!("serving on {}", places.join(", "));
        let warnings = reload.as_ref().map(|reload| reload.level.warnings()).unwrap_or_default();
        operations.serves(api.iter().map(served_at).collect(), warnings);
        let operator = AdminApi::new(Arc::clone(&metrics), Arc::clone(&ready), operations.clone());
        // The operator's port outlives the clients': it must tell how the stop goes.
        let (stop_admin, admin_stopped) = watch::channel(false);
        // A socket that only this machine reaches asks for no token.
        let (near, far): (Vec<_>, Vec<_>) =
            admin.into_iter().partition(|it| it.local().is_none_or(|address| address.ip().is_loopback()));
        let admin = [(near, operator.clone().local()), (far, operator)].map(|(listeners, operator)| {
            let (bounds, stopped) = (admin_bounds.clone(), admin_stopped.clone());
            tokio::spawn(server::serve(listeners, bounds, None, stopped, move |request, _| {
                let operator = operator.clone();
                async move { Ok(Box::pin(operator.answer(request)).await) }
            }))
        });
        let keeping = tokio::spawn(cache.clone().run_evictor());
        let (scrub, scrub_settings) = watch::channel(config.scrub.clone());
        let scrubbing = tokio::spawn({
            let (cache, metrics) = (cache.clone(), Arc::clone(&metrics));
            async move { ops::scrub::attend(cache, &metrics, clock, scrub_settings).await }
        });
        let attending = tokio::spawn(cache.clone().run_prefetch());
        let watching = certificates.iter().cloned().map(|it| tokio::spawn(it.watch_files()));
        let mut watching: Vec<_> = watching.collect();
        watching.extend(systemd::watchdog().map(tokio::spawn));
        watching.push(tokio::spawn(cache.clone().watch_store()));
        let running = reload::Running {
            config,
            cache: cache.clone(),
            operations: operations.clone(),
            registry: registry.clone(),
            limits,
            admin_limits,
            scrub,
            certificates,
            status: status.clone(),
        };
        watching.extend(reload.map(|reload| tokio::spawn(reload::attend(running, reload, read))));
        let connections = Some(metrics.connections.clone());
        let api =
            tokio::spawn(server::serve(api, bounds.clone(), connections, stopped, move |request, client| {
                let registry = registry.clone();
                async move { Ok(registry.answer(request, client).await) }
            }));

        systemd::ready(&status);

        shutdown.await;
        systemd::stopping("running transfers may finish");
        let (asked, grace) = (Instant::now(), bounds.borrow().grace);
        tracing::info!(?grace, "stopping: no new connections, running transfers may finish");
        ready.store(false, Ordering::Relaxed);
        stop.send_replace(true);
        if !api.await.context("the client port failed")? {
            tracing::warn!("transfers were still running at the end of the grace period and are cut");
        }
        operations.jobs().stop();
        stop_admin.send_replace(true);
        for admin in admin {
            admin.await.context("the admin port failed")?;
        }
        keeping.abort();
        scrubbing.abort();
        attending.abort();
        watching.iter().for_each(JoinHandle::abort);
        cache.save_access_times().await;
        flush(store.clone()).await?;
        close(store, grace.saturating_sub(asked.elapsed())).await;
        tracing::info!("stopped");
        Ok(())
    }
}

async fn flush(store: Store) -> anyhow::Result<()> {
    store.flush().await.context("the store could not be flushed")
}

/// Closes the store, unless that takes longer than the stop may.
async fn close(store: Store, patience: Duration) {
    let reason = match tokio::time::timeout(patience, store.close()).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "there was no time left".to_owned(),
    };
    tracing::info!(
        reason,
        "the store was not closed: the next start has to read what was written since this one"
    );
}

/// The certificate in these files, if there are any.
async fn certificate(cert: Option<&Path>, key: Option<&Path>) -> anyhow::Result<Option<Certificate>> {
    let (Some(cert), Some(key)) = (cert, key) else { return Ok(None) };
    let files = CertificateFiles { cert: cert.to_owned(), key: key.to_owned() };
    Ok(Some(tokio::task::spawn_blocking(move || Certificate::load(files)).await??))
}

fn plain(listeners: &[Listener]) -> Option<SocketAddr> {
    listeners.iter().filter(|listener| !listener.is_tls()).find_map(Listener::local)
}

/// Those that speak TLS, or those that do not, as the log shows them.
fn named(listeners: &[Listener], tls: bool) -> Option<String> {
    let names: Vec<_> = listeners.iter().filter(|it| it.is_tls() == tls).map(ToString::to_string).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// Where clients pull from, as a URL where there is one.
fn served_at(listener: &Listener) -> String {
    let scheme = if listener.is_tls() { "https://" } else { "http://" };
    if listener.local().is_some() { format!("{scheme}{listener}") } else { listener.to_string() }
}

fn registry_options(config: &Config) -> RegistryOptions {
    RegistryOptions { gateway: config.server.mode == ServerMode::Gateway, log_requests: config.log.requests }
}

fn limits(config: &Config) -> ConnectionLimits {
    ConnectionLimits {
        connections: config.server.max_connections,
        head: config.server.header_timeout,
        write: WRITE_PATIENCE,
        grace: config.server.grace,
    }
}

/// The operator's port: few connections, and nothing on it that the end would have to wait for.
fn admin_limits(config: &Config) -> ConnectionLimits {
    ConnectionLimits { connections: 64, grace: Duration::from_secs(1), ..limits(config) }
}
