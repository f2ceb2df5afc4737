//! What time it is, for everything that ages: one clock that all layers are handed, and that a test can move on.
//!
//! How long a request waits is not read from here: time-outs are about real time, whatever a test makes of the clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The system's clock; clones share what it was moved by.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// Milliseconds by which it is ahead of the system's.
    ahead: Arc<AtomicU64>,
}

impl Clock {
    /// Milliseconds since 1970, as they are kept in facts. The operator may set this clock, also back.
    pub fn now(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis())
            .unwrap_or(u64::MAX)
            .saturating_add(self.ahead.load(Ordering::Relaxed))
    }

    /// A time that only ever grows, for what is remembered no longer than the process lives.
    pub fn instant(&self) -> Instant {
        let ahead = Duration::from_millis(self.ahead.load(Ordering::Relaxed));
        let now = Instant::now();
        now.checked_add(ahead).unwrap_or(now)
    }

    /// Lets `time` pass at once. For tests.
    pub fn advance(&self, time: Duration) {
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.ahead.fetch_add(millis, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_readings_move_together() {
        let clock = Clock::default();
        let (now, instant) = (clock.now(), clock.instant());
        clock.clone().advance(Duration::from_hours(1));
        assert!(clock.now() - now >= 3_600_000);
        assert!(clock.instant() - instant >= Duration::from_hours(1));
    }
}
