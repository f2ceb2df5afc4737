//! Freshness of tags and lists: the only place that gives `tag_ttl` its meaning. Pure functions; the time is an argument.

use std::time::Duration;

use crate::clock::{self, Timestamp};
use crate::config::schema::{Cache as CacheSettings, StaleLimit};

/// Treatment of a tag, by the age of its last check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Serve without a request to the upstream.
    Fresh,
    /// Serve at once, and revalidate in the background (RFC 5861, section 3).
    ServeAndRevalidate,
    /// Revalidate before serving.
    Expired,
}

/// Returns the age of a check that was made at `checked_at`, or `None` if the clock makes it unknown.
///
/// The wall clock may be set. A check by this process is at least as old as the monotonic time that has `elapsed` since. A
/// check in the future, or any check while the clock stands at 1970, has no known age.
pub fn age(now: Timestamp, checked_at: Timestamp, elapsed: Option<Duration>) -> Option<Duration> {
    let is_plausible = now > Timestamp::default() && checked_at <= now;
    let by_wall_clock = is_plausible.then(|| now.since(checked_at));
    by_wall_clock.max(elapsed)
}

/// Judges a tag by the age of its last check, which was made at `checked_at`.
pub fn judge(age: Option<Duration>, checked_at: Timestamp, settings: &CacheSettings) -> Freshness {
    judge_by(settings.tag_ttl, age, checked_at, settings)
}

/// Judges the absence of a list of referrers or of a signature by the age of its last check. The absence is fresh like a tag,
/// and not longer than `negative_ttl`: a client that asks just before a signature is pushed must soon see the signature.
pub fn judge_absence(age: Option<Duration>, checked_at: Timestamp, settings: &CacheSettings) -> Freshness {
    judge_by(settings.tag_ttl.min(settings.negative_ttl), age, checked_at, settings)
}

fn judge_by(
    ttl: Duration,
    age: Option<Duration>,
    checked_at: Timestamp,
    settings: &CacheSettings,
) -> Freshness {
    let Some(age) = age else { return Freshness::Expired };
    let ttl = ttl.saturating_sub(jitter(checked_at, ttl / JITTER_DIVISOR));
    if age < ttl {
        Freshness::Fresh
    } else if age < ttl.saturating_add(settings.stale_while_revalidate) {
        Freshness::ServeAndRevalidate
    } else {
        Freshness::Expired
    }
}

/// Divisor of `tag_ttl` for the jitter: tags that were checked together do not all expire together.
const JITTER_DIVISOR: u32 = 20;

/// Returns a time below `width` that is always the same for one check, and different for checks at nearly the same time.
fn jitter(checked_at: Timestamp, width: Duration) -> Duration {
    // Multiplier of Fibonacci hashing.
    let hash = checked_at.as_millis().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    Duration::from_millis(hash.checked_rem(clock::millis(width)).unwrap_or_default())
}

/// Returns true if a tag of this age may be served although it could not be revalidated (RFC 5861, section 4).
pub fn may_serve_stale(age: Option<Duration>, settings: &CacheSettings) -> bool {
    is_within(settings.stale_if_error, age, settings)
}

/// Returns true if a tag of this age may be served although the upstream refuses access.
pub fn may_serve_denied(age: Option<Duration>, settings: &CacheSettings) -> bool {
    is_within(settings.stale_if_denied, age, settings) && may_serve_stale(age, settings)
}

fn is_within(limit: StaleLimit, age: Option<Duration>, settings: &CacheSettings) -> bool {
    match limit {
        StaleLimit::Forever => true,
        StaleLimit::For(limit) => age.unwrap_or_default() < settings.tag_ttl.saturating_add(limit),
    }
}

