//! Every index child: what an index points at is fetched before anybody asks for it.
//!
//! For chosen platforms their blobs follow. The walk is bounded in depth, count and bytes, and a digest is visited
//! once, so that no index, however made, costs more than its bounds.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use prometheus::IntGauge;
use tokio::sync::Semaphore;

use crate::oci::media::Kind;
use crate::oci::{Descriptor, Digest, Manifest, Repository};
use crate::store::DraftEnd;

use super::blob::{Blob, Source};
use super::manifest::{fetch, stored};
use super::{Cache, CacheError, Document, Shared};

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
pub(super) struct Limits {
    turns: Semaphore,
    /// The indexes below which a walk is under way.
    walking: Mutex<HashSet<(Repository, Digest)>>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { turns: Semaphore::new(AT_ONCE), walking: Mutex::default() }
    }
}

impl Limits {
    fn walking(&self) -> MutexGuard<'_, HashSet<(Repository, Digest)>> {
        // Nothing under this lock can panic halfway through a change.
        self.walking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A walk under way; there is one at a time below an index.
struct Walk {
    shared: Arc<Shared>,
    key: (Repository, Digest),
}

impl Drop for Walk {
    fn drop(&mut self) {
        self.shared.children.walking().remove(&self.key);
    }
}

/// Starts the walk below `document` in the background, if it is an index that was not walked to its end before.
pub(super) fn seek(shared: &Arc<Shared>, repository: &Repository, document: &Arc<Document>) {
    let index = document.media_type.kind() == Some(Kind::Index);
    let key = (repository.clone(), document.digest);
    if !shared.prefetch.children || !index || shared.hot.walked.get(&key).is_some() {
        return;
    }
    if !shared.children.walking().insert(key.clone()) {
        return;
    }
    let (under_way, document) = (Walk { shared: Arc::clone(shared), key }, Arc::clone(document));
    tokio::spawn(async move {
        let Walk { shared, key } = &under_way;
        if walk(shared, &key.0, &document).await {
            shared.hot.walked.insert(key.clone(), ());
        }
    });
}

/// What one walk has still to fetch, as far as the gauge over all walks goes.
struct Queued<'a>(&'a IntGauge, i64);

impl Queued<'_> {
    fn set(&mut self, waiting: usize) {
        let waiting = i64::try_from(waiting).unwrap_or(i64::MAX);
        self.0.add(waiting - self.1);
        self.1 = waiting;
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.sub(self.1);
    }
}

/// Fetches what is missing below an index. Returns whether everything within the bounds is there now.
async fn walk(shared: &Arc<Shared>, repository: &Repository, root: &Document) -> bool {
    let mut seen = HashSet::from([root.digest]);
    let mut waiting = VecDeque::new();
    let mut queued = Queued(&shared.metrics.children_queued, 0);
    let mut bytes = 0;
    let mut complete = true;
    push_children(&mut waiting, &mut seen, root, 1);
    while let Some((child, depth)) = waiting.pop_front() {
        if bytes > BYTES_MAX {
            tracing::warn!(%repository, index = %root.digest, "the index's children exceed {BYTES_MAX} bytes; the rest waits to be asked for");
            break;
        }
        queued.set(waiting.len() + 1);
        match obtain(shared, repository, &child).await {
            Ok(document) => {
                bytes += document.body.len() as u64;
                let wanted = child.platform.as_deref().is_some_and(|platform| is_wanted(shared, platform));
                if wanted && !blobs_of(shared, repository, &document).await {
                    complete = false;
                }
                if depth < DEPTH_MAX && document.media_type.kind() == Some(Kind::Index) {
                    push_children(&mut waiting, &mut seen, &document, depth + 1);
                }
            }
            // The upstream does not have it: that is the index's own affair.
            Err(error @ CacheError::NotFound) => {
                tracing::info!(%repository, child = %child.digest, %error, "a child of an index is not there");
            }
            // What came is not kept; the next time it may be right.
            Err(error @ (CacheError::Invalid(_) | CacheError::Mismatch(_))) => {
                tracing::info!(%repository, child = %child.digest, %error, "a child of an index came wrong");
                complete = false;
            }
            // An upstream in trouble is left alone; the walk begins anew when the tag is next confirmed.
            Err(error) => {
                tracing::info!(%repository, index = %root.digest, child = %child.digest, %error, "the index's children are left for later");
                return false;
            }
        }
    }
    complete
}

/// Whether the blobs of a platform are to be fetched ahead. `linux/arm64` names all its variants too.
fn is_wanted(shared: &Shared, platform: &str) -> bool {
    shared.prefetch.platforms.iter().any(|wanted| {
        platform.strip_prefix(wanted.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

/// Fetches the blobs of an image, one after the other. Returns whether all of them are there now.
async fn blobs_of(shared: &Arc<Shared>, repository: &Repository, image: &Document) -> bool {
    let Ok(read) = Manifest::read(&image.body, Some(image.media_type.as_str())) else { return false };
    let cache = Cache(Arc::clone(shared));
    let mut complete = true;
    for blob in read.blobs.iter().filter(|blob| !blob.foreign) {
        let Ok(_turn) = shared.children.turns.acquire().await else { return false };
        let there = match cache.blob(repository, &blob.digest).await {
            Ok(Blob { source: Some(Source::Filling(draft)), .. }) => {
                // Only the end of one fill makes room for the next.
                let mut progress = draft.watch();
                let ended = progress.wait_for(|progress| progress.end.is_some()).await;
                ended.is_ok_and(|progress| progress.end == Some(DraftEnd::Committed))
            }
            Ok(_) => true,
            Err(error) => {
                tracing::info!(%repository, blob = %blob.digest, %error, "a blob could not be fetched ahead");
                false
            }
        };
        complete &= there;
    }
    complete
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
    let attempt = || async {
        // Held while asking, not while waiting to ask again: one upstream in trouble must not hold up the others.
        let _turn = shared.children.turns.acquire().await.map_err(|_| CacheError::Interrupted)?;
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
