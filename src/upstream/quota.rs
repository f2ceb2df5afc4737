//! What a registry says of its quota, and how long it wants to be left alone when that is used up.
//!
//! Docker Hub counts GETs of manifests, and tells on HEADs too how many are left:
//! `ratelimit-limit: 100;w=21600`, `ratelimit-remaining: 76;w=21600` (`w`: the window in seconds).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderMap;
use tokio::sync::Notify;

use crate::clock::Clock;
use crate::oci::UpstreamName;
use crate::telemetry::Metrics;

use super::context::Context;
use super::status::{QuotaState, millis};
use crate::source::SourceError;

/// How long a registry is left alone that refuses for its rate and does not say how long: the first time, doubled
/// with every refusal after it.
const UNSAID: Duration = Duration::from_secs(1);
/// And so at most.
const UNSAID_LONGEST: Duration = Duration::from_mins(1);
/// How long at most, whatever it says: then one question finds out whether it still means it.
const LONGEST: Duration = Duration::from_hours(1);

/// The quota as it was last told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reading {
    /// Requests per window.
    limit: u64,
    /// Requests left.
    remaining: u64,
    /// The window, where it was told.
    window: Option<Duration>,
    /// When this was read.
    at: Instant,
}

impl Reading {
    /// Reads the headers of an answer; `None` if they do not tell.
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

    /// Whether more than `floor`, a share of the limit, is left. After a whole window nothing is known any more.
    fn is_above(&self, floor: f64, now: Instant) -> bool {
        let over = self.window.is_some_and(|window| now.saturating_duration_since(self.at) >= window);
        // Counts of requests are far below the numbers that a float cannot tell apart.
        #[allow(clippy::cast_precision_loss)]
        let above = self.remaining as f64 > floor * self.limit as f64;
        over || above
    }
}

/// What a request is counted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counted {
    /// A manifest's GET, which Docker Hub's quota counts.
    Manifest,
    /// Anything else. That it is refused means that everything is.
    Free,
}

#[derive(Debug, Default)]
struct Rest {
    manifests: Option<Instant>,
    all: Option<Instant>,
    /// Whether all are refused because the registry is overloaded, and not for anybody's quota.
    overloaded: bool,
    /// Refusals in a row that did not say for how long.
    unsaid: u32,
}

impl Rest {
    /// How long a request of this kind has to wait.
    fn left(&self, counted: Counted, now: Instant) -> Option<Duration> {
        let manifests = self.manifests.filter(|_| counted == Counted::Manifest);
        let until = self.all.max(manifests)?;
        until.checked_duration_since(now).filter(|left| !left.is_zero())
    }

    /// How long a refusal is heeded.
    fn heed(&mut self, retry_after: Option<Duration>) -> Duration {
        if let Some(said) = retry_after {
            return said.min(LONGEST);
        }
        let time = UNSAID.saturating_mul(1 << self.unsaid.min(10)).min(UNSAID_LONGEST);
        self.unsaid = self.unsaid.saturating_add(1);
        time
    }

    fn begin(&mut self, counted: Counted, until: Instant) {
        let slot = match counted {
            Counted::Manifest => &mut self.manifests,
            Counted::Free => &mut self.all,
        };
        *slot = (*slot).max(Some(until));
    }
}

/// The quota of one endpoint.
#[derive(Debug)]
pub(crate) struct Quota {
    reading: Mutex<Option<Reading>>,
    told: Arc<Notify>,
    rest: Mutex<Rest>,
    clock: Clock,
    metrics: Arc<Metrics>,
    upstream: UpstreamName,
}

impl Quota {
    /// Nothing known yet. Whoever waits for `told` is woken with every telling.
    pub(crate) fn new(upstream: UpstreamName, told: Arc<Notify>, context: &Context) -> Self {
        let (clock, metrics) = (context.clock.clone(), Arc::clone(&context.metrics));
        Self { reading: Mutex::default(), told, rest: Mutex::default(), clock, metrics, upstream }
    }

    /// Notes what the headers of an answer tell. An answer that tells nothing takes back nothing: not every image
    /// is counted.
    pub(crate) fn observe(&self, headers: &HeaderMap) {
        if let Some(reading) = Reading::parse(headers, self.clock.instant()) {
            self.metrics.quota(self.upstream.as_str(), reading.limit, reading.remaining);
            *self.reading.lock().unwrap_or_else(PoisonError::into_inner) = Some(reading);
            self.told.notify_waiters();
        }
    }

    /// How many requests are left of how many, in which time, as it was last told.
    pub(crate) fn told(&self) -> Option<(u64, u64, Option<Duration>)> {
        let reading = *self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        reading.map(|reading| (reading.remaining, reading.limit, reading.window))
    }

    /// Whether more than this share of the quota is left, as far as is known.
    pub(crate) fn is_above(&self, floor: f64) -> bool {
        let reading = *self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        reading.is_none_or(|reading| reading.is_above(floor, self.clock.instant()))
    }

