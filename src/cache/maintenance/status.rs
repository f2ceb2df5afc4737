//! How things stand, for who looks on: fills under way, upstreams, and the store. Asks no upstream, and waits for no fill.

use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::config::schema::BlobStoreKind;
use crate::oci::Digest;
use crate::store::{Draft, StoreError};
use crate::upstream::UpstreamState;

use crate::cache::blob::fills::RunningFill;
use crate::cache::{Cache, CacheError, Shared, blocking};

/// How far a fill is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Fill)]
pub struct FillStatus {
    /// What it brings.
    pub digest: Digest,
    /// For which repository, with its upstream in front.
    pub repository: String,
    /// Bytes that are here.
    pub received: u64,
    /// Bytes in all, once that is known.
    pub total: Option<u64>,
    /// Bytes per second since it began, on average.
    pub rate: u64,
    /// Who reads along.
    pub readers: u64,
    /// When it began, in milliseconds since 1970.
    pub started_at: u64,
    /// Whether it is kept, and not only passed on because the store fails.
    pub kept: bool,
    /// Whether all of it has come and was verified, and it is on its way to where it stays.
    pub settling: bool,
}

/// How the store stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Store)]
pub struct StoreStatus {
    /// Where the bytes of blobs are.
    pub kind: BlobStoreKind,
    /// Since when it fails and clients are served straight from the upstreams, in milliseconds since 1970.
    pub degraded_at: Option<u64>,
    /// Bytes of content: manifests and blobs, without overhead.
    pub content: u64,
    /// Manifests and indexes held.
    pub manifests: u64,
    /// Blobs held.
    pub blobs: u64,
    /// Bytes of blobs that no manifest held needs.
    pub reclaimable: u64,
    /// When the content was last asked for that was not asked for longest, in milliseconds since 1970.
    pub oldest_access: Option<u64>,
    /// What it may take on disk.
    pub max_size: u64,
    /// What stays free on its disk.
    pub min_free: u64,
    /// What it takes; none if it cannot be measured.
    pub disk: Option<DiskUsage>,
}

/// What the store takes of its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Disk)]
pub struct DiskUsage {
    /// Bytes that it takes, of content and of the database's own.
    pub taken: u64,
    /// Of that, what has not been verified yet.
    pub drafts: u64,
    /// Bytes that are free on the disk, if the system tells.
    pub free: Option<u64>,
}

impl Cache {
    /// The fills under way, oldest first.
    pub fn fills(&self) -> Vec<FillStatus> {
        let now = self.0.clock.now_millis();
        let mut under_way = self.0.fills.running();
        under_way.sort_by_key(|fill| fill.since);
        under_way.into_iter().map(|fill| fill_status(fill, now)).collect()
    }

    /// How the upstreams stand, by name.
    pub fn upstreams(&self) -> Vec<UpstreamState> {
        self.0.rules().upstreams.states()
    }

    /// How the store stands. Touches the disk.
    pub async fn store_status(&self) -> Result<StoreStatus, CacheError> {
        let shared = Arc::clone(&self.0);
        blocking(move || Ok(store_status(&shared))).await
    }
}

fn fill_status(RunningFill { digest, repository, since, draft }: RunningFill, now: u64) -> FillStatus {
    let elapsed = Instant::now().saturating_duration_since(since);
    let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    let draft: Option<&Draft> = draft.as_deref();
    let progress = draft.map(Draft::progress);
    let received = progress.map_or(0, |progress| progress.received);
    let came = received.saturating_sub(draft.map_or(0, Draft::left));
    FillStatus {
        digest,
        repository: repository.to_string(),
        received,
        total: progress.and_then(|progress| progress.total),
        rate: came.saturating_mul(1000) / millis.max(1),
        readers: draft.map_or(0, |draft| draft.followers() as u64),
        started_at: now.saturating_sub(millis),
        kept: draft.is_none_or(Draft::is_kept),
        settling: progress.is_some_and(|progress| progress.end.is_some()),
    }
}

fn store_status(shared: &Shared) -> StoreStatus {
    let Shared { store, eviction, .. } = shared;
    let (census, stats, limits) = (store.counts(), eviction.stats(), eviction.limits());
    let measured = || {
        let (taken, drafts) = (store.size_on_disk()?, store.size_of_drafts()?);
        Ok::<_, StoreError>(DiskUsage { taken, drafts, free: store.free_on_disk().ok() })
    };
    StoreStatus {
        kind: eviction.kind(),
        degraded_at: shared.store_health.degraded_for(shared.clock.instant()).map(|time| {
            let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            shared.clock.now_millis().saturating_sub(millis)
        }),
        content: census.content,
        manifests: census.manifests,
        blobs: census.blobs,
        reclaimable: stats.loose,
        oldest_access: stats.oldest,
        max_size: limits.max_size,
        min_free: limits.min_free,
        disk: measured().ok(),
    }
}
