//! Every index child: what an index points at is fetched before anybody asks for it.
//!
//! The walk is bounded in depth, count and bytes, and a digest is visited once, so that no index, however made,
//! costs more than its bounds.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use tokio::sync::Semaphore;

use crate::oci::media::Kind;
use crate::oci::{Descriptor, Digest, Manifest, Repository};

use super::manifest::{fetch_alone, stored};
use super::{CacheError, Document, Shared};

/// Nested indexes below the one that was asked for.
const DEPTH_MAX: u32 = 4;
/// Children of one walk.
const COUNT_MAX: usize = 1024;
/// Bytes of manifests that one walk may bring in.
const BYTES_MAX: u64 = 64 << 20;
/// Fetches of children at once, over all walks: clients come first.
const AT_ONCE: usize = 4;

/// What all walks share.
#[derive(Debug)]
pub(super) struct Limits(Semaphore);

impl Default for Limits {
    fn default() -> Self {
        Self(Semaphore::new(AT_ONCE))
    }
}

/// Starts the walk below `document` in the background, if it is an index.
pub(super) fn seek(shared: &Arc<Shared>, repository: &Repository, document: &Arc<Document>) {
    if !shared.prefetch_children || document.media_type.kind() != Some(Kind::Index) {
        return;
    }
    let (shared, repository, document) = (Arc::clone(shared), repository.clone(), Arc::clone(document));
    tokio::spawn(async move { walk(&shared, &repository, &document).await });
}

async fn walk(shared: &Arc<Shared>, repository: &Repository, root: &Document) {
    let mut seen = HashSet::from([root.digest]);
    let mut waiting = VecDeque::new();
    let mut bytes = 0;
    push_children(&mut waiting, &mut seen, root, 1);
    while let Some((child, depth)) = waiting.pop_front() {
        if bytes > BYTES_MAX {
            tracing::warn!(%repository, index = %root.digest, "the index's children exceed {BYTES_MAX} bytes; the rest waits to be asked for");
            break;
        }
        shared.metrics.children_queued.set(i64::try_from(waiting.len()).unwrap_or(i64::MAX));
        let Ok(_turn) = shared.children.0.acquire().await else { break };
        match obtain(shared, repository, &child).await {
            Ok(document) => {
                bytes += document.body.len() as u64;
                if depth < DEPTH_MAX && document.media_type.kind() == Some(Kind::Index) {
                    push_children(&mut waiting, &mut seen, &document, depth + 1);
                }
            }
            Err(error) => {
                tracing::info!(%repository, child = %child.digest, %error, "a child is left for when it is asked for");
            }
        }
    }
    shared.metrics.children_queued.set(0);
}

fn push_children(
    waiting: &mut VecDeque<(Descriptor, u32)>,
    seen: &mut HashSet<Digest>,
    index: &Document,
    depth: u32,
) {
    let Ok(read) = Manifest::read(&index.body, Some(index.media_type.as_str())) else { return };
    for child in read.children {
        if seen.len() <= COUNT_MAX && seen.insert(child.digest) {
            waiting.push_back((child, depth));
        }
    }
}

/// A child from the store, or from the upstream with patience: nobody waits for it.
async fn obtain(
    shared: &Arc<Shared>,
    repository: &Repository,
    child: &Descriptor,
) -> Result<Arc<Document>, CacheError> {
    if let Some(document) = stored(shared, repository, &child.digest).await? {
        return Ok(document);
    }
    let patience = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(500))
        .with_max_delay(Duration::from_secs(30))
        .with_max_times(5)
        .with_jitter();
    let attempt = || fetch_alone(shared, repository, &child.digest, child.size);
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
