//! Number of bytes to evict, and the limit that requires it. Pure arithmetic over measured values.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::config::schema::Store;
use crate::store::{DraftUsage, SpaceModel};

/// Size of sled's file per 100 bytes of content while content is added and removed, and its fixed part: measured, see
/// CONTRIBUTING.md. sled returns little space to the file system and reuses freed space, so the content is limited. If
/// the file grows towards its limit nevertheless, more content is evicted.
const SLED_OVERHEAD_PERCENT: u64 = 165;
const SLED_FIXED: u64 = 64 << 20;
/// Upper bound of the draft budget if blobs are stored in sled, where a draft is stored twice while it is copied. With a
/// larger budget, downloads would queue for a disk that is slower than the network.
const SLED_DRAFTS_MAX: u64 = 2 << 30;
/// Watermarks, as shares of a limit: eviction starts above the high one and stops below the low one.
const HIGH_WATERMARK_PERCENT: u64 = 95;
const LOW_WATERMARK_PERCENT: u64 = 90;

/// Time for which an abandoned draft is retained in preference to content: clients retry interrupted downloads.
const RESUME_WINDOW: Duration = Duration::from_mins(10);

/// Limits from the configuration, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cache) struct StoreLimits {
    /// Limit of the store's size on disk.
    pub(in crate::cache) max_size: u64,
    /// Space to keep free on the store's disk.
    pub(in crate::cache) min_free: u64,
}

impl StoreLimits {
    pub(super) fn new(options: &Store) -> Self {
        Self { max_size: options.max_size.as_u64(), min_free: options.min_free.as_u64() }
    }
}

/// Measured sizes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Measurement {
    /// Size of the store on disk, drafts included.
    pub(super) disk: u64,
    /// Part of `disk` that belongs to drafts.
    pub(super) drafts: u64,
    /// Growth of sled's file above the high watermark since the previous measurement.
    pub(super) growth: u64,
    /// Content: manifests and blobs, without overhead.
    pub(super) content: u64,
    /// Content that running fills will add.
    pub(super) pending: u64,
    /// Part of `pending` that is not on disk yet.
    pub(super) pending_unwritten: u64,
    /// Free space on the disk; `None` if the system does not report it.
    pub(super) free: Option<u64>,
}

/// Limit that requires an eviction: the `reason` label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EvictionReason {
    /// `store.max_size`.
    MaxSize,
    /// `store.min_free`.
    MinFree,
}

impl EvictionReason {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::MaxSize => "max_size",
            Self::MinFree => "min_free",
        }
    }
}

/// Returns the size that drafts may reach in a store limited to `disk_limit`. Beyond it, further downloads are served and
/// not stored. Draft files of a file store become content without a copy, so they only need space.
pub(super) fn draft_budget(space: SpaceModel, disk_limit: u64) -> u64 {
    match space {
        SpaceModel::Separate { .. } => disk_limit / 2,
        SpaceModel::Shared => (disk_limit / 8).min(SLED_DRAFTS_MAX),
    }
}

/// Selects abandoned drafts to delete, least recently written first.
///
/// Drafts older than the resume window are selected until `wanted` bytes are freed, and drafts of any age while all
/// together exceed `budget`.
pub(super) fn drafts_to_evict(
    mut abandoned: Vec<DraftUsage>,
    wanted: u64,
    budget: u64,
    now: Timestamp,
) -> Vec<DraftUsage> {
    abandoned.sort_unstable_by_key(|draft| draft.changed);
    let mut total: u64 = abandoned.iter().map(|draft| draft.bytes).sum();
    let mut freed = 0;
    abandoned.retain(|draft| {
        let is_old = now.since(draft.changed) > RESUME_WINDOW;
        let evict = total > budget || (is_old && freed < wanted);
        if evict {
            total -= draft.bytes;
            freed += draft.bytes;
        }
        evict
    });
    abandoned
}

/// Returns the bytes of content to evict, and the limit that requires it; `None` below the high watermark.
pub(super) fn excess(
    space: SpaceModel,
    measured: &Measurement,
    limits: &StoreLimits,
) -> Option<(u64, EvictionReason)> {
    let (disk_limit, reason) = disk_limit(measured, limits);
    let (used, budget) = match space {
        SpaceModel::Separate { .. } => (measured.disk.saturating_add(measured.pending_unwritten), disk_limit),
        SpaceModel::Shared => {
            (measured.content.saturating_add(measured.pending), content_budget(measured, disk_limit))
        }
    };
    let over = if used > percent(budget, HIGH_WATERMARK_PERCENT) {
        used - percent(budget, LOW_WATERMARK_PERCENT)
    } else {
        0
    };
    let bytes = over.max(measured.growth.saturating_mul(2));
    (bytes > 0).then_some((bytes, reason))
}

/// Returns the bytes of content that a sled store limited to `disk_limit` may hold.
pub(super) fn content_budget(measured: &Measurement, disk_limit: u64) -> u64 {
    let drafts = measured.drafts.max(draft_budget(SpaceModel::Shared, disk_limit));
    let room = disk_limit.saturating_sub(drafts).saturating_sub(SLED_FIXED.min(disk_limit / 4));
    scale(room, 100, SLED_OVERHEAD_PERCENT)
}

/// Returns the size of sled's file above which any growth requires eviction.
pub(super) fn file_high_watermark(measured: &Measurement, limits: &StoreLimits) -> u64 {
    let disk_limit = disk_limit(measured, limits).0;
    percent(disk_limit.saturating_sub(draft_budget(SpaceModel::Shared, disk_limit)), HIGH_WATERMARK_PERCENT)
}

