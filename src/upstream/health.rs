//! Health of an endpoint: a circuit breaker, and the paths that keep failing.
//!
//! A failure of one path says nothing about other paths. Such a path is paused for a short time by itself, and a repository
//! whose paths keep failing is asked at a bounded rate ([`super::repository_backoff`]). The circuit breaker opens only if the endpoint fails as a whole: no connections, no responses, or failures of several repositories.
//! Before it opens for anything but failed connections, a request for `/v2/` confirms the failure ([`super::probe`]). While
//! it is open, such probes run in the background until one of them succeeds.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quick_cache::sync::Cache;

use crate::clock::Clock;
use crate::oci::{Name, UpstreamName};
use crate::telemetry::Metrics;

use super::repository_backoff::{RepositoryBackoff, RequestPath};
use super::status::{Breaker, HealthState};
use crate::source::SourceError;

/// Failures in a row after which the endpoint is suspected, or a path is paused. Each is a whole request with its retries.
const FAILURES_MAX: u32 = 3;
/// Number of different repositories whose failures in a row make the endpoint suspect.
const REPOSITORIES_MAX: usize = 2;
/// Failures in a row of a single repository after which the endpoint is suspected: nothing else was asked for.
const FAILURES_OF_ONE_MAX: u32 = 6;
/// Pause of a path that keeps failing.
const PATH_PAUSE: Duration = Duration::from_secs(2);
/// Number of failing paths that are remembered.
const PATHS_MAX: usize = 1024;
/// Interval at which one request is sent to an endpoint whose circuit breaker is open. An endpoint may refuse probes and
/// still serve images.
const TRIAL_INTERVAL: Duration = Duration::from_mins(1);
/// Longest time until the next probe, for messages.
const NEXT_PROBE: Duration = Duration::from_secs(2);
/// Time without a request after which probes end. The next request is a trial.
const DEMAND_MAX: Duration = Duration::from_mins(10);

/// State of the circuit breaker. The time is an argument.
#[derive(Debug, Default)]
struct BreakerState {
    /// Failures in a row.
    failures: u32,
    /// Failures in a row without a connection.
    connection_failures: u32,
    /// Failures in a row without any response.
    silent_failures: u32,
    /// Different repositories of the failures in a row, up to [`REPOSITORIES_MAX`].
    repositories: Vec<Name>,
    /// Time of the next trial, if the circuit breaker is open.
    next_trial: Option<Instant>,
    /// True while probes are running.
    probing: bool,
    /// Time of the last request that was refused.
    demand: Option<Instant>,
    /// Last failure.
    last: Option<SourceError>,
}

/// Consequence of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// None.
    Healthy,
    /// A probe must confirm that the endpoint fails.
    Suspect,
    /// The circuit breaker opens.
    Open,
}

impl BreakerState {
    /// Permits a request. Otherwise returns the time until the next trial.
    fn permit(&mut self, now: Instant) -> Result<(), Duration> {
        match &mut self.next_trial {
            None => Ok(()),
            Some(trial) if now < *trial => {
                self.demand = Some(now);
                Err(*trial - now)
            }
            Some(trial) => {
                self.demand = Some(now);
                *trial = now + TRIAL_INTERVAL;
                Ok(())
            }
        }
    }

    /// Records a failure of a request for content of `repository`.
    fn failed(&mut self, now: Instant, repository: &Name, error: &SourceError) -> Verdict {
        self.failures = self.failures.saturating_add(1);
        let count = |in_a_row: u32, counts: bool| if counts { in_a_row.saturating_add(1) } else { 0 };
        self.connection_failures = count(self.connection_failures, error.is_connection_failure());
        self.silent_failures = count(self.silent_failures, error.is_silence());
        if self.repositories.len() < REPOSITORIES_MAX && !self.repositories.contains(repository) {
            self.repositories.push(repository.clone());
        }
        self.last = Some(error.clone());
        let is_general = self.repositories.len() == REPOSITORIES_MAX
            || self.silent_failures >= FAILURES_MAX
            || self.failures >= FAILURES_OF_ONE_MAX;
        if self.next_trial.is_some() {
            // Probes may have ended for lack of demand.
            if self.probing { Verdict::Healthy } else { Verdict::Suspect }
        } else if self.connection_failures >= FAILURES_MAX {
            self.open(now);
            Verdict::Open
        } else if self.failures >= FAILURES_MAX && is_general && !self.probing {
            Verdict::Suspect
        } else {
            Verdict::Healthy
        }
    }

