//! Component that serves blobs: its dependencies and limits.

use std::num::NonZero;
use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::cache::access::Access;
use crate::cache::blob::answer::{BlobAnswer, BlobSource};
use crate::cache::error::CacheError;
use crate::cache::eviction::usage::ContentPin;
use crate::cache::rules::Rules;
use crate::cache::storage::Storage;
use crate::oci::{Digest, Repository};
use crate::store::{BlobEntry, LinkFact, StoreError};
use crate::telemetry::Outcome;
use crate::upstream::DividedSlots;

/// Limit on ranges that are passed through concurrently. Each one holds a connection of its upstream.
const PASSTHROUGH_MAX: usize = 8;
/// Limit on concurrent reads from sled. Each reading thread keeps some MiB that sled's cache has released, so that without
/// a limit memory would grow with the number of clients.
const STORE_READS_MAX: usize = 8;
/// Limit on stored blobs that are opened at the same time. A file whose modification time has changed is hashed first, which
/// must not use up the threads of the store.
const OPENS_MAX: usize = 16;

/// Blobs by digest.
#[derive(Debug)]
pub(in crate::cache) struct Blobs {
    pub(super) storage: Arc<Storage>,
    pub(super) rules: Arc<Rules>,
    pub(super) access: Access,
    /// Slots to pass a range through from an upstream, divided among the repositories.
    pub(super) passthrough: DividedSlots<Repository>,
    /// Permits for read-ahead steps beside the first step of each client.
    pub(super) read_ahead: Arc<Semaphore>,
    /// Permits to read from the store.
    pub(super) store_reads: Arc<Semaphore>,
    /// Permits to open a stored blob.
    opens: Semaphore,
}

/// State of a digest in the store, as seen from one repository.
#[derive(Default)]
pub(super) struct StoredBlob {
    pub(super) link: Option<LinkFact>,
    /// Stored blob, if the repository's upstream has delivered it.
    pub(super) entry: Option<BlobEntry>,
    /// True if the upstream has delivered the bytes.
    pub(super) is_delivered: bool,
    /// True if the bytes are stored, whichever upstream has delivered them.
    pub(super) is_stored: bool,
}

impl Blobs {
    pub(in crate::cache) fn new(storage: &Arc<Storage>, rules: &Arc<Rules>) -> Self {
        // More read-ahead steps than one per CPU are not faster: they cost memory, and evict data that is about to be sent
        // from the CPU caches.
        let cpus = std::thread::available_parallelism().map_or(2, NonZero::get);
        Self {
            storage: Arc::clone(storage),
            rules: Arc::clone(rules),
            access: Access::new(storage, rules),
            passthrough: DividedSlots::new(PASSTHROUGH_MAX),
            read_ahead: Arc::new(Semaphore::new(cpus)),
            store_reads: Arc::new(Semaphore::new(STORE_READS_MAX)),
            opens: Semaphore::new(OPENS_MAX),
        }
    }

    /// Reads the repository's link to a digest, and the blob's record in the store.
    pub(super) async fn look_up(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<StoredBlob, CacheError> {
        let (repository, digest) = (repository.clone(), *digest);
        let found = self.storage.with_store(move |store| {
            let is_delivered = store.is_delivered(&repository.upstream, &digest)?;
            let (link, entry) = (store.link(&repository, &digest)?, store.blob(&digest)?);
            let is_stored = entry.is_some();
            Ok(StoredBlob { link, entry: entry.filter(|_| is_delivered), is_delivered, is_stored })
        });
        self.storage.or_default("the stored blob cannot be looked up", found.await)
    }

    /// Opens a stored blob. `None` if the blob turns out to be corrupt: then it is removed, and the request is a miss.
    pub(super) async fn open_stored(
        &self,
        entry: BlobEntry,
        pin: ContentPin,
        outcome: Outcome,
    ) -> Result<Option<BlobAnswer>, CacheError> {
        let opened = if let Some(open) = entry.open_now() {
            Ok(open)
        } else {
            let entry = entry.clone();
            // The semaphore is never closed.
            let _permit = self.opens.acquire().await.map_err(|_| CacheError::Interrupted)?;
            self.storage.with_store(move |_| entry.open()).await
        };
        match opened {
            Ok(open) => {
                let source = Some(BlobSource::Stored(open, pin));
                let size = Some(entry.size());
                Ok(Some(BlobAnswer { size, size_hint: None, source, outcome, proof: None }))
            }
            Err(CacheError::Store(error)) if matches!(*error, StoreError::Damaged(_)) => {
                self.storage.delete_damaged_blob(&entry, &error).await;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
