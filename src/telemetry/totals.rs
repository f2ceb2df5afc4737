//! What clients were served and what that cost, since the start: read from the series that count it.

use std::collections::BTreeMap;

use prometheus::core::Collector as _;

use super::{Metrics, Outcome, RequestKind, STATUS_CLASSES};

/// What all requests came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrafficTotals {
    /// Requests that the cache took part in.
    pub requests: u64,
    /// Of these, those that cost no transfer of their own.
    pub hits: u64,
    /// Body bytes sent to clients.
    pub served: u64,
    /// Body bytes received from upstreams.
    pub fetched: u64,
}

impl Metrics {
    /// What all requests came to so far, by the rules of the dashboard.
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
            let count: u64 = counters.iter().map(prometheus::IntCounter::get).sum();
            match outcome {
                Outcome::None => {}
                Outcome::Hit | Outcome::Join | Outcome::Revalidated | Outcome::Stale => {
                    totals.requests += count;
                    totals.hits += count;
                }
                Outcome::Miss | Outcome::Bypass => totals.requests += count,
            }
        }
        totals
    }

    /// Body bytes received so far, by upstream.
    pub fn fetched_by_upstream(&self) -> BTreeMap<String, u64> {
        let mut found = BTreeMap::new();
        for family in self.upstreams.fetched.collect() {
            for metric in family.get_metric() {
                let label = metric.get_label().iter().find(|label| label.name() == "upstream");
                let Some(label) = label else { continue };
                // What is counted is whole, and far below the numbers that a float cannot tell apart.
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                let bytes = metric.get_counter().get_value() as u64;
                *found.entry(label.value().to_owned()).or_default() += bytes;
            }
        }
        found
    }

    /// Child manifests that wait to be fetched, and those that are left for later.
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
    fn what_the_cache_took_no_part_in_does_not_count() {
        let metrics = Metrics::new();
        let took = Duration::from_millis(1);
        for outcome in Outcome::ALL {
            metrics.request(RequestKind::Blob, outcome, 200, took);
            metrics.request(RequestKind::ManifestTag, outcome, 404, took);
        }
        metrics.served(RequestKind::Blob, 5);
        metrics.served(RequestKind::Tags, 2);
        metrics.fetched("a", "blob", 3);
        metrics.fetched("a", "list", 1);
        metrics.fetched("b", "blob", 10);
        assert_eq!(metrics.totals(), TrafficTotals { requests: 12, hits: 8, served: 7, fetched: 14 });
        let fetched = metrics.fetched_by_upstream();
        assert_eq!((fetched.get("a"), fetched.get("b")), (Some(&4), Some(&10)));
    }
}
