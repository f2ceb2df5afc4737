//! What time it is, for everything that ages: one clock that all layers are handed, and that a test can move on.
//!
//! How long a request waits is not read from here: time-outs are about real time, whatever a test makes of the clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The system's clock; clones share what it was moved by.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// Milliseconds by which it is ahead of the system's.
    ahead: Arc<AtomicU64>,
    /// Milliseconds by which somebody has set it.
    set: Arc<AtomicI64>,
}

impl Clock {
    /// Milliseconds since 1970, as they are kept in facts. The operator may set this clock, also back.
    pub fn now(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis())
            .unwrap_or(u64::MAX)
            .saturating_add(self.ahead.load(Ordering::Relaxed))
            .saturating_add_signed(self.set.load(Ordering::Relaxed))
    }

    /// A time that only ever grows, for what is remembered no longer than the process lives.
    pub fn instant(&self) -> Instant {
        let ahead = Duration::from_millis(self.ahead.load(Ordering::Relaxed));
        let now = Instant::now();
        now.checked_add(ahead).unwrap_or(now)
    }

    /// Sets it by so many milliseconds, as an operator or a time service sets a clock: no time passes by that. For tests.
    pub fn set_by(&self, millis: i64) {
        self.set.fetch_add(millis, Ordering::Relaxed);
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

    #[test]
    fn to_set_a_clock_lets_no_time_pass() {
        let clock = Clock::default();
        let (now, instant) = (clock.now(), clock.instant());
        clock.clone().set_by(-3_600_000);
        assert!(clock.now() <= now - 3_500_000);
        assert!(clock.instant() - instant < Duration::from_mins(1));
        clock.set_by(i64::MIN / 2);
        assert_eq!(clock.now(), 0);
    }
}
