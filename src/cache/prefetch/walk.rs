//! Every index child: what an index points at is fetched before anybody asks for it.
//!
//! For chosen platforms their blobs follow. The walk is bounded in depth, count and bytes, and a digest is visited
//! once, so that no index, however made, costs more than its bounds.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};

use crate::oci::media::ManifestKind;
use crate::oci::{Descriptor, Digest, Manifest, Repository};
use crate::store::Change;
use crate::telemetry::Metrics;

use crate::cache::Cache;
use crate::cache::core::Shared;
use crate::cache::error::CacheError;
use crate::cache::manifest::by_digest::{fetch, stored};
use crate::cache::memory::CachedManifest;
use crate::cache::prefetch::quota_wait;

/// Nested indexes below the one that was asked for.
const DEPTH_MAX: u32 = 4;
/// Children of one walk.
const COUNT_MAX: usize = 1024;
/// Bytes of manifests that one walk may bring in.
const BYTES_MAX: u64 = 64 << 20;
/// Below which index, in which repository.
pub(in crate::cache) type PrefetchRoot = (Repository, Digest);

/// How a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cache) enum PrefetchEnd {
    /// Everything within the bounds is there, or is nowhere.
    Complete,
    /// Something came that is not kept; it may come right another time.
    Flawed,
    /// The upstream was in trouble; this many children were still waiting.
    Deferred {
        /// Children not yet there.
        waiting: usize,
    },
}

/// Fetches what is missing below an index. Noted in the store as soon as there is something to fetch.
pub(in crate::cache) async fn walk(
    shared: &Arc<Shared>,
    root: &PrefetchRoot,
    index: &CachedManifest,
) -> PrefetchEnd {
    let repository = &root.0;
    let mut seen = HashSet::from([index.digest]);
    let mut queue = VecDeque::new();
    let mut waiting = Waiting::new(&shared.metrics);
    let (mut bytes, mut noted, mut end) = (0, false, PrefetchEnd::Complete);
    push_children(&mut queue, &mut seen, index, 1);
    while let Some((child, depth)) = queue.pop_front() {
        if bytes > BYTES_MAX {
            tracing::warn!(%repository, index = %index.digest, "the index's children exceed {BYTES_MAX} bytes; the rest waits to be asked for");
            break;
        }
        let left = queue.len() + 1;
        waiting.set(left, false);
        match obtain(shared, root, &child, &mut noted, || waiting.set(left, true)).await {
            Ok(document) => {
                waiting.set(left, false);
                bytes += document.body.len() as u64;
                if child.platform.as_deref().is_some_and(|platform| is_wanted(shared, platform)) {
                    match blobs_of(shared, repository, &document).await {
                        PrefetchEnd::Complete => {}
                        PrefetchEnd::Flawed => end = PrefetchEnd::Flawed,
                        PrefetchEnd::Deferred { .. } => return PrefetchEnd::Deferred { waiting: left },
                    }
                }
                if depth < DEPTH_MAX && document.media_type.kind() == Some(ManifestKind::Index) {
                    push_children(&mut queue, &mut seen, &document, depth + 1);
                }
            }
            // The upstream does not have it: that is the index's own affair.
            Err(error @ CacheError::NotFound) => {
                tracing::info!(%repository, child = %child.digest, %error, "a child of an index is not there");
            }
            // What came is not kept; the next time it may be right.
            Err(error @ (CacheError::Invalid(_) | CacheError::Mismatch(_))) => {
                tracing::info!(%repository, child = %child.digest, %error, "a child of an index came wrong");
                end = PrefetchEnd::Flawed;
            }
            Err(error) => {
                tracing::info!(%repository, index = %index.digest, child = %child.digest, %error, "the index's children are left for later");
                return PrefetchEnd::Deferred { waiting: left };
            }
        }
    }
    end
}

/// Notes in the store that the walk has something to fetch.
async fn note(shared: &Shared, root: &PrefetchRoot) {
    let (repository, digest) = root.clone();
    let change = Change::EnqueuePrefetch(repository, digest);
    if let Err(error) = shared.with_store(move |store| store.apply(&[change])).await {
        shared.report_error("a walk below an index could not be noted; a restart would forget it", &error);
    }
}

