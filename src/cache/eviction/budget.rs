//! How much has to go, and why: pure arithmetic over what was measured.

use crate::config::schema::{BlobStoreKind, Store};
use crate::store::DraftUsage;

/// Bytes that sled's file takes per live byte while content comes and goes, and beside that: measured, see
/// CONTRIBUTING.md. sled gives little of its file back but writes into what became free, so what is bounded is what lives
/// in it; where the file grows towards its bound all the same, more of that has to go.
const SLED_OVERHEAD_PERCENT: u64 = 165;
const SLED_FIXED: u64 = 64 << 20;
/// What drafts may take beside a store of pages, where they wait to be copied and are held twice for a moment: a part of
/// `store.max_size`, and no more than this. More would be clients' downloads queueing for a disk that is slower than their
/// network.
const SLED_DRAFTS: u64 = 2 << 30;
/// Marks, as shares of what may be taken: eviction begins above the first and ends at the second.
const HIGH_PERCENT: u64 = 95;
const LOW_PERCENT: u64 = 90;

/// For how long a draft that nobody fills is kept before content: clients come back to what a restart interrupted. In
/// milliseconds.
const GONE_ON_WITH: u64 = 10 * 60 * 1000;

/// What the operator set, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cache) struct StoreLimits {
    /// What the store may take on disk.
    pub(in crate::cache) max_size: u64,
    /// What stays free on its disk.
    pub(in crate::cache) min_free: u64,
}

impl StoreLimits {
    pub(super) fn of(options: &Store) -> Self {
        Self { max_size: options.max_size.as_u64(), min_free: options.min_free.as_u64() }
    }
}

/// How things are, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Measurement {
    /// What the store takes on disk, drafts included.
    pub(super) disk: u64,
    /// Of that, drafts.
    pub(super) drafts: u64,
    /// By how much sled's file has growth, beyond the high mark, since this was last asked.
    pub(super) growth: u64,
    /// Content: manifests and blobs, without overhead.
    pub(super) content: u64,
    /// What running fills make content of in the end.
    pub(super) pending: u64,
    /// Of that, what is not on the disk yet.
    pub(super) pending_unwritten: u64,
    /// What is free on the disk; `None` if the system does not tell.
    pub(super) free: Option<u64>,
}

/// Why something goes: the label of a metric.
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

/// How much of what a store may take its drafts may, before what else comes is served and not kept. Files become content
/// as they are, and only have to find room.
pub(super) fn draft_budget(kind: BlobStoreKind, ceiling: u64) -> u64 {
    match kind {
        BlobStoreKind::Files => ceiling / 2,
        BlobStoreKind::Sled => (ceiling / 8).min(SLED_DRAFTS),
    }
}

/// Of drafts that nobody fills any more, those that must go, in that order: what was added to longest ago first. Some go
/// for `wanted` bytes of room, unless something was added to them lately, and any while all of them take more than `most`.
pub(super) fn drafts_to_evict(
    mut left: Vec<DraftUsage>,
    wanted: u64,
    most: u64,
    now: u64,
) -> Vec<DraftUsage> {
    left.sort_unstable_by_key(|draft| draft.changed);
    let mut all: u64 = left.iter().map(|draft| draft.bytes).sum();
    let mut freed = 0;
    left.retain(|draft| {
        let old = now.saturating_sub(draft.changed) > GONE_ON_WITH;
        let goes = all > most || (old && freed < wanted);
        if goes {
            all -= draft.bytes;
            freed += draft.bytes;
        }
        goes
    });
    left
}

/// How many bytes of content must go; `None` if there is room enough.
pub(super) fn excess(
    kind: BlobStoreKind,
    found: &Measurement,
    limits: &StoreLimits,
) -> Option<(u64, EvictionReason)> {
    let (ceiling, reason) = ceiling(found, limits);
    let (taken, may) = match kind {
        BlobStoreKind::Files => (found.disk.saturating_add(found.pending_unwritten), ceiling),
        BlobStoreKind::Sled => (found.content.saturating_add(found.pending), content_budget(found, ceiling)),
    };
    let over = if taken > share(may, HIGH_PERCENT, 100) { taken - share(may, LOW_PERCENT, 100) } else { 0 };
    let bytes = over.max(found.growth.saturating_mul(2));
    (bytes > 0).then_some((bytes, reason))
}

/// How much content a store of pages may hold that may take `ceiling` on disk.
pub(super) fn content_budget(found: &Measurement, ceiling: u64) -> u64 {
    let drafts = found.drafts.max(draft_budget(BlobStoreKind::Sled, ceiling));
    let room = ceiling.saturating_sub(drafts).saturating_sub(SLED_FIXED.min(ceiling / 4));
    share(room, 100, SLED_OVERHEAD_PERCENT)
}

/// Above what the file of a store of pages must not grow without something going.
pub(super) fn file_high_watermark(found: &Measurement, limits: &StoreLimits) -> u64 {
    let ceiling = ceiling(found, limits).0;
    share(ceiling.saturating_sub(draft_budget(BlobStoreKind::Sled, ceiling)), HIGH_PERCENT, 100)
}

