//! Health of an endpoint: a circuit breaker. After several failures in a row it opens, and no request is sent for a time.
//! Then one request probes the endpoint. If that succeeds, the circuit breaker closes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::oci::UpstreamName;
use crate::telemetry::Metrics;

use super::status::{Breaker, HealthState};
use crate::source::SourceError;

/// Failures in a row after which the circuit breaker opens. Each is a whole request with its retries.
const FAILURES_MAX: u32 = 3;
/// First back-off. It doubles each time that the probe after it fails.
const BACKOFF_MIN: Duration = Duration::from_secs(5);
/// Longest back-off, and so the longest time until a recovery is noticed.
const BACKOFF_MAX: Duration = Duration::from_mins(1);

/// State of the circuit breaker. Time and jitter are arguments.
#[derive(Debug, Default)]
struct BreakerState {
    /// Failures in a row.
    failures: u32,
    /// Number of times in a row that the breaker opened.
    openings: u32,
    /// End of the back-off. After it, one request may probe the endpoint.
    until: Option<Instant>,
    /// True while a request probes the endpoint.
    probing: bool,
    /// Last failure.
    last: Option<SourceError>,
}

impl BreakerState {
    /// Permits a request: true if it is the probe. Otherwise returns the rest of the back-off.
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

    /// Records a failure. Returns the back-off if the breaker opens now. `jitter` is between 0 and 1.
    fn failed(&mut self, now: Instant, error: &SourceError, jitter: f64) -> Option<Duration> {
        let probed = std::mem::take(&mut self.probing);
        if self.until.is_some_and(|until| now < until) {
            // The request was sent before the breaker opened.
            return None;
        }
        self.failures = self.failures.saturating_add(1);
        self.last = Some(error.clone());
        if !probed && self.failures < FAILURES_MAX {
            return None;
        }
        let time = BACKOFF_MIN.saturating_mul(1 << self.openings.min(10)).min(BACKOFF_MAX);
        // Jitter of a quarter, so that several servers do not probe at the same time.
        let time = time.mul_f64(0.75 + jitter.clamp(0.0, 1.0) / 2.0);
        self.openings = self.openings.saturating_add(1);
        self.until = Some(now + time);
        Some(time)
    }

    /// Returns the state for status pages, and the rest of the back-off.
    fn status(&self, now: Instant) -> (HealthState, Option<Duration>) {
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

/// Health of one endpoint.
#[derive(Debug)]
pub(crate) struct Health {
    breaker: Mutex<BreakerState>,
    clock: Clock,
    metrics: Arc<Metrics>,
    upstream: UpstreamName,
    /// URL of the endpoint as configured.
    endpoint: String,
}

/// Permission for one request. If a probe is dropped without a result, another request may probe.
#[derive(Debug)]
pub(crate) struct Permit {
    health: Arc<Health>,
    probe: bool,
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.probe {
            self.health.breaker().probing = false;
        }
    }
}

impl Health {
    pub(crate) fn new(upstream: UpstreamName, endpoint: String, clock: Clock, metrics: Arc<Metrics>) -> Self {
        metrics.endpoint_open(upstream.as_str(), &endpoint, false);
        Self { breaker: Mutex::default(), clock, metrics, upstream, endpoint }
    }

    /// Returns the URL of the endpoint as configured.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    fn breaker(&self) -> MutexGuard<'_, BreakerState> {
        // No code under this lock can panic during a change.
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Permits a request, or returns the error to use instead of an answer.
    pub(crate) fn permit(self: &Arc<Self>) -> Result<Permit, SourceError> {
        let mut breaker = self.breaker();
        match breaker.permit(self.clock.instant()) {
            Ok(probe) => Ok(Permit { health: Arc::clone(self), probe }),
            Err(left) => Err(open_error(breaker.last.as_ref(), left)),
        }
    }

    /// Returns the state for status pages.
    pub(crate) fn state(&self) -> HealthState {
        let (state, left) = self.breaker().status(self.clock.instant());
        HealthState { open_until: left.map(|left| self.clock.now().plus(left)), ..state }
    }

