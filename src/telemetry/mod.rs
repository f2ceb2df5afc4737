//! Every metric series larder has, in one struct, and the set-up of its log.

mod log;
mod log_dedup;
mod store;
mod totals;
pub mod trace;
mod warnings;

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

pub use log::{LogError, LogLevel, init, init_log};
pub use log_dedup::NO_DEDUP;
pub use totals::TrafficTotals;
pub use warnings::{Warning, Warnings};

use store::StoreSeries;

/// What kind of request a client made: the `kind` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// A manifest by tag.
    ManifestTag,
    /// A manifest by digest.
    ManifestDigest,
    /// A blob.
    Blob,
    /// `tags/list`.
    Tags,
    /// `_catalog`.
    Catalog,
    /// `referrers`.
    Referrers,
    /// `/v2/` itself.
    Base,
    /// Anything else, mostly what is refused.
    Other,
}

impl RequestKind {
    const ALL: [Self; 8] = [
        Self::ManifestTag,
        Self::ManifestDigest,
        Self::Blob,
        Self::Tags,
        Self::Catalog,
        Self::Referrers,
        Self::Base,
        Self::Other,
    ];

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ManifestTag => "manifest_tag",
            Self::ManifestDigest => "manifest_digest",
            Self::Blob => "blob",
            Self::Tags => "tags",
            Self::Catalog => "catalog",
            Self::Referrers => "referrers",
            Self::Base => "base",
            Self::Other => "other",
        }
    }
}

/// What the cache did: the same word in logs, metrics and headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered from the store alone.
    Hit,
    /// Fetched from the upstream for this request.
    Miss,
    /// Waited for a fill that another request had started.
    Join,
    /// The upstream confirmed what the store held.
    Revalidated,
    /// The upstream could not be asked; the last known content was served.
    Stale,
    /// Passed through without being kept.
    Bypass,
    /// No content was served: a refusal, an error, or a request that the cache takes no part in.
    None,
}

impl Outcome {
    const ALL: [Self; 7] =
        [Self::Hit, Self::Miss, Self::Join, Self::Revalidated, Self::Stale, Self::Bypass, Self::None];

    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Join => "join",
            Self::Revalidated => "revalidated",
            Self::Stale => "stale",
            Self::Bypass => "bypass",
            Self::None => "none",
        }
    }
}

const STATUS_CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// All series. Labels are bounded: upstream names come from the configuration, never from a request.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Indexed by kind, outcome and status class, so that the hot path looks nothing up.
    requests: Vec<IntCounter>,
    durations: Vec<Histogram>,
    served: [IntCounter; 3],
    upstreams: UpstreamSeries,
    /// Fills that download now.
    pub fills_running: IntGauge,
    /// Requests that joined a fill started by another request.
    pub fills_joined: IntCounter,
    /// Finished fills by result.
    fills: IntCounterVec,
    /// Connections open on the client port.
    pub connections: IntGauge,
    children_queued: IntGauge,
    children_deferred: IntGauge,
    store: StoreSeries,
}

/// What is counted by upstream.
#[derive(Debug)]
struct UpstreamSeries {
    fetched: IntCounterVec,
    requests: IntCounterVec,
    seconds: HistogramVec,
    tokens: IntCounterVec,
    quota_limit: IntGaugeVec,
    quota_remaining: IntGaugeVec,
    open: IntGaugeVec,
    verify_failures: IntCounterVec,
}

impl UpstreamSeries {
    fn new(series: &Series) -> Self {
        Self {
            fetched: series.counters(
                "larder_fetched_bytes_total",
                "Body bytes received from upstreams.",
                &["upstream", "kind"],
            ),
            requests: series.counters(
                "larder_upstream_requests_total",
                "Requests sent to upstreams, by status; `error` where no answer came.",
                &["upstream", "method", "status"],
            ),
            seconds: series.histograms(
                "larder_upstream_response_seconds",
                "Time from sending a request to an upstream to the head of its answer.",
                &["upstream"],
            ),
            tokens: series.counters(
                "larder_upstream_token_requests_total",
                "Token requests for upstreams, by result.",
                &["upstream", "result"],
            ),
            quota_limit: series.gauges(
                "larder_upstream_quota_limit",
                "Requests per window that the upstream grants, as it last told.",
                &["upstream"],
            ),
            quota_remaining: series.gauges(
                "larder_upstream_quota_remaining",
                "Requests left of the upstream's quota, as it last told.",
                &["upstream"],
            ),
            open: series.gauges(
                "larder_upstream_endpoint_open",
                "1 while an endpoint that failed again and again is left alone, and until it answers again.",
                &["upstream", "endpoint"],
            ),
            verify_failures: series.counters(
                "larder_verify_failures_total",
                "Content whose digest or size did not match, by upstream.",
                &["upstream", "kind"],
            ),
        }
    }
}

/// A fresh registry, and the ways to put series into it.
struct Series(Registry);

impl Series {
    /// A series that no registry has seen yet cannot clash, so registration cannot fail; a bug would show in every test.
    fn register<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        match made.and_then(|series| self.0.register(Box::new(series.clone())).map(|()| series)) {
            Ok(series) => series,
            Err(error) => unreachable!("a metric series is declared wrongly: {error}"),
        }
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::new(name, help))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::new(name, help))
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
        let buckets = vec![
            0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0,
        ];
        self.register(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), labels))
    }
}

