//! Activity of client connections: which ones answer requests, and which ones wait for one.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use http_body::{Body, Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Activity of one connection.
#[derive(Debug)]
pub(super) struct ConnectionActivity {
    state: Mutex<ActivityState>,
    /// Cancelled to close the connection for a new one.
    reclaimed: CancellationToken,
    waiting: Arc<Waiting>,
}

#[derive(Debug)]
struct ActivityState {
    /// True once a request has arrived.
    used: bool,
    progress: AnswerProgress,
}

/// Progress of the answers of one connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct AnswerProgress {
    /// Requests whose answers have not ended.
    pub(super) answering: usize,
    /// Part of `answering` that waits for the server. The others wait for the client to read.
    pub(super) waiting_for_server: usize,
    /// Time of the last progress of any request; of the end of the last one if none is being answered.
    pub(super) last: Instant,
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
            state: Mutex::new(ActivityState {
                used: false,
                progress: AnswerProgress { answering: 0, waiting_for_server: 0, last: Instant::now() },
            }),
            reclaimed: CancellationToken::new(),
            waiting: Arc::clone(waiting),
        }
    }

    /// Registers a request. It ends when the returned guard is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> AnswerActivity {
        let mut state = self.state();
        state.used = true;
        state.progress.answering += 1;
        state.progress.waiting_for_server += 1;
        state.progress.last = Instant::now();
        drop(state);
        AnswerActivity { connection: Arc::clone(self), waits_for_server: true }
    }

    /// Returns the progress of the answers.
    pub(super) fn progress(&self) -> AnswerProgress {
        self.state().progress
    }

    /// Restarts the time-outs. Called when the client was asked to close the connection.
    pub(super) fn restart(&self) {
        self.state().progress.last = Instant::now();
    }

    /// Returns the time since which the connection waits for a request; `None` if it is answering one.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let progress = self.progress();
        (progress.answering == 0).then_some(progress.last)
    }

    /// Returns true if a request is being answered.
    pub(super) fn is_answering(&self) -> bool {
        self.progress().answering > 0
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

/// Request that is being answered, from its arrival to the end of its answer.
#[derive(Debug)]
pub(super) struct AnswerActivity {
    connection: Arc<ConnectionActivity>,
    waits_for_server: bool,
}

impl AnswerActivity {
    /// Records progress. From now on the request waits for the server, or for the client to read.
    fn advance(&mut self, waits_for_server: bool) {
        let before = std::mem::replace(&mut self.waits_for_server, waits_for_server);
        let progress = &mut self.connection.state().progress;
        progress.waiting_for_server += usize::from(waits_for_server);
        progress.waiting_for_server -= usize::from(before);
        progress.last = Instant::now();
    }
}

impl Drop for AnswerActivity {
    fn drop(&mut self) {
        self.advance(false);
        self.connection.state().progress.answering -= 1;
        self.connection.waiting.notify();
    }
}

/// Body that records its progress, and ends its request when it is dropped.
#[derive(Debug)]
pub(super) struct ActiveBody<B> {
    body: B,
    activity: AnswerActivity,
}

impl<B> ActiveBody<B> {
    pub(super) fn new(body: B, mut activity: AnswerActivity) -> Self {
        activity.advance(false);
        Self { body, activity }
    }
}

impl<B: Body + Unpin> Body for ActiveBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        self.activity.advance(polled.is_pending());
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_until_their_end() {
        let activity = Arc::new(ConnectionActivity::new(&Arc::default()));
        let counts = || {
            let progress = activity.progress();
            (progress.answering, progress.waiting_for_server)
        };
        assert!(activity.is_unused() && activity.idle_since().is_some());
        let (mut one, two) = (activity.begin(), activity.begin());
        assert_eq!(counts(), (2, 2));
        assert!(!activity.is_unused() && activity.idle_since().is_none());
        one.advance(false);
        one.advance(false);
        assert_eq!(counts(), (2, 1));
        one.advance(true);
        drop(two);
        assert_eq!(counts(), (1, 1));
        drop(one);
        assert_eq!(counts(), (0, 0));
        assert!(activity.idle_since().is_some());
    }
}
