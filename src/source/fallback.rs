//! Ordered list of sources for one blob.

use std::sync::Arc;

use super::content::{BlobBody, ByteRange};
use super::contract::Source;
use super::error::SourceError;
use crate::oci::{Digest, Name};

/// Opens a blob at the first source that has it. If none has, returns the least definite error: the blob is "not found"
/// only if every source said so.
pub async fn open_blob(
    sources: &[Arc<dyn Source>],
    name: &Name,
    digest: &Digest,
    range: ByteRange,
) -> Result<BlobBody, SourceError> {
    let mut kept: Option<SourceError> = None;
    for source in sources {
        match source.blob(name, digest, range, None).await {
            Ok(body) => return Ok(body),
            Err(error) => {
                kept = Some(match kept.take() {
                    Some(kept) => kept.less_definite(error),
                    None => error,
                });
            }
        }
    }
    Err(kept.unwrap_or(SourceError::NotFound))
}
