//! What all verbs work on: the cache, what it counts, the configuration, and the jobs under way.

use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::Config;
use crate::telemetry::{Metrics, Warnings};

use super::jobs::Jobs;

/// A larder that serves, and not only a store that is looked at.
#[derive(Clone, Debug, Default)]
pub struct Service {
    /// When it began, in milliseconds since 1970.
    pub started_at: u64,
    /// Where clients pull from: `http://…`, `https://…` or `unix:/…`.
    pub addresses: Vec<String>,
    /// What its log warned of lately.
    pub warnings: Warnings,
}

/// All that an operator can ask for is asked of this; clones share it.
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
    /// Verbs over `cache`, which works by `config`.
    pub fn new(cache: Cache, metrics: Arc<Metrics>, clock: Clock, config: Config) -> Self {
        let config = Arc::new(RwLock::new(Arc::new(config)));
        Self { cache, metrics, clock, config, jobs: Jobs::default(), service: Arc::default() }
    }

    /// The cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// What time it is, in milliseconds since 1970.
    pub fn now(&self) -> u64 {
        self.clock.now_millis()
    }

    /// The configuration that counts now.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Goes by another configuration from now on.
    pub fn follow(&self, config: Config) {
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }

    /// Notes that clients are served from now on, at these addresses, and what the log warns of.
    pub fn serves(&self, addresses: Vec<String>, warnings: Warnings) {
        // It begins once.
        let _ = self.service.set(Service { started_at: self.clock.now_millis(), addresses, warnings });
    }

    /// What clients are served; none if no larder runs.
    pub fn service(&self) -> Option<&Service> {
        self.service.get()
    }

    /// The jobs under way, and those that ended lately.
    pub fn jobs(&self) -> &Jobs {
        &self.jobs
    }
}
