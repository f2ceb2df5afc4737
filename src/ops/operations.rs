//! Context of all operations: cache, metrics, configuration and jobs.

use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use crate::cache::Cache;
use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::telemetry::{Metrics, Warnings};

use super::jobs::Jobs;

/// Data of a running server, which a command on an open store does not have.
#[derive(Clone, Debug, Default)]
pub struct Service {
    /// Start time.
    pub started_at: Timestamp,
    /// Addresses for clients: `http://…`, `https://…` or `unix:/…`.
    pub addresses: Vec<String>,
    /// Recent warnings of the log.
    pub warnings: Warnings,
}

/// Context of operations. Clones share the state.
#[derive(Clone, Debug)]
pub struct Operations {
    pub(super) cache: Cache,
    pub(super) metrics: Arc<Metrics>,
    pub(super) clock: Clock,
    config: Arc<RwLock<Arc<Config>>>,
    jobs: Jobs,
    service: Arc<OnceLock<Service>>,
}

impl Operations {
    /// Creates the context over `cache`, which uses `config`.
    pub fn new(cache: Cache, metrics: Arc<Metrics>, clock: Clock, config: Config) -> Self {
        let config = Arc::new(RwLock::new(Arc::new(config)));
        Self { cache, metrics, clock, config, jobs: Jobs::default(), service: Arc::default() }
    }

    /// Returns the cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Returns the current time.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Returns the current configuration.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the configuration.
    pub fn set_config(&self, config: Config) {
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }

    /// Records that the server is running, with its addresses and the warnings of its log.
    pub fn set_service(&self, addresses: Vec<String>, warnings: Warnings) {
        // The server starts once.
        let _ = self.service.set(Service { started_at: self.clock.now(), addresses, warnings });
    }

    /// Returns the running server, or `None` if only the store was opened.
    pub fn service(&self) -> Option<&Service> {
        self.service.get()
    }

    /// Returns the running and recent jobs.
    pub fn jobs(&self) -> &Jobs {
        &self.jobs
    }
}
