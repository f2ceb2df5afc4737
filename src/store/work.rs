//! Unit of work that runs on a thread that may block.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::task::{JoinHandle, spawn_blocking};

use super::error::StoreError;

/// Running unit of work; resolves to its result. The work runs to its end even if this is dropped. A panic of sled becomes
/// [`StoreError::Panicked`].
#[derive(Debug)]
#[must_use = "the result of the work is lost"]
pub struct Work<T>(JoinHandle<Result<T, StoreError>>);

impl<T: Send + 'static> Work<T> {
    pub(super) fn start(work: impl FnOnce() -> Result<T, StoreError> + Send + 'static) -> Self {
        Self(spawn_blocking(work))
    }
}

impl<T> Future for Work<T> {
    type Output = Result<T, StoreError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match ready!(Pin::new(&mut self.0).poll(context)) {
            Ok(result) => result,
            Err(error) if error.is_panic() => Err(StoreError::Panicked),
            // Only a runtime that shuts down cancels such work.
            Err(_) => Err(StoreError::Closed),
        })
    }
}
