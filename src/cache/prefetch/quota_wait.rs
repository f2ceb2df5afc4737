//! Wait for an upstream's quota before a prefetch request: clients come first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::cache::error::CacheError;
use crate::cache::rules::Rules;
use crate::oci::media::UPSTREAM_ACCEPT;
use crate::oci::{Digest, Reference, Repository, UpstreamName};
use crate::source::Source as _;

/// Check of the upstreams' quotas against `prefetch.quota_floor`.
#[derive(Debug)]
pub(super) struct QuotaGate {
    rules: Arc<Rules>,
    /// Lock by upstream, so that one waiter at a time asks whether the quota has returned.
    probes: Mutex<HashMap<UpstreamName, Arc<tokio::sync::Mutex<()>>>>,
}

impl QuotaGate {
    pub(super) fn new(rules: &Arc<Rules>) -> Self {
        Self { rules: Arc::clone(rules), probes: Mutex::default() }
    }

    /// Returns true if the upstream's quota allows a prefetch request.
    pub(super) fn is_open(&self, repository: &Repository) -> bool {
        let upstream = self.rules.upstream(repository);
        upstream.is_ok_and(|upstream| upstream.quota_is_above(self.rules.current().prefetch.quota_floor))
    }

    /// Waits until the quota allows a prefetch request. At each `quota_check` interval one waiter sends HEAD for `child`:
    /// Docker Hub does not count it, and its answer announces the quota. Any other answer that announces the quota ends the
    /// wait too.
    pub(super) async fn wait(&self, repository: &Repository, child: &Digest) -> Result<(), CacheError> {
        let upstream = self.rules.upstream(repository)?;
        while !self.is_open(repository) {
            let probe = self.probe_lock(upstream.name());
            let _probe = probe.lock().await;
            let announced = upstream.quota_changed();
            if self.is_open(repository) {
                break;
            }
            tokio::select! {
                () = announced => {}
                () = tokio::time::sleep(self.rules.current().prefetch.quota_check) => {
                    let reference = Reference::Digest(*child);
                    // The upstream layer reads the quota from the headers of the answer; its content is not needed.
                    let answer = upstream.head(&repository.name, &reference, UPSTREAM_ACCEPT, None).await;
                    tracing::debug!(%repository, success = answer.is_ok(), "quota checked for prefetch");
                }
            }
        }
        Ok(())
    }

    fn probe_lock(&self, upstream: &UpstreamName) -> Arc<tokio::sync::Mutex<()>> {
        let mut probes = self.probes.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(probes.entry(upstream.clone()).or_default())
    }
}
