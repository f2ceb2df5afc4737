//! Start-up: opens the sockets and the store, and builds every layer from the configuration.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use crate::api::RegistryApi;
use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::Config;
use crate::config::file_watch::FileFingerprint;
use crate::ops::Operations;
use crate::server::{InheritedSockets, Listener};
use crate::store::Store;
use crate::telemetry::Metrics;
use crate::tls::{Certificate, CertificateFiles};

use super::limits::registry_options;
use super::offline::Offline;
use super::reload::{Reload, referenced_files};

/// Server that listens but does not serve yet.
#[derive(Debug)]
pub struct App {
    pub(super) config: Config,
    pub(super) store: Store,
    pub(super) metrics: Arc<Metrics>,
    pub(super) cache: Cache,
    pub(super) operations: Operations,
    pub(super) registry: RegistryApi,
    pub(super) clock: Clock,
    pub(super) client_listeners: Vec<Listener>,
    pub(super) admin_listeners: Vec<Listener>,
    pub(super) certificates: Vec<Certificate>,
    pub(super) reload: Option<Reload>,
    /// Returns freed memory to the system.
    pub(super) release_memory: Option<fn()>,
    /// State of the files that the configuration refers to, from before they were read.
    pub(super) referenced: FileFingerprint,
}

impl App {
    /// Opens the store and binds the listeners. Contacts no upstream. `sockets` are passed by the service manager.
    pub async fn build(config: Config, sockets: InheritedSockets) -> anyhow::Result<Self> {
        Self::assemble(config, sockets, Clock::default()).await
    }

    /// Builds the server with another clock and without a service manager. For tests.
    pub async fn build_with(config: Config, clock: Clock) -> anyhow::Result<Self> {
        Self::assemble(config, InheritedSockets::none(), clock).await
    }

    async fn assemble(config: Config, mut sockets: InheritedSockets, clock: Clock) -> anyhow::Result<Self> {
        let files = referenced_files(&config);
        let referenced = tokio::task::spawn_blocking(move || FileFingerprint::of(&files)).await?;
        let Config { server, admin, .. } = &config;
        let client_tls = certificate(server.tls_cert.as_deref(), server.tls_key.as_deref()).await?;
        let admin_tls = certificate(admin.tls_cert.as_deref(), admin.tls_key.as_deref()).await?;
        let for_admin = admin_tls.as_ref().or(client_tls.as_ref());
        let mut clients = Listener::open(&server.listen, "server.listen", None, &mut sockets).await?;
        clients.extend(
            Listener::open(&server.tls_listen, "server.tls_listen", client_tls.as_ref(), &mut sockets)
                .await?,
        );
        let mut admins = Listener::open(&admin.listen, "admin.listen", None, &mut sockets).await?;
        admins.extend(Listener::open(&admin.tls_listen, "admin.tls_listen", for_admin, &mut sockets).await?);
        let unused = sockets.remaining();
        if !unused.is_empty() {
            tracing::warn!(
                sockets = unused.join(", "),
                "the service manager passed sockets that no `listen` key uses"
            );
        }
        let Offline { store, metrics, cache, operations } =
            Offline::open_with(&config, clock.clone()).await?;
        let registry = RegistryApi::new(cache.clone(), Arc::clone(&metrics), registry_options(&config));
        Ok(Self {
            store,
            metrics,
            cache,
            operations,
            registry,
            clock,
            client_listeners: clients,
            admin_listeners: admins,
            certificates: client_tls.into_iter().chain(admin_tls).collect(),
            reload: None,
            release_memory: None,
            referenced,
            config,
        })
    }

    /// Returns the first client address without TLS, with the real port if the configuration has port 0.
    pub fn api_addr(&self) -> Option<SocketAddr> {
        plain_address(&self.client_listeners)
    }

    /// Returns the first admin address without TLS, with the real port if the configuration has port 0.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        plain_address(&self.admin_listeners)
    }

    /// Makes the server apply changes of the configuration while it runs.
    #[must_use]
    pub fn reloading(mut self, reload: Reload) -> Self {
        self.reload = Some(reload);
        self
    }
}

impl App {
    /// Makes the server call `release_memory` when much memory may be free.
    #[must_use]
    pub fn releasing_memory(mut self, release_memory: fn()) -> Self {
        self.release_memory = Some(release_memory);
        self
    }
}

/// Loads a certificate, if one is configured.
async fn certificate(cert: Option<&Path>, key: Option<&Path>) -> anyhow::Result<Option<Certificate>> {
    let (Some(cert), Some(key)) = (cert, key) else { return Ok(None) };
    let files = CertificateFiles { cert: cert.to_owned(), key: key.to_owned() };
    Ok(Some(tokio::task::spawn_blocking(move || Certificate::load(files)).await??))
}

fn plain_address(listeners: &[Listener]) -> Option<SocketAddr> {
    listeners.iter().filter(|listener| !listener.is_tls()).find_map(Listener::local)
}