/// Shows how many children a walk has still to fetch, as waiting for their turn or as deferred.
struct Waiting<'a> {
    metrics: &'a Metrics,
    count: usize,
    deferred: bool,
}

impl<'a> Waiting<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        Self { metrics, count: 0, deferred: false }
    }

    fn set(&mut self, count: usize, deferred: bool) {
        if self.deferred {
            self.metrics.children_deferred(self.count, 0);
        } else {
            self.metrics.children_queued(self.count, 0);
        }
        (self.count, self.deferred) = (count, deferred);
        if deferred {
            self.metrics.children_deferred(0, count);
        } else {
            self.metrics.children_queued(0, count);
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.set(0, false);
    }
}

/// Whether the blobs of a platform are to be fetched ahead. `linux/arm64` names all its variants too.
fn is_wanted(shared: &Shared, platform: &str) -> bool {
    shared.rules().prefetch.platforms.iter().any(|wanted| {
        platform.strip_prefix(wanted.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

/// Fetches the blobs of an image, one after the other.
async fn blobs_of(shared: &Arc<Shared>, repository: &Repository, image: &CachedManifest) -> PrefetchEnd {
    let Ok(read) = Manifest::read(&image.body, Some(image.media_type.as_str())) else {
        return PrefetchEnd::Complete;
    };
    let cache = Cache(Arc::clone(shared));
    let mut end = PrefetchEnd::Complete;
    for blob in read.blobs.iter().filter(|blob| !blob.foreign) {
        let Ok(_turn) = shared.prefetch_queue.turns.acquire().await else {
            return PrefetchEnd::Deferred { waiting: 0 };
        };
        if shared.store_health.is_degraded() {
            // It could not be kept.
            return PrefetchEnd::Deferred { waiting: 0 };
        }
        match cache.fetch_blob(repository, &blob.digest).await {
            // Only the end of one fill makes room for the next.
            Ok(()) => {}
            Err(error) => {
                tracing::info!(%repository, blob = %blob.digest, %error, "a blob could not be fetched ahead");
                match error {
                    CacheError::NotFound | CacheError::Invalid(_) | CacheError::Mismatch(_) => {
                        end = PrefetchEnd::Flawed;
                    }
                    _ => return PrefetchEnd::Deferred { waiting: 0 },
                }
            }
        }
    }
    end
}

fn push_children(
    waiting: &mut VecDeque<(Descriptor, u32)>,
    seen: &mut HashSet<Digest>,
    index: &CachedManifest,
    depth: u32,
) {
    let Ok(read) = Manifest::read(&index.body, Some(index.media_type.as_str())) else { return };
    for child in read.children {
        if seen.len() <= COUNT_MAX && seen.insert(child.digest) {
            waiting.push_back((child, depth));
        }
    }
}

/// A child from the store, or from the upstream with patience: nobody waits for it. `defer` is told when it has to
/// wait for the upstream's quota.
async fn obtain(
    shared: &Arc<Shared>,
    root: &PrefetchRoot,
    child: &Descriptor,
    noted: &mut bool,
    defer: impl FnOnce(),
) -> Result<Arc<CachedManifest>, CacheError> {
    let repository = &root.0;
    if let Some(document) = stored(shared, repository, &child.digest).await? {
        return Ok(document);
    }
    if !std::mem::replace(noted, true) {
        note(shared, root).await;
    }
    if !quota_wait::is_there(shared, repository) {
        defer();
    }
    let patience = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(500))
        .with_max_delay(Duration::from_secs(30))
        .with_max_times(5)
        .with_jitter();
    let attempt = || async {
        quota_wait::wait(shared, repository, &child.digest).await?;
        // Held while asking, not while waiting to ask again: one upstream in trouble must not hold up the others.
        let _turn = shared.prefetch_queue.turns.acquire().await.map_err(|_| CacheError::Interrupted)?;
        fetch(shared, repository, &child.digest, child.size, false).await
    };
    let (document, _) = attempt
        .retry(patience)
        .when(|error| {
            matches!(
                error,
                CacheError::Timeout(_) | CacheError::Unreachable(_) | CacheError::RateLimited { .. }
            )
        })
        .await?;
    Ok(document)
}
