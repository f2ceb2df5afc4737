//! Several parts of a blob in one body (`multipart/byteranges`, RFC 9110, section 14.6).

use std::collections::VecDeque;
use std::ops::Range;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderValue;

use crate::cache::{BlobReader, CacheError};

/// Parts of a blob that remain to be sent.
#[derive(Debug)]
pub(super) struct Multipart {
    boundary: String,
    /// Length of the blob.
    size: u64,
    /// Parts whose head has not been sent.
    parts: VecDeque<Range<u64>>,
    /// Bytes that remain of the current part.
    left: u64,
    progress: Progress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// Nothing is sent.
    First,
    /// A part is sent, or its head.
    Inside,
    /// Everything is sent.
    Ended,
}

impl Multipart {
    /// Creates the body of `parts`, which are not empty, of a blob of `size` bytes. The reader stands at the first part.
    pub(super) fn new(parts: Vec<Range<u64>>, size: u64) -> Self {
        // Random, so that no content can contain it.
        let boundary = format!("{:032x}", fastrand::u128(..));
        Self { boundary, size, parts: parts.into(), left: 0, progress: Progress::First }
    }

    /// Returns the value of the `Content-Type` header.
    pub(super) fn content_type(&self) -> HeaderValue {
        let text = format!("multipart/byteranges; boundary={}", self.boundary);
        // Hexadecimal digits are always valid in a header.
        HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("multipart/byteranges"))
    }

    /// Returns the length of the whole body; `None` if it is larger than a number of 64 bits.
    pub(super) fn length(&self) -> Option<u64> {
        let mut length = self.end().len() as u64;
        for (n, part) in self.parts.iter().enumerate() {
            length = length.checked_add(self.head(part, n == 0).len() as u64)?;
            length = length.checked_add(part.end - part.start)?;
        }
        Some(length)
    }

    fn head(&self, part: &Range<u64>, is_first: bool) -> String {
        let before = if is_first { "" } else { "\r\n" };
        let (boundary, first, last, size) = (&self.boundary, part.start, part.end - 1, self.size);
        format!(
            "{before}--{boundary}\r\nContent-Type: application/octet-stream\r\n\
             Content-Range: bytes {first}-{last}/{size}\r\n\r\n"
        )
    }

    fn end(&self) -> String {
        format!("\r\n--{}--\r\n", self.boundary)
    }

    /// Returns the next bytes of the body, or `None` at its end. After an error the rest must not be sent.
    pub(super) fn poll_next(
        &mut self,
        reader: &mut BlobReader,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, CacheError>>> {
        if self.progress == Progress::Ended {
            return Poll::Ready(None);
        }
        if self.left > 0 {
            return Poll::Ready(Some(match ready!(reader.poll_next(cx)) {
                Some(Ok(bytes)) if bytes.len() as u64 <= self.left => {
                    self.left -= bytes.len() as u64;
                    Ok(bytes)
                }
                Some(Err(error)) => Err(error),
                // The blob has another length than was announced.
                Some(Ok(_)) | None => Err(CacheError::Interrupted),
            }));
        }
        let Some(part) = self.parts.pop_front() else {
            self.progress = Progress::Ended;
            return Poll::Ready(Some(Ok(self.end().into())));
        };
        let is_first = self.progress == Progress::First;
        self.progress = Progress::Inside;
        self.left = part.end - part.start;
        let head = self.head(&part, is_first);
        if !is_first {
            reader.move_to(part);
        }
        Poll::Ready(Some(Ok(head.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_is_exact_or_unknown() {
        let body = Multipart::new(vec![0..10, 90..100], 100);
        let text = [
            body.head(&(0..10), true),
            "0123456789".into(),
            body.head(&(90..100), false),
            "0123456789".into(),
            body.end(),
        ];
        assert_eq!(body.length(), Some(text.concat().len() as u64));
        assert_eq!(Multipart::new(vec![0..1, 2..u64::MAX], u64::MAX).length(), None);
        let content_type = body.content_type();
        assert!(content_type.to_str().expect("text").ends_with(&body.boundary));
    }
}