impl Metrics {
    /// All series, at zero, in a registry of their own.
    pub fn new() -> Self {
        let series = Series(Registry::new());
        let requests = series.counters(
            "larder_requests_total",
            "Requests answered, by what was asked for, what the cache did and the status class.",
            &["kind", "outcome", "status"],
        );
        let durations = series.histograms(
            "larder_response_seconds",
            "Time from a request's arrival to the head of its answer.",
            &["kind", "outcome"],
        );
        let served = series.counters("larder_served_bytes_total", "Body bytes sent to clients.", &["kind"]);
        let build = series.gauges("larder_build_info", "1, labelled with the version.", &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let of = |kind: &RequestKind, outcome: &Outcome, status: &&str| {
            requests.with_label_values(&[kind.as_str(), outcome.as_str(), status])
        };
        #[cfg(target_os = "linux")]
        {
            let process = prometheus::process_collector::ProcessCollector::for_self();
            // Registered first and once in a fresh registry: it cannot clash.
            let _ = series.0.register(Box::new(process));
        }
        Self {
            requests: RequestKind::ALL
                .iter()
                .flat_map(|k| {
                    Outcome::ALL.iter().flat_map(move |o| STATUS_CLASSES.iter().map(move |s| (k, o, s)))
                })
                .map(|(kind, outcome, status)| of(kind, outcome, status))
                .collect(),
            durations: RequestKind::ALL
                .iter()
                .flat_map(|k| Outcome::ALL.iter().map(move |o| (k, o)))
                .map(|(kind, outcome)| durations.with_label_values(&[kind.as_str(), outcome.as_str()]))
                .collect(),
            served: ["manifest", "blob", "other"].map(|kind| served.with_label_values(&[kind])),
            upstreams: UpstreamSeries::new(&series),
            fills_running: series.gauge("larder_fills_running", "Fills that are downloading now."),
            fills_joined: series
                .counter("larder_fills_joined_total", "Requests that joined a fill already running."),
            fills: series.counters("larder_fills_total", "Finished fills, by result.", &["result"]),
            connections: series.gauge("larder_connections", "Client connections open now."),
            children_queued: series.gauge("larder_children_queued", "Child manifests waiting to be fetched."),
            children_deferred: series.gauge(
                "larder_children_deferred",
                "Child manifests left for later: the upstream's quota is low, or it is in trouble.",
            ),
            store: StoreSeries::new(&series),
            registry: series.0,
        }
    }

    /// Counts an answered request and the time to its head.
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

    /// Counts body bytes received from an upstream; `kind` is `manifest`, `blob` or `list`.
    pub fn fetched(&self, upstream: &str, kind: &str, bytes: u64) {
        self.upstreams.fetched.with_label_values(&[upstream, kind]).inc_by(bytes);
    }

    /// Counts a request to an upstream; `status` is `None` where no answer came.
    pub fn upstream_request(&self, upstream: &str, method: &str, status: Option<u16>, took: Duration) {
        let status = status.map_or_else(|| "error".to_owned(), |code| code.to_string());
        self.upstreams.requests.with_label_values(&[upstream, method, &status]).inc();
        self.upstreams.seconds.with_label_values(&[upstream]).observe(took.as_secs_f64());
    }

    /// Counts a token request; `result` is `ok`, `denied` or `error`.
    pub fn token_request(&self, upstream: &str, result: &str) {
        self.upstreams.tokens.with_label_values(&[upstream, result]).inc();
    }

    /// So many child manifests wait to be fetched, of those that were `before` one walk changed its count.
    pub fn children_queued(&self, before: usize, now: usize) {
        self.children_queued.add(difference(before, now));
    }

    /// The same for those that are left for later.
    pub fn children_deferred(&self, before: usize, now: usize) {
        self.children_deferred.add(difference(before, now));
    }

    /// Sets what an upstream last told of its quota.
    pub fn quota(&self, upstream: &str, limit: u64, remaining: u64) {
        let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.upstreams.quota_limit.with_label_values(&[upstream]).set(signed(limit));
        self.upstreams.quota_remaining.with_label_values(&[upstream]).set(signed(remaining));
    }

    /// Notes whether an endpoint, as it is configured, is left alone.
    pub fn endpoint_open(&self, upstream: &str, endpoint: &str, open: bool) {
        self.upstreams.open.with_label_values(&[upstream, endpoint]).set(i64::from(open));
    }

    /// Forgets an endpoint that is no longer configured.
    pub fn endpoint_gone(&self, upstream: &str, endpoint: &str) {
        // One that has no series is gone already.
        let _ = self.upstreams.open.remove_label_values(&[upstream, endpoint]);
    }

    /// Counts content that did not verify; `kind` is `manifest` or `blob`.
    pub fn verify_failure(&self, upstream: &str, kind: &str) {
        self.upstreams.verify_failures.with_label_values(&[upstream, kind]).inc();
    }

    /// Counts a finished fill; `result` is `ok`, `unkept`, `mismatch`, `upstream` or `store`.
    pub fn fill_finished(&self, result: &str) {
        self.fills.with_label_values(&[result]).inc();
    }

    /// Makes the series of an upstream exist at zero, so that rates over them exist from the start.
    pub fn declare_upstream(&self, upstream: &str) {
        self.upstreams.fetched.with_label_values(&[upstream, "list"]);
        for kind in ["manifest", "blob"] {
            self.upstreams.fetched.with_label_values(&[upstream, kind]);
            self.upstreams.verify_failures.with_label_values(&[upstream, kind]);
        }
    }

    /// The exposition in Prometheus' text format 0.0.4.
    pub fn render(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            tracing::error!(%error, "metrics cannot be rendered");
        }
        out
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn difference(before: usize, now: usize) -> i64 {
    let signed = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
    signed(now) - signed(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hot_path_finds_its_series() {
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