    fn open(&mut self, now: Instant) {
        self.next_trial = Some(now + TRIAL_INTERVAL);
        self.demand = Some(now);
    }

    /// Returns the state for status pages, and the time until the next trial.
    fn status(&self, now: Instant) -> (HealthState, Option<Duration>) {
        let left = self
            .next_trial
            .and_then(|trial| trial.checked_duration_since(now))
            .filter(|left| !left.is_zero());
        let breaker = match (self.next_trial, left) {
            (None, _) => Breaker::Closed,
            (Some(_), Some(_)) => Breaker::Open,
            (Some(_), None) => Breaker::HalfOpen,
        };
        let error = self.last.as_ref().map(ToString::to_string);
        (HealthState { breaker, failures: self.failures, error, open_until: None }, left)
    }
}

/// Failures in a row of one path.
#[derive(Clone, Debug)]
struct PathFailures {
    count: u32,
    /// End of the pause.
    until: Option<Instant>,
    last: SourceError,
}

/// Health of one endpoint.
#[derive(Debug)]
pub(crate) struct Health {
    breaker: Mutex<BreakerState>,
    paths: Cache<RequestPath, PathFailures>,
    repositories: Mutex<RepositoryBackoff>,
    asked: AtomicBool,
    clock: Clock,
    metrics: Arc<Metrics>,
    upstream: UpstreamName,
    /// URL of the endpoint as configured.
    endpoint: String,
}

impl Health {
    pub(crate) fn new(upstream: UpstreamName, endpoint: String, clock: Clock, metrics: Arc<Metrics>) -> Self {
        metrics.endpoint_open(upstream.as_str(), &endpoint, false);
        let paths = Cache::new(PATHS_MAX);
        let asked = AtomicBool::new(false);
        let repositories = Mutex::default();
        Self { breaker: Mutex::default(), paths, repositories, asked, clock, metrics, upstream, endpoint }
    }

