//! Totals since the start of the server: requests, hits and bytes, read from the metric series.

use super::labels::{Outcome, RequestKind, STATUS_CLASSES};
use super::metrics::Metrics;

/// Totals over all requests since the start of the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrafficTotals {
    /// Requests that used the cache, and requests that failed.
    pub requests: u64,
    /// Cache hits: requests that caused no download.
    pub hits: u64,
    /// Requests that were answered with a status of the class 5xx.
    pub failed: u64,
    /// Hits for which the upstream was not available.
    pub stale: u64,
    /// Body bytes sent to clients.
    pub served: u64,
    /// Body bytes received from upstreams.
    pub fetched: u64,
}

impl Metrics {
    /// Returns the totals since the start, computed as the dashboard does.
    pub fn totals(&self) -> TrafficTotals {
        let mut totals = TrafficTotals {
            served: self.served.iter().map(prometheus::IntCounter::get).sum(),
            fetched: self.fetched_by_upstream().values().sum(),
            ..TrafficTotals::default()
        };
        for (kind, outcome) in
            RequestKind::ALL.iter().flat_map(|kind| Outcome::ALL.map(|outcome| (*kind, outcome)))
        {
            let pair = kind as usize * Outcome::ALL.len() + outcome as usize;
            let first = pair * STATUS_CLASSES.len();
            let counters = self.requests.get(first..first + STATUS_CLASSES.len()).unwrap_or_default();
            let all: u64 = counters.iter().map(prometheus::IntCounter::get).sum();
            // The last class is 5xx.
            let failed = counters.last().map_or(0, prometheus::IntCounter::get);
            let served = all - failed;
            totals.failed += failed;
            totals.requests += failed;
            match outcome {
                Outcome::None => {}
                Outcome::Hit | Outcome::Join | Outcome::Revalidated | Outcome::Stale => {
                    totals.requests += served;
                    totals.hits += served;
                }
                Outcome::Miss | Outcome::Bypass => totals.requests += served,
            }
            if outcome == Outcome::Stale {
                totals.stale += served;
            }
        }
        totals
    }

    /// Returns the number of child manifests in the prefetch queue, and of the deferred ones.
    pub fn children(&self) -> (u64, u64) {
        let count = |gauge: &prometheus::IntGauge| u64::try_from(gauge.get()).unwrap_or_default();
        (count(&self.children_queued), count(&self.children_deferred))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn totals_include_failed_requests_and_exclude_those_that_did_not_use_the_cache() {
        let metrics = Metrics::new();
        let took = Duration::from_millis(1);
        for outcome in Outcome::ALL {
            metrics.request(RequestKind::Blob, outcome, 200, took);
            metrics.request(RequestKind::ManifestTag, outcome, 404, took);
        }
        metrics.request(RequestKind::ManifestTag, Outcome::None, 502, took);
        metrics.request(RequestKind::Blob, Outcome::Miss, 504, took);
        metrics.served(RequestKind::Blob, 5);
        metrics.served(RequestKind::Tags, 2);
        metrics.fetched("a", "blob", 3);
        metrics.fetched("a", "list", 1);
        metrics.fetched("b", "blob", 10);
        let totals = TrafficTotals { requests: 14, hits: 8, failed: 2, stale: 2, served: 7, fetched: 14 };
        assert_eq!(metrics.totals(), totals);
        let fetched = metrics.fetched_by_upstream();
        assert_eq!((fetched.get("a"), fetched.get("b")), (Some(&4), Some(&10)));
    }
}
