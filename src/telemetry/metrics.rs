//! All metric series of the server in one struct, with a function for each event that is counted.

use std::time::Duration;

use prometheus::{Encoder, Histogram, IntCounter, IntCounterVec, IntGauge, Registry, TextEncoder};

use crate::clock::Timestamp;

use super::labels::{Outcome, RequestKind, STATUS_CLASSES};
use super::process::ProcessSeries;
use super::series::{SeriesRegistry, saturating_i64};
use super::store_series::StoreSeries;
use super::upstream_series::UpstreamSeries;

/// All metric series. Label values are bounded: upstream names come from the configuration, never from a request.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Indexed by kind, outcome and status class, so that counting a request needs no look-up by label.
    pub(super) requests: Vec<IntCounter>,
    durations: Vec<Histogram>,
    pub(super) served: [IntCounter; 3],
    pub(super) upstreams: UpstreamSeries,
    /// Running fills.
    pub fills_running: IntGauge,
    /// Requests that joined a fill started by another request.
    pub fills_joined: IntCounter,
    /// Finished fills by result.
    fills: IntCounterVec,
    /// Connections open on the client port.
    pub connections: IntGauge,
    /// Connections refused on the client port, because their client had too many.
    pub connections_refused: IntCounter,
    /// Idle connections on the client port that were closed for new ones.
    pub connections_reclaimed: IntCounter,
    pub(super) children_queued: IntGauge,
    pub(super) children_deferred: IntGauge,
    /// Child manifests that are not prefetched, because their index has too many.
    pub children_skipped: IntCounter,
    config_reload_success: IntGauge,
    config_reload_time: IntGauge,
    process: ProcessSeries,
    pub(super) store: StoreSeries,
}

