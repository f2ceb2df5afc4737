//! Metrics of the store: size, eviction, scrub, errors and degraded mode.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::series::SeriesRegistry;

/// Series of the store.
#[derive(Debug)]
pub(super) struct StoreSeries {
    pub(super) bytes: IntGaugeVec,
    pub(super) objects: IntGaugeVec,
    pub(super) oldest: IntGauge,
    pub(super) set_aside: IntGauge,
    pub(super) limit: IntGauge,
    pub(super) evictions: IntCounterVec,
    pub(super) evicted_bytes: IntCounterVec,
    pub(super) scrubbed_bytes: IntCounter,
    pub(super) scrubbed: IntCounterVec,
    pub(super) scrub_ended: IntGauge,
    pub(super) collected: IntCounterVec,
    pub(super) degraded: IntGauge,
    pub(super) errors: IntCounter,
}

impl StoreSeries {
    pub(super) fn new(series: &SeriesRegistry) -> Self {
        let created = Self {
            bytes: series.gauges(
                "larder_store_bytes",
                "Bytes of the store: `disk` used on disk, `content` logical size of the content, `reclaimable` blobs that \
                 no cached manifest needs, `unreachable` content without a tag (updated by the scrub).",
                &["what"],
            ),
            objects: series.gauges("larder_store_objects", "Objects in the store, by kind.", &["kind"]),
            oldest: series.gauge(
                "larder_store_oldest_access_timestamp_seconds",
                "Last-access time of the least recently used entry, in seconds since 1970.",
            ),
            set_aside: series.gauge(
                "larder_store_set_aside",
                "Quarantined stores: damaged stores in dated directories inside the store, kept until you remove them.",
            ),
            limit: series.gauge("larder_store_limit_bytes", "Maximum size of the store on disk (`store.max_size`)."),
            evictions: series.counters(
                "larder_evictions_total",
                "Objects evicted, by kind and by the limit that required it.",
                &["kind", "reason"],
            ),
            evicted_bytes: series.counters(
                "larder_evicted_bytes_total",
                "Bytes evicted, by the limit that required it.",
                &["reason"],
            ),
            scrubbed_bytes: series.counter(
                "larder_scrubbed_bytes_total",
                "Bytes of content verified by the scrub.",
            ),
            scrubbed: series.counters(
                "larder_scrubbed_total",
                "Objects verified by the scrub, by kind and result.",
                &["kind", "result"],
            ),
            scrub_ended: series.gauge(
                "larder_scrub_end_timestamp_seconds",
                "Time when the scrub last finished, in seconds since 1970.",
            ),
            collected: series.counters(
                "larder_collected_total",
                "Orphaned records removed by garbage collection, by kind.",
                &["kind"],
            ),
            degraded: series.gauge(
                "larder_store_degraded",
                "1 in degraded mode: the store fails and content is passed through from the upstreams.",
            ),
            errors: series.counter("larder_store_errors_total", "Failed operations of the store."),
        };
        created.declare();
        created
    }

    /// Creates the labelled series with the value zero, so that rates over them work from the start.
    fn declare(&self) {
        for reason in ["max_size", "min_free"] {
            self.evicted_bytes.with_label_values(&[reason]);
            for kind in ["manifest", "blob"] {
                self.evictions.with_label_values(&[kind, reason]);
            }
        }
        for kind in ["manifest", "blob"] {
            for result in ["intact", "damaged"] {
                self.scrubbed.with_label_values(&[kind, result]);
            }
        }
    }
}
