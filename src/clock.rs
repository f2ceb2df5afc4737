//! Wall-clock and monotonic time for everything that ages: one [`Clock`] shared by all layers, which a test can advance.
//!
//! Time-outs of requests do not use this clock. They measure real time, whatever a test does with the clock.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Point in wall-clock time: milliseconds since 1970-01-01 UTC, as stored in facts and shown by the API.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(transparent)]
pub struct Timestamp(u64);

impl Timestamp {
    /// Latest possible time.
    pub const MAX: Self = Self(u64::MAX);
    /// Latest time that RFC 3339 can express: it has four digits for the year.
    pub const RFC_3339_MAX: Self = Self(253_402_300_799_999);

    /// Creates a timestamp from milliseconds since 1970-01-01 UTC.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Returns the milliseconds since 1970-01-01 UTC.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Returns the seconds since 1970-01-01 UTC.
    pub const fn as_secs(self) -> u64 {
        self.0 / 1000
    }

    /// Returns the time that passed since `earlier`, or zero if `earlier` is later: an operator may set the clock back.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// Returns the time between both timestamps, whichever is later.
    pub const fn abs_diff(self, other: Self) -> Duration {
        Duration::from_millis(self.0.abs_diff(other.0))
    }

    /// Returns the timestamp that is `time` later, or the largest one.
    #[must_use]
    pub fn plus(self, time: Duration) -> Self {
        Self(self.0.saturating_add(millis(time)))
    }

    /// Returns the timestamp that is `time` earlier, or 1970-01-01.
    #[must_use]
    pub fn minus(self, time: Duration) -> Self {
        Self(self.0.saturating_sub(millis(time)))
    }
}

impl From<SystemTime> for Timestamp {
    /// Times before 1970 become 1970-01-01.
    fn from(time: SystemTime) -> Self {
        Self(millis(time.duration_since(UNIX_EPOCH).unwrap_or_default()))
    }
}

impl From<Timestamp> for SystemTime {
    fn from(timestamp: Timestamp) -> Self {
        UNIX_EPOCH.checked_add(Duration::from_millis(timestamp.0)).unwrap_or(UNIX_EPOCH)
    }
}

impl fmt::Display for Timestamp {
    /// Writes the time as RFC 3339 in UTC with milliseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A later time is a damaged or hostile number.
        if *self > Self::RFC_3339_MAX {
            return write!(f, "{} ms after 1970", self.0);
        }
        write!(f, "{}", humantime::format_rfc3339_millis(SystemTime::from(*self)))
    }
}

/// The system's clock. Clones share the offsets that a test has set.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// Milliseconds that a test has let pass.
    ahead: Arc<AtomicU64>,
    /// Milliseconds by which a test has set the wall clock.
    set: Arc<AtomicI64>,
}

impl Clock {
    /// Returns the wall-clock time. The operator may set this clock, also back.
    pub fn now(&self) -> Timestamp {
        Timestamp(
            Timestamp::from(SystemTime::now())
                .0
                .saturating_add(self.ahead.load(Ordering::Relaxed))
                .saturating_add_signed(self.set.load(Ordering::Relaxed)),
        )
    }

    /// Returns a time that never goes back, for state that ends with the process.
    pub fn instant(&self) -> Instant {
        let ahead = Duration::from_millis(self.ahead.load(Ordering::Relaxed));
        let now = Instant::now();
        now.checked_add(ahead).unwrap_or(now)
    }

    /// Sets the wall clock by `millis`, as an operator or a time service does. [`instant`](Self::instant) does not
    /// change. For tests.
    pub fn set_by(&self, millis: i64) {
        self.set.fetch_add(millis, Ordering::Relaxed);
    }

    /// Lets `time` pass at once. For tests.
    pub fn advance(&self, time: Duration) {
        self.ahead.fetch_add(millis(time), Ordering::Relaxed);
    }
}

/// Returns the whole milliseconds of a duration, as logs and documents show it.
pub fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advance_moves_both_readings() {
        let clock = Clock::default();
        let (now, instant) = (clock.now(), clock.instant());
        clock.clone().advance(Duration::from_hours(1));
        assert!(clock.now().since(now) >= Duration::from_hours(1));
        assert!(clock.instant() - instant >= Duration::from_hours(1));
    }

    #[test]
    fn set_by_moves_the_wall_clock_only() {
        let clock = Clock::default();
        let (now, instant) = (clock.now(), clock.instant());
        clock.clone().set_by(-3_600_000);
        assert!(now.since(clock.now()) >= Duration::from_secs(3500));
        assert!(clock.instant() - instant < Duration::from_mins(1));
        clock.set_by(i64::MIN / 2);
        assert_eq!(clock.now(), Timestamp::default());
    }

    #[test]
    fn timestamp_arithmetic_saturates() {
        let last = Timestamp::MAX;
        assert_eq!(last.plus(Duration::MAX), last);
        assert_eq!(last.minus(Duration::MAX), Timestamp::default());
        assert_eq!(Timestamp::default().since(last), Duration::ZERO);
        assert_eq!(Timestamp::default().abs_diff(last), last.since(Timestamp::default()));
    }

    #[test]
    fn timestamp_is_written_as_rfc_3339() {
        assert_eq!(Timestamp::from_millis(0).to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(Timestamp::from_millis(1_796_042_978_123).to_string(), "2026-11-30T12:49:38.123Z");
        assert_eq!(Timestamp::MAX.to_string(), format!("{} ms after 1970", u64::MAX));
    }
}
