//! Fuzz targets of `Via`.

use bolero::check;
use http::header::VIA;
use http::{HeaderMap, HeaderValue};

use super::via::{Hops, ServerId};
use crate::fuzz::{Input, TEST_TIME, inputs};

#[test]
fn servers_are_read_as_they_were_written() {
    const WORDS: &[&str] =
        &["1.1 ", "larder-", "0123456789abcdef", ",", " ", "squid", "HTTP/2 ", "(x)", "\t", "+"];
    check!().with_test_time(TEST_TIME).with_generator(inputs()).for_each(|bytes| {
        let mut input = Input::new(bytes);
        let mut headers = HeaderMap::new();
        for _ in 0..input.below(4) {
            if let Ok(value) = HeaderValue::from_bytes(&input.bytes_of(WORDS)) {
                headers.append(VIA, value);
            }
        }
        let (mut hops, own) = (Hops::parse(&headers), ServerId::random());
        // The header grows up to a limit, at which the request is not sent on.
        let mut sent = 0;
        while !hops.end_at(own) {
            let mut headers = HeaderMap::new();
            headers.append(VIA, hops.followed_by(ServerId::random()).parse().expect("a header"));
            let next = Hops::parse(&headers);
            assert_eq!(next.first().is_some_and(|first| Some(first) == hops.first()), !hops.is_empty());
            hops = next;
            sent += 1;
            assert!(sent <= 16);
        }
    });
}
