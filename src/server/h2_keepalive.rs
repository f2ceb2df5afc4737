//! Keep-alive supervision of HTTP/2 connections: closes idle ones and cuts those whose client reads nothing.
//!
//! HTTP/1.1 connections need no supervision: hyper has a time-out for the request head, and the stream has a write
//! time-out. Neither works for HTTP/2. An idle connection waits for no request head, and a client that opens no
//! flow-control window leaves the socket writable.

use std::time::Duration;

use tokio::time::Instant;

use super::activity::{AnswerProgress, ConnectionActivity};
use super::limits::ConnectionLimits;

/// Factor on the write time-out. Some clients open their flow-control window in steps of many megabytes. A slow client
/// therefore needs more time to show progress than on HTTP/1.1, where each byte counts.
const WINDOW_STEPS: u32 = 4;

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

fn verdict(progress: &AnswerProgress, now: Instant, idle: Duration, write: Duration) -> Verdict {
    let (timeout, end) = match progress {
        AnswerProgress { answering: 0, .. } => (idle, Verdict::Idle),
        AnswerProgress { waiting_for_server: 0, .. } => (write * WINDOW_STEPS, Verdict::Stalled),
        _ => return Verdict::KeepUntil(now + write),
    };
    let deadline = progress.last + timeout;
    if now >= deadline { end } else { Verdict::KeepUntil(deadline) }
}

/// Returns when a connection is idle or stalled.
pub(super) async fn idle_or_stalled(activity: &ConnectionActivity, limits: &ConnectionLimits) -> Verdict {
    loop {
        let now = Instant::now();
        match verdict(&activity.progress(), now, limits.head, limits.write) {
            // The connection may change sides before then, from waiting for a request to waiting for the client.
            Verdict::KeepUntil(then) => tokio::time::sleep_until(then.min(now + limits.write)).await,
            verdict => return verdict,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_mins(1);
    const WRITE: Duration = Duration::from_secs(20);

    #[test]
    fn verdict_depends_on_the_side_that_is_waited_for() {
        let last = Instant::now();
        let verdict = |answering, waiting_for_server, after: u64| {
            let now = last + Duration::from_secs(after);
            let progress = AnswerProgress { answering, waiting_for_server, last };
            (super::verdict(&progress, now, IDLE, WRITE), now)
        };
        assert_eq!(verdict(0, 0, 59).0, Verdict::KeepUntil(last + IDLE));
        assert_eq!(verdict(0, 0, 60).0, Verdict::Idle);
        assert_eq!(verdict(2, 0, 79).0, Verdict::KeepUntil(last + WRITE * WINDOW_STEPS));
        assert_eq!(verdict(2, 0, 80).0, Verdict::Stalled);
        // While one answer waits for an upstream, the client is not to blame.
        let (kept, now) = verdict(2, 1, 1000);
        assert_eq!(kept, Verdict::KeepUntil(now + WRITE));
    }
}