/// What the store may take, so that its disk keeps its free room too, and which of the two limits that is.
pub(super) fn ceiling(found: &Measurement, limits: &StoreLimits) -> (u64, EvictionReason) {
    let beside = found.free.map_or(u64::MAX, |free| (found.disk + free).saturating_sub(limits.min_free));
    if beside < limits.max_size {
        (beside, EvictionReason::MinFree)
    } else {
        (limits.max_size, EvictionReason::MaxSize)
    }
}

fn share(bytes: u64, part: u64, of: u64) -> u64 {
    u64::try_from(u128::from(bytes) * u128::from(part) / u128::from(of)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Algorithm, Digest};

    const LIMITS: StoreLimits = StoreLimits { max_size: 1000, min_free: 100 };
    const CALM: Measurement = Measurement {
        disk: 500,
        drafts: 0,
        growth: 0,
        content: 300,
        pending: 0,
        pending_unwritten: 0,
        free: Some(10_000),
    };

    #[test]
    fn files_are_held_to_what_they_take() {
        let with = |disk, pending_unwritten| {
            excess(BlobStoreKind::Files, &Measurement { disk, pending_unwritten, ..CALM }, &LIMITS)
        };
        assert_eq!(with(950, 0), None);
        assert_eq!(with(951, 0), Some((51, EvictionReason::MaxSize)));
        assert_eq!(with(500, 451), Some((51, EvictionReason::MaxSize)));
        assert_eq!(with(5000, 0), Some((4100, EvictionReason::MaxSize)));
    }

    #[test]
    fn the_disk_keeps_its_free_room() {
        let with = |disk, free| {
            excess(BlobStoreKind::Files, &Measurement { disk, free: Some(free), ..CALM }, &LIMITS)
        };
        assert_eq!(with(500, 600), None);
        // 600 may be taken at most.
        assert_eq!(with(590, 110), Some((50, EvictionReason::MinFree)));
        // Somebody else filled the disk.
        assert_eq!(with(500, 0), Some((140, EvictionReason::MinFree)));
        assert_eq!(with(50, 0), Some((50, EvictionReason::MinFree)));
        let untold = Measurement { disk: 960, free: None, ..CALM };
        assert_eq!(excess(BlobStoreKind::Files, &untold, &LIMITS), Some((60, EvictionReason::MaxSize)));
    }

    #[test]
    fn what_lives_in_sled_is_held_to_a_part_of_its_file() {
        const LIMITS: StoreLimits = StoreLimits { max_size: 1216 << 20, min_free: 0 };
        let with = |content: u64, drafts: u64, growth: u64| {
            let found = Measurement {
                content: content << 20,
                drafts: drafts << 20,
                growth: growth << 20,
                free: None,
                ..CALM
            };
            excess(BlobStoreKind::Sled, &found, &LIMITS).map(|(bytes, _)| bytes >> 20)
        };
        // 606 MiB may live in 1000, beside the tree's 64 and 152 for drafts.
        assert_eq!(with(575, 0, 0), None);
        assert_eq!(with(577, 0, 0), Some(31));
        // More drafts take from what is there.
        assert_eq!(with(577, 152, 0), Some(31));
        assert_eq!(with(500, 352, 0), Some(63));
        // A file that grows all the same calls for more.
        assert_eq!(with(500, 0, 4), Some(8));
        assert_eq!(with(577, 0, 100), Some(200));
    }

    #[test]
    fn drafts_that_nobody_fills_go_before_content_and_the_oldest_first() {
        const NOW: u64 = 10 * GONE_ON_WITH;
        let old = NOW - GONE_ON_WITH - 1;
        let times = [NOW, old, old - 1, NOW - 1];
        let go = |wanted, most| {
            let draft = |&changed: &u64| DraftUsage {
                digest: Digest::of(Algorithm::Sha256, b"any"),
                bytes: 100,
                changed,
            };
            let go = drafts_to_evict(times.iter().map(draft).collect(), wanted, most, NOW);
            go.iter().map(|draft| draft.changed).collect::<Vec<_>>()
        };
        assert!(go(0, 400).is_empty());
        assert_eq!(go(1, 400), [old - 1]);
        assert_eq!(go(150, 400), [old - 1, old]);
        // What clients may come back to stays, unless it is too much of it.
        assert_eq!(go(1000, 400), [old - 1, old]);
        assert_eq!(go(0, 350), [old - 1]);
        assert_eq!(go(0, 100), [old - 1, old, NOW - 1]);
    }

    #[test]
    fn drafts_may_take_a_part() {
        assert_eq!(draft_budget(BlobStoreKind::Files, 1000), 500);
        assert_eq!(draft_budget(BlobStoreKind::Sled, 256 << 20), 32 << 20);
        assert_eq!(draft_budget(BlobStoreKind::Sled, 1 << 40), SLED_DRAFTS);
        // On a disk that is smaller than `store.max_size` it is a part of that disk, and content has room.
        let limits = StoreLimits { max_size: 20 << 30, min_free: 0 };
        let found = Measurement { disk: 40 << 20, free: Some(60 << 20), content: 30 << 20, ..CALM };
        assert_eq!(excess(BlobStoreKind::Sled, &found, &limits), None);
    }
}
