//! When may a tag be served as it is, and when must its upstream be asked? Pure rules; `now` is an argument.

use std::time::Duration;

use crate::config::schema::{Cache, StaleLimit};

/// What the age of a tag's last check calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Served without asking.
    Fresh,
    /// Served without waiting, while the upstream is asked in the background (RFC 5861, section 3).
    ServeAndRevalidate,
    /// The upstream is asked first.
    Expired,
}

/// How old a check is that was made at `checked_at`, where that can be said; times are milliseconds since 1970.
///
/// A clock may be set. So a check that this process made is at least as old as the process has `lived` since; and of one
/// that lies in the future, or before a clock that stands at 0, nothing else is known.
pub fn age(now: u64, checked_at: u64, lived: Option<Duration>) -> Option<Duration> {
    let by_date = now.checked_sub(checked_at).filter(|_| now > 0).map(Duration::from_millis);
    by_date.max(lived)
}

/// Judges a tag that was last confirmed at `checked_at`, so long ago.
pub fn judge(age: Option<Duration>, checked_at: u64, settings: &Cache) -> Freshness {
    let Some(age) = age.map(millis) else { return Freshness::Expired };
    let ttl = millis(settings.tag_ttl);
    let ttl = ttl - spread(checked_at, ttl / SPREAD);
    if age < ttl {
        Freshness::Fresh
    } else if age < ttl.saturating_add(millis(settings.stale_while_revalidate)) {
        Freshness::ServeAndRevalidate
    } else {
        Freshness::Expired
    }
}

/// Tags that came in together do not all expire together: each lives up to a twentieth shorter than it might.
const SPREAD: u64 = 20;

/// A number below `width` that looks like chance and is the same each time it is asked for.
fn spread(seed: u64, width: u64) -> u64 {
    // The multiplier of Fibonacci hashing: neighbouring seeds land far apart.
    (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32).checked_rem(width).unwrap_or_default()
}

/// Whether a tag of that age that could not be checked may be served all the same (RFC 5861, section 4).
pub fn may_serve_stale(age: Option<Duration>, settings: &Cache) -> bool {
    match settings.stale_if_error {
        StaleLimit::Forever => true,
        StaleLimit::For(limit) => age.unwrap_or_default() < settings.tag_ttl.saturating_add(limit),
    }
}

/// In the unit of the facts' times.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(ttl: u64, revalidate: u64, error: StaleLimit) -> Cache {
        Cache {
            tag_ttl: Duration::from_millis(ttl),
            stale_while_revalidate: Duration::from_millis(revalidate),
            stale_if_error: error,
            ..Cache::default()
        }
    }

    fn judge(now: u64, checked_at: u64, settings: &Cache) -> Freshness {
        super::judge(age(now, checked_at, None), checked_at, settings)
    }

    fn may_serve_stale(now: u64, checked_at: u64, settings: &Cache) -> bool {
        super::may_serve_stale(age(now, checked_at, None), settings)
    }

    #[test]
    fn the_three_ages_of_a_tag() {
        let settings = settings(10, 50, StaleLimit::Forever);
        assert_eq!(judge(1000, 1000, &settings), Freshness::Fresh);
        assert_eq!(judge(1009, 1000, &settings), Freshness::Fresh);
        assert_eq!(judge(1010, 1000, &settings), Freshness::ServeAndRevalidate);
        assert_eq!(judge(1059, 1000, &settings), Freshness::ServeAndRevalidate);
        assert_eq!(judge(1060, 1000, &settings), Freshness::Expired);
        assert_eq!(judge(999, 1000, &settings), Freshness::Expired);
    }

    #[test]
    fn no_clock_keeps_a_tag_fresh_for_ever() {
        let settings = settings(10, 50, StaleLimit::For(Duration::from_millis(5)));
        for (now, checked_at) in [(0, 0), (0, 1), (0, u64::MAX), (5, u64::MAX), (u64::MAX, 0), (u64::MAX, 1)]
        {
            assert_eq!(judge(now, checked_at, &settings), Freshness::Expired, "{now}, {checked_at}");
        }
        assert!(may_serve_stale(0, u64::MAX, &settings));
        assert!(!may_serve_stale(u64::MAX, 0, &settings));
    }

    #[test]
    fn a_check_is_as_old_as_either_clock_says() {
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
    fn what_came_together_does_not_expire_together() {
        let settings = settings(60_000, 0, StaleLimit::Forever);
        let lives = |checked_at| {
            (0..60_001).find(|age| judge(checked_at + age, checked_at, &settings) != Freshness::Fresh)
        };
        let lives: Vec<u64> = (0..50).filter_map(|n| lives(1_700_000_000_000 + n)).collect();
        assert!(lives.iter().all(|life| (57_000..=60_000).contains(life)), "{lives:?}");
        let distinct: std::collections::BTreeSet<_> = lives.iter().collect();
        assert!(distinct.len() > 40, "{lives:?}");
    }

    #[test]
    fn no_ttl_means_always_ask() {
        assert_eq!(judge(5, 5, &settings(0, 0, StaleLimit::Forever)), Freshness::Expired);
    }

    #[test]
    fn stale_has_a_limit_only_if_one_is_set() {
        assert!(may_serve_stale(u64::MAX, 0, &settings(1, 0, StaleLimit::Forever)));
        let limited = settings(100, 0, StaleLimit::For(Duration::from_millis(50)));
        assert!(may_serve_stale(1149, 1000, &limited));
        assert!(!may_serve_stale(1150, 1000, &limited));
    }
}
