//! Eviction order: least recently used first, larger before smaller at a similar age.
//!
//! The order follows GreedyDual-Size (P. Cao and S. Irani, "Cost-aware WWW proxy caching algorithms", USITS 1997) with
//! time in the place of its inflation value. Small content costs as many round trips to fetch again as large content, and
//! frees less, so small content is retained longer.

use std::time::Duration;

use crate::clock::Timestamp;

/// Freed bytes at which half of the grace is granted: about the worth of one round trip to a registry.
const ROUND_TRIP_BYTES: u64 = 1 << 20;
/// Time after the last access of a manifest within which a client that pulls the whole image has accessed all its parts.
const PULL_TIME: Duration = Duration::from_hours(1);

/// Retention of content by last access and size.
#[derive(Debug, Default)]
pub(super) struct EvictionPolicy {
    /// Longest extra retention, which the smallest content gets.
    grace: Duration,
}

impl EvictionPolicy {
    /// Sets the grace to half of the age of the oldest content, so that a cache with a high turnover does not collect
    /// small content. Returns true if the grace has changed enough to compute all priorities again.
    pub(super) fn adapt(&mut self, oldest: Timestamp, now: Timestamp) -> bool {
        let grace = now.since(oldest) / 2;
        if grace.abs_diff(self.grace) <= self.grace / 4 {
            return false;
        }
        self.grace = grace;
        true
    }

    /// Returns the priority of content whose eviction frees `freed` bytes. The lowest priority is evicted first.
    pub(super) fn priority(&self, last_access: Timestamp, freed: u64) -> Timestamp {
        let grace = self.grace.as_millis() * u128::from(ROUND_TRIP_BYTES)
            / u128::from(ROUND_TRIP_BYTES.saturating_add(freed));
        last_access.plus(Duration::from_millis(u64::try_from(grace).unwrap_or(u64::MAX)))
    }
}

/// Returns true if a part of an evicted image is evicted next: no access to the part is later than the image's own pull.
pub(super) fn follows_image(part: Timestamp, image: Timestamp) -> bool {
    part <= image.plus(PULL_TIME)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    #[test]
    fn grace_is_half_of_the_age_of_the_oldest() {
        let (mut policy, start) = (EvictionPolicy::default(), Timestamp::from_millis(1_000_000));
        assert!(policy.adapt(start, start.plus(HOUR * 8)));
        assert_eq!(policy.priority(start, 0), start.plus(HOUR * 4));
        assert_eq!(policy.priority(start, ROUND_TRIP_BYTES), start.plus(HOUR * 2));
        assert_eq!(policy.priority(start, u64::MAX), start);
    }

    #[test]
    fn grace_ignores_small_changes() {
        let (mut policy, start) = (EvictionPolicy::default(), Timestamp::from_millis(1_000_000));
        assert!(!policy.adapt(start, start));
        assert!(policy.adapt(start, start.plus(HOUR * 8)));
        assert!(!policy.adapt(start, start.plus(HOUR * 10)));
        assert!(policy.adapt(start, start.plus(HOUR * 11)));
    }

    #[test]
    fn part_follows_its_image_unless_accessed_later() {
        let image = Timestamp::from_millis(1_000_000);
        assert!(follows_image(image.plus(HOUR), image));
        assert!(!follows_image(image.plus(HOUR * 2), image));
    }
}
