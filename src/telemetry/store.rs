//! What is told of the store.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::{Metrics, Series};

/// The store's series.
#[derive(Debug)]
pub(super) struct StoreSeries {
    bytes: IntGaugeVec,
    objects: IntGaugeVec,
    oldest: IntGauge,
    set_aside: IntGauge,
    limit: IntGauge,
    evictions: IntCounterVec,
    evicted_bytes: IntCounterVec,
    scrubbed_bytes: IntCounter,
    scrubbed: IntCounterVec,
    scrub_ended: IntGauge,
    collected: IntCounterVec,
    degraded: IntGauge,
    pub(super) errors: IntCounter,
}

impl StoreSeries {
    pub(super) fn new(series: &Series) -> Self {
        let made = Self {
            bytes: series.gauges(
                "larder_store_bytes",
                "Bytes of the store: `disk` is what it takes on disk, `content` what it holds, `reclaimable` what of \
                 that no manifest held needs, `unreachable` what no tag leads to (as the scrub last found it).",
                &["what"],
            ),
            objects: series.gauges("larder_store_objects", "What the store holds, by kind.", &["kind"]),
            oldest: series.gauge(
                "larder_store_oldest_access_timestamp_seconds",
                "When the content was last asked for that was not asked for longest, in seconds since 1970.",
            ),
            set_aside: series.gauge(
                "larder_store_set_aside",
                "Stores that did not open and lie in dated folders inside the store's until somebody removes them.",
            ),
            limit: series.gauge("larder_store_limit_bytes", "Bytes that the store may take on disk."),
            evictions: series.counters(
                "larder_evictions_total",
                "Content removed to make room, by kind and by the limit that wanted it.",
                &["kind", "reason"],
            ),
            evicted_bytes: series.counters(
                "larder_evicted_bytes_total",
                "Bytes of content removed to make room, by the limit that wanted it.",
                &["reason"],
            ),
            scrubbed_bytes: series.counter(
                "larder_scrubbed_bytes_total",
                "Bytes of content that were read again and held against their digests.",
            ),
            scrubbed: series.counters(
                "larder_scrubbed_total",
                "Content that was held against its digest again, by kind and by what that showed.",
                &["kind", "result"],
            ),
            scrub_ended: series.gauge(
                "larder_scrub_end_timestamp_seconds",
                "When the scrub last came to its end, in seconds since 1970.",
            ),
            collected: series.counters(
                "larder_collected_total",
                "What was removed because it led to nothing, by kind.",
                &["kind"],
            ),
            degraded: series.gauge(
                "larder_store_degraded",
                "1 while the store fails and clients are served straight from the upstreams.",
            ),
            errors: series.counter("larder_store_errors_total", "Operations of the store that failed."),
        };
        for reason in ["max_size", "min_free"] {
            made.evicted_bytes.with_label_values(&[reason]);
            for kind in ["manifest", "blob"] {
                made.evictions.with_label_values(&[kind, reason]);
            }
        }
        for kind in ["manifest", "blob"] {
            for result in ["intact", "damaged"] {
                made.scrubbed.with_label_values(&[kind, result]);
            }
        }
        made
    }
}

impl Metrics {
    /// Counts an operation of the store that failed.
    pub fn store_error(&self) {
        self.store.errors.inc();
    }

    /// Notes whether the store fails.
    pub fn set_store_degraded(&self, fails: bool) {
        self.store.degraded.set(i64::from(fails));
    }

    /// Whether the store fails.
    pub fn is_store_degraded(&self) -> bool {
        self.store.degraded.get() == 1
    }

    /// Sets what was measured of the store: bytes on disk and of content, manifests and blobs held.
    pub fn set_store_usage(&self, disk: u64, content: u64, manifests: u64, blobs: u64) {
        self.store.bytes.with_label_values(&["disk"]).set(signed(disk));
        self.store.bytes.with_label_values(&["content"]).set(signed(content));
        self.store.objects.with_label_values(&["manifest"]).set(signed(manifests));
        self.store.objects.with_label_values(&["blob"]).set(signed(blobs));
    }

    /// Sets how many stores that did not open lie aside.
    pub fn set_quarantined_stores(&self, stores: usize) {
        self.store.set_aside.set(signed(stores as u64));
    }

    /// Sets bytes of blobs that no manifest held needs, when (milliseconds since 1970) that was last asked for which was
    /// not asked for longest, and how many bytes the store may take.
    pub fn set_store_limits(&self, reclaimable: u64, oldest: Option<u64>, limit: u64) {
        self.store.bytes.with_label_values(&["reclaimable"]).set(signed(reclaimable));
        self.store.oldest.set(signed(oldest.unwrap_or_default() / 1000));
        self.store.limit.set(signed(limit));
    }

    /// Counts bytes that were held against their digests again.
    pub fn scrubbed_bytes(&self, bytes: u64) {
        self.store.scrubbed_bytes.inc_by(bytes);
    }

    /// Counts a `manifest` or `blob` that was held against its digest again.
    pub fn scrubbed(&self, kind: &str, intact: bool) {
        self.store.scrubbed.with_label_values(&[kind, if intact { "intact" } else { "damaged" }]).inc();
    }

    /// Notes that the scrub has come to its end at `now` (milliseconds since 1970).
    pub fn scrub_ended(&self, now: u64) {
        self.store.scrub_ended.set(signed(now / 1000));
    }

    /// Sets bytes of content that no tag leads to.
    pub fn unreachable(&self, bytes: u64) {
        self.store.bytes.with_label_values(&["unreachable"]).set(signed(bytes));
    }

    /// Counts what was removed because it led to nothing.
    pub fn collected(&self, kind: &str, count: u64) {
        self.store.collected.with_label_values(&[kind]).inc_by(count);
    }

    /// Counts what was evicted; `reason` is `max_size` or `min_free`.
    pub fn evicted(&self, reason: &str, manifests: usize, blobs: usize, bytes: u64) {
        for (kind, count) in [("manifest", manifests), ("blob", blobs)] {
            self.store.evictions.with_label_values(&[kind, reason]).inc_by(count as u64);
        }
        self.store.evicted_bytes.with_label_values(&[reason]).inc_by(bytes);
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
