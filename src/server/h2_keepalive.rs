//! Keep-alive supervision of HTTP/2 connections: closes idle ones and cuts those whose client reads nothing.
//!
//! HTTP/1.1 connections need no supervision: hyper has a time-out for the request head, and the stream has a write
//! time-out. Neither works for HTTP/2. An idle connection waits for no request head, and a client that opens no
//! flow-control window leaves the socket writable.

use std::error::Error;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::limits::ConnectionLimits;

/// Factor on the write time-out. Some clients open their flow-control window in steps of many megabytes. A slow client
/// therefore needs more time to show progress than on HTTP/1.1, where each byte counts.
const WINDOW_STEPS: u32 = 4;

/// Activity of one connection.
#[derive(Clone, Copy, Debug)]
struct Activity {
    /// Requests whose answers have not ended.
    open_requests: usize,
    /// Open requests that wait for the server. The others wait for the client to read.
    waiting_for_server: usize,
    /// Time of the last progress of any request.
    last_progress: Instant,
}

/// Decision about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Keep the connection and check again at this time.
    KeepUntil(Instant),
    /// No request was open for the idle time-out: close the connection gracefully.
    Idle,
    /// The client has read nothing for the write time-out: cut the connection.
    Stalled,
}

impl Activity {
    fn verdict(&self, now: Instant, idle: Duration, write: Duration) -> Verdict {
        let (timeout, end) = match self {
            Self { open_requests: 0, .. } => (idle, Verdict::Idle),
            Self { waiting_for_server: 0, .. } => (write * WINDOW_STEPS, Verdict::Stalled),
            _ => return Verdict::KeepUntil(now + write),
        };
        let deadline = self.last_progress + timeout;
        if now >= deadline { end } else { Verdict::KeepUntil(deadline) }
    }
}

/// Shared activity of one connection. Clones refer to the same connection.
#[derive(Clone, Debug)]
pub(super) struct Keepalive(Arc<Mutex<Activity>>);

impl Keepalive {
    pub(super) fn new(now: Instant) -> Self {
        Self(Arc::new(Mutex::new(Activity { open_requests: 0, waiting_for_server: 0, last_progress: now })))
    }

    pub(super) fn verdict(&self, now: Instant, limits: &ConnectionLimits) -> Verdict {
        self.with(|activity| activity.verdict(now, limits.head, limits.write))
    }

    /// Restarts the time-outs. Called when the client was asked to close the connection.
    pub(super) fn restart(&self) {
        self.with(|activity| activity.last_progress = Instant::now());
    }

    fn with<T>(&self, change: impl FnOnce(&mut Activity) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Registers a new request.
    pub(super) fn begin(&self) -> RequestActivity {
        self.with(|activity| {
            activity.open_requests += 1;
            activity.waiting_for_server += 1;
            activity.last_progress = Instant::now();
        });
        RequestActivity { keepalive: self.clone(), waits_for_server: true }
    }
}

/// Activity of one request, from its arrival to the end of its answer.
#[derive(Debug)]
pub(super) struct RequestActivity {
    keepalive: Keepalive,
    waits_for_server: bool,
}

impl RequestActivity {
    /// Records progress. From now on the request waits for the server, or for the client to read.
    pub(super) fn progress(&mut self, waits_for_server: bool) {
        let before = std::mem::replace(&mut self.waits_for_server, waits_for_server);
        self.keepalive.with(|activity| {
            activity.waiting_for_server =
                activity.waiting_for_server + usize::from(waits_for_server) - usize::from(before);
            activity.last_progress = Instant::now();
        });
    }
}

impl Drop for RequestActivity {
    fn drop(&mut self) {
        self.progress(false);
        self.keepalive.with(|activity| activity.open_requests -= 1);
    }
}

/// Body that records its progress in the activity of its connection.
#[derive(Debug)]
pub(super) struct KeepaliveBody<B> {
    /// Boxed, because a body must be pinned. Bodies are few and large.
    body: Pin<Box<B>>,
    request: RequestActivity,
}

impl<B> KeepaliveBody<B> {
    pub(super) fn new(body: B, mut request: RequestActivity) -> Self {
        request.progress(false);
        Self { body: Box::pin(body), request }
    }
}

impl<B> Body for KeepaliveBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        let polled = this.body.as_mut().poll_frame(context);
        this.request.progress(polled.is_pending());
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

    const IDLE: Duration = Duration::from_mins(1);
    const WRITE: Duration = Duration::from_secs(20);

    #[test]
    fn verdict_depends_on_the_side_that_is_waited_for() {
        let last_progress = Instant::now();
        let verdict = |open_requests, waiting_for_server, after: u64| {
            let now = last_progress + Duration::from_secs(after);
            let activity = Activity { open_requests, waiting_for_server, last_progress };
            (activity.verdict(now, IDLE, WRITE), now)
        };
        assert_eq!(verdict(0, 0, 59).0, Verdict::KeepUntil(last_progress + IDLE));
        assert_eq!(verdict(0, 0, 60).0, Verdict::Idle);
        assert_eq!(verdict(2, 0, 79).0, Verdict::KeepUntil(last_progress + WRITE * WINDOW_STEPS));
        assert_eq!(verdict(2, 0, 80).0, Verdict::Stalled);
        // While one answer waits for an upstream, the client is not to blame.
        let (kept, now) = verdict(2, 1, 1000);
        assert_eq!(kept, Verdict::KeepUntil(now + WRITE));
    }

    #[test]
    fn requests_are_counted_until_their_end() {
        let keepalive = Keepalive::new(Instant::now());
        let counts = || keepalive.with(|activity| (activity.open_requests, activity.waiting_for_server));
        let (mut one, two) = (keepalive.begin(), keepalive.begin());
        assert_eq!(counts(), (2, 2));
        one.progress(false);
        one.progress(false);
        assert_eq!(counts(), (2, 1));
        one.progress(true);
        drop(two);
        assert_eq!(counts(), (1, 1));
        drop(one);
        assert_eq!(counts(), (0, 0));
    }
}
