//! Health of the store: whether it is in degraded mode, and when to retry it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Time before the first retry of a failed store.
const RETRY_DELAY: Duration = Duration::from_secs(5);
/// Upper bound of the back-off.
const RETRY_DELAY_MAX: Duration = Duration::from_mins(1);
/// A failure within this time after a recovery counts as a relapse, and doubles the delay.
const RELAPSE_WINDOW: Duration = Duration::from_mins(1);

/// State of the store's health. Pure: the time is an argument.
#[derive(Debug)]
struct HealthRecord {
    /// Start of degraded mode; `None` if the store works.
    degraded_since: Option<Instant>,
    last_retry: Option<Instant>,
    last_recovery: Option<Instant>,
    retry_delay: Duration,
    /// True if the store must be reopened to recover.
    needs_reopen: bool,
}

impl Default for HealthRecord {
    fn default() -> Self {
        Self {
            degraded_since: None,
            last_retry: None,
            last_recovery: None,
            retry_delay: RETRY_DELAY,
            needs_reopen: false,
        }
    }
}

impl HealthRecord {
    /// Records a failure. Returns true if degraded mode begins with it.
    fn fail(&mut self, now: Instant, needs_reopen: bool) -> bool {
        self.needs_reopen |= needs_reopen;
        if self.degraded_since.is_some() {
            return false;
        }
        let is_relapse =
            self.last_recovery.is_some_and(|at| now.saturating_duration_since(at) < RELAPSE_WINDOW);
        self.retry_delay =
            if is_relapse { self.retry_delay.saturating_mul(2).min(RETRY_DELAY_MAX) } else { RETRY_DELAY };
        (self.degraded_since, self.last_retry) = (Some(now), Some(now));
        true
    }

    /// Returns true if a retry is due. The next one is due after another delay.
    fn begin_retry(&mut self, now: Instant) -> bool {
        let is_due =
            self.last_retry.is_none_or(|retry| now.saturating_duration_since(retry) >= self.retry_delay);
        if self.degraded_since.is_none() || !is_due {
            return false;
        }
        self.last_retry = Some(now);
        true
    }

    /// Ends degraded mode. Returns its duration.
    fn recover(&mut self, now: Instant) -> Option<Duration> {
        let since = self.degraded_since.take()?;
        self.last_recovery = Some(now);
        self.needs_reopen = false;
        Some(now.saturating_duration_since(since))
    }
}

/// Health of the store, shared by requests and background tasks.
#[derive(Debug, Default)]
pub(super) struct StoreHealth {
    record: Mutex<HealthRecord>,
    /// Held during a retry, so that a slow disk does not get two at once.
    pub(super) retrying: tokio::sync::Mutex<()>,
}

impl StoreHealth {
    /// Returns true in degraded mode: clients are served directly from the upstreams, and nothing is stored.
    pub(super) fn is_degraded(&self) -> bool {
        self.record().degraded_since.is_some()
    }

    /// Returns the duration of degraded mode so far; `None` if the store works.
    pub(super) fn degraded_for(&self, now: Instant) -> Option<Duration> {
        self.record().degraded_since.map(|since| now.saturating_duration_since(since))
    }

    /// Records a failure. Returns true if degraded mode begins with it.
    pub(super) fn fail(&self, now: Instant, needs_reopen: bool) -> bool {
        self.record().fail(now, needs_reopen)
    }

    /// Returns true if the caller is to retry the store now.
    pub(super) fn begin_retry(&self, now: Instant) -> bool {
        self.record().begin_retry(now)
    }

    /// Returns true if the store must be reopened to recover.
    pub(super) fn needs_reopen(&self) -> bool {
        self.record().needs_reopen
    }

    /// Ends degraded mode. Returns its duration.
    pub(super) fn recover(&self, now: Instant) -> Option<Duration> {
        self.record().recover(now)
    }

    fn record(&self) -> MutexGuard<'_, HealthRecord> {
        // Nothing under this lock can panic in the middle of a change.
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn degraded_mode_begins_once_and_is_retried_after_a_delay() {
        let (mut record, mut now) = (HealthRecord::default(), Instant::now());
        assert!(!record.begin_retry(now));
        assert!(record.fail(now, false) && !record.fail(now, true));
        assert!(!record.begin_retry(now));
        now += RETRY_DELAY;
        assert!(record.begin_retry(now) && !record.begin_retry(now));
        assert!(record.needs_reopen);
        assert_eq!(record.recover(now + RETRY_DELAY), Some(RETRY_DELAY * 2));
        assert_eq!(record.recover(now + RETRY_DELAY), None);
        assert!(!record.needs_reopen);
    }

    #[test]
    fn relapse_doubles_the_retry_delay() {
        let (mut record, mut now) = (HealthRecord::default(), Instant::now());
        for delay in [5, 10, 20, 40, 60, 60].map(Duration::from_secs) {
            assert!(record.fail(now, false));
            assert!(!record.begin_retry(now + delay / 2));
            now += delay;
            assert!(record.begin_retry(now));
            record.recover(now);
        }
        now += RELAPSE_WINDOW;
        assert!(record.fail(now, false) && record.begin_retry(now + RETRY_DELAY));
    }
}
