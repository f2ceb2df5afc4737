//! `status`: state of the server on one screen.

use serde::{Deserialize, Serialize};

pub use crate::cache::{
    Breaker, DiskStatus, EndpointState, FillStatus, HealthState, QuotaState, RefusalReason, RefusedAccess,
    StoreStatus, UpstreamState,
};

pub use super::operations::ConfigState;
use super::operations::Operations;
use super::protocol::{JobState, JobView, OpsError};
use crate::clock::Timestamp;
pub use crate::telemetry::Warning;

/// Report of `status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Status)]
pub struct StatusReport {
    /// Time of the report.
    pub now: Timestamp,
    /// Version of larder.
    pub version: String,
    /// Figures of the running server. `None` if only the store was opened.
    pub service: Option<ServiceReport>,
    /// State of the store.
    pub store: StoreStatus,
    /// Upstreams, sorted by name.
    pub upstreams: Vec<UpstreamRow>,
    /// Running fills, oldest first.
    pub fills: Vec<FillStatus>,
    /// Child manifests in the prefetch queue.
    pub children_queued: u64,
    /// Child manifests that are deferred, because the upstream's quota is low or the upstream fails.
    pub children_deferred: u64,
    /// Running jobs.
    pub jobs: Vec<JobView>,
    /// Recent warnings of the log, newest first.
    pub warnings: Vec<Warning>,
}

/// Figures of a running server since its start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Service)]
pub struct ServiceReport {
    /// Start time.
    pub started_at: Timestamp,
    /// Addresses for clients: `http://…`, `https://…` or `unix:/…`.
    pub addresses: Vec<String>,
    /// State of the configuration.
    pub configuration: ConfigState,
    /// Open client connections.
    pub connections: u64,
    /// Requests to the cache, failed requests included.
    pub requests: u64,
    /// Requests that caused no download.
    pub hits: u64,
    /// Requests that were answered with a status of the class 5xx.
    pub failed: u64,
    /// Hits for which the upstream was not available.
    pub stale: u64,
    /// Share of hits in requests, between 0 and 1. `None` before the first request.
    pub hit_ratio: Option<f64>,
    /// Body bytes sent to clients.
    pub served: u64,
    /// Body bytes received from upstreams.
    pub fetched: u64,
    /// Bytes sent to clients minus bytes fetched from upstreams, at least 0.
    pub saved: u64,
    /// Share of saved bytes in sent bytes, between 0 and 1. `None` before the first byte.
    pub byte_hit_ratio: Option<f64>,
}

/// State of one upstream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Upstream)]
pub struct UpstreamRow {
    /// State of its endpoints.
    #[serde(flatten)]
    pub state: UpstreamState,
    /// Body bytes received from the upstream since the start.
    pub fetched: u64,
}

/// Returns the state of the server. Contacts no upstream.
pub async fn status(operations: &Operations) -> Result<StatusReport, OpsError> {
    let Operations { cache, metrics, clock, .. } = operations;
    let store = cache.store_status().await?;
    let fetched = metrics.fetched_by_upstream();
    let upstreams = cache
        .upstreams()
        .into_iter()
        .map(|state| UpstreamRow { fetched: fetched.get(&state.name).copied().unwrap_or_default(), state });
    let (children_queued, children_deferred) = metrics.children();
    let mut jobs = operations.jobs().list();
    jobs.retain(|job| job.state == JobState::Running);
    Ok(StatusReport {
        now: clock.now(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        service: service(operations),
        store,
        upstreams: upstreams.collect(),
        fills: cache.fills(),
        children_queued,
        children_deferred,
        jobs,
        warnings: operations.service().map(|service| service.warnings.latest()).unwrap_or_default(),
    })
}

fn service(operations: &Operations) -> Option<ServiceReport> {
    let service = operations.service()?;
    let traffic = operations.metrics.totals();
    let saved = traffic.served.saturating_sub(traffic.fetched);
    Some(ServiceReport {
        started_at: service.started_at,
        addresses: service.addresses.clone(),
        configuration: operations.config_state(),
        connections: u64::try_from(operations.metrics.connections.get()).unwrap_or_default(),
        requests: traffic.requests,
        hits: traffic.hits,
        failed: traffic.failed,
        stale: traffic.stale,
        hit_ratio: share(traffic.hits, traffic.requests),
        served: traffic.served,
        fetched: traffic.fetched,
        saved,
        byte_hit_ratio: share(saved, traffic.served),
    })
}

/// Returns `part` divided by `all`, or `None` if `all` is 0.
fn share(part: u64, all: u64) -> Option<f64> {
    // Precise enough for display.
    #[allow(clippy::cast_precision_loss)]
    (all > 0).then(|| part as f64 / all as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_of_nothing_is_none() {
        assert_eq!(share(0, 0), None);
        assert_eq!(share(1, 4), Some(0.25));
        assert_eq!(share(4, 4), Some(1.0));
    }
}