    /// Returns the URL of the endpoint as configured.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    fn breaker(&self) -> MutexGuard<'_, BreakerState> {
        // No code under this lock can panic during a change.
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn repositories(&self) -> MutexGuard<'_, RepositoryBackoff> {
        self.repositories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Permits a request, or returns the error to use instead of an answer.
    pub(crate) fn permit(&self, path: &RequestPath) -> Result<(), SourceError> {
        let now = self.clock.instant();
        {
            let mut breaker = self.breaker();
            if let Err(left) = breaker.permit(now) {
                let text =
                    format!("it failed several times in a row; {}", next_attempt(left.min(NEXT_PROBE)));
                return Err(same_kind(breaker.last.as_ref(), text));
            }
        }
        let paused = self.paths.get(path);
        let left = paused.as_ref().and_then(|paused| paused.until?.checked_duration_since(now));
        if let (Some(paused), Some(left)) = (paused, left.filter(|left| !left.is_zero())) {
            let text = format!("this content failed several times in a row; {}", next_attempt(left));
            return Err(same_kind(Some(&paused.last), text));
        }
        if let Err((left, last)) = self.repositories().permit(path, now) {
            let text = format!("this repository failed many times in a row; {}", next_attempt(left));
            return Err(same_kind(Some(&last), text));
        }
        self.asked.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Returns true if a request was permitted since the server started.
    pub(crate) fn was_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Returns the state for status pages.
    pub(crate) fn state(&self) -> HealthState {
        let (state, left) = self.breaker().status(self.clock.instant());
        HealthState { open_until: left.map(|left| self.clock.now().plus(left)), ..state }
    }

    /// Returns true if the circuit breaker is open or half-open.
    pub(crate) fn is_suspect(&self) -> bool {
        self.breaker().next_trial.is_some()
    }

    /// Records an answer to a request.
    pub(crate) fn succeeded(&self, path: &RequestPath) {
        self.paths.remove(path);
        self.repositories().succeeded(path);
        self.responded();
    }

    /// Records an answer of any kind: the endpoint is available.
    pub(crate) fn responded(&self) {
        let before = {
            let mut breaker = self.breaker();
            let probing = breaker.probing;
            std::mem::replace(&mut *breaker, BreakerState { probing, ..BreakerState::default() })
        };
        if before.next_trial.is_some() {
            self.metrics.endpoint_open(self.upstream.as_str(), &self.endpoint, false);
            tracing::info!(upstream = %self.upstream, endpoint = self.endpoint, "the endpoint has recovered");
        }
    }

    /// Records that there was no answer, or no complete one. Returns true if the caller must start probes.
    #[must_use]
    pub(crate) fn failed(&self, path: &RequestPath, error: &SourceError) -> bool {
        self.path_failed(path, error);
        let now = self.clock.instant();
        let mut breaker = self.breaker();
        let verdict = breaker.failed(now, &path.repository, error);
        let start = verdict != Verdict::Healthy && !breaker.probing;
        breaker.probing |= start;
        drop(breaker);
        if verdict == Verdict::Open {
            self.report_open(error);
        }
        start
    }

    /// Records a failure that concerns no other repository.
    pub(crate) fn path_failed(&self, path: &RequestPath, error: &SourceError) {
        let now = self.clock.instant();
        self.repositories().failed(path, now, error);
        let count = self.paths.get(path).map_or(0, |failures| failures.count).saturating_add(1);
        let until = (count >= FAILURES_MAX).then(|| now + PATH_PAUSE);
        self.paths.insert(path.clone(), PathFailures { count, until, last: error.clone() });
    }

    /// Records a failed probe. The circuit breaker opens if it was closed. Returns false if probes must end, because a
    /// request was answered meanwhile, or no request has asked for the endpoint for a long time.
    pub(crate) fn probe_failed(&self, error: &SourceError) -> bool {
        let now = self.clock.instant();
        let mut breaker = self.breaker();
        let opened = breaker.next_trial.is_none();
        if opened && breaker.failures < FAILURES_MAX {
            breaker.probing = false;
            return false;
        }
        if opened {
            breaker.open(now);
        }
        let demand = breaker.demand.map_or(Duration::ZERO, |demand| now.saturating_duration_since(demand));
        breaker.probing = demand < DEMAND_MAX;
        let goes_on = breaker.probing;
        drop(breaker);
        if opened {
            self.report_open(error);
        }
        goes_on
    }

    /// Records a successful probe: the circuit breaker closes, and paused paths may be asked for.
    pub(crate) fn probe_succeeded(&self) {
        if self.is_suspect() {
            self.paths.clear();
            self.repositories().clear();
        }
        self.responded();
        self.breaker().probing = false;
    }

    fn report_open(&self, error: &SourceError) {
        self.metrics.endpoint_open(self.upstream.as_str(), &self.endpoint, true);
        tracing::warn!(
            upstream = %self.upstream,
            endpoint = self.endpoint,
            %error,
            "the endpoint keeps failing; only probes are sent until one of them succeeds"
        );
    }
}

fn next_attempt(left: Duration) -> String {
    let left = humantime::format_duration(Duration::from_secs(left.as_secs().max(1)));
    format!("the next attempt is in at most {left}")
}

/// Returns an error with this text, of the kind of the last failure.
fn same_kind(last: Option<&SourceError>, text: String) -> SourceError {
    match last {
        Some(SourceError::Timeout(_) | SourceError::ConnectTimeout) => SourceError::Timeout(text),
        _ => SourceError::Unreachable(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> SourceError {
        SourceError::Unreachable("refused".to_owned())
    }

    fn silent() -> SourceError {
        SourceError::Timeout("no response".to_owned())
    }

    fn status() -> SourceError {
        SourceError::Unavailable(500)
    }

    fn path(repository: &str) -> RequestPath {
        RequestPath { repository: repository.parse().expect("a name"), resource: "manifests/v1".to_owned() }
    }

    fn health(clock: &Clock) -> Health {
        let upstream = "reg.test".parse().expect("a name");
        Health::new(upstream, "http://reg.test".into(), clock.clone(), Arc::new(Metrics::new()))
    }

    #[test]
    fn failed_connections_open_the_breaker() {
        let (mut breaker, now, name) = (BreakerState::default(), Instant::now(), path("a").repository);
        let verdicts: Vec<_> = (0..4).map(|_| breaker.failed(now, &name, &refused())).collect();
        let expected = [Verdict::Healthy, Verdict::Healthy, Verdict::Open, Verdict::Suspect];
        assert_eq!(verdicts, expected, "probes are not running here");
        assert_eq!(breaker.permit(now), Err(TRIAL_INTERVAL));
        let (state, left) = breaker.status(now);
        assert_eq!((state.breaker, state.failures, left), (Breaker::Open, 4, Some(TRIAL_INTERVAL)));
        assert_eq!(breaker.status(now + TRIAL_INTERVAL).0.breaker, Breaker::HalfOpen);
        assert_eq!(breaker.permit(now + TRIAL_INTERVAL), Ok(()));
        assert_eq!(breaker.permit(now + TRIAL_INTERVAL), Err(TRIAL_INTERVAL), "one trial at a time");
    }

    #[test]
    fn statuses_of_one_repository_need_more_failures_to_make_the_endpoint_suspect() {
        let (mut breaker, now, name) = (BreakerState::default(), Instant::now(), path("a").repository);
        for _ in 1..FAILURES_OF_ONE_MAX {
            assert_eq!(breaker.failed(now, &name, &status()), Verdict::Healthy);
        }
        assert_eq!(breaker.failed(now, &name, &status()), Verdict::Suspect);
        let mut breaker = BreakerState::default();
        let names = ["a", "a", "b"].map(|name| path(name).repository);
        let verdicts = names.map(|name| breaker.failed(now, &name, &status()));
        assert_eq!(verdicts, [Verdict::Healthy, Verdict::Healthy, Verdict::Suspect]);
    }

    #[test]
    fn silence_makes_the_endpoint_suspect() {
        let (mut breaker, now, name) = (BreakerState::default(), Instant::now(), path("a").repository);
        let broke = SourceError::NoResponse("it broke".to_owned());
        let verdicts: Vec<_> =
            [refused(), silent(), broke].iter().map(|error| breaker.failed(now, &name, error)).collect();
        assert_eq!(verdicts, [Verdict::Healthy, Verdict::Healthy, Verdict::Suspect]);
    }

    #[test]
    fn path_is_paused_without_the_others() {
        let clock = Clock::default();
        let health = health(&clock);
        for _ in 0..FAILURES_MAX {
            assert!(health.permit(&path("a")).is_ok());
            assert!(!health.failed(&path("a"), &status()));
        }
        assert!(health.permit(&path("a")).is_err() && health.permit(&path("b")).is_ok());
        clock.advance(PATH_PAUSE);
        assert!(health.permit(&path("a")).is_ok());
        assert!(!health.failed(&path("a"), &status()));
        assert!(health.permit(&path("a")).is_err());
        health.succeeded(&path("a"));
        assert!(health.permit(&path("a")).is_ok());
    }

    #[test]
    fn repository_is_paused_without_the_others() {
        let health = health(&Clock::default());
        let tag = |n: u32| RequestPath { resource: format!("manifests/v{n}"), ..path("a") };
        for n in 0..20 {
            if health.permit(&tag(n)).is_ok() {
                health.path_failed(&tag(n), &status());
            }
        }
        assert!(health.permit(&tag(20)).is_err() && health.permit(&path("b")).is_ok());
        assert!(!health.is_suspect());
    }

    #[test]
    fn suspicion_is_confirmed_by_a_probe() {
        let clock = Clock::default();
        let health = health(&clock);
        let probes: Vec<_> =
            ["a", "b", "c", "d"].iter().map(|name| health.failed(&path(name), &status())).collect();
        assert_eq!(probes, [false, false, true, false], "started once");
        assert!(health.permit(&path("e")).is_ok(), "not before a probe");
        health.probe_succeeded();
        assert!(health.permit(&path("a")).is_ok() && !health.is_suspect());
        let suspect = || ["a", "b", "c"].iter().any(|name| health.failed(&path(name), &status()));
        assert!(suspect());
        health.succeeded(&path("e"));
        assert!(!health.probe_failed(&status()) && !health.is_suspect(), "answered meanwhile");
        assert!(suspect());
        assert!(health.probe_failed(&status()));
        assert!(health.is_suspect() && health.permit(&path("e")).is_err());
        health.probe_succeeded();
        assert!(health.permit(&path("a")).is_ok() && !health.is_suspect());
    }

    #[test]
    fn error_while_open_is_of_the_same_kind() {
        let health = health(&Clock::default());
        for _ in 0..FAILURES_MAX {
            let _ = health.failed(&path("a"), &SourceError::ConnectTimeout);
        }
        assert!(matches!(health.permit(&path("b")), Err(SourceError::Timeout(_))));
    }

    #[test]
    fn probes_end_without_demand() {
        let clock = Clock::default();
        let health = health(&clock);
        for _ in 0..FAILURES_MAX {
            let _ = health.failed(&path("a"), &refused());
        }
        assert!(health.probe_failed(&refused()));
        clock.advance(DEMAND_MAX);
        assert!(!health.probe_failed(&refused()));
        assert!(health.permit(&path("a")).is_ok(), "a trial");
        assert!(health.failed(&path("a"), &refused()), "probes start again");
    }
}
