//! Fuzz targets of the minimum rate of downloads.

use std::time::Duration;

use bolero::check;
use tokio::time::Instant;

use super::pace::Pace;
use crate::fuzz::{Input, TEST_TIME, inputs};
use crate::upstream::MinRate;

/// Longest duration that a configuration may have, in milliseconds.
const DURATION_MAX: u64 = 100 * 365 * 24 * 60 * 60 * 1000;

#[test]
fn download_is_too_slow_only_after_a_period_without_a_reader() {
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let limit = MinRate {
            bytes_per_second: input.number(),
            time: Duration::from_millis(input.number() % DURATION_MAX),
        };
        let mut now = Instant::now();
        let (mut last_read, mut received) = (now, input.number());
        let mut pace = Pace::new(limit, received, now);
        for _ in 0..input.below(30) {
            now += Duration::from_millis(input.number() % (1 << 32));
            let arrived = input.number();
            received = received.saturating_add(arrived);
            let is_read = input.below(4) == 0;
            let is_too_slow = pace.is_too_slow(received, is_read, now);
            assert!(pace.next_check() >= now);
            if is_read {
                last_read = now;
            }
            if is_too_slow {
                assert!(limit.bytes_per_second > 0 && !is_read && now - last_read >= limit.time);
                return;
            }
        }
    });
}
