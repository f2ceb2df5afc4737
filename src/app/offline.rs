//! Cache and store without a server, for commands that work on a store that no server has open.

use std::sync::Arc;

use anyhow::Context as _;

use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::Config;
use crate::ops::Operations;
use crate::store::{Store, StoreError, StoreSession};
use crate::telemetry::Metrics;
use crate::upstream::Upstreams;

/// Cache over its store, without a port.
#[derive(Debug)]
pub struct Offline {
    pub(super) store: Store,
    pub(super) metrics: Arc<Metrics>,
    pub(super) cache: Cache,
    pub(super) operations: Operations,
}

/// Returns true if the store could not be opened because another process has it open.
pub fn is_in_use(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(StoreError::Locked(_)))
}

impl Offline {
    /// Opens the store and rebuilds the index of its content. Contacts no upstream.
    pub async fn open(config: &Config) -> anyhow::Result<Self> {
        let opened = Self::open_with(config, Clock::default()).await?;
        opened.cache.rebuild_index().await?;
        Ok(opened)
    }

    pub(super) async fn open_with(config: &Config, clock: Clock) -> anyhow::Result<Self> {
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

    /// Returns the operations on the cache.
    pub fn operations(&self) -> &Operations {
        &self.operations
    }

    /// Returns the disk usage of the store in bytes.
    pub async fn disk_usage(&self) -> Result<u64, StoreError> {
        Ok(self.store.run(StoreSession::usage).await?.total)
    }

    /// Writes everything to the disk.
    pub async fn close(self) -> anyhow::Result<()> {
        self.cache.save_access_times().await;
        flush(self.store).await
    }
}

/// Flushes the store.
pub(super) async fn flush(store: Store) -> anyhow::Result<()> {
    store.flush().await.context("cannot flush the store")
}