impl Metrics {
    /// Creates all series in a new registry.
    pub fn new() -> Self {
        let series = SeriesRegistry::default();
        let served = series.counters("larder_served_bytes_total", "Body bytes sent to clients.", &["kind"]);
        let build =
            series.gauges("larder_build_info", "Constant 1, labelled with the version.", &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Self {
            requests: request_counters(&series),
            durations: request_durations(&series),
            served: ["manifest", "blob", "other"].map(|kind| served.with_label_values(&[kind])),
            upstreams: UpstreamSeries::new(&series),
            fills_running: series.gauge("larder_fills_running", "Fills that are running (downloads from upstreams)."),
            fills_joined: series
                .counter("larder_fills_joined_total", "Requests that joined a running fill instead of starting one."),
            fills: series.counters("larder_fills_total", "Finished fills, by result.", &["result"]),
            connections: series.gauge("larder_connections", "Open client connections."),
            connections_refused: series.counter(
                "larder_connections_refused_total",
                "Client connections closed at once, because their client address had too many (max_connections_per_client).",
            ),
            connections_reclaimed: series.counter(
                "larder_connections_reclaimed_total",
                "Idle client connections closed for new ones, because a limit on connections was reached.",
            ),
            children_queued: series
                .gauge("larder_children_queued", "Child manifests and lists of referrers in the prefetch queue."),
            children_deferred: series.gauge(
                "larder_children_deferred",
                "Child manifests and lists of referrers whose prefetch is deferred: the upstream's quota is low, or the upstream is failing.",
            ),
            children_skipped: series.counter(
                "larder_children_skipped_total",
                "Child manifests that are not prefetched, because their index has too many. They are fetched on request.",
            ),
            config_reload_success: series.gauge(
                "larder_config_last_reload_success",
                "1 if the last load of the configuration succeeded, 0 if the previous configuration stays in effect.",
            ),
            config_reload_time: series.gauge(
                "larder_config_last_reload_success_timestamp_seconds",
                "Time of the last successful load of the configuration.",
            ),
            process: ProcessSeries::new(&series),
            store: StoreSeries::new(&series),
            registry: series.0,
        }
    }

    /// Counts an answered request, and the time to the head of the answer.
    pub fn request(&self, kind: RequestKind, outcome: Outcome, status: u16, took: Duration) {
        let pair = kind as usize * Outcome::ALL.len() + outcome as usize;
        let class = usize::from(status / 100).saturating_sub(1).min(STATUS_CLASSES.len() - 1);
        if let Some(counter) = self.requests.get(pair * STATUS_CLASSES.len() + class) {
            counter.inc();
        }
        if let Some(histogram) = self.durations.get(pair) {
            histogram.observe(took.as_secs_f64());
        }
    }

    /// Counts body bytes sent to a client.
    pub fn served(&self, kind: RequestKind, bytes: u64) {
        let [manifest, blob, other] = &self.served;
        let counter = match kind {
            RequestKind::ManifestTag | RequestKind::ManifestDigest => manifest,
            RequestKind::Blob => blob,
            _ => other,
        };
        counter.inc_by(bytes);
    }

    /// Changes the number of child manifests in the prefetch queue by the difference of `now` and `before`.
    pub fn children_queued(&self, before: usize, now: usize) {
        self.children_queued.add(difference(before, now));
    }

    /// Changes the number of deferred child manifests by the difference of `now` and `before`.
    pub fn children_deferred(&self, before: usize, now: usize) {
        self.children_deferred.add(difference(before, now));
    }

    /// Counts a finished fill; `result` is `ok`, `unkept`, `slow`, `mismatch`, `upstream` or `store`.
    pub fn fill_finished(&self, result: &str) {
        self.fills.with_label_values(&[result]).inc();
    }

    /// Records the result of a load of the configuration.
    pub fn config_loaded(&self, success: bool, now: Timestamp) {
        self.config_reload_success.set(i64::from(success));
        if success {
            self.config_reload_time.set(saturating_i64(now.as_secs()));
        }
    }

    /// Returns all series in Prometheus' text format 0.0.4.
    pub fn render(&self) -> Vec<u8> {
        self.process.refresh();
        let mut out = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            tracing::error!(%error, "metrics cannot be encoded");
        }
        out
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Creates a counter for each kind, outcome and status class, in this order.
fn request_counters(series: &SeriesRegistry) -> Vec<IntCounter> {
    let requests = series.counters(
        "larder_requests_total",
        "Requests answered, by kind of request, outcome of the cache and class of the status.",
        &["kind", "outcome", "status"],
    );
    let labels = RequestKind::ALL.into_iter().flat_map(|kind| {
        Outcome::ALL.into_iter().flat_map(move |outcome| STATUS_CLASSES.map(|status| (kind, outcome, status)))
    });
    labels
        .map(|(kind, outcome, status)| requests.with_label_values(&[kind.as_str(), outcome.as_str(), status]))
        .collect()
}

/// Creates a histogram for each kind and outcome, in this order.
fn request_durations(series: &SeriesRegistry) -> Vec<Histogram> {
    let durations = series.histograms(
        "larder_response_seconds",
        "Time from the arrival of a request to the head of the response.",
        &["kind", "outcome"],
    );
    let labels = RequestKind::ALL.into_iter().flat_map(|kind| Outcome::ALL.map(|outcome| (kind, outcome)));
    labels.map(|(kind, outcome)| durations.with_label_values(&[kind.as_str(), outcome.as_str()])).collect()
}

fn difference(before: usize, now: usize) -> i64 {
    let signed = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
    signed(now) - signed(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_counts_the_right_series() {
        let metrics = Metrics::new();
        metrics.request(RequestKind::Other, Outcome::None, 599, Duration::from_millis(1));
        metrics.request(RequestKind::ManifestTag, Outcome::Hit, 200, Duration::from_millis(1));
        let text = String::from_utf8(metrics.render()).expect("text");
        assert!(
            text.contains(r#"larder_requests_total{kind="other",outcome="none",status="5xx"} 1"#),
            "{text}"
        );
        assert!(text.contains(r#"larder_requests_total{kind="manifest_tag",outcome="hit",status="2xx"} 1"#));
    }
}
