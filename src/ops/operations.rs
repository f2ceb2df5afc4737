//! Context of all operations: cache, metrics, configuration and jobs.

use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use serde::{Deserialize, Serialize};

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

/// State of the configuration of a running server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Configuration)]
pub struct ConfigState {
    /// Time at which the configuration in effect was loaded or last confirmed.
    pub loaded_at: Timestamp,
    /// Time of the last failed reload. `None` if the last reload succeeded.
    pub failed_at: Option<Timestamp>,
    /// Reason for which the last reload failed.
    pub error: Option<String>,
}

/// Context of operations. Clones share the state.
#[derive(Clone, Debug)]
pub struct Operations {
    pub(super) cache: Cache,
    pub(super) metrics: Arc<Metrics>,
    pub(super) clock: Clock,
    config: Arc<RwLock<Arc<Config>>>,
    config_state: Arc<RwLock<ConfigState>>,
    jobs: Jobs,
    service: Arc<OnceLock<Service>>,
}

impl Operations {
    /// Creates the context over `cache`, which uses `config`.
    pub fn new(cache: Cache, metrics: Arc<Metrics>, clock: Clock, config: Config) -> Self {
        let operations = Self {
            cache,
            metrics,
            clock,
            config: Arc::new(RwLock::new(Arc::new(config))),
            config_state: Arc::default(),
            jobs: Jobs::default(),
            service: Arc::default(),
        };
        operations.record_reload(Ok(()));
        operations
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

    /// Records the result of loading the configuration.
    pub fn record_reload(&self, result: Result<(), &str>) {
        let now = self.clock.now();
        self.metrics.config_loaded(result.is_ok(), now);
        let mut state = self.config_state.write().unwrap_or_else(PoisonError::into_inner);
        *state = match result {
            Ok(()) => ConfigState { loaded_at: now, failed_at: None, error: None },
            Err(error) => {
                let loaded_at = state.loaded_at;
                ConfigState { loaded_at, failed_at: Some(now), error: Some(error.to_owned()) }
            }
        };
    }

    /// Returns the state of the configuration.
    pub fn config_state(&self) -> ConfigState {
        self.config_state.read().unwrap_or_else(PoisonError::into_inner).clone()
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