    /// Returns true if the circuit breaker is open or half-open.
    pub(crate) fn is_suspect(&self) -> bool {
        self.breaker().until.is_some()
    }

    /// Records an answer.
    pub(crate) fn succeeded(&self) {
        let before = std::mem::take(&mut *self.breaker());
        if before.until.is_some() {
            self.metrics.endpoint_open(self.upstream.as_str(), &self.endpoint, false);
            tracing::info!(upstream = %self.upstream, endpoint = self.endpoint, "the endpoint has recovered");
        }
    }

    /// Records that there was no answer, or no complete one.
    pub(crate) fn failed(&self, error: &SourceError) {
        let opened = self.breaker().failed(self.clock.instant(), error, fastrand::f64());
        if let Some(time) = opened {
            self.metrics.endpoint_open(self.upstream.as_str(), &self.endpoint, true);
            tracing::warn!(upstream = %self.upstream, endpoint = self.endpoint, %error, backoff = ?time, "the endpoint keeps failing; no requests are sent for a time");
        }
    }
}

/// Returns the error for an endpoint that is not asked: of the kind of its last failure.
fn open_error(last: Option<&SourceError>, left: Duration) -> SourceError {
    let left = humantime::format_duration(Duration::from_secs(left.as_secs().max(1)));
    let text = format!("it failed several times in a row; the next attempt is in {left}");
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
    fn breaker_opens_after_three_failures_and_permits_one_probe() {
        let (mut breaker, now) = (BreakerState::default(), Instant::now());
        assert_eq!(breaker.permit(now), Ok(false));
        assert_eq!(breaker.failed(now, &refused(), 0.5), None);
        assert_eq!(breaker.failed(now, &refused(), 0.5), None);
        assert_eq!(breaker.permit(now), Ok(false));
        assert_eq!(breaker.failed(now, &refused(), 0.5), Some(BACKOFF_MIN));
        assert_eq!(breaker.permit(now), Err(BACKOFF_MIN));
        let (state, left) = breaker.status(now);
        assert_eq!((state.breaker, state.failures, left), (Breaker::Open, 3, Some(BACKOFF_MIN)));
        assert_eq!(breaker.status(now + BACKOFF_MIN).0.breaker, Breaker::HalfOpen);
        // Results of earlier requests change nothing.
        assert_eq!(breaker.failed(now, &refused(), 0.5), None);
        assert_eq!(breaker.permit(now + BACKOFF_MIN), Ok(true));
        assert_eq!(breaker.permit(now + BACKOFF_MIN), Err(Duration::ZERO), "one probe at a time");
        assert_eq!(breaker.failed(now + BACKOFF_MIN, &refused(), 0.5), Some(BACKOFF_MIN * 2));
    }

    #[test]
    fn backoff_is_limited_and_has_jitter() {
        let (mut breaker, mut now) = (BreakerState::default(), Instant::now());
        for _ in 0..50 {
            breaker.failed(now, &refused(), 1.0);
            now += BACKOFF_MAX * 2;
            breaker.permit(now).ok();
        }
        assert_eq!(breaker.failed(now, &refused(), 1.0), Some(BACKOFF_MAX.mul_f64(1.25)));
        now += BACKOFF_MAX * 2;
        breaker.permit(now).ok();
        assert_eq!(breaker.failed(now, &refused(), 0.0), Some(BACKOFF_MAX.mul_f64(0.75)));
    }

    #[test]
    fn success_closes_the_breaker() {
        let clock = Clock::default();
        let upstream = "reg.test".parse().expect("a name");
        let metrics = Arc::new(Metrics::new());
        let health = Arc::new(Health::new(upstream, "http://reg.test".into(), clock.clone(), metrics));
        for _ in 0..FAILURES_MAX {
            health.failed(&SourceError::Timeout("nothing".into()));
        }
        assert!(matches!(health.permit(), Err(SourceError::Timeout(_))), "of the same kind");
        clock.advance(BACKOFF_MAX);
        let permit = health.permit().expect("a probe");
        assert!(health.permit().is_err());
        drop(permit);
        let _again = health.permit().expect("another probe");
        health.succeeded();
        assert!(!health.is_suspect() && health.permit().is_ok());
    }
}
