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
/// Upper bound of the verified drafts that wait for their copy into sled. With a larger one, downloads would queue for a
/// disk that is slower than the network.
const SLED_BACKLOG_MAX: u64 = 2 << 30;
/// Upper bound of the number of complete drafts that wait to be hashed, synchronised or copied. Each one needs some KiB of
/// memory, so that without it small blobs and a slow disk would need memory without end.
pub(super) const BACKLOG_DRAFTS_MAX: u64 = 4096;
/// Shares of the disk limit that unverified bytes may take, in percent. A file store evicts content for them from its low
/// watermark of 90 %. So at least 27.5 % of the limit stays cached whatever arrives, and 52.5 % if one repository sends
/// all of it. One fill may take the share of its repository, which is enough for a large layer in a full cache.
const REPOSITORY_SHARE_PERCENT: u64 = 37;
const UPSTREAM_SHARE_PERCENT: u64 = 50;
const TOTAL_SHARE_PERCENT: u64 = 62;
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
    /// Part of `drafts` that is not on disk yet.
    pub(super) unwritten: u64,
    /// Growth of sled's file above the high watermark since the previous measurement.
    pub(super) growth: u64,
    /// Content: manifests and blobs, without overhead.
    pub(super) content: u64,
    /// Content that verified drafts will add.
    pub(super) verified: u64,
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

/// Parts of the store that the unverified bytes of running fills may take, in bytes. Beyond a share, a download is passed
/// through and not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DraftShares {
    /// All fills together.
    pub(super) total: u64,
    /// All fills of one upstream.
    pub(super) upstream: u64,
    /// All fills of one repository.
    pub(super) repository: u64,
}

impl DraftShares {
    #[cfg(test)]
    pub(super) const UNLIMITED: Self = Self { total: u64::MAX, upstream: u64::MAX, repository: u64::MAX };

    /// Returns the shares of a store that is limited to `disk_limit`.
    pub(super) fn of(disk_limit: u64) -> Self {
        Self {
            total: percent(disk_limit, TOTAL_SHARE_PERCENT),
            upstream: percent(disk_limit, UPSTREAM_SHARE_PERCENT),
            repository: percent(disk_limit, REPOSITORY_SHARE_PERCENT),
        }
    }

    /// Returns the bytes that abandoned drafts may take beside `running` bytes of fills.
    pub(super) fn abandoned(&self, running: u64) -> u64 {
        self.repository.min(self.total.saturating_sub(running))
    }
}

