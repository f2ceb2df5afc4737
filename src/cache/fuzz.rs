//! Fuzz targets of freshness.

use std::time::Duration;

use bolero::check;

use super::freshness::{Freshness, age, at_least_tag_ttl, judge, may_serve_denied, may_serve_stale};
use crate::clock::Timestamp;
use crate::config::schema::{Cache as CacheSettings, StaleLimit};
use crate::fuzz::{Input, TEST_TIME, inputs};

#[test]
fn freshness_only_decreases_with_age() {
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let mut time = || Duration::from_millis(input.number());
        let (tag_ttl, stale_while_revalidate, error, denied, elapsed) =
            (time(), time(), time(), time(), time());
        let settings = CacheSettings {
            tag_ttl,
            stale_while_revalidate,
            stale_if_error: if input.flag() { StaleLimit::Forever } else { StaleLimit::For(error) },
            stale_if_denied: if input.flag() { StaleLimit::Forever } else { StaleLimit::For(denied) },
            ..CacheSettings::default()
        };
        let mut timestamp = || Timestamp::from_millis(input.number());
        let (now, later, checked_at) = (timestamp(), timestamp(), timestamp());
        let (now, later) = (now.min(later), now.max(later));
        let elapsed = Some(elapsed).filter(|_| input.flag());
        let known = age(now, checked_at, elapsed);
        assert!(known >= elapsed);
        let rank = |age| match judge(age, checked_at, &settings) {
            Freshness::Fresh => 0,
            Freshness::ServeAndRevalidate => 1,
            Freshness::Expired => 2,
        };
        assert_eq!(rank(None), 2);
        if let Some(young) = known {
            let old = young.max(later.since(checked_at));
            assert!(rank(Some(young)) <= rank(Some(old)));
            assert!(rank(known) > 0 || young < tag_ttl);
            assert!(rank(known) < 2 || young >= tag_ttl.saturating_sub(tag_ttl / 20));
            assert!(may_serve_stale(known, &settings) || !may_serve_stale(Some(old), &settings));
            assert!(may_serve_denied(known, &settings) || !may_serve_denied(Some(old), &settings));
        }
        assert!(may_serve_stale(known, &settings) || !may_serve_denied(known, &settings));
        assert!(at_least_tag_ttl(error, &settings) >= tag_ttl);
    });
}
