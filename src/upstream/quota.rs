//! Quota of an endpoint, as its responses announce it, and the pauses after a rate limit or an overload.
//!
//! Docker Hub counts GETs of manifests and announces the rest also on HEADs:
//! `ratelimit-limit: 100;w=21600`, `ratelimit-remaining: 76;w=21600` (`w`: the window in seconds).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderMap;
use tokio::sync::Notify;

use crate::clock::{Clock, Timestamp};
use crate::oci::UpstreamName;
use crate::telemetry::Metrics;

use super::context::Context;
use super::status::QuotaState;
use crate::source::SourceError;

/// First pause after a rate limit without `Retry-After`. It doubles with every further refusal.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest pause after a rate limit without `Retry-After`.
const PAUSE_MAX: Duration = Duration::from_mins(1);
/// Longest pause, whatever `Retry-After` says. Then one request shows whether the limit still holds.
const RETRY_AFTER_MAX: Duration = Duration::from_hours(1);

/// Quota as last announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct QuotaReading {
    /// Requests per window.
    limit: u64,
    /// Requests left.
    remaining: u64,
    /// Length of the window, if announced.
    window: Option<Duration>,
    /// Time of the response.
    at: Instant,
}

impl QuotaReading {
    /// Parses the headers of a response; `None` if they announce no quota.
    fn parse(headers: &HeaderMap, at: Instant) -> Option<Self> {
        let read = |name| {
            let text = headers.get(name)?.to_str().ok()?;
            let (count, rest) = text.split_once(';').unwrap_or((text, ""));
            let window = rest.split(';').find_map(|part| part.trim().strip_prefix("w="));
            let window = window.and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
            Some((count.trim().parse::<u64>().ok()?, window))
        };
        let (limit, window) = read("ratelimit-limit")?;
        let (remaining, other) = read("ratelimit-remaining")?;
        Some(Self { limit, remaining, window: window.or(other), at })
    }

    /// Returns true if more than `floor`, a share of the limit, is left, or if the window has passed since.
    fn is_above(&self, floor: f64, now: Instant) -> bool {
        let over = self.window.is_some_and(|window| now.saturating_duration_since(self.at) >= window);
        // Numbers of requests are small enough for a float.
        #[allow(clippy::cast_precision_loss)]
        let above = self.remaining as f64 > floor * self.limit as f64;
        over || above
    }
}

/// Class of a request for quotas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QuotaClass {
    /// GET of a manifest, which Docker Hub counts.
    Manifest,
    /// Any other request. If it is refused, every request is.
    Free,
}

/// Pauses in which requests are not sent.
#[derive(Debug, Default)]
struct Pauses {
    /// End of the pause for GETs of manifests.
    manifests: Option<Instant>,
    /// End of the pause for all requests.
    all: Option<Instant>,
    /// True if the registry is overloaded, false if a rate limit is reached.
    overloaded: bool,
    /// Rate limits in a row without `Retry-After`.
    unannounced: u32,
}

impl Pauses {
    /// Returns the rest of the pause for a request of this class.
    fn left(&self, class: QuotaClass, now: Instant) -> Option<Duration> {
        let manifests = self.manifests.filter(|_| class == QuotaClass::Manifest);
        let until = self.all.max(manifests)?;
        until.checked_duration_since(now).filter(|left| !left.is_zero())
    }

    /// Returns the pause after a refusal.
    fn length(&mut self, retry_after: Option<Duration>) -> Duration {
        if let Some(announced) = retry_after {
            return announced.min(RETRY_AFTER_MAX);
        }
        let time = PAUSE_MIN.saturating_mul(1 << self.unannounced.min(10)).min(PAUSE_MAX);
        self.unannounced = self.unannounced.saturating_add(1);
        time
    }

    fn begin(&mut self, class: QuotaClass, until: Instant) {
        let slot = match class {
            QuotaClass::Manifest => &mut self.manifests,
            QuotaClass::Free => &mut self.all,
        };
        *slot = (*slot).max(Some(until));
    }
}

/// Quota of one endpoint.
#[derive(Debug)]
pub(crate) struct Quota {
    reading: Mutex<Option<QuotaReading>>,
    /// Notified of every announcement.
    changed: Arc<Notify>,
    pauses: Mutex<Pauses>,
    clock: Clock,
    metrics: Arc<Metrics>,
    upstream: UpstreamName,
}

impl Quota {
    /// Creates an unknown quota. Every announcement notifies `changed`.
    pub(crate) fn new(upstream: UpstreamName, changed: Arc<Notify>, context: &Context) -> Self {
        let (clock, metrics) = (context.clock.clone(), Arc::clone(&context.metrics));
        Self { reading: Mutex::default(), changed, pauses: Mutex::default(), clock, metrics, upstream }
    }

    /// Records the announcement in the headers of a response. A response without one changes nothing: not every image is
    /// class.
    pub(crate) fn observe(&self, headers: &HeaderMap) {
        if let Some(reading) = QuotaReading::parse(headers, self.clock.instant()) {
            self.metrics.quota(self.upstream.as_str(), reading.limit, reading.remaining);
            *self.reading.lock().unwrap_or_else(PoisonError::into_inner) = Some(reading);
            self.changed.notify_waiters();
        }
    }

    /// Returns the rest, the limit and the window of the quota as last announced.
    pub(crate) fn announced(&self) -> Option<(u64, u64, Option<Duration>)> {
        let reading = *self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        reading.map(|reading| (reading.remaining, reading.limit, reading.window))
    }

