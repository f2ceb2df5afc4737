//! Minimum rate of a download that no client reads, averaged over a period.

use std::time::Duration;

use tokio::time::Instant;

use crate::upstream::MinRate;

/// Checks within one period: a reader that comes and goes between two checks is not seen.
const CHECKS: u32 = 4;

/// Rate of one download. Pure: the time is an argument.
#[derive(Debug)]
pub(super) struct Pace {
    limit: MinRate,
    /// Start of the current period.
    since: Instant,
    /// Bytes that had arrived at the start of the period.
    received: u64,
    next_check: Instant,
}

impl Pace {
    pub(super) fn new(limit: MinRate, received: u64, now: Instant) -> Self {
        Self { limit, since: now, received, next_check: now + limit.time / CHECKS }
    }

    /// Returns the time of the next check.
    pub(super) fn next_check(&self) -> Instant {
        self.next_check
    }

    /// Leaves out a time in which no body was being received, such as the wait for a connection.
    pub(super) fn skip(&mut self, time: Duration) {
        self.since += time;
        self.next_check += time;
    }

    /// Returns true if no client has read the download for a whole period, and fewer bytes have arrived in this period than
    /// the minimum rate requires.
    pub(super) fn is_too_slow(&mut self, received: u64, is_read: bool, now: Instant) -> bool {
        self.next_check = now + self.limit.time / CHECKS;
        let elapsed = now.saturating_duration_since(self.since);
        if !is_read && elapsed < self.limit.time {
            return false;
        }
        let arrived = received.saturating_sub(self.received);
        (self.since, self.received) = (now, received);
        let required = u128::from(self.limit.bytes_per_second) * elapsed.as_millis() / 1000;
        !is_read && u128::from(arrived) < required
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: MinRate = MinRate { bytes_per_second: 100, time: Duration::from_secs(8) };

    #[test]
    fn slow_download_is_given_up_after_a_period_without_a_reader() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pace = Pace::new(LIMIT, 0, start);
        assert_eq!(pace.next_check(), at(2));
        assert!(!pace.is_too_slow(0, false, at(2)) && !pace.is_too_slow(1, false, at(6)));
        assert!(pace.is_too_slow(799, false, at(8)));
        // As fast as the minimum.
        let mut pace = Pace::new(LIMIT, 1000, start);
        assert!(!pace.is_too_slow(1800, false, at(8)) && !pace.is_too_slow(1900, false, at(15)));
        assert!(pace.is_too_slow(1900, false, at(16)));
        // The wait for a connection does not count.
        let mut pace = Pace::new(LIMIT, 0, start);
        pace.skip(Duration::from_secs(5));
        assert_eq!(pace.next_check(), at(7));
        assert!(!pace.is_too_slow(0, false, at(12)) && pace.is_too_slow(0, false, at(13)));
        // A reader starts the period again.
        let mut pace = Pace::new(LIMIT, 0, start);
        assert!(!pace.is_too_slow(0, true, at(6)) && !pace.is_too_slow(0, false, at(13)));
        assert!(pace.is_too_slow(0, false, at(14)));
    }

    #[test]
    fn extreme_values_do_not_overflow_and_a_rate_of_zero_gives_nothing_up() {
        let start = Instant::now();
        for rate in [0, 1, u64::MAX] {
            for (before, received) in [(0, u64::MAX), (u64::MAX, 0), (u64::MAX, u64::MAX)] {
                let limit = MinRate { bytes_per_second: rate, time: Duration::from_secs(1) };
                let mut pace = Pace::new(limit, before, start);
                let is_too_slow = pace.is_too_slow(received, false, start + Duration::from_secs(1));
                assert_eq!(is_too_slow, rate > 0 && received <= before);
            }
        }
    }
}
