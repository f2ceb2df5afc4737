//! Quota of an endpoint, as its responses announce it, and the pauses after a rate limit or an overload.
//!
//! Docker Hub counts GETs of manifests and announces the rest also on HEADs:
//! `ratelimit-limit: 100;w=21600`, `ratelimit-remaining: 76;w=21600` (`w`: the window in seconds).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, Method};
use tokio::sync::Notify;

use crate::clock::{Clock, Timestamp};
use crate::oci::{Name, UpstreamName};
use crate::telemetry::Metrics;

use super::auth::authorization::CredentialId;
use super::context::Context;
use super::status::QuotaState;
use crate::source::SourceError;

/// First pause after a rate limit without `Retry-After`. It doubles with every further refusal.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest pause after a rate limit without `Retry-After`.
const PAUSE_MAX: Duration = Duration::from_mins(1);
/// Longest pause, whatever `Retry-After` says. Then one request shows whether the limit still holds.
const RETRY_AFTER_MAX: Duration = Duration::from_hours(1);
/// Number of pauses of single repositories. More pauses are for all repositories.
const PAUSES_MAX: usize = 256;

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

/// Class of a request. Registries limit each class by itself: Docker Hub counts GETs of manifests only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum QuotaClass {
    /// GET of a manifest.
    Manifest,
    /// HEAD of a manifest or a blob.
    Head,
    /// GET of a blob.
    Blob,
    /// Page of a list.
    List,
}

impl QuotaClass {
    /// Returns the class of a request for a resource, such as `manifests`.
    pub(crate) fn of(method: &Method, resource: &str) -> Self {
        match resource {
            _ if method == Method::HEAD => Self::Head,
            "manifests" => Self::Manifest,
            "blobs" => Self::Blob,
            _ => Self::List,
        }
    }
}

/// Requests that a limit is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RequestKind {
    pub(crate) class: QuotaClass,
    /// Credential that the requests are sent with; `None` for anonymous ones.
    pub(crate) credential: Option<CredentialId>,
    /// `None` for all repositories.
    pub(crate) repository: Option<Name>,
}

impl RequestKind {
    /// Returns the same kind for all repositories.
    fn general(&self) -> Self {
        Self { repository: None, ..self.clone() }
    }
}

/// Pause in which requests of one kind are not sent.
#[derive(Clone, Copy, Debug)]
struct Pause {
    until: Instant,
    /// True if the registry is overloaded, false if a rate limit is reached.
    overloaded: bool,
    /// Rate limits in a row without `Retry-After`.
    unannounced: u32,
}

/// Pauses, by kind of request. The time is an argument.
///
/// A refusal pauses the requests for its repository. When a second repository is refused meanwhile, the limit is not the
/// repository's, and all requests of the class with the same credential are paused.
#[derive(Debug, Default)]
struct Pauses(HashMap<RequestKind, Pause>);

impl Pauses {
    /// Returns the pause of a request and the rest of it.
    fn current(&self, kind: &RequestKind, now: Instant) -> Option<(Pause, Duration)> {
        let own = [self.0.get(kind), self.0.get(&kind.general())].into_iter().flatten();
        let pause = *own.max_by_key(|pause| pause.until)?;
        let left = pause.until.checked_duration_since(now).filter(|left| !left.is_zero())?;
        Some((pause, left))
    }

    /// Begins a pause after a refusal. Returns its length, and the kind of requests that are paused.
    fn begin(
        &mut self,
        kind: &RequestKind,
        now: Instant,
        overloaded: bool,
        retry_after: Option<Duration>,
    ) -> (Duration, RequestKind) {
        let general = kind.general();
        let is_general = self.0.len() >= PAUSES_MAX
            || self
                .0
                .iter()
                .any(|(other, pause)| other != kind && other.general() == general && pause.until > now);
        let kind = if is_general { general } else { kind.clone() };
        let before = self.0.get(&kind).copied();
        let unannounced = before.map_or(0, |pause| pause.unannounced);
        let time = match retry_after {
            Some(announced) => announced.min(RETRY_AFTER_MAX),
            None => PAUSE_MIN.saturating_mul(1 << unannounced.min(10)).min(PAUSE_MAX),
        };
        let until = before.map_or(now + time, |pause| pause.until.max(now + time));
        let unannounced = if retry_after.is_none() { unannounced.saturating_add(1) } else { unannounced };
        self.0.retain(|_, pause| now.saturating_duration_since(pause.until) < PAUSE_MAX);
        self.0.insert(kind.clone(), Pause { until, overloaded, unannounced });
        (time, kind)
    }