    /// Returns true if more than this share of the quota is left, or if the quota is unknown.
    pub(crate) fn is_above(&self, floor: f64) -> bool {
        let reading = *self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        reading.is_none_or(|reading| reading.is_above(floor, self.clock.instant()))
    }

    /// Returns the last announcement for status pages.
    pub(crate) fn state(&self) -> Option<QuotaState> {
        let reading = (*self.reading.lock().unwrap_or_else(PoisonError::into_inner))?;
        let since = self.clock.instant().saturating_duration_since(reading.at);
        let seen_at = self.clock.now().minus(since);
        Some(QuotaState {
            limit: reading.limit,
            remaining: reading.remaining,
            window: reading.window.map(|window| window.as_secs()),
            seen_at,
            resets_at: reading.window.map(|window| seen_at.plus(window)),
        })
    }

    /// Returns the end of the pause for manifests, for status pages.
    pub(crate) fn limited_until(&self) -> Option<Timestamp> {
        let left = self.pauses().left(QuotaClass::Manifest, self.clock.instant())?;
        Some(self.clock.now().plus(left))
    }

    /// Refuses a request during a pause.
    pub(crate) fn check(&self, class: QuotaClass) -> Result<(), SourceError> {
        let pauses = self.pauses();
        match pauses.left(class, self.clock.instant()) {
            Some(left) if pauses.overloaded => Err(SourceError::Overloaded { retry_after: left }),
            Some(left) => Err(SourceError::RateLimited { retry_after: Some(left) }),
            None => Ok(()),
        }
    }

    /// Begins a pause after a rate limit.
    pub(crate) fn refused(&self, class: QuotaClass, retry_after: Option<Duration>) {
        let mut pauses = self.pauses();
        let time = pauses.length(retry_after);
        pauses.begin(class, self.clock.instant() + time);
        pauses.overloaded = false;
        drop(pauses);
        tracing::warn!(upstream = %self.upstream, pause = ?time, "the upstream limits the rate; requests are paused");
    }

    /// Begins a pause of all requests after an overload.
    pub(crate) fn overloaded(&self, retry_after: Duration) {
        let mut pauses = self.pauses();
        let time = pauses.length(Some(retry_after));
        pauses.begin(QuotaClass::Free, self.clock.instant() + time);
        pauses.overloaded = true;
        drop(pauses);
        tracing::warn!(upstream = %self.upstream, pause = ?time, "the upstream is overloaded; requests are paused");
    }

    /// Records a regular answer.
    pub(crate) fn granted(&self) {
        self.pauses().unannounced = 0;
    }

    fn pauses(&self) -> MutexGuard<'_, Pauses> {
        // No code under this lock can panic during a change.
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")))
            .collect()
    }

    #[test]
    fn quota_reading_parses_headers() {
        let at = Instant::now();
        let read = |limit, remaining| {
            QuotaReading::parse(
                &headers(&[("ratelimit-limit", limit), ("RateLimit-Remaining", remaining)]),
                at,
            )
        };
        let window = Some(Duration::from_hours(6));
        assert_eq!(
            read("100;w=21600", "76;w=21600"),
            Some(QuotaReading { limit: 100, remaining: 76, window, at })
        );
        assert_eq!(read("100", "0"), Some(QuotaReading { limit: 100, remaining: 0, window: None, at }));
        assert_eq!(read("100 ; x=1; w=60", "7").and_then(|it| it.window), Some(Duration::from_mins(1)));
        assert_eq!(read("many", "7"), None);
        assert_eq!(read("100", "-1"), None);
        assert_eq!(QuotaReading::parse(&headers(&[("ratelimit-limit", "100")]), at), None);
    }

    #[test]
    fn is_above_compares_a_share_of_the_limit_within_the_window() {
        let at = Instant::now();
        let window = Duration::from_mins(1);
        let reading = |remaining| QuotaReading { limit: 100, remaining, window: Some(window), at };
        assert!(reading(31).is_above(0.3, at) && !reading(30).is_above(0.3, at));
        assert!(!reading(30).is_above(0.3, at + window / 2) && reading(0).is_above(0.3, at + window));
        assert!(reading(1).is_above(0.0, at) && !reading(0).is_above(0.0, at));
    }

    #[test]
    fn pause_doubles_without_retry_after_and_is_limited() {
        let mut pauses = Pauses::default();
        let times: Vec<_> = (0..8).map(|_| pauses.length(None).as_secs()).collect();
        assert_eq!(times, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(pauses.length(Some(Duration::from_secs(17))), Duration::from_secs(17));
        assert_eq!(pauses.length(Some(Duration::from_hours(6))), RETRY_AFTER_MAX);
    }

    #[test]
    fn pause_for_manifests_does_not_stop_other_requests() {
        let (now, minute) = (Instant::now(), Duration::from_mins(1));
        let mut pauses = Pauses::default();
        pauses.begin(QuotaClass::Manifest, now + minute);
        assert_eq!(pauses.left(QuotaClass::Manifest, now), Some(minute));
        assert_eq!(pauses.left(QuotaClass::Free, now), None);
        assert_eq!(pauses.left(QuotaClass::Manifest, now + minute), None);
        pauses.begin(QuotaClass::Free, now + minute * 2);
        assert_eq!(pauses.left(QuotaClass::Manifest, now), Some(minute * 2));
        assert_eq!(pauses.left(QuotaClass::Free, now), Some(minute * 2));
        // A shorter pause does not shorten a longer one.
        pauses.begin(QuotaClass::Free, now + minute);
        assert_eq!(pauses.left(QuotaClass::Free, now), Some(minute * 2));
    }
}
