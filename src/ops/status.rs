//! `status`: how a larder is doing, on one screen.

use serde::{Deserialize, Serialize};

pub use crate::cache::{
    Breaker, DiskUsage, EndpointState, FillStatus, HealthState, QuotaState, StoreStatus, UpstreamState,
};

use super::jobs::{JobState, JobView};
use super::{Operations, OpsError};
pub use crate::telemetry::Warning;

/// How a larder is doing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Status)]
pub struct StatusReport {
    /// What time it is, in milliseconds since 1970.
    pub now: u64,
    /// Its version.
    pub version: String,
    /// What it does for whom; none if no larder runs, and only the store was looked at.
    pub service: Option<ServiceReport>,
    /// The store.
    pub store: StoreStatus,
    /// The upstreams, by name.
    pub upstreams: Vec<UpstreamRow>,
    /// Fills under way, oldest first.
    pub fills: Vec<FillStatus>,
    /// Child manifests that wait to be fetched.
    pub children_queued: u64,
    /// Child manifests that are left for later: the upstream's quota is low, or it is in trouble.
    pub children_deferred: u64,
    /// Jobs under way.
    pub jobs: Vec<JobView>,
    /// What the log warned of lately, newest first.
    pub warnings: Vec<Warning>,
}

/// What a larder that runs has done since its start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Service)]
pub struct ServiceReport {
    /// When it began to serve, in milliseconds since 1970; all figures here count from then on.
    pub started_at: u64,
    /// Where clients pull from: `http://…`, `https://…` or `unix:/…`.
    pub addresses: Vec<String>,
    /// Connections of clients that are open now.
    pub connections: u64,
    /// Requests that the cache took part in.
    pub requests: u64,
    /// Of these, those that cost no transfer of their own.
    pub hits: u64,
    /// The share of them, between 0 and 1; none before the first request.
    pub hit_ratio: Option<f64>,
    /// Body bytes sent to clients.
    pub served: u64,
    /// Body bytes received from upstreams.
    pub fetched: u64,
    /// Bytes that clients had and no upstream sent. What was fetched ahead counts against that.
    pub saved: u64,
    /// The share of them, between 0 and 1; none before the first byte.
    pub byte_hit_ratio: Option<f64>,
}

/// One upstream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Upstream)]
pub struct UpstreamRow {
    /// How it stands.
    #[serde(flatten)]
    pub state: UpstreamState,
    /// Body bytes received from it since the start.
    pub fetched: u64,
}

/// Tells how a larder is doing. Asks no upstream.
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
        now: clock.now_millis(),
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
        connections: u64::try_from(operations.metrics.connections.get()).unwrap_or_default(),
        requests: traffic.requests,
        hits: traffic.hits,
        hit_ratio: share(traffic.hits, traffic.requests),
        served: traffic.served,
        fetched: traffic.fetched,
        saved,
        byte_hit_ratio: share(saved, traffic.served),
    })
}

/// How much of `all` that is.
fn share(part: u64, all: u64) -> Option<f64> {
    // A ratio for people; what a float cannot tell apart does not show.
    #[allow(clippy::cast_precision_loss)]
    (all > 0).then(|| part as f64 / all as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_has_no_share() {
        assert_eq!(share(0, 0), None);
        assert_eq!(share(1, 4), Some(0.25));
        assert_eq!(share(4, 4), Some(1.0));
    }
}
