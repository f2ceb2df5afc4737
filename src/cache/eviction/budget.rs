//! How much has to go, and why: pure arithmetic over what was measured.

use crate::config::schema::{BlobStore, Store};

/// Bytes that sled's file takes per live byte while content comes and goes, and beside that: measured, see
/// CONTRIBUTING.md. sled gives little of its file back but writes into what became free, so what is bounded is what lives
/// in it; where the file grows towards its bound all the same, more of that has to go.
const SLED_OVERHEAD_PERCENT: u64 = 165;
const SLED_FIXED: u64 = 64 << 20;
/// Marks, as shares of what may be taken: eviction begins above the first and ends at the second.
const HIGH_PERCENT: u64 = 95;
const LOW_PERCENT: u64 = 90;

/// What the operator set, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cache) struct Limits {
    /// What the store may take on disk.
    pub(in crate::cache) max_size: u64,
    /// What stays free on its disk.
    pub(in crate::cache) min_free: u64,
}

impl Limits {
    pub(super) fn of(options: &Store) -> Self {
        Self { max_size: options.max_size.as_u64(), min_free: options.min_free.as_u64() }
    }
}

/// How things are, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Measured {
    /// What the store takes on disk, drafts included.
    pub(super) disk: u64,
    /// Of that, drafts.
    pub(super) drafts: u64,
    /// By how much sled's file has grown, beyond the high mark, since this was last asked.
    pub(super) grown: u64,
    /// Content: manifests and blobs, without overhead.
    pub(super) content: u64,
    /// What running fills make content of in the end.
    pub(super) coming: u64,
    /// Of that, what is not on the disk yet.
    pub(super) left: u64,
    /// What is free on the disk; `None` if the system does not tell.
    pub(super) free: Option<u64>,
}

/// Why something goes: the label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// `store.max_size`.
    MaxSize,
    /// `store.min_free`.
    MinFree,
}

impl Reason {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::MaxSize => "max_size",
            Self::MinFree => "min_free",
        }
    }
}

/// How many bytes of content must go; `None` if there is room enough.
pub(super) fn excess(kind: BlobStore, found: &Measured, limits: &Limits) -> Option<(u64, Reason)> {
    let (ceiling, reason) = ceiling(found, limits);
    let (taken, may) = match kind {
        BlobStore::Files => (found.disk.saturating_add(found.left), ceiling),
        BlobStore::Sled => {
            let room = ceiling.saturating_sub(found.drafts).saturating_sub(SLED_FIXED.min(ceiling / 4));
            (found.content.saturating_add(found.coming), share(room, 100, SLED_OVERHEAD_PERCENT))
        }
    };
    let over = if taken > share(may, HIGH_PERCENT, 100) { taken - share(may, LOW_PERCENT, 100) } else { 0 };
    let bytes = over.max(found.grown.saturating_mul(2));
    (bytes > 0).then_some((bytes, reason))
}

/// Above what the file of a store of pages must not grow without something going.
pub(super) fn high_mark(found: &Measured, limits: &Limits) -> u64 {
    share(ceiling(found, limits).0, HIGH_PERCENT, 100)
}

/// What the store may take, so that its disk keeps its free room too, and which of the two limits that is.
fn ceiling(found: &Measured, limits: &Limits) -> (u64, Reason) {
    let beside = found.free.map_or(u64::MAX, |free| (found.disk + free).saturating_sub(limits.min_free));
    if beside < limits.max_size { (beside, Reason::MinFree) } else { (limits.max_size, Reason::MaxSize) }
}

fn share(bytes: u64, part: u64, of: u64) -> u64 {
    u64::try_from(u128::from(bytes) * u128::from(part) / u128::from(of)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { max_size: 1000, min_free: 100 };
    const CALM: Measured =
        Measured { disk: 500, drafts: 0, grown: 0, content: 300, coming: 0, left: 0, free: Some(10_000) };

    #[test]
    fn files_are_held_to_what_they_take() {
        let with = |disk, left| excess(BlobStore::Files, &Measured { disk, left, ..CALM }, &LIMITS);
        assert_eq!(with(950, 0), None);
        assert_eq!(with(951, 0), Some((51, Reason::MaxSize)));
        assert_eq!(with(500, 451), Some((51, Reason::MaxSize)));
        assert_eq!(with(5000, 0), Some((4100, Reason::MaxSize)));
    }

    #[test]
    fn the_disk_keeps_its_free_room() {
        let with =
            |disk, free| excess(BlobStore::Files, &Measured { disk, free: Some(free), ..CALM }, &LIMITS);
        assert_eq!(with(500, 600), None);
        // 600 may be taken at most.
        assert_eq!(with(590, 110), Some((50, Reason::MinFree)));
        // Somebody else filled the disk.
        assert_eq!(with(500, 0), Some((140, Reason::MinFree)));
        assert_eq!(with(50, 0), Some((50, Reason::MinFree)));
        let untold = Measured { disk: 960, free: None, ..CALM };
        assert_eq!(excess(BlobStore::Files, &untold, &LIMITS), Some((60, Reason::MaxSize)));
    }

    #[test]
    fn what_lives_in_sled_is_held_to_a_part_of_its_file() {
        const LIMITS: Limits = Limits { max_size: 1064 << 20, min_free: 0 };
        let with = |content: u64, drafts: u64, grown: u64| {
            let found = Measured {
                content: content << 20,
                drafts: drafts << 20,
                grown: grown << 20,
                free: None,
                ..CALM
            };
            excess(BlobStore::Sled, &found, &LIMITS).map(|(bytes, _)| bytes >> 20)
        };
        // 606 MiB may live in 1000.
        assert_eq!(with(575, 0, 0), None);
        assert_eq!(with(577, 0, 0), Some(31));
        // Drafts take from what is there.
        assert_eq!(with(500, 200, 0), Some(63));
        // A file that grows all the same calls for more.
        assert_eq!(with(500, 0, 4), Some(8));
        assert_eq!(with(577, 0, 100), Some(200));
    }
}
