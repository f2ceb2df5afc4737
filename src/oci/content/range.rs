//! Byte ranges (RFC 9110, section 14): what a Range header asks of a body of known length.

use std::ops::Range;

/// What a client's Range header amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeRequest {
    /// No header, another unit, several ranges, or one that RFC 9110 lets a server ignore: send all of it.
    Whole,
    /// One range, not yet held against the length.
    One(ByteRange),
}

/// One `bytes=` range as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteRange {
    /// `a-b`, both included.
    Between(u64, u64),
    /// `a-`.
    From(u64),
    /// `-n`: the last n bytes.
    Last(u64),
}

impl RangeRequest {
    /// Reads a Range header value. Whatever is no single byte range is answered whole.
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
    /// The bytes of a body of `length` that this names; `None` means 416.
    ///
    /// `500-0` is unsatisfiable here although RFC 9110 would let it be ignored: the conformance suite wants 416.
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
    fn the_conformance_cases() {
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
