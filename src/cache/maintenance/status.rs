//! Status of running fills and of the store, for status pages and the command line. Contacts no upstream.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::cache::fills::RunningFill;
use crate::cache::storage::Storage;
use crate::clock::{self, Timestamp};
use crate::config::schema::BlobStoreKind;
use crate::oci::Digest;
use crate::store::{Draft, StoreSession};

/// Progress of a fill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Fill)]
pub struct FillStatus {
    /// Digest of the blob.
    pub digest: Digest,
    /// Repository that started the fill, with its upstream in front.
    pub repository: String,
    /// Bytes of the blob that have arrived, also by an earlier fill.
    pub received: u64,
    /// Size of the blob, once it is known.
    pub total: Option<u64>,
    /// Average download rate, in bytes per second.
    pub rate: u64,
    /// Number of clients that read the draft.
    pub readers: u64,
    /// Start of the fill.
    pub started_at: Timestamp,
    /// True if the blob is being stored, false if it is only passed on.
    pub kept: bool,
    /// True if the draft is verified and waits to be committed.
    pub settling: bool,
}

/// Status of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Store)]
pub struct StoreStatus {
    /// Kind of the blob store.
    pub kind: BlobStoreKind,
    /// Start of degraded mode; `None` if the store works.
    pub degraded_at: Option<Timestamp>,
    /// Bytes of content: manifests and blobs, without overhead.
    pub content: u64,
    /// Number of manifests and indexes.
    pub manifests: u64,
    /// Number of blobs.
    pub blobs: u64,
    /// Bytes of blobs that no cached manifest needs.
    pub reclaimable: u64,
    /// Last access of the least recently used content.
    pub oldest_access: Option<Timestamp>,
    /// Limit of the size on disk.
    pub max_size: u64,
    /// Space to keep free on the disk.
    pub min_free: u64,
    /// Sizes on disk; `None` if they cannot be measured.
    pub disk: Option<DiskStatus>,
}

/// Sizes of the store on its disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Disk)]
pub struct DiskStatus {
    /// Size of the store: content, database overhead and drafts.
    pub taken: u64,
    /// Part of `taken` that is not verified yet.
    pub drafts: u64,
    /// Free space on the disk; `None` if the system does not report it.
    pub free: Option<u64>,
}

/// Returns the status of a fill.
pub(in crate::cache) fn fill_status(fill: RunningFill, now: Timestamp) -> FillStatus {
    let RunningFill { digest, repository, since, draft } = fill;
    let elapsed = Instant::now().saturating_duration_since(since);
    let draft: Option<&Draft> = draft.as_deref();
    let progress = draft.map(Draft::progress);
    let received = progress.map_or(0, |progress| progress.received);
    let downloaded = received.saturating_sub(draft.map_or(0, Draft::left));
    FillStatus {
        digest,
        repository: repository.to_string(),
        received,
        total: progress.and_then(|progress| progress.total),
        rate: downloaded.saturating_mul(1000) / clock::millis(elapsed).max(1),
        readers: draft.map_or(0, |draft| draft.clients() as u64),
        started_at: now.minus(elapsed),
        kept: draft.is_none_or(Draft::is_kept),
        settling: progress.is_some_and(|progress| progress.end.is_some()),
    }
}

/// Returns the status of the store. Blocks.
pub(in crate::cache) fn store_status(storage: &Storage, session: &StoreSession) -> StoreStatus {
    let Storage { store, content, capacity, store_health, clock, .. } = storage;
    let (counts, stats, limits) = (store.counts(), content.stats(), capacity.limits());
    let usage = session.usage().ok();
    let disk = usage.map(|it| DiskStatus { taken: it.total, drafts: it.draft_bytes(), free: it.free });
    let degraded_for = store_health.degraded_for(clock.instant());
    StoreStatus {
        kind: store.kind(),
        degraded_at: degraded_for.map(|time| clock.now().minus(time)),
        content: counts.content,
        manifests: counts.manifests,
        blobs: counts.blobs,
        reclaimable: stats.unneeded_bytes,
        oldest_access: stats.oldest_access,
        max_size: limits.max_size,
        min_free: limits.min_free,
        disk,
    }
}
