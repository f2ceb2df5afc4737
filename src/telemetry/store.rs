//! Events of the store: size, eviction, scrub, errors and degraded mode.

use super::metrics::Metrics;
use super::series::saturating_i64;
use crate::clock::Timestamp;

impl Metrics {
    /// Counts a failed operation of the store.
    pub fn store_error(&self) {
        self.store.errors.inc();
    }

    /// Enters or leaves degraded mode.
    pub fn set_store_degraded(&self, degraded: bool) {
        self.store.degraded.set(i64::from(degraded));
    }

    /// Returns true in degraded mode.
    pub fn is_store_degraded(&self) -> bool {
        self.store.degraded.get() == 1
    }

    /// Sets the size of the store: bytes on disk, bytes of content, and the number of manifests and blobs.
    pub fn set_store_usage(&self, disk: u64, content: u64, manifests: u64, blobs: u64) {
        self.store.bytes.with_label_values(&["disk"]).set(saturating_i64(disk));
        self.store.bytes.with_label_values(&["content"]).set(saturating_i64(content));
        self.store.objects.with_label_values(&["manifest"]).set(saturating_i64(manifests));
        self.store.objects.with_label_values(&["blob"]).set(saturating_i64(blobs));
    }

    /// Sets the number of quarantined stores.
    pub fn set_quarantined_stores(&self, stores: usize) {
        self.store.set_aside.set(saturating_i64(stores as u64));
    }

    /// Sets the bytes of blobs that no cached manifest needs, the last-access time of the least recently used entry,
    /// and the maximum size of the store.
    pub fn set_store_limits(&self, reclaimable: u64, oldest: Option<Timestamp>, limit: u64) {
        self.store.bytes.with_label_values(&["reclaimable"]).set(saturating_i64(reclaimable));
        self.store.oldest.set(saturating_i64(oldest.unwrap_or_default().as_secs()));
        self.store.limit.set(saturating_i64(limit));
    }

    /// Counts bytes verified by the scrub.
    pub fn scrubbed_bytes(&self, bytes: u64) {
        self.store.scrubbed_bytes.inc_by(bytes);
    }

    /// Counts an object verified by the scrub; `kind` is `manifest` or `blob`.
    pub fn scrubbed(&self, kind: &str, intact: bool) {
        self.store.scrubbed.with_label_values(&[kind, if intact { "intact" } else { "damaged" }]).inc();
    }

    /// Sets the time when the scrub finished.
    pub fn scrub_ended(&self, now: Timestamp) {
        self.store.scrub_ended.set(saturating_i64(now.as_secs()));
    }

    /// Sets the bytes of content without a tag.
    pub fn unreachable(&self, bytes: u64) {
        self.store.bytes.with_label_values(&["unreachable"]).set(saturating_i64(bytes));
    }

    /// Counts orphaned records that were removed.
    pub fn collected(&self, kind: &str, count: u64) {
        self.store.collected.with_label_values(&[kind]).inc_by(count);
    }

    /// Counts evicted objects; `reason` is `max_size` or `min_free`.
    pub fn evicted(&self, reason: &str, manifests: usize, blobs: usize, bytes: u64) {
        for (kind, count) in [("manifest", manifests), ("blob", blobs)] {
            self.store.evictions.with_label_values(&[kind, reason]).inc_by(count as u64);
        }
        self.store.evicted_bytes.with_label_values(&[reason]).inc_by(bytes);
    }
}
