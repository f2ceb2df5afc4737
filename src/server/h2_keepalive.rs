//! What moves on a connection that carries many answers at once, and when to give one up on which nothing does.
//!
//! HTTP/1.1 is watched by its header timer and by [`Stalled`](super::write_timeout::WriteTimeout) writes. On HTTP/2 neither tells:
//! an idle connection has no header to wait for, and a client that opens no flow-control window leaves the socket
//! writable for ever.

use std::error::Error;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::ConnectionLimits;

/// A client opens its windows in large steps, many megabytes with some, so one that takes little at a time needs longer to
/// show it than on HTTP/1.1, where any byte does.
const STEPS: u32 = 4;

/// What is known of one connection.
#[derive(Clone, Copy, Debug)]
struct State {
    /// Requests that came and whose answers have not ended.
    answers: usize,
    /// Those of them that wait for us, and not for the client to take something.
    ours: usize,
    /// When something last moved.
    moved: Instant,
}

/// What to do with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Ask again then.
    KeepUntil(Instant),
    /// Nothing was asked for long enough: tell the client to go.
    Idle,
    /// The client takes nothing of what it asked for: cut it.
    Stalled,
}

impl State {
    fn verdict(&self, now: Instant, idle: Duration, write: Duration) -> Verdict {
        let (patience, end) = match self {
            Self { answers: 0, .. } => (idle, Verdict::Idle),
            Self { ours: 0, .. } => (write * STEPS, Verdict::Stalled),
            _ => return Verdict::KeepUntil(now + write),
        };
        let due = self.moved + patience;
        if now >= due { end } else { Verdict::KeepUntil(due) }
    }
}

/// One connection's pulse; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Keepalive(Arc<Mutex<State>>);

impl Keepalive {
    pub(super) fn new(now: Instant) -> Self {
        Self(Arc::new(Mutex::new(State { answers: 0, ours: 0, moved: now })))
    }

    pub(super) fn verdict(&self, now: Instant, limits: &ConnectionLimits) -> Verdict {
        self.with(|state| state.verdict(now, limits.head, limits.write))
    }

    /// The client was told to leave: from now on it has that long again.
    pub(super) fn told(&self) {
        self.with(|state| state.moved = Instant::now());
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A request has come.
    pub(super) fn begin(&self) -> RequestActivity {
        self.with(|state| {
            state.answers += 1;
            state.ours += 1;
            state.moved = Instant::now();
        });
        RequestActivity { pulse: self.clone(), ours: true }
    }
}

/// One request's part in the pulse, from its coming to the end of its answer.
#[derive(Debug)]
pub(super) struct RequestActivity {
    pulse: Keepalive,
    ours: bool,
}

impl RequestActivity {
    /// Something moved; what comes next is `ours` to bring, or the client's to take.
    pub(super) fn moved(&mut self, ours: bool) {
        let before = std::mem::replace(&mut self.ours, ours);
        self.pulse.with(|state| {
            state.ours = state.ours + usize::from(ours) - usize::from(before);
            state.moved = Instant::now();
        });
    }
}

impl Drop for RequestActivity {
    fn drop(&mut self) {
        self.moved(false);
        self.pulse.with(|state| state.answers -= 1);
    }
}

/// A body that tells the pulse of its connection.
#[derive(Debug)]
pub(super) struct KeepaliveBody<B> {
    /// Pinned by its box: bodies are few and large.
    body: Pin<Box<B>>,
    beat: RequestActivity,
}

impl<B> KeepaliveBody<B> {
    pub(super) fn new(body: B, mut beat: RequestActivity) -> Self {
        beat.moved(false);
        Self { body: Box::pin(body), beat }
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
        this.beat.moved(polled.is_pending());
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
    fn who_is_waited_for_decides() {
        let moved = Instant::now();
        let verdict = |answers, ours, after: u64| {
            let now = moved + Duration::from_secs(after);
            (State { answers, ours, moved }.verdict(now, IDLE, WRITE), now)
        };
        assert_eq!(verdict(0, 0, 59).0, Verdict::KeepUntil(moved + IDLE));
        assert_eq!(verdict(0, 0, 60).0, Verdict::Idle);
        assert_eq!(verdict(2, 0, 79).0, Verdict::KeepUntil(moved + WRITE * STEPS));
        assert_eq!(verdict(2, 0, 80).0, Verdict::Stalled);
        // One answer that waits for an upstream is enough: the client may be as slow as we are.
        let (kept, now) = verdict(2, 1, 1000);
        assert_eq!(kept, Verdict::KeepUntil(now + WRITE));
    }

    #[test]
    fn requests_are_counted_to_their_end() {
        let pulse = Keepalive::new(Instant::now());
        let counts = || pulse.with(|state| (state.answers, state.ours));
        let (mut one, two) = (pulse.begin(), pulse.begin());
        assert_eq!(counts(), (2, 2));
        one.moved(false);
        one.moved(false);
        assert_eq!(counts(), (2, 1));
        one.moved(true);
        drop(two);
        assert_eq!(counts(), (1, 1));
        drop(one);
        assert_eq!(counts(), (0, 0));
    }
}
