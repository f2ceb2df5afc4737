//! Byte ranges (RFC 9110, section 14) and their application to a body of known length.

use std::ops::Range;

/// Maximum number of ranges in one request. podman asks for up to 1,024.
const SPECS_MAX: usize = 1024;

/// Request for a whole body or parts of it, from a Range header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RangeRequest {
    /// The whole body: no header, another unit, more than 1,024 ranges, or a range that RFC 9110 allows a server to ignore.
    Whole,
    /// One range, not yet checked against the length.
    One(ByteRange),
    /// Several ranges in the order of the header, not yet checked against the length.
    Several(Vec<ByteRange>),
}

/// One `bytes=` range as written in the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteRange {
    /// `a-b`, both inclusive.
    Between(u64, u64),
    /// `a-`.
    From(u64),
    /// `-n`: the last n bytes.
    Last(u64),
}

impl RangeRequest {
    /// Parses the value of a Range header. Everything but valid byte ranges means the whole body.
    pub fn parse(value: Option<&str>) -> Self {
        let ranges = || {
            let list = value?.trim().strip_prefix("bytes=")?;
            // RFC 9110, 5.6.1: empty elements of a list are ignored.
            let specs = list.split(',').map(str::trim).filter(|spec| !spec.is_empty());
            let ranges: Option<Vec<_>> = specs.take(SPECS_MAX + 1).map(ByteRange::parse).collect();
            ranges.filter(|ranges| ranges.len() <= SPECS_MAX)
        };
        let ranges = ranges().unwrap_or_default();
        match ranges.as_slice() {
            [] => Self::Whole,
            [one] => Self::One(*one),
            _ => Self::Several(ranges),
        }
    }
}

impl ByteRange {
    fn parse(spec: &str) -> Option<Self> {
        let (first, last) = spec.split_once('-')?;
        let number = |text: &str| -> Option<u64> {
            if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
        };
        match (first.trim(), last.trim()) {
            ("", n) => Some(Self::Last(number(n)?)),
            (a, "") => Some(Self::From(number(a)?)),
            (a, b) => Some(Self::Between(number(a)?, number(b)?)),
        }
    }

    /// Returns the range within a body of `length`; `None` means status 416.
    ///
    /// `500-0` is unsatisfiable. RFC 9110 would allow ignoring it, but the conformance suite requires 416.
    pub fn within(self, length: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::Between(first, last) if first <= last => first..last.saturating_add(1).min(length),
            Self::Between(..) | Self::Last(0) => return None,
            Self::From(first) => first..length,
            Self::Last(n) => length.saturating_sub(n)..length,
        };
        (range.start < range.end).then_some(range)
    }

    /// Returns the parts of a body of `length` that several ranges select, in the order of the ranges. Ranges that overlap
    /// are one part, at the place of the first of them (RFC 9110, 15.3.7.2). Unsatisfiable ranges are left out.
    ///
    /// Adjacent ranges stay separate: podman requires as many parts as it asked for.
    pub fn select(ranges: &[Self], length: u64) -> Vec<Range<u64>> {
        let within = ranges.iter().enumerate().filter_map(|(at, range)| Some((at, range.within(length)?)));
        let mut sorted: Vec<_> = within.collect();
        sorted.sort_unstable_by_key(|(at, range)| (range.start, *at));
        let mut parts: Vec<(usize, Range<u64>)> = Vec::with_capacity(sorted.len());
        for (at, range) in sorted {
            match parts.last_mut() {
                Some((first, part)) if range.start < part.end => {
                    *first = at.min(*first);
                    part.end = part.end.max(range.end);
                }
                _ => parts.push((at, range)),
            }
        }
        parts.sort_unstable_by_key(|(at, _)| *at);
        parts.into_iter().map(|(_, part)| part).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(value: &str, length: u64) -> Option<Range<u64>> {
        match RangeRequest::parse(Some(value)) {
            RangeRequest::One(range) => range.within(length),
            other => panic!("{value} was read as {other:?}"),
        }
    }

    fn select(value: &str, length: u64) -> Vec<(u64, u64)> {
        match RangeRequest::parse(Some(value)) {
            RangeRequest::Several(ranges) => {
                ByteRange::select(&ranges, length).into_iter().map(|part| (part.start, part.end)).collect()
            }
            other => panic!("{value} was read as {other:?}"),
        }
    }

    #[test]
    fn range_conforms_to_the_conformance_suite() {
        assert_eq!(ask("bytes=500-1499", 4000), Some(500..1500));
        assert_eq!(ask("bytes=500-", 4000), Some(500..4000));
        assert_eq!(ask("bytes=-500", 4000), Some(3500..4000));
        assert_eq!(ask("bytes=2000-5000", 4000), Some(2000..4000));
        assert_eq!(ask("bytes=500-0", 4000), None);
        assert_eq!(ask("bytes=4000-", 4000), None);
        assert_eq!(ask("bytes=-0", 4000), None);
        assert_eq!(ask("bytes=-9999", 4000), Some(0..4000));
        assert_eq!(ask("bytes=0-", 0), None);
        assert_eq!(ask("bytes=0-18446744073709551615", 10), Some(0..10));
        assert_eq!(ask("bytes=,0-1,", 10), Some(0..2));
    }

    #[test]
    fn several_ranges_are_parts_in_their_order() {
        assert_eq!(select("bytes=5-6,0-1", 10), [(5, 7), (0, 2)]);
        assert_eq!(select("bytes= 0-0, 2-2 ,4-4", 10), [(0, 1), (2, 3), (4, 5)]);
        // Ranges that overlap are one part, adjacent ranges are not.
        assert_eq!(select("bytes=6-8,0-2,2-4,7-9", 10), [(6, 10), (0, 5)]);
        assert_eq!(select("bytes=0-4,5-9", 10), [(0, 5), (5, 10)]);
        assert_eq!(select("bytes=0-9,-3,2-", 10), [(0, 10)]);
        // Unsatisfiable ranges are left out.
        assert_eq!(select("bytes=10-,1-2,5-3,-0", 10), [(1, 3)]);
        assert!(select("bytes=10-11,12-", 10).is_empty());
        let most = u64::MAX;
        assert_eq!(
            select("bytes=18446744073709551614-18446744073709551615,-1,0-0", most),
            [(most - 1, most), (0, 1)]
        );
    }

    #[test]
    fn the_rest_is_sent_whole() {
        let many = format!("bytes={}", "0-0,".repeat(SPECS_MAX + 1));
        for value in [
            "pages=1-2",
            "bytes=a-b",
            "bytes=-",
            "bytes=+1-2",
            "bytes",
            "",
            "bytes=",
            "bytes=,",
            "bytes=0-1,x",
            &many,
        ] {
            assert_eq!(RangeRequest::parse(Some(value)), RangeRequest::Whole, "{value}");
        }
        assert_eq!(RangeRequest::parse(None), RangeRequest::Whole);
    }
}
