//! Metrics of upstreams: traffic, requests, tokens, quota and circuit breakers.

use prometheus::{HistogramVec, IntCounterVec, IntGaugeVec};

use super::series::SeriesRegistry;

/// Series with an `upstream` label.
#[derive(Debug)]
pub(super) struct UpstreamSeries {
    pub(super) fetched: IntCounterVec,
    pub(super) requests: IntCounterVec,
    pub(super) seconds: HistogramVec,
    pub(super) tokens: IntCounterVec,
    pub(super) refusals: IntCounterVec,
    pub(super) quota_limit: IntGaugeVec,
    pub(super) quota_remaining: IntGaugeVec,
    pub(super) open: IntGaugeVec,
    pub(super) verify_failures: IntCounterVec,
}

impl UpstreamSeries {
    pub(super) fn new(series: &SeriesRegistry) -> Self {
        Self {
            fetched: series.counters(
                "larder_fetched_bytes_total",
                "Body bytes received from upstreams.",
                &["upstream", "kind"],
            ),
            requests: series.counters(
                "larder_upstream_requests_total",
                "Requests sent to upstreams, by HTTP status; `error` if no response was received.",
                &["upstream", "method", "status"],
            ),
            seconds: series.histograms(
                "larder_upstream_response_seconds",
                "Time from sending a request to an upstream to receiving the response head.",
                &["upstream"],
            ),
            tokens: series.counters(
                "larder_upstream_token_requests_total",
                "Token requests for upstreams, by result.",
                &["upstream", "result"],
            ),
            refusals: series.counters(
                "larder_upstream_credentials_refused_total",
                "Requests for which an upstream or its token service refused the credentials, by reason.",
                &["upstream", "reason"],
            ),
            quota_limit: series.gauges(
                "larder_upstream_quota_limit",
                "Quota of the upstream: requests per window, as last announced.",
                &["upstream"],
            ),
            quota_remaining: series.gauges(
                "larder_upstream_quota_remaining",
                "Remaining requests of the upstream's quota, as last announced.",
                &["upstream"],
            ),
            open: series.gauges(
                "larder_upstream_endpoint_open",
                "1 while the circuit breaker of an endpoint is open, until the endpoint responds again.",
                &["upstream", "endpoint"],
            ),
            verify_failures: series.counters(
                "larder_verify_failures_total",
                "Downloads whose digest or size did not match, by upstream.",
                &["upstream", "kind"],
            ),
        }
    }
}
