//! The composition root: builds every layer from a configuration, serves, drains and flushes.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::api::{Admin, Manners, Registry};
use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::Config;
use crate::config::schema::Mode;
use crate::server::{self, Limits};
use crate::store::{Store, StoreError};
use crate::telemetry::Metrics;
pub use crate::telemetry::init_log;
use crate::upstream::Upstreams;

/// How often the store's gauges are set.
const GAUGES_EVERY: Duration = Duration::from_secs(10);

/// How long a client may leave an answer untouched before its connection, and what it holds, is given up.
const WRITE_PATIENCE: Duration = Duration::from_mins(1);

/// A larder that is listening and has not begun to serve.
#[derive(Debug)]
pub struct App {
    config: Config,
    store: Store,
    metrics: Arc<Metrics>,
    cache: Cache,
    registry: Registry,
    api: (TcpListener, SocketAddr),
    admin: (TcpListener, SocketAddr),
}

impl App {
    /// Opens the store and binds the listeners; contacts no upstream.
    pub async fn build(config: Config) -> anyhow::Result<Self> {
        Self::build_with(config, Clock::default()).await
    }

    /// The same with a clock of the caller's own.
    pub async fn build_with(config: Config, clock: Clock) -> anyhow::Result<Self> {
        let api = bind(config.server.listen, "server.listen").await?;
        let admin = bind(config.admin.listen, "admin.listen").await?;
        let metrics = Arc::new(Metrics::new());
        let upstreams = Upstreams::build(&config, Arc::clone(&metrics), clock.clone())
            .context("the upstreams cannot be set up")?;
        let options = config.store.clone();
        let store = tokio::task::spawn_blocking(move || Store::open(&options)).await??;
        let cache =
            Cache::new(store.clone(), upstreams, Arc::clone(&metrics), clock, config.prefetch.clone());
        let manners =
            Manners { gateway: config.server.mode == Mode::Gateway, log_requests: config.log.requests };
        let registry = Registry::new(cache.clone(), Arc::clone(&metrics), manners);
        Ok(Self { config, store, metrics, cache, registry, api, admin })
    }

    /// Where clients pull from; the real port where the configuration said 0.
    pub fn api_addr(&self) -> SocketAddr {
        self.api.1
    }

    /// Where the operator looks.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin.1
    }

    /// Serves until `shutdown` resolves, then finishes running transfers within the grace period and flushes.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> anyhow::Result<()> {
        let Self { config, store, metrics, cache, registry, api, admin } = self;
        let ready = Arc::new(AtomicBool::new(true));
        let (stop, stopped) = watch::channel(false);
        let limits = Limits {
            connections: config.server.max_connections,
            head: config.server.header_timeout,
            write: WRITE_PATIENCE,
            grace: config.server.grace,
        };
        tracing::info!(
            api = %api.1,
            admin = %admin.1,
            store = %config.store.path.display(),
            version = env!("CARGO_PKG_VERSION"),
            "listening"
        );
        let operator = Admin::new(Arc::clone(&metrics), Arc::clone(&ready));
        let admin_limits = Limits { connections: 64, grace: Duration::from_secs(1), ..limits };
        // The operator's port outlives the clients': it must tell how the stop goes.
        let (stop_admin, admin_stopped) = watch::channel(false);
        let admin = tokio::spawn(server::serve(admin.0, admin_limits, None, admin_stopped, move |request| {
            let answer = operator.answer(&request);
            async move { answer }
        }));
        let gauges = tokio::spawn(gauges(store.clone(), Arc::clone(&metrics)));
        let attending = tokio::spawn(cache.attend());
        let connections = metrics.connections.clone();
        let api = tokio::spawn(server::serve(api.0, limits, Some(connections), stopped, move |request| {
            let registry = registry.clone();
            async move { registry.answer(request).await }
        }));

        shutdown.await;
        tracing::info!(grace = ?config.server.grace, "stopping: no new connections, running transfers may finish");
        ready.store(false, Ordering::Relaxed);
        stop.send_replace(true);
        if !api.await.context("the client port failed")? {
            tracing::warn!("transfers were still running at the end of the grace period and are cut");
        }
        stop_admin.send_replace(true);
        admin.await.context("the admin port failed")?;
        gauges.abort();
        attending.abort();
        tokio::task::spawn_blocking(move || store.flush())
            .await?
            .context("the store could not be flushed")?;
        tracing::info!("stopped");
        Ok(())
    }
}

async fn bind(address: SocketAddr, key: &str) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address} ({key}); is something else using it? choose another address")
    })?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Sets the store's gauges now and then.
async fn gauges(store: Store, metrics: Arc<Metrics>) {
    let mut ticks = tokio::time::interval(GAUGES_EVERY);
    loop {
        ticks.tick().await;
        let store = store.clone();
        let measured = tokio::task::spawn_blocking(move || {
            Ok::<_, StoreError>((store.size_on_disk()?, store.census(), store.set_aside()?))
        });
        match measured.await {
            Ok(Ok((disk, census, aside))) => {
                metrics.store(disk, census.content, census.manifests, census.blobs);
                metrics.store_set_aside.set(i64::try_from(aside).unwrap_or(i64::MAX));
            }
            Ok(Err(error)) => tracing::warn!(%error, "the store cannot be measured"),
            Err(_) => return,
        }
    }
}
