//! Work that may block, off the async threads.

use crate::store::StoreError;

use super::error::CacheError;

/// Runs what may touch the disk off the async threads.
pub(super) async fn blocking<T, F>(work: F) -> Result<T, CacheError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, StoreError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(error) if error.is_panic() => Err(StoreError::GaveUp.into()),
        Err(_) => Err(CacheError::Interrupted),
    }
}
