//! The body of an answer: nothing, bytes in memory, a blob as it is read, or what is made while it is sent.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::mpsc;

use crate::cache::{BlobReader, CacheError};

use super::request_log::RequestLog;

/// What hyper sends after the head.
#[derive(Debug)]
pub enum Body {
    /// Nothing.
    Empty,
    /// Bytes in memory.
    Whole(Bytes),
    /// A blob, read while it is sent.
    Blob(Box<BlobBody>),
    /// What a task makes while it is sent.
    Stream(BodyStream),
}

/// Bytes that a task makes.
#[derive(Debug)]
pub struct BodyStream {
    pieces: mpsc::Receiver<Result<Bytes, CacheError>>,
    /// Bytes still to come, where known.
    left: Option<u64>,
}

/// A blob on its way to a client.
#[derive(Debug)]
pub struct BlobBody {
    reader: BlobReader,
    /// Bytes still to come, where known.
    left: Option<u64>,
    sent: u64,
    record: RequestLog,
}

impl Body {
    pub(super) fn blob(reader: BlobReader, length: Option<u64>, record: RequestLog) -> Self {
        Self::Blob(Box::new(BlobBody { reader, left: length, sent: 0, record }))
    }

    pub(super) fn stream(pieces: mpsc::Receiver<Result<Bytes, CacheError>>, length: Option<u64>) -> Self {
        Self::Stream(BodyStream { pieces, left: length })
    }
}

impl Drop for BlobBody {
    fn drop(&mut self) {
        // Of a body of unknown length only its own end tells; that sets what is left to nothing.
        self.record.ended(self.sent, self.left == Some(0));
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
            Self::Blob(blob) => match ready!(blob.reader.poll_next(cx)) {
                Some(Ok(bytes)) => {
                    let length = bytes.len() as u64;
                    blob.sent += length;
                    blob.left = blob.left.map(|left| left.saturating_sub(length));
                    Poll::Ready(Some(Ok(Frame::data(bytes))))
                }
                // An error makes hyper cut the connection, short of what the head promised.
                Some(Err(error)) => Poll::Ready(Some(Err(error))),
                None => {
                    blob.left.get_or_insert(0);
                    Poll::Ready(None)
                }
            },
            Self::Stream(stream) => match ready!(stream.pieces.poll_recv(cx)) {
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
