//! Answer to a request for a blob.

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::cache::eviction::usage::ContentPin;
use crate::store::{Follower, OpenBlob};
use crate::telemetry::Outcome;

/// Blob to serve, with the outcome of the request.
#[derive(Debug)]
pub struct BlobAnswer {
    /// Length in bytes, if known.
    pub size: Option<u64>,
    /// Source of the bytes; `None` for a request for the size only.
    pub source: Option<BlobSource>,
    /// Outcome of the request.
    pub outcome: Outcome,
}

/// Source of a blob's bytes.
#[derive(Debug)]
pub enum BlobSource {
    /// Complete, verified blob in the store. The pin protects it from eviction.
    Stored(OpenBlob, ContentPin),
    /// Draft of a running fill.
    Filling(Follower),
    /// Range that the draft does not have yet, passed through from the upstream. The draft provides the rest.
    Passing(mpsc::Receiver<Bytes>, Follower),
}