    /// What was last told, for who looks on.
    pub(crate) fn state(&self) -> Option<QuotaState> {
        let reading = (*self.reading.lock().unwrap_or_else(PoisonError::into_inner))?;
        let since = self.clock.instant().saturating_duration_since(reading.at);
        let seen_at = self.clock.now_millis().saturating_sub(millis(since));
        Some(QuotaState {
            limit: reading.limit,
            remaining: reading.remaining,
            window: reading.window.map(|window| window.as_secs()),
            seen_at,
            resets_at: reading.window.map(|window| seen_at.saturating_add(millis(window))),
        })
    }

    /// Until when manifests are not asked for, for who looks on.
    pub(crate) fn limited_until(&self) -> Option<u64> {
        let left = self.rest().left(Counted::Manifest, self.clock.instant())?;
        Some(self.clock.now_millis().saturating_add(millis(left)))
    }

    /// Refuses what the registry would refuse, without asking it.
    pub(crate) fn check(&self, counted: Counted) -> Result<(), SourceError> {
        let rest = self.rest();
        match rest.left(counted, self.clock.instant()) {
            Some(left) if rest.overloaded => Err(SourceError::Overloaded { retry_after: left }),
            Some(left) => Err(SourceError::RateLimited { retry_after: Some(left) }),
            None => Ok(()),
        }
    }

    /// The registry refused a request of this kind for its rate.
    pub(crate) fn refused(&self, counted: Counted, retry_after: Option<Duration>) {
        let mut rest = self.rest();
        let time = rest.heed(retry_after);
        rest.begin(counted, self.clock.instant() + time);
        rest.overloaded = false;
        drop(rest);
        tracing::warn!(upstream = %self.upstream, ?time, "the upstream limits the rate and is left alone");
    }

    /// The registry is overloaded, whatever it is asked for.
    pub(crate) fn overloaded(&self, retry_after: Duration) {
        let mut rest = self.rest();
        let time = rest.heed(Some(retry_after));
        rest.begin(Counted::Free, self.clock.instant() + time);
        rest.overloaded = true;
        drop(rest);
        tracing::warn!(upstream = %self.upstream, ?time, "the upstream is overloaded and is left alone");
    }

    /// The registry answered as it should.
    pub(crate) fn granted(&self) {
        self.rest().unsaid = 0;
    }

    fn rest(&self) -> MutexGuard<'_, Rest> {
        // Nothing under this lock can panic halfway through a change.
        self.rest.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn docker_hubs_headers_and_others() {
        let at = Instant::now();
        let read = |limit, remaining| {
            Reading::parse(&headers(&[("ratelimit-limit", limit), ("RateLimit-Remaining", remaining)]), at)
        };
        let window = Some(Duration::from_hours(6));
        assert_eq!(
            read("100;w=21600", "76;w=21600"),
            Some(Reading { limit: 100, remaining: 76, window, at })
        );
        assert_eq!(read("100", "0"), Some(Reading { limit: 100, remaining: 0, window: None, at }));
        assert_eq!(read("100 ; x=1; w=60", "7").and_then(|it| it.window), Some(Duration::from_mins(1)));
        assert_eq!(read("many", "7"), None);
        assert_eq!(read("100", "-1"), None);
        assert_eq!(Reading::parse(&headers(&[("ratelimit-limit", "100")]), at), None);
    }

    #[test]
    fn a_floor_is_a_share_of_the_limit_for_one_window() {
        let at = Instant::now();
        let window = Duration::from_mins(1);
        let reading = |remaining| Reading { limit: 100, remaining, window: Some(window), at };
        assert!(reading(31).is_above(0.3, at) && !reading(30).is_above(0.3, at));
        assert!(!reading(30).is_above(0.3, at + window / 2) && reading(0).is_above(0.3, at + window));
        assert!(reading(1).is_above(0.0, at) && !reading(0).is_above(0.0, at));
    }

    #[test]
    fn what_is_not_said_grows_and_what_is_said_is_bounded() {
        let mut rest = Rest::default();
        let times: Vec<_> = (0..8).map(|_| rest.heed(None).as_secs()).collect();
        assert_eq!(times, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(rest.heed(Some(Duration::from_secs(17))), Duration::from_secs(17));
        assert_eq!(rest.heed(Some(Duration::from_hours(6))), LONGEST);
    }

    #[test]
    fn a_refused_manifest_stops_manifests_and_any_other_refusal_stops_all() {
        let (now, minute) = (Instant::now(), Duration::from_mins(1));
        let mut rest = Rest::default();
        rest.begin(Counted::Manifest, now + minute);
        assert_eq!(rest.left(Counted::Manifest, now), Some(minute));
        assert_eq!(rest.left(Counted::Free, now), None);
        assert_eq!(rest.left(Counted::Manifest, now + minute), None);
        rest.begin(Counted::Free, now + minute * 2);
        assert_eq!(rest.left(Counted::Manifest, now), Some(minute * 2));
        assert_eq!(rest.left(Counted::Free, now), Some(minute * 2));
        // A shorter refusal does not shorten a longer one.
        rest.begin(Counted::Free, now + minute);
        assert_eq!(rest.left(Counted::Free, now), Some(minute * 2));
    }
}