/// Returns `ttl`, or `tag_ttl` if that is longer: a fact about a repository is not checked more often than its tags.
pub fn at_least_tag_ttl(ttl: Duration, settings: &CacheSettings) -> Duration {
    ttl.max(settings.tag_ttl)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(ttl: u64, revalidate: u64, error: StaleLimit) -> CacheSettings {
        CacheSettings {
            tag_ttl: Duration::from_millis(ttl),
            stale_while_revalidate: Duration::from_millis(revalidate),
            stale_if_error: error,
            ..CacheSettings::default()
        }
    }

    fn age(now: u64, checked_at: u64, elapsed: Option<Duration>) -> Option<Duration> {
        super::age(Timestamp::from_millis(now), Timestamp::from_millis(checked_at), elapsed)
    }

    fn judge(now: u64, checked_at: u64, settings: &CacheSettings) -> Freshness {
        super::judge(age(now, checked_at, None), Timestamp::from_millis(checked_at), settings)
    }

    fn may_serve_stale(now: u64, checked_at: u64, settings: &CacheSettings) -> bool {
        super::may_serve_stale(age(now, checked_at, None), settings)
    }

    #[test]
    fn judge_tells_three_ages_apart() {
        let settings = settings(10, 50, StaleLimit::Forever);
        assert_eq!(judge(1000, 1000, &settings), Freshness::Fresh);
        assert_eq!(judge(1009, 1000, &settings), Freshness::Fresh);
        assert_eq!(judge(1010, 1000, &settings), Freshness::ServeAndRevalidate);
        assert_eq!(judge(1059, 1000, &settings), Freshness::ServeAndRevalidate);
        assert_eq!(judge(1060, 1000, &settings), Freshness::Expired);
        assert_eq!(judge(999, 1000, &settings), Freshness::Expired);
    }

    #[test]
    fn absence_is_fresh_for_the_shorter_ttl() {
        let judge = |ttl, negative, age| {
            let negative_ttl = Duration::from_millis(negative);
            let settings = CacheSettings { negative_ttl, ..settings(ttl, 50, StaleLimit::Forever) };
            super::judge_absence(Some(Duration::from_millis(age)), Timestamp::from_millis(1000), &settings)
        };
        for (ttl, negative) in [(10, 100), (100, 10)] {
            assert_eq!(judge(ttl, negative, 9), Freshness::Fresh);
            assert_eq!(judge(ttl, negative, 10), Freshness::ServeAndRevalidate);
            assert_eq!(judge(ttl, negative, 60), Freshness::Expired);
        }
        assert_eq!(judge(0, 10, 0), Freshness::ServeAndRevalidate);
        assert_eq!(
            super::judge_absence(None, Timestamp::default(), &CacheSettings::default()),
            Freshness::Expired
        );
    }

    #[test]
    fn judge_never_keeps_a_tag_fresh_by_a_wrong_clock() {
        let settings = settings(10, 50, StaleLimit::For(Duration::from_millis(5)));
        for (now, checked_at) in [(0, 0), (0, 1), (0, u64::MAX), (5, u64::MAX), (u64::MAX, 0), (u64::MAX, 1)]
        {
            assert_eq!(judge(now, checked_at, &settings), Freshness::Expired, "{now}, {checked_at}");
        }
        assert!(may_serve_stale(0, u64::MAX, &settings));
        assert!(!may_serve_stale(u64::MAX, 0, &settings));
    }

    #[test]
    fn age_is_the_larger_one_of_both_clocks() {
        let [second, hour] = [Duration::from_secs(1), Duration::from_hours(1)];
        assert_eq!(age(5000, 4000, None), Some(second));
        assert_eq!(age(5000, 4000, Some(hour)), Some(hour));
        assert_eq!(age(4000, 5000, Some(second)), Some(second));
        assert_eq!(age(3_604_000, 4000, Some(second)), Some(hour));
        for (now, checked_at) in [(4000, 5000), (0, 0), (0, u64::MAX)] {
            assert_eq!(age(now, checked_at, None), None);
        }
    }

    #[test]
    fn judge_spreads_the_expiry_of_tags_checked_together() {
        let settings = settings(60_000, 0, StaleLimit::Forever);
        let lifetime = |checked_at| {
            (0..60_001).find(|age| judge(checked_at + age, checked_at, &settings) != Freshness::Fresh)
        };
        let lifetimes: Vec<u64> = (0..50).filter_map(|n| lifetime(1_700_000_000_000 + n)).collect();
        assert!(lifetimes.iter().all(|it| (57_000..=60_000).contains(it)), "{lifetimes:?}");
        let distinct: std::collections::BTreeSet<_> = lifetimes.iter().collect();
        assert!(distinct.len() > 40, "{lifetimes:?}");
    }

    #[test]
    fn judge_always_revalidates_without_ttl() {
        assert_eq!(judge(5, 5, &settings(0, 0, StaleLimit::Forever)), Freshness::Expired);
    }

    #[test]
    fn may_serve_stale_is_limited_only_if_configured() {
        assert!(may_serve_stale(u64::MAX, 0, &settings(1, 0, StaleLimit::Forever)));
        let limited = settings(100, 0, StaleLimit::For(Duration::from_millis(50)));
        assert!(may_serve_stale(1149, 1000, &limited));
        assert!(!may_serve_stale(1150, 1000, &limited));
        let stale_if_denied = StaleLimit::For(Duration::from_millis(20));
        let denied = CacheSettings { stale_if_denied, ..limited };
        let may_serve_denied =
            |now, settings: &CacheSettings| super::may_serve_denied(age(now, 1000, None), settings);
        assert!(may_serve_denied(1119, &denied) && !may_serve_denied(1120, &denied));
        let longer = CacheSettings { stale_if_denied: StaleLimit::Forever, ..denied };
        assert!(may_serve_denied(1149, &longer) && !may_serve_denied(1150, &longer));
    }
}
