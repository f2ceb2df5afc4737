//! How an endpoint has been doing: one that failed several times in a row is left alone for a while, then tried by
//! one request, and trusted again once that works.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::oci::UpstreamName;
use crate::telemetry::Metrics;

use super::status::{Breaker, HealthState, millis};
use crate::source::SourceError;

/// Failures in a row after which an endpoint is left alone. Each is a whole request, repetitions included.
const FAILURES: u32 = 3;
/// For how long it is left alone the first time. Doubled each time that the request after it fails too.
const FIRST: Duration = Duration::from_secs(5);
/// And at most: so long does it take at worst until somebody notices that it is back.
const LONGEST: Duration = Duration::from_mins(1);

/// What is known of an endpoint's health. Pure: the time, and the share of chance, are arguments.
#[derive(Debug, Default)]
struct Record {
    failures: u32,
    /// How often in a row it has been left alone.
    times: u32,
    /// Until when it is left alone; a time that has passed means that one request may find out.
    until: Option<Instant>,
    /// Whether a request is finding out.
    probing: bool,
    /// What went wrong last.
    last: Option<SourceError>,
}

impl Record {
    /// Whether the endpoint may be asked, and then whether the asker is finding out for all; else how long it is
    /// still left alone.
    fn permit(&mut self, now: Instant) -> Result<bool, Duration> {
        match self.until {
            None => Ok(false),
            Some(until) if now < until => Err(until - now),
            Some(_) if self.probing => Err(Duration::ZERO),
            Some(_) => {
                self.probing = true;
                Ok(true)
            }
        }
    }

    /// Notes a failure. Returns how long the endpoint is left alone, if that begins now. `chance` is between 0 and 1.
    fn failed(&mut self, now: Instant, error: &SourceError, chance: f64) -> Option<Duration> {
        let probed = std::mem::take(&mut self.probing);
        if self.until.is_some_and(|until| now < until) {
            // It was asked before that began, and tells nothing new.
            return None;
        }
        self.failures = self.failures.saturating_add(1);
        self.last = Some(error.clone());
        if !probed && self.failures < FAILURES {
            return None;
        }
        let time = FIRST.saturating_mul(1 << self.times.min(10)).min(LONGEST);
        // Spread by a quarter, so that several larders do not come back in one moment.
        let time = time.mul_f64(0.75 + chance.clamp(0.0, 1.0) / 2.0);
        self.times = self.times.saturating_add(1);
        self.until = Some(now + time);
        Some(time)
    }

    /// As it is told to who looks on; and how long it is still left alone.
    fn state(&self, now: Instant) -> (HealthState, Option<Duration>) {
        let left =
            self.until.and_then(|until| until.checked_duration_since(now)).filter(|left| !left.is_zero());
        let breaker = match (self.until, left) {
            (None, _) => Breaker::Closed,
            (Some(_), Some(_)) => Breaker::Open,
            (Some(_), None) => Breaker::HalfOpen,
        };
        let error = self.last.as_ref().map(ToString::to_string);
        (HealthState { breaker, failures: self.failures, error, open_until: None }, left)
    }
}

/// The health of one endpoint.
#[derive(Debug)]
pub(crate) struct Health {
    record: Mutex<Record>,
    clock: Clock,
    metrics: Arc<Metrics>,
    upstream: UpstreamName,
    /// The endpoint as it is configured.
    endpoint: String,
}

/// A permission to ask. Who was to find out for all and leaves without a word makes room for the next.
#[derive(Debug)]
pub(crate) struct Permit {
    health: Arc<Health>,
    probe: bool,
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.probe {
            self.health.record().probing = false;
        }
    }
}

impl Health {
    pub(crate) fn new(upstream: UpstreamName, endpoint: String, clock: Clock, metrics: Arc<Metrics>) -> Self {
        metrics.endpoint_open(upstream.as_str(), &endpoint, false);
        Self { record: Mutex::default(), clock, metrics, upstream, endpoint }
    }

    /// The endpoint as it is configured.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        // Nothing under this lock can panic halfway through a change.
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the endpoint may be asked now; else what to say instead of its answer.
    pub(crate) fn permit(self: &Arc<Self>) -> Result<Permit, SourceError> {
        let mut record = self.record();
        match record.permit(self.clock.instant()) {
            Ok(probe) => Ok(Permit { health: Arc::clone(self), probe }),
            Err(left) => Err(left_alone(record.last.as_ref(), left)),
        }
    }

