//! Unit of work that runs on a thread that may block, and the limits on such threads.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, spawn_blocking};

use super::error::StoreError;

/// Largest number of threads with short work, such as look-ups and reads of one step.
const SHORT_MAX: usize = 48;
/// Largest number of threads with long work: hashing, copying and synchronising many bytes.
const LONG_MAX: usize = 32;

/// Limits on the threads that work on a store; clones share them. Long work never delays short work. Work that is beyond a
/// limit waits in order of arrival, without a thread.
///
/// Work must never wait for other work of the same length: with all threads waiting, none could end the wait.
#[derive(Clone, Debug)]
pub(super) struct WorkThreads {
    short: Arc<Semaphore>,
    long: Arc<Semaphore>,
}

/// Running unit of work; resolves to its result. The work runs to its end even if this is dropped. A panic of sled becomes
/// [`StoreError::Panicked`].
#[derive(Debug)]
#[must_use = "the result of the work is lost"]
pub struct Work<T>(JoinHandle<Result<T, StoreError>>);

impl WorkThreads {
    pub(super) fn new() -> Self {
        Self { short: Arc::new(Semaphore::new(SHORT_MAX)), long: Arc::new(Semaphore::new(LONG_MAX)) }
    }

    /// Starts work that ends soon.
    pub(super) fn short<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Work<T> {
        Work::start_within(&self.short, work)
    }

    /// Starts work that may take long.
    pub(super) fn long<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Work<T> {
        Work::start_within(&self.long, work)
    }
}

impl<T: Send + 'static> Work<T> {
    /// Starts work outside of the limits: the work that others may wait for, such as opening the store again.
    pub(super) fn start(work: impl FnOnce() -> Result<T, StoreError> + Send + 'static) -> Self {
        Self(spawn_blocking(work))
    }

    fn start_within(
        threads: &Arc<Semaphore>,
        work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Self {
        let held = |permit: OwnedSemaphorePermit| {
            move || {
                let _permit = permit;
                let result = work();
                release_freed_pages();
                result
            }
        };
        if let Ok(permit) = Arc::clone(threads).try_acquire_owned() {
            return Self::start(held(permit));
        }
        let threads = Arc::clone(threads);
        Self(tokio::spawn(async move {
            // The semaphore is never closed.
            let permit = threads.acquire_owned().await.map_err(|_| StoreError::Closed)?;
            Self::start(held(permit)).await
        }))
    }
}

/// Hands the pages that sled has freed on this thread to the collector of all threads. sled keeps up to 64 of them for each
/// thread until the thread works for sled again: some MiB for each of many threads.
fn release_freed_pages() {
    crossbeam_epoch::pin().flush();
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::mpsc;

    #[tokio::test]
    async fn long_work_waits_for_a_thread_and_does_not_delay_short_work() {
        let threads = WorkThreads::new();
        let (release, held) = mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let (started, running) = mpsc::channel();
        let works: Vec<_> = (0..LONG_MAX * 3)
            .map(|number| {
                let (held, started) = (Arc::clone(&held), started.clone());
                threads.long(move || {
                    started.send(()).map_err(|_| StoreError::Closed)?;
                    // Ends when the sender is dropped.
                    drop(held.lock().map(|held| held.recv()));
                    Ok(number)
                })
            })
            .collect();
        assert_eq!(threads.short(|| Ok("short")).await.expect("no error"), "short");
        for _ in 0..LONG_MAX {
            running.recv().expect("started");
        }
        tokio::task::yield_now().await;
        assert!(running.try_recv().is_err(), "further work has no thread");
        drop(release);
        for (number, work) in works.into_iter().enumerate() {
            assert_eq!(work.await.expect("no error"), number);
        }
    }

    #[tokio::test]
    async fn panic_of_queued_work_is_an_error() {
        let threads = WorkThreads { short: Arc::new(Semaphore::new(0)), long: Arc::new(Semaphore::new(0)) };
        let work = threads.short::<()>(|| panic!("sled has panicked"));
        threads.short.add_permits(1);
        assert!(matches!(work.await, Err(StoreError::Panicked)));
    }
}
