//! The composition root: builds every layer from a configuration, serves, drains and flushes.

use std::future::Future;
use std::net::SocketAddr;

use crate::config::Config;

/// A larder that is listening and has not begun to serve.
#[derive(Debug)]
pub struct App {
    api: SocketAddr,
    admin: SocketAddr,
}

impl App {
    /// Opens the store and binds the listeners; contacts no upstream.
    pub async fn build(_config: Config) -> anyhow::Result<Self> {
        anyhow::bail!("not wired yet")
    }

    /// Where clients pull from; the real port where the configuration said 0.
    pub fn api_addr(&self) -> SocketAddr {
        self.api
    }

    /// Where the operator looks.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin
    }

    /// Serves until `shutdown` resolves, then finishes running transfers within the grace period and flushes.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> anyhow::Result<()> {
        shutdown.await;
        Ok(())
    }
}
