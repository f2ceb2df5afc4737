//! Activity of client connections: which ones answer requests, and which ones wait for one.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use http_body::{Body, Frame, SizeHint};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Activity of one connection.
#[derive(Debug)]
pub(super) struct ConnectionActivity {
    state: Mutex<ActivityState>,
    /// Cancelled to close the connection for a new one.
    reclaimed: CancellationToken,
    waiting: Arc<Waiting>,
}

#[derive(Clone, Copy, Debug)]
struct ActivityState {
    /// Requests whose answers have not ended.
    answering: usize,
    /// True once a request has arrived.
    used: bool,
    /// Time since which no request is being answered.
    idle_since: Instant,
}

/// Connections that wait for a slot of the port.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    number: AtomicUsize,
    /// Notified when a slot may be available.
    pub(super) available: Notify,
}

impl Waiting {
    /// Registers a connection that may have to wait.
    pub(super) fn enter(&self) -> Entered<'_> {
        self.number.fetch_add(1, Ordering::SeqCst);
        Entered(self)
    }

    /// Wakes all waiting connections. Takes no lock if there are none.
    pub(super) fn notify(&self) {
        if self.number.load(Ordering::SeqCst) > 0 {
            self.available.notify_waiters();
        }
    }
}

/// Registration of a connection that may have to wait.
pub(super) struct Entered<'a>(pub(super) &'a Waiting);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.number.fetch_sub(1, Ordering::SeqCst);
    }
}

impl ConnectionActivity {
    /// Creates the activity of a new connection.
    pub(super) fn new(waiting: &Arc<Waiting>) -> Self {
        Self {
            state: Mutex::new(ActivityState { answering: 0, used: false, idle_since: Instant::now() }),
            reclaimed: CancellationToken::new(),
            waiting: Arc::clone(waiting),
        }
    }

    /// Registers a request. It ends when the returned guard is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> AnswerActivity {
        let mut state = self.state();
        state.used = true;
        state.answering += 1;
        drop(state);
        AnswerActivity(Arc::clone(self))
    }

    /// Returns the time since which the connection waits for a request; `None` if it is answering one.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let state = self.state();
        (state.answering == 0).then_some(state.idle_since)
    }

    /// Returns true if a request is being answered.
    pub(super) fn is_answering(&self) -> bool {
        self.state().answering > 0
    }

    /// Returns true if no request has arrived yet, so that nothing is lost when the connection is cut.
    pub(super) fn is_unused(&self) -> bool {
        !self.state().used
    }

    /// Closes the connection for a new one.
    pub(super) fn reclaim(&self) {
        self.reclaimed.cancel();
    }

    /// Returns true if the connection is to be closed for a new one.
    #[cfg(test)]
    pub(super) fn is_reclaimed(&self) -> bool {
        self.reclaimed.is_cancelled()
    }

    /// Waits until the connection is to be closed for a new one.
    pub(super) async fn reclaimed(&self) {
        self.reclaimed.cancelled().await;
    }

    fn state(&self) -> MutexGuard<'_, ActivityState> {
        // No code under this lock can panic in the middle of a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Request that is being answered.
#[derive(Debug)]
pub(super) struct AnswerActivity(Arc<ConnectionActivity>);

impl Drop for AnswerActivity {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.answering -= 1;
        state.idle_since = Instant::now();
        drop(state);
        self.0.waiting.notify();
    }
}

/// Body that ends its request when it is dropped.
#[derive(Debug)]
pub(super) struct ActiveBody<B> {
    body: B,
    _activity: AnswerActivity,
}

impl<B> ActiveBody<B> {
    pub(super) fn new(body: B, activity: AnswerActivity) -> Self {
        Self { body, _activity: activity }
    }
}

impl<B: Body + Unpin> Body for ActiveBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