/// Returns the bytes of verified drafts that may wait for their copy into sled. Beyond it, further downloads are served and
/// not stored. Draft files of a file store become content without a copy.
pub(super) fn backlog_max(space: SpaceModel, disk_limit: u64) -> u64 {
    match space {
        SpaceModel::Separate { .. } => u64::MAX,
        SpaceModel::Shared => (disk_limit / 8).min(SLED_BACKLOG_MAX),
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
    let mut total = abandoned.iter().fold(0_u64, |sum, draft| sum.saturating_add(draft.bytes));
    let mut freed = 0_u64;
    abandoned.retain(|draft| {
        let is_old = now.since(draft.changed) > RESUME_WINDOW;
        let evict = total > budget || (is_old && freed < wanted);
        if evict {
            total = total.saturating_sub(draft.bytes);
            freed = freed.saturating_add(draft.bytes);
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
        SpaceModel::Separate { .. } => (measured.disk, disk_limit),
        SpaceModel::Shared => {
            (measured.content.saturating_add(measured.verified), content_budget(measured, disk_limit))
        }
    };
    let over = if is_above_high(used, budget) { used - percent(budget, LOW_WATERMARK_PERCENT) } else { 0 };
    let bytes = over.max(measured.growth.saturating_mul(2));
    (bytes > 0).then_some((bytes, reason))
}

/// Returns true if `used` bytes are above the high watermark of a limit.
pub(super) fn is_above_high(used: u64, limit: u64) -> bool {
    used > percent(limit, HIGH_WATERMARK_PERCENT)
}

/// Returns the bytes of content that a sled store limited to `disk_limit` may hold.
pub(super) fn content_budget(measured: &Measurement, disk_limit: u64) -> u64 {
    let drafts = measured.drafts.max(backlog_max(SpaceModel::Shared, disk_limit));
    let room = disk_limit.saturating_sub(drafts).saturating_sub(SLED_FIXED.min(disk_limit / 4));
    scale(room, 100, SLED_OVERHEAD_PERCENT)
}

/// Returns the size of sled's file above which any growth requires eviction.
pub(super) fn file_high_watermark(measured: &Measurement, limits: &StoreLimits) -> u64 {
    let disk_limit = disk_limit(measured, limits).0;
    percent(disk_limit.saturating_sub(backlog_max(SpaceModel::Shared, disk_limit)), HIGH_WATERMARK_PERCENT)
}

/// Returns the store's size on disk at which both limits hold, and the stricter limit.
pub(super) fn disk_limit(measured: &Measurement, limits: &StoreLimits) -> (u64, EvictionReason) {
    let available = available(measured, limits);
    if available < limits.max_size {
        (available, EvictionReason::MinFree)
    } else {
        (limits.max_size, EvictionReason::MaxSize)
    }
}

/// Returns the size, content and drafts together, above which arriving bytes are not written.
///
/// sled keeps the space of evicted content in its file and reuses it, so its file may be near `max_size` always. There,
/// `max_size` limits the content, and drafts may exceed it by their share for the time of the downloads.
pub(super) fn storable(space: SpaceModel, measured: &Measurement, limits: &StoreLimits) -> u64 {
    match space {
        SpaceModel::Separate { .. } => disk_limit(measured, limits).0,
        SpaceModel::Shared => available(measured, limits),
    }
}

/// Returns the store's size on disk at which `min_free` holds.
fn available(measured: &Measurement, limits: &StoreLimits) -> u64 {
    let Some(free) = measured.free else { return u64::MAX };
    let on_disk = measured.disk.saturating_sub(measured.unwritten);
    on_disk.saturating_add(free).saturating_sub(limits.min_free)
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
    use crate::store::DraftKey;

    const LIMITS: StoreLimits = StoreLimits { max_size: 1000, min_free: 100 };
    const FILES: SpaceModel = SpaceModel::Separate { block_size: 4096 };
    const BASE: Measurement = Measurement {
        disk: 500,
        drafts: 0,
        growth: 0,
        content: 300,
        verified: 0,
        unwritten: 0,
        free: Some(10_000),
    };

    #[test]
    fn file_store_is_limited_by_its_size_on_disk() {
        let with = |disk| excess(FILES, &Measurement { disk, ..BASE }, &LIMITS);
        assert_eq!(with(950), None);
        assert_eq!(with(951), Some((51, EvictionReason::MaxSize)));
        assert_eq!(with(5000), Some((4100, EvictionReason::MaxSize)));
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
                key: DraftKey::unowned(&Digest::of(Algorithm::Sha256, b"any")),
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
    fn verified_drafts_of_sled_may_wait_in_a_part_of_the_disk_limit() {
        assert_eq!(backlog_max(FILES, 1000), u64::MAX);
        assert_eq!(backlog_max(SpaceModel::Shared, 256 << 20), 32 << 20);
        assert_eq!(backlog_max(SpaceModel::Shared, 1 << 40), SLED_BACKLOG_MAX);
        // On a disk smaller than `store.max_size` the backlog follows the disk, so that content has room.
        let limits = StoreLimits { max_size: 20 << 30, min_free: 0 };
        let measured = Measurement { disk: 40 << 20, free: Some(60 << 20), content: 30 << 20, ..BASE };
        assert_eq!(excess(SpaceModel::Shared, &measured, &limits), None);
    }

    #[test]
    fn unverified_bytes_leave_a_part_of_the_cached_content() {
        let shares = DraftShares::of(1000);
        assert_eq!(shares, DraftShares { total: 620, upstream: 500, repository: 370 });
        // Content stays at the low watermark of 900 less the drafts.
        for (drafts, content) in [(shares.total, 280), (shares.upstream, 400), (shares.repository, 530)] {
            let disk = drafts + content;
            assert_eq!(excess(FILES, &Measurement { disk, drafts, ..BASE }, &LIMITS), None);
        }
        assert_eq!((shares.abandoned(0), shares.abandoned(400), shares.abandoned(700)), (370, 220, 0));
    }

    #[test]
    fn arriving_bytes_are_written_while_both_limits_hold() {
        let at = |space, disk, unwritten, free| {
            storable(space, &Measurement { disk, unwritten, free: Some(free), ..BASE }, &LIMITS)
        };
        assert_eq!(at(FILES, 500, 0, 10_000), 1000);
        assert_eq!(at(FILES, 500, 0, 300), 700);
        // Bytes that are not written yet still are in the free space.
        assert_eq!(at(FILES, 550, 50, 300), 700);
        assert_eq!(at(SpaceModel::Shared, 990, 0, 300), 1190);
        assert_eq!(at(FILES, 500, 0, 0), 400);
        assert_eq!(storable(SpaceModel::Shared, &Measurement { free: None, ..BASE }, &LIMITS), u64::MAX);
    }

    /// Property: extreme values never overflow, and nothing is evicted for bytes that have not arrived.
    #[test]
    fn extreme_values_do_not_overflow() {
        const EXTREMES: [u64; 6] = [0, 1, 1 << 20, u64::MAX / 2, u64::MAX - 1, u64::MAX];
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..20_000 {
            let mut any = || EXTREMES[random.usize(..EXTREMES.len())];
            let (drafts, free) = (any(), any());
            let measured = Measurement {
                disk: any().max(drafts),
                drafts,
                unwritten: any().min(drafts),
                growth: 0,
                content: any(),
                verified: any().min(drafts),
                free: Some(free),
            };
            let limits = StoreLimits { max_size: any(), min_free: any() };
            let (limit, reason) = disk_limit(&measured, &limits);
            assert!(limit <= limits.max_size);
            assert_eq!(reason == EvictionReason::MinFree, limit < limits.max_size);
            let shares = DraftShares::of(limit);
            assert!(shares.repository <= shares.upstream && shares.upstream <= shares.total);
            assert!(shares.total <= limit && shares.abandoned(drafts) <= shares.total);
            for space in [FILES, SpaceModel::Shared] {
                let used = match space {
                    SpaceModel::Separate { .. } => measured.disk,
                    SpaceModel::Shared => measured.content.saturating_add(measured.verified),
                };
                assert!(excess(space, &measured, &limits).is_none_or(|(bytes, _)| bytes <= used));
                // The free space never becomes smaller than `min_free` by what may be written.
                let written = storable(space, &measured, &limits).saturating_sub(measured.disk);
                let left = free.saturating_sub(measured.unwritten).saturating_sub(written);
                assert!(written == 0 || left >= limits.min_free, "{measured:?} {limits:?}");
            }
        }
    }
}
