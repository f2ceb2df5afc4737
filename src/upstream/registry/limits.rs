//! Limits on concurrent requests to one registry.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::source::SourceError;

/// Limits on concurrent requests: downloads of blobs leave connections for manifests and lists.
#[derive(Debug)]
pub(crate) struct ConnectionLimits {
    blobs: Arc<Semaphore>,
    documents: Arc<Semaphore>,
}

impl ConnectionLimits {
    /// Divides `max_connections` between blobs and documents.
    pub(crate) fn new(max_connections: usize) -> Self {
        let (documents, blobs) = shares(max_connections);
        Self { blobs: Arc::new(Semaphore::new(blobs)), documents: Arc::new(Semaphore::new(documents)) }
    }

    /// Waits for a connection for a blob's body, which may take long.
    pub(crate) async fn for_blob(&self, deadline: Instant) -> Result<OwnedSemaphorePermit, SourceError> {
        acquire(&self.blobs, deadline).await
    }

    /// Waits for a connection for a manifest, a list or a HEAD.
    pub(crate) async fn for_document(&self, deadline: Instant) -> Result<OwnedSemaphorePermit, SourceError> {
        acquire(&self.documents, deadline).await
    }
}

async fn acquire(share: &Arc<Semaphore>, deadline: Instant) -> Result<OwnedSemaphorePermit, SourceError> {
    let permit = timeout_at(deadline, Arc::clone(share).acquire_owned()).await;
    permit.map_err(|_| SourceError::Busy)?.map_err(|_| SourceError::Busy)
}

/// Returns the number of concurrent requests for documents and for blobs.
fn shares(max_connections: usize) -> (usize, usize) {
    let max = max_connections.clamp(1, Semaphore::MAX_PERMITS);
    let documents = (max / 4).clamp(1, 16);
    (documents, (max - documents).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_leave_connections_for_documents() {
        assert_eq!(shares(64), (16, 48));
        assert_eq!(shares(8), (2, 6));
        assert_eq!(shares(1), (1, 1));
        assert_eq!(shares(0), (1, 1));
        let (documents, blobs) = shares(usize::MAX);
        assert!(documents + blobs <= Semaphore::MAX_PERMITS);
    }
}
