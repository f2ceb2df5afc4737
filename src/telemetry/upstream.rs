//! Events of upstreams: traffic, requests, tokens, quota and circuit breakers.

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus::core::Collector as _;

use super::metrics::Metrics;
use super::series::saturating_i64;

impl Metrics {
    /// Counts body bytes received from an upstream; `kind` is `manifest`, `blob` or `list`.
    pub fn fetched(&self, upstream: &str, kind: &str, bytes: u64) {
        self.upstreams.fetched.with_label_values(&[upstream, kind]).inc_by(bytes);
    }

    /// Counts a request to an upstream. `status` is `None` if no response was received.
    pub fn upstream_request(&self, upstream: &str, method: &str, status: Option<u16>, took: Duration) {
        let status = status.map_or_else(|| "error".to_owned(), |code| code.to_string());
        self.upstreams.requests.with_label_values(&[upstream, method, &status]).inc();
        self.upstreams.seconds.with_label_values(&[upstream]).observe(took.as_secs_f64());
    }

    /// Counts a token request; `result` is `ok`, `denied` or `error`.
    pub fn token_request(&self, upstream: &str, result: &str) {
        self.upstreams.tokens.with_label_values(&[upstream, result]).inc();
    }

    /// Counts a refusal of credentials; `reason` is `token-service`, `login` or `repository`.
    pub fn credentials_refused(&self, upstream: &str, reason: &str) {
        self.upstreams.refusals.with_label_values(&[upstream, reason]).inc();
    }

    /// Sets the quota that an upstream has announced.
    pub fn quota(&self, upstream: &str, limit: u64, remaining: u64) {
        self.upstreams.quota_limit.with_label_values(&[upstream]).set(saturating_i64(limit));
        self.upstreams.quota_remaining.with_label_values(&[upstream]).set(saturating_i64(remaining));
    }

    /// Sets the state of an endpoint's circuit breaker. `endpoint` is the configured URL.
    pub fn endpoint_open(&self, upstream: &str, endpoint: &str, open: bool) {
        self.upstreams.open.with_label_values(&[upstream, endpoint]).set(i64::from(open));
    }

    /// Removes the series of an endpoint that is no longer configured.
    pub fn endpoint_gone(&self, upstream: &str, endpoint: &str) {
        // An endpoint without a series needs no removal.
        let _ = self.upstreams.open.remove_label_values(&[upstream, endpoint]);
    }

    /// Counts a download that failed verification; `kind` is `manifest` or `blob`.
    pub fn verify_failure(&self, upstream: &str, kind: &str) {
        self.upstreams.verify_failures.with_label_values(&[upstream, kind]).inc();
    }

    /// Creates the series of an upstream with the value zero, so that rates over them work from the start.
    pub fn declare_upstream(&self, upstream: &str) {
        self.upstreams.fetched.with_label_values(&[upstream, "list"]);
        for reason in ["token-service", "login", "repository"] {
            self.upstreams.refusals.with_label_values(&[upstream, reason]);
        }
        for kind in ["manifest", "blob"] {
            self.upstreams.fetched.with_label_values(&[upstream, kind]);
            self.upstreams.verify_failures.with_label_values(&[upstream, kind]);
        }
    }

    /// Returns the body bytes received since the start, by upstream.
    pub fn fetched_by_upstream(&self) -> BTreeMap<String, u64> {
        let mut found = BTreeMap::new();
        for family in self.upstreams.fetched.collect() {
            for metric in family.get_metric() {
                let label = metric.get_label().iter().find(|label| label.name() == "upstream");
                let Some(label) = label else { continue };
                // Counters hold whole numbers, far below the precision limit of a float.
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                let bytes = metric.get_counter().get_value() as u64;
                *found.entry(label.value().to_owned()).or_default() += bytes;
            }
        }
        found
    }
}
