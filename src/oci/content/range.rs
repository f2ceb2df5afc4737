//! Byte ranges (RFC 9110, section 14) and their application to a body of known length.

use std::ops::Range;

/// Request for a whole body or a part of it, from a Range header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeRequest {
    /// The whole body: no header, another unit, several ranges, or a range that RFC 9110 allows a server to ignore.
    Whole,
    /// One range, not yet checked against the length.
    One(ByteRange),
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
    /// Parses the value of a Range header. Everything but a single byte range means the whole body.
    pub fn parse(value: Option<&str>) -> Self {
        let one = || {
            let spec = value?.trim().strip_prefix("bytes=")?.trim();
            let (first, last) = spec.split_once('-')?;
            let number = |text: &str| -> Option<u64> {
                let text = text.trim();
                if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
            };
            match (first.trim(), last.trim()) {
                ("", n) => Some(ByteRange::Last(number(n)?)),
                (a, "") => Some(ByteRange::From(number(a)?)),
                (a, b) => Some(ByteRange::Between(number(a)?, number(b)?)),
            }
        };
        one().map_or(Self::Whole, Self::One)
    }
}

impl ByteRange {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(value: &str, length: u64) -> Option<Range<u64>> {
        match RangeRequest::parse(Some(value)) {
            RangeRequest::One(range) => range.within(length),
            RangeRequest::Whole => panic!("{value} was read as no range"),
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
    }

    #[test]
    fn the_rest_is_sent_whole() {
        for value in ["bytes=0-1,5-6", "pages=1-2", "bytes=a-b", "bytes=-", "bytes=+1-2", "bytes", ""] {
            assert_eq!(RangeRequest::parse(Some(value)), RangeRequest::Whole, "{value}");
        }
        assert_eq!(RangeRequest::parse(None), RangeRequest::Whole);
    }
}
