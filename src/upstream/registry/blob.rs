//! Body of a blob: the range that a response announces, and its bytes as they arrive.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use reqwest::Response;
use tokio::time::timeout;

use super::limits::ConnectionSlot;
use super::response::{interrupted, stalled};
use crate::source::{ByteRange, Chunks, SourceError};
use crate::upstream::transport::client::HttpClient;

/// `Content-Range` of bytes (RFC 9110, section 14.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ContentRange {
    first: u64,
    last: u64,
    /// Size of the whole blob, if known.
    pub(super) total: Option<u64>,
}

impl ContentRange {
    /// Parses the value of the header.
    pub(super) fn parse(value: &str) -> Option<Self> {
        let number = |text: &str| -> Option<u64> {
            if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
        };
        let (unit, rest) = value.trim().split_once(' ')?;
        let (range, total) = rest.trim().split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let total = if total == "*" { None } else { Some(number(total)?) };
        let part = Self { first: number(first)?, last: number(last)?, total };
        let ordered = part.first <= part.last && part.last < u64::MAX;
        let inside = part.total.is_none_or(|total| part.last < total);
        (unit.eq_ignore_ascii_case("bytes") && ordered && inside).then_some(part)
    }

    /// Returns true if this is the requested range, or the beginning of it.
    pub(super) fn answers(self, range: ByteRange) -> bool {
        self.first == range.first && range.last.is_none_or(|last| self.last <= last)
    }

    /// Returns the number of bytes.
    pub(super) fn length(self) -> u64 {
        self.last - self.first + 1
    }
}

/// Bytes of a response as they arrive. No `Debug`: the response contains its URL, which may be a signed one.
pub(super) struct ResponseChunks {
    response: Response,
    /// Bytes that are still expected, if known.
    left: Option<u64>,
    http: Arc<HttpClient>,
    _slot: ConnectionSlot,
}

impl ResponseChunks {
    /// Creates the chunks of a response of `expected` bytes; holds `slot` until the end.
    pub(super) fn new(
        response: Response,
        expected: Option<u64>,
        http: Arc<HttpClient>,
        slot: ConnectionSlot,
    ) -> Self {
        Self { response, left: expected, http, _slot: slot }
    }
}

#[async_trait]
impl Chunks for ResponseChunks {
    async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        let idle = self.http.timeouts.idle;
        loop {
            let chunk = timeout(idle, self.response.chunk()).await.map_err(|_| stalled(idle))?;
            let Some(chunk) = chunk.map_err(interrupted)? else { break };
            if chunk.is_empty() {
                continue;
            }
            let size = chunk.len() as u64;
            self.http.metrics.fetched(self.http.upstream.as_str(), "blob", size);
            if let Some(left) = &mut self.left {
                *left = left
                    .checked_sub(size)
                    .ok_or_else(|| SourceError::Invalid("the blob is longer than announced".to_owned()))?;
            }
            return Ok(Some(chunk));
        }
        match self.left {
            None | Some(0) => Ok(None),
            Some(left) => Err(SourceError::Interrupted(format!("{left} bytes of the blob are missing"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_range_parse_accepts_complete_ordered_ranges_only() {
        let part = ContentRange::parse("bytes 5-9/20").expect("a range");
        assert_eq!(part, ContentRange { first: 5, last: 9, total: Some(20) });
        assert_eq!(part.length(), 5);
        let answers = |first, last| part.answers(ByteRange { first, last });
        assert!(answers(5, None) && answers(5, Some(9)) && answers(5, Some(12)));
        assert!(!answers(4, None) && !answers(5, Some(8)));
        assert_eq!(ContentRange::parse("bytes 0-0/*").expect("a range").total, None);
        for bad in [
            "",
            "bytes */20",
            "bytes 9-5/20",
            "bytes 5-20/20",
            "items 5-9/20",
            "bytes +5-9/20",
            "bytes 5-9",
            "bytes -9/20",
            "bytes 0-18446744073709551615/*",
        ] {
            assert_eq!(ContentRange::parse(bad), None, "{bad}");
        }
    }
}
