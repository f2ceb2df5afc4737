//! Parts of the configuration that the cache follows while it runs.

use std::sync::{Arc, PoisonError, RwLock};

use tokio::time::Instant;

use crate::config::Config;
use crate::config::schema::Prefetch;
use crate::oci::{Manifest, Repository};
use crate::source::{Source, WAIT_MAX};
use crate::upstream::{BuildError, Upstream, Upstreams};

use super::error::CacheError;
use super::memory::CachedManifest;

/// Current configuration of upstreams and prefetch. A reload replaces it as a whole.
#[derive(Debug)]
pub(super) struct Rules(RwLock<Arc<RuleSet>>);

/// One version of the configuration. A request that started with it may finish with it.
#[derive(Debug)]
pub(super) struct RuleSet {
    pub(super) upstreams: Upstreams,
    pub(super) prefetch: Prefetch,
}

impl Rules {
    pub(super) fn new(upstreams: Upstreams, prefetch: Prefetch) -> Self {
        Self(RwLock::new(Arc::new(RuleSet { upstreams, prefetch })))
    }

    /// Returns the current version.
    pub(super) fn current(&self) -> Arc<RuleSet> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the upstream of a repository. An upstream that is no longer configured has nothing.
    pub(super) fn upstream(&self, repository: &Repository) -> Result<Arc<Upstream>, CacheError> {
        self.current().upstreams.get(&repository.upstream).cloned().ok_or(CacheError::NotFound)
    }

    /// Parses a cached manifest. A large one waits for the turn of its upstream. `None` if it is not valid, or not in time.
    pub(super) async fn parse(&self, repository: &Repository, manifest: &CachedManifest) -> Option<Manifest> {
        let (body, media_type) = (manifest.body.clone(), manifest.media_type.clone());
        let memory = self.upstream(repository).ok()?.document_memory();
        let parse = move || Manifest::read(&body, Some(media_type.as_str())).ok();
        memory.process(manifest.body.len(), Instant::now() + WAIT_MAX, parse).await.ok()?
    }

    /// Returns the sources of a repository's blobs, in the order in which they are asked.
    pub(super) fn sources(&self, repository: &Repository) -> Result<Vec<Arc<dyn Source>>, CacheError> {
        Ok(vec![self.upstream(repository)?])
    }

    /// Replaces the current version. Upstreams with unchanged settings keep their connections and tokens. After an error
    /// nothing has changed.
    pub(super) fn reload(&self, config: &Config) -> Result<(), BuildError> {
        let upstreams = self.current().upstreams.rebuilt(config)?;
        let rules = Arc::new(RuleSet { upstreams, prefetch: config.prefetch.clone() });
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = rules;
        Ok(())
    }
}