/// Returns the store's size on disk at which both limits hold, and the stricter limit.
pub(super) fn disk_limit(measured: &Measurement, limits: &StoreLimits) -> (u64, EvictionReason) {
    let available =
        measured.free.map_or(u64::MAX, |free| (measured.disk + free).saturating_sub(limits.min_free));
    if available < limits.max_size {
        (available, EvictionReason::MinFree)
    } else {
        (limits.max_size, EvictionReason::MaxSize)
    }
}

fn percent(bytes: u64, percent: u64) -> u64 {
    scale(bytes, percent, 100)
}

fn scale(bytes: u64, numerator: u64, denominator: u64) -> u64 {
    let scaled = u128::from(bytes) * u128::from(numerator) / u128::from(denominator);
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Algorithm, Digest};

    const LIMITS: StoreLimits = StoreLimits { max_size: 1000, min_free: 100 };
    const FILES: SpaceModel = SpaceModel::Separate { block_size: 4096 };
    const BASE: Measurement = Measurement {
        disk: 500,
        drafts: 0,
        growth: 0,
        content: 300,
        pending: 0,
        pending_unwritten: 0,
        free: Some(10_000),
    };

    #[test]
    fn file_store_is_limited_by_its_size_on_disk() {
        let with = |disk, pending_unwritten| {
            excess(FILES, &Measurement { disk, pending_unwritten, ..BASE }, &LIMITS)
        };
        assert_eq!(with(950, 0), None);
        assert_eq!(with(951, 0), Some((51, EvictionReason::MaxSize)));
        assert_eq!(with(500, 451), Some((51, EvictionReason::MaxSize)));
        assert_eq!(with(5000, 0), Some((4100, EvictionReason::MaxSize)));
    }

    #[test]
    fn min_free_limits_a_store_on_a_full_disk() {
        let with = |disk, free| excess(FILES, &Measurement { disk, free: Some(free), ..BASE }, &LIMITS);
        assert_eq!(with(500, 600), None);
        // The disk limit is 600.
        assert_eq!(with(590, 110), Some((50, EvictionReason::MinFree)));
        // Another program filled the disk.
        assert_eq!(with(500, 0), Some((140, EvictionReason::MinFree)));
        assert_eq!(with(50, 0), Some((50, EvictionReason::MinFree)));
        let unreported = Measurement { disk: 960, free: None, ..BASE };
        assert_eq!(excess(FILES, &unreported, &LIMITS), Some((60, EvictionReason::MaxSize)));
    }

    #[test]
    fn sled_store_is_limited_by_its_content() {
        const LIMITS: StoreLimits = StoreLimits { max_size: 1216 << 20, min_free: 0 };
        let with = |content: u64, drafts: u64, growth: u64| {
            let measured = Measurement {
                content: content << 20,
                drafts: drafts << 20,
                growth: growth << 20,
                free: None,
                ..BASE
            };
            excess(SpaceModel::Shared, &measured, &LIMITS).map(|(bytes, _)| bytes >> 20)
        };
        // The content budget is 606 MiB of 1000, beside the fixed 64 and the 152 for drafts.
        assert_eq!(with(575, 0, 0), None);
        assert_eq!(with(577, 0, 0), Some(31));
        // Drafts beyond their budget reduce the content budget.
        assert_eq!(with(577, 152, 0), Some(31));
        assert_eq!(with(500, 352, 0), Some(63));
        // A file that grows nevertheless requires more.
        assert_eq!(with(500, 0, 4), Some(8));
        assert_eq!(with(577, 0, 100), Some(200));
    }

    #[test]
    fn abandoned_drafts_are_evicted_oldest_first() {
        const WINDOW: u64 = 10 * 60 * 1000;
        const NOW: u64 = 10 * WINDOW;
        let old = NOW - WINDOW - 1;
        let times = [NOW, old, old - 1, NOW - 1];
        let evicted = |wanted, budget| {
            let draft = |&changed: &u64| DraftUsage {
                digest: Digest::of(Algorithm::Sha256, b"any"),
                bytes: 100,
                changed: Timestamp::from_millis(changed),
            };
            let drafts = times.iter().map(draft).collect();
            let evicted = drafts_to_evict(drafts, wanted, budget, Timestamp::from_millis(NOW));
            evicted.iter().map(|draft| draft.changed.as_millis()).collect::<Vec<_>>()
        };
        assert!(evicted(0, 400).is_empty());
        assert_eq!(evicted(1, 400), [old - 1]);
        assert_eq!(evicted(150, 400), [old - 1, old]);
        // Drafts within the resume window stay while the budget holds.
        assert_eq!(evicted(1000, 400), [old - 1, old]);
        assert_eq!(evicted(0, 350), [old - 1]);
        assert_eq!(evicted(0, 100), [old - 1, old, NOW - 1]);
    }

    #[test]
    fn draft_budget_is_a_part_of_the_disk_limit() {
        assert_eq!(draft_budget(FILES, 1000), 500);
        assert_eq!(draft_budget(SpaceModel::Shared, 256 << 20), 32 << 20);
        assert_eq!(draft_budget(SpaceModel::Shared, 1 << 40), SLED_DRAFTS_MAX);
        // On a disk smaller than `store.max_size` the draft budget follows the disk, so that content has room.
        let limits = StoreLimits { max_size: 20 << 30, min_free: 0 };
        let measured = Measurement { disk: 40 << 20, free: Some(60 << 20), content: 30 << 20, ..BASE };
        assert_eq!(excess(SpaceModel::Shared, &measured, &limits), None);
    }
}
