//! Answer to a request for a blob.

use tokio::sync::watch;

use crate::cache::eviction::usage::ContentPin;
use crate::cache::fills::FillPhase;
use crate::store::{DraftEnd, Follower, OpenBlob};
use crate::telemetry::Outcome;

/// Blob to serve, with the outcome of the request.
#[derive(Debug)]
pub struct BlobAnswer {
    /// Length in bytes, if known.
    pub size: Option<u64>,
    /// Length that a descriptor states, for ranges of a blob whose length is unknown. It may be wrong.
    pub size_hint: Option<u64>,
    /// Source of the bytes; `None` for a request for the size only.
    pub source: Option<BlobSource>,
    /// Outcome of the request.
    pub outcome: Outcome,
    /// Progress of a fill that stores nothing; see [`FillKind::Prove`].
    ///
    /// [`FillKind::Prove`]: crate::cache::fills::FillKind::Prove
    pub(in crate::cache) proof: Option<watch::Receiver<FillPhase>>,
}

impl BlobAnswer {
    /// Creates an answer to a request for the size only.
    pub(super) fn of_size(size: Option<u64>, outcome: Outcome) -> Self {
        Self { size, size_hint: None, source: None, outcome, proof: None }
    }

    /// Returns true if the bytes of the blob are known to match its digest.
    pub fn is_verified(&self) -> bool {
        match &self.source {
            Some(source) => source.is_verified(),
            // The size of a blob that is not stored is the word of its upstream.
            None => matches!(self.outcome, Outcome::Hit | Outcome::Revalidated),
        }
    }

    /// Returns true if bytes that were read can be read again. The draft of a blob that is not stored releases them.
    pub fn is_rereadable(&self) -> bool {
        match &self.source {
            Some(BlobSource::Filling(follower)) => follower.draft().is_kept(),
            Some(BlobSource::Stored(..)) | None => true,
        }
    }
}

/// Source of a blob's bytes.
#[derive(Debug)]
pub enum BlobSource {
    /// Complete, verified blob in the store. The pin protects it from eviction.
    Stored(OpenBlob, ContentPin),
    /// Draft of a running fill.
    Filling(Follower),
}

impl BlobSource {
    /// Returns true if the bytes are known to match the digest.
    pub fn is_verified(&self) -> bool {
        match self {
            Self::Stored(..) => true,
            Self::Filling(follower) => follower.draft().progress().end == Some(DraftEnd::Verified),
        }
    }
}
