//! When may a tag be served as it is, and when must its upstream be asked? Pure rules; `now` is an argument.

use std::time::Duration;

use crate::config::schema::{Cache, Limit};

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

/// Judges a tag that was last confirmed at `checked_at`; times are milliseconds since 1970.
///
/// A check that lies in the future tells of a clock that jumped back: nothing can be said about its age.
pub fn judge(now: u64, checked_at: u64, settings: &Cache) -> Freshness {
    let Some(age) = now.checked_sub(checked_at) else { return Freshness::Expired };
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

/// Whether a tag that could not be checked may be served all the same (RFC 5861, section 4).
pub fn may_serve_stale(now: u64, checked_at: u64, settings: &Cache) -> bool {
    match settings.stale_if_error {
        Limit::Forever => true,
        Limit::For(limit) => now.saturating_sub(checked_at) < millis(settings.tag_ttl.saturating_add(limit)),
    }
}

/// How old the last check is.
pub fn age(now: u64, checked_at: u64) -> Duration {
    Duration::from_millis(now.saturating_sub(checked_at))
}

/// In the unit of the facts' times.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(ttl: u64, revalidate: u64, error: Limit) -> Cache {
        Cache {
            tag_ttl: Duration::from_millis(ttl),
            stale_while_revalidate: Duration::from_millis(revalidate),
            stale_if_error: error,
            ..Cache::default()
        }
    }

    #[test]
    fn the_three_ages_of_a_tag() {
        let settings = settings(10, 50, Limit::Forever);
        assert_eq!(judge(1000, 1000, &settings), Freshness::Fresh);
        assert_eq!(judge(1009, 1000, &settings), Freshness::Fresh);
        assert_eq!(judge(1010, 1000, &settings), Freshness::ServeAndRevalidate);
        assert_eq!(judge(1059, 1000, &settings), Freshness::ServeAndRevalidate);
        assert_eq!(judge(1060, 1000, &settings), Freshness::Expired);
        assert_eq!(judge(999, 1000, &settings), Freshness::Expired);
    }

    #[test]
    fn what_came_together_does_not_expire_together() {
        let settings = settings(60_000, 0, Limit::Forever);
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
        assert_eq!(judge(5, 5, &settings(0, 0, Limit::Forever)), Freshness::Expired);
    }

    #[test]
    fn stale_has_a_limit_only_if_one_is_set() {
        assert!(may_serve_stale(u64::MAX, 0, &settings(1, 0, Limit::Forever)));
        let limited = settings(100, 0, Limit::For(Duration::from_millis(50)));
        assert!(may_serve_stale(1149, 1000, &limited));
        assert!(!may_serve_stale(1150, 1000, &limited));
    }
}
