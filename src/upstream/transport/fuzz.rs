//! Fuzz targets of `Retry-After`.

use std::time::{Duration, SystemTime};

use bolero::check;

use super::status::parse_retry_after;
use crate::fuzz::{Input, TEST_TIME, inputs};

#[test]
fn retry_after_is_bounded() {
    const WORDS: &[&str] = &[
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Thu, 01 Jan 1970 00:00:00 GMT",
        "Sun Nov  6 08:49:37 1994",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "0",
        "120",
        "-",
        ".",
        " ",
        "GMT",
        "soon",
        "\u{b5}s",
        "ms",
        "s",
        "99999999999999999999",
    ];
    const DAY: u64 = 24 * 60 * 60;
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let seconds = input.number();
        let elapsed = Duration::from_secs(input.number());
        let now = SystemTime::UNIX_EPOCH.checked_add(elapsed).unwrap_or(SystemTime::UNIX_EPOCH);
        let parsed = parse_retry_after(&seconds.to_string(), now);
        assert_eq!(parsed, Some(Duration::from_secs(seconds.min(DAY))));
        let text = input.text_of(WORDS);
        assert!(parse_retry_after(&text, now).is_none_or(|time| time.as_secs() <= DAY), "{text}");
    });
}
