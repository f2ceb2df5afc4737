//! Body of a response: empty, in memory, a blob that is read while it is sent, or a stream from a task.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::mpsc;

use crate::cache::{BlobReader, CacheError};

use super::multipart::Multipart;
use super::request_log::RequestLog;

/// Body of a response.
#[derive(Debug)]
pub enum Body {
    /// No body.
    Empty,
    /// Bytes in memory.
    Whole(Bytes),
    /// Blob that is read while it is sent.
    Blob(Box<BlobBody>),
    /// Data that a task produces while it is sent.
    Stream(BodyStream),
}

/// Data that a task produces.
#[derive(Debug)]
pub struct BodyStream {
    chunks: mpsc::Receiver<Result<Bytes, CacheError>>,
    /// Bytes that remain, where known.
    left: Option<u64>,
}

/// Bytes of a blob, in the order in which they are sent.
#[derive(Debug)]
pub(super) enum BlobBytes {
    /// The whole blob, or one part of it.
    One(BlobReader),
    /// Several parts.
    Parts(BlobReader, Multipart),
    /// The whole blob, from an upstream. Its digest cannot be verified.
    Unverifiable(mpsc::Receiver<Result<Bytes, CacheError>>),
}

/// Blob that is being sent to a client.
#[derive(Debug)]
pub struct BlobBody {
    bytes: BlobBytes,
    /// Bytes that remain, where known.
    left: Option<u64>,
    sent: u64,
    log: RequestLog,
}

impl Body {
    pub(super) fn blob(bytes: BlobBytes, length: Option<u64>, log: RequestLog) -> Self {
        Self::Blob(Box::new(BlobBody { bytes, left: length, sent: 0, log }))
    }

    pub(super) fn stream(chunks: mpsc::Receiver<Result<Bytes, CacheError>>, length: Option<u64>) -> Self {
        Self::Stream(BodyStream { chunks, left: length })
    }
}

impl BlobBody {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, CacheError>>> {
        match &mut self.bytes {
            BlobBytes::One(reader) => reader.poll_next(cx),
            BlobBytes::Parts(reader, parts) => parts.poll_next(reader, cx),
            BlobBytes::Unverifiable(chunks) => chunks.poll_recv(cx),
        }
    }
}

impl Drop for BlobBody {
    fn drop(&mut self) {
        // The end of a body of unknown length sets `left` to 0.
        self.log.record_end(self.sent, self.left == Some(0));
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = CacheError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CacheError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Blob(blob) => match ready!(blob.poll_next(cx)) {
                Some(Ok(bytes)) => {
                    let length = bytes.len() as u64;
                    blob.sent += length;
                    blob.left = blob.left.map(|left| left.saturating_sub(length));
                    Poll::Ready(Some(Ok(Frame::data(bytes))))
                }
                // After an error hyper closes the connection before the length that the head announced.
                Some(Err(error)) => Poll::Ready(Some(Err(error))),
                None => {
                    blob.left.get_or_insert(0);
                    Poll::Ready(None)
                }
            },
            Self::Stream(stream) => match ready!(stream.chunks.poll_recv(cx)) {
                Some(Ok(bytes)) => {
                    stream.left = stream.left.map(|left| left.saturating_sub(bytes.len() as u64));
                    Poll::Ready(Some(Ok(Frame::data(bytes))))
                }
                Some(Err(error)) => Poll::Ready(Some(Err(error))),
                None if stream.left.is_some_and(|left| left > 0) => {
                    Poll::Ready(Some(Err(CacheError::Interrupted)))
                }
                None => Poll::Ready(None),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Blob(blob) => blob.left == Some(0),
            Self::Stream(stream) => stream.left == Some(0),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Blob(blob) => blob.left.map_or_else(SizeHint::new, SizeHint::with_exact),
            Self::Stream(stream) => stream.left.map_or_else(SizeHint::new, SizeHint::with_exact),
        }
    }
}
