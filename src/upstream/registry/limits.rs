//! Limits on concurrent requests to one registry.

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::oci::Name;
use crate::source::SourceError;
use crate::upstream::slots::{DividedSlots, Slot};

/// Connection in use.
pub(super) type ConnectionSlot = Slot<Name>;

/// Limits on concurrent requests: downloads of blobs leave connections for manifests and lists, and the requests of one
/// repository or client leave connections for others.
#[derive(Debug)]
pub(crate) struct ConnectionLimits {
    blobs: DividedSlots<Name>,
    documents: DividedSlots<Name>,
}

impl ConnectionLimits {
    /// Divides `max_connections` between blobs and documents.
    pub(crate) fn new(max_connections: usize) -> Self {
        let (documents, blobs) = shares(max_connections);
        Self { blobs: DividedSlots::new(blobs), documents: DividedSlots::new(documents) }
    }

    /// Waits for a connection for the body of a repository's blob, which may take long.
    pub(super) async fn for_blob(
        &self,
        name: &Name,
        deadline: Instant,
    ) -> Result<ConnectionSlot, SourceError> {
        timeout_at(deadline, self.blobs.acquire(name)).await.map_err(|_| SourceError::Busy)
    }

    /// Waits for a connection for a manifest, a list or a HEAD.
    pub(crate) async fn for_document(
        &self,
        name: &Name,
        deadline: Instant,
    ) -> Result<ConnectionSlot, SourceError> {
        timeout_at(deadline, self.documents.acquire(name)).await.map_err(|_| SourceError::Busy)
    }
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