    /// How it has been doing, for who looks on.
    pub(crate) fn state(&self) -> HealthState {
        let (state, left) = self.record().state(self.clock.instant());
        HealthState {
            open_until: left.map(|left| self.clock.now_millis().saturating_add(millis(left))),
            ..state
        }
    }

    /// Whether it is left alone, or was and nobody knows yet whether it works again.
    pub(crate) fn is_suspect(&self) -> bool {
        self.record().until.is_some()
    }

    /// It answered.
    pub(crate) fn worked(&self) {
        let before = std::mem::take(&mut *self.record());
        if before.until.is_some() {
            self.metrics.endpoint_open(self.upstream.as_str(), &self.endpoint, false);
            tracing::info!(upstream = %self.upstream, endpoint = self.endpoint, "the endpoint answers again");
        }
    }

    /// It did not answer, or not to the end.
    pub(crate) fn failed(&self, error: &SourceError) {
        let opened = self.record().failed(self.clock.instant(), error, fastrand::f64());
        if let Some(time) = opened {
            self.metrics.endpoint_open(self.upstream.as_str(), &self.endpoint, true);
            tracing::warn!(upstream = %self.upstream, endpoint = self.endpoint, %error, ?time, "the endpoint fails again and again and is left alone");
        }
    }
}

/// What is said for an endpoint that is not asked: of the same kind as what it last did.
fn left_alone(last: Option<&SourceError>, left: Duration) -> SourceError {
    let left = humantime::format_duration(Duration::from_secs(left.as_secs().max(1)));
    let text = format!("it failed several times in a row and is left alone for another {left}");
    match last {
        Some(SourceError::Timeout(_)) => SourceError::Timeout(text),
        _ => SourceError::Unreachable(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> SourceError {
        SourceError::Unreachable("refused".to_owned())
    }

    #[test]
    fn left_alone_after_three_failures_then_tried_by_one() {
        let (mut record, now) = (Record::default(), Instant::now());
        assert_eq!(record.permit(now), Ok(false));
        assert_eq!(record.failed(now, &refused(), 0.5), None);
        assert_eq!(record.failed(now, &refused(), 0.5), None);
        assert_eq!(record.permit(now), Ok(false));
        assert_eq!(record.failed(now, &refused(), 0.5), Some(FIRST));
        assert_eq!(record.permit(now), Err(FIRST));
        let (state, left) = record.state(now);
        assert_eq!((state.breaker, state.failures, left), (Breaker::Open, 3, Some(FIRST)));
        assert_eq!(record.state(now + FIRST).0.breaker, Breaker::HalfOpen);
        // Answers to what was asked before change nothing.
        assert_eq!(record.failed(now, &refused(), 0.5), None);
        assert_eq!(record.permit(now + FIRST), Ok(true));
        assert_eq!(record.permit(now + FIRST), Err(Duration::ZERO), "one finds out for all");
        assert_eq!(record.failed(now + FIRST, &refused(), 0.5), Some(FIRST * 2));
    }

    #[test]
    fn the_time_alone_is_bounded_and_spread() {
        let (mut record, mut now) = (Record::default(), Instant::now());
        for _ in 0..50 {
            record.failed(now, &refused(), 1.0);
            now += LONGEST * 2;
            record.permit(now).ok();
        }
        assert_eq!(record.failed(now, &refused(), 1.0), Some(LONGEST.mul_f64(1.25)));
        now += LONGEST * 2;
        record.permit(now).ok();
        assert_eq!(record.failed(now, &refused(), 0.0), Some(LONGEST.mul_f64(0.75)));
    }

    #[test]
    fn one_answer_makes_good_for_all() {
        let clock = Clock::default();
        let upstream = "reg.test".parse().expect("a name");
        let metrics = Arc::new(Metrics::new());
        let health = Arc::new(Health::new(upstream, "http://reg.test".into(), clock.clone(), metrics));
        for _ in 0..FAILURES {
            health.failed(&SourceError::Timeout("nothing".into()));
        }
        assert!(matches!(health.permit(), Err(SourceError::Timeout(_))), "as it was");
        clock.advance(LONGEST);
        let permit = health.permit().expect("somebody may find out");
        assert!(health.permit().is_err());
        drop(permit);
        let _again = health.permit().expect("the first one left without a word");
        health.worked();
        assert!(!health.is_suspect() && health.permit().is_ok());
    }
}