    /// Removes pauses of a request that have ended.
    fn granted(&mut self, kind: &RequestKind, now: Instant) {
        for kind in [kind, &kind.general()] {
            if self.0.get(kind).is_some_and(|pause| pause.until <= now) {
                self.0.remove(kind);
            }
        }
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

    /// Returns the end of the longest pause for manifests, for status pages.
    pub(crate) fn limited_until(&self) -> Option<Timestamp> {
        let (pauses, now) = (self.pauses(), self.clock.instant());
        let manifests = pauses.0.iter().filter(|(kind, _)| kind.class == QuotaClass::Manifest);
        let until = manifests.map(|(_, pause)| pause.until).max()?;
        let left = until.checked_duration_since(now).filter(|left| !left.is_zero())?;
        Some(self.clock.now().plus(left))
    }

    /// Refuses a request during a pause.
    pub(crate) fn check(&self, kind: &RequestKind) -> Result<(), SourceError> {
        match self.pauses().current(kind, self.clock.instant()) {
            Some((Pause { overloaded: true, .. }, left)) => {
                Err(SourceError::Overloaded { retry_after: left })
            }
            Some((_, left)) => Err(SourceError::RateLimited { retry_after: Some(left) }),
            None => Ok(()),
        }
    }

    /// Begins a pause after a rate limit.
    pub(crate) fn refused(&self, kind: &RequestKind, retry_after: Option<Duration>) {
        let (pause, kind) = self.pauses().begin(kind, self.clock.instant(), false, retry_after);
        let (class, repository) = (kind.class, kind.repository.as_ref().map(tracing::field::display));
        tracing::warn!(
            upstream = %self.upstream, ?class, repository, ?pause,
            "the upstream limits the rate; requests of this kind are paused"
        );
    }

    /// Begins a pause after an overload.
    pub(crate) fn overloaded(&self, kind: &RequestKind, retry_after: Duration) {
        let (pause, kind) = self.pauses().begin(kind, self.clock.instant(), true, Some(retry_after));
        let (class, repository) = (kind.class, kind.repository.as_ref().map(tracing::field::display));
        tracing::warn!(
            upstream = %self.upstream, ?class, repository, ?pause,
            "the upstream is overloaded; requests of this kind are paused"
        );
    }

    /// Records a regular answer.
    pub(crate) fn granted(&self, kind: &RequestKind) {
        self.pauses().granted(kind, self.clock.instant());
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

    fn kind(class: QuotaClass, repository: &str) -> RequestKind {
        RequestKind { class, credential: None, repository: repository.parse().ok() }
    }

    fn is_paused(pauses: &Pauses, class: QuotaClass, repository: &str, now: Instant) -> bool {
        pauses.current(&kind(class, repository), now).is_some()
    }

    #[test]
    fn pause_doubles_without_retry_after_and_is_limited() {
        let (mut pauses, now) = (Pauses::default(), Instant::now());
        let manifest = kind(QuotaClass::Manifest, "a");
        let mut begin = |announced| pauses.begin(&manifest, now, false, announced).0;
        let times: Vec<_> = (0..8).map(|_| begin(None).as_secs()).collect();
        assert_eq!(times, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(begin(Some(Duration::from_secs(17))), Duration::from_secs(17));
        assert_eq!(begin(Some(Duration::from_hours(6))), RETRY_AFTER_MAX);
    }

    #[test]
    fn pause_is_for_the_same_kind_of_request() {
        use QuotaClass::{Blob, Manifest};
        let (now, minute) = (Instant::now(), Duration::from_mins(1));
        let mut pauses = Pauses::default();
        pauses.begin(&kind(Manifest, "a"), now, false, Some(minute));
        assert!(is_paused(&pauses, Manifest, "a", now) && !is_paused(&pauses, Blob, "a", now));
        assert!(!is_paused(&pauses, Manifest, "b", now), "one repository may have a limit of its own");
        pauses.begin(&kind(Manifest, "b"), now, false, Some(minute));
        assert!(is_paused(&pauses, Manifest, "c", now) && !is_paused(&pauses, Blob, "c", now));
        let id = CredentialId::of(&crate::config::docker::Credential::default());
        let other = RequestKind { credential: Some(id), ..kind(Manifest, "a") };
        assert!(pauses.current(&other, now).is_none(), "another credential has its own limit");
        assert!(!is_paused(&pauses, Manifest, "c", now + minute));
        // A shorter pause does not shorten a longer one.
        pauses.begin(&kind(Manifest, "a"), now, false, Some(minute / 2));
        assert!(is_paused(&pauses, Manifest, "a", now + minute / 2));
    }

    #[test]
    fn pauses_are_limited_in_number() {
        let (mut pauses, now) = (Pauses::default(), Instant::now());
        for n in 0..PAUSES_MAX * 2 {
            let id = CredentialId::of(&crate::config::docker::Credential {
                username: n.to_string(),
                ..crate::config::docker::Credential::default()
            });
            let one = RequestKind { credential: Some(id), ..kind(QuotaClass::Blob, "a") };
            pauses.begin(&one, now, true, Some(PAUSE_MIN));
        }
        assert!(pauses.0.len() <= PAUSES_MAX * 2);
        pauses.begin(&kind(QuotaClass::Blob, "a"), now + PAUSE_MAX * 2, true, Some(PAUSE_MIN));
        assert_eq!(pauses.0.len(), 1);
    }
}

#[cfg(test)]
mod fuzz {
    //! Fuzz targets of announced quotas, and of the pauses that registries ask for.

    use bolero::check;

    use super::*;
    use crate::fuzz::{Input, TEST_TIME, inputs};

    #[test]
    fn announced_quota_is_read_without_trust() {
        const WORDS: &[&str] = &["100", ";", "w=", "21600", " ", "-1", ",", "=", "w", "18446744073709551616"];
        check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
            let mut input = Input::new(bytes);
            let (limit, remaining, window) = (input.number(), input.number(), input.number());
            let now = Instant::now();
            let mut headers = HeaderMap::new();
            headers.insert("ratelimit-limit", format!("{limit};w={window}").parse().expect("a header"));
            headers.insert("ratelimit-remaining", format!(" {remaining} ; x").parse().expect("a header"));
            let reading = QuotaReading::parse(&headers, now).expect("a quota");
            assert_eq!((reading.limit, reading.remaining), (limit, remaining));
            assert_eq!(reading.window, Some(Duration::from_secs(window)));
            assert_eq!(reading.is_above(0.0, now), remaining > 0 || window == 0);
            for name in ["ratelimit-limit", "ratelimit-remaining"] {
                if let Ok(value) = input.text_of(WORDS).parse() {
                    headers.insert(name, value);
                }
            }
            if let Some(reading) = QuotaReading::parse(&headers, now) {
                reading.is_above(0.5, now + Duration::from_secs(u64::from(input.byte())));
                // The end of the window is shown.
                Timestamp::from_millis(input.number()).plus(reading.window.unwrap_or_default()).to_string();
            }
        });
    }

    #[test]
    fn pauses_are_bounded_in_time_and_number() {
        check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
            let mut input = Input::new(bytes);
            let (mut pauses, mut now) = (Pauses::default(), Instant::now());
            while !input.is_empty() {
                let class = input.pick(&[QuotaClass::Manifest, QuotaClass::Head, QuotaClass::Blob]);
                let repository = format!("r{}", input.below(1000)).parse().ok();
                let kind = RequestKind { class, credential: None, repository };
                match input.below(4) {
                    0 => now += Duration::from_millis(input.number() % (1 << 24)),
                    1 => pauses.granted(&kind, now),
                    _ => {
                        let retry_after = input.flag().then(|| Duration::from_secs(input.number()));
                        let (time, affected) = pauses.begin(&kind, now, input.flag(), retry_after);
                        assert!(time <= RETRY_AFTER_MAX && (affected == kind || affected == kind.general()));
                        assert!(time.is_zero() || pauses.current(&kind, now).is_some());
                    }
                }
                assert!(pauses.current(&kind, now).is_none_or(|(_, left)| left <= RETRY_AFTER_MAX));
                assert!(pauses.0.len() <= PAUSES_MAX + 3);
            }
        });
    }
}
