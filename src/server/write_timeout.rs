//! A stream that ends with an error when its peer has stopped reading.
//!
//! The system's buffers hide a peer's pace, so only a write that stays pending tells: as long as some bytes go now
//! and then, a slow reader is as welcome as a quick one.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// A stream whose writes may stay pending no longer than a limit.
#[derive(Debug)]
pub(super) struct WriteTimeout<S> {
    stream: S,
    limit: Duration,
    timer: Pin<Box<Sleep>>,
    /// Whether a write is pending, and the timer runs for it.
    pending: bool,
}

impl<S> WriteTimeout<S> {
    pub(super) fn new(stream: S, limit: Duration) -> Self {
        Self { stream, limit, timer: Box::pin(tokio::time::sleep(limit)), pending: false }
    }

    /// Passes on what a write came to; one that has been pending for too long fails.
    fn judge<T>(&mut self, context: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.pending = false;
            return polled;
        }
        if !self.pending {
            self.pending = true;
            self.timer.as_mut().reset(Instant::now() + self.limit);
        }
        ready!(self.timer.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(ErrorKind::TimedOut, "the peer has stopped reading")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteTimeout<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteTimeout<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(context, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.judge(context, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        self.judge(context, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(context);
        self.judge(context, polled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::{TcpListener, TcpStream};

    /// Two ends of one connection.
    async fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (near, far) = tokio::join!(listener.accept(), TcpStream::connect(address));
        (near.expect("a connection").0, far.expect("a connection"))
    }

    #[tokio::test]
    async fn a_peer_that_stops_reading_is_given_up() {
        let (near, far) = connection().await;
        let mut near = WriteTimeout::new(near, Duration::from_millis(50));
        assert!(near.is_write_vectored());
        let endless = async {
            loop {
                near.write_all(&[0; 16 * 1024]).await?;
            }
        };
        let error: io::Result<()> =
            tokio::time::timeout(Duration::from_secs(30), endless).await.expect("it ends");
        assert_eq!(error.expect_err("an end").kind(), ErrorKind::TimedOut);
        drop(far);
    }

    /// Takes a byte at every second write only.
    struct Hesitant(bool);

    impl AsyncWrite for Hesitant {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            self.0 = !self.0;
            if self.0 { Poll::Pending } else { Poll::Ready(Ok(1)) }
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn every_byte_that_goes_starts_the_time_anew() {
        let mut near = WriteTimeout::new(Hesitant(false), Duration::from_hours(1));
        let mut last = None;
        for _ in 0..3 {
            let pending = poll_fn(|context| {
                let polled = Pin::new(&mut near).poll_write(context, b"x");
                Poll::Ready(polled.is_pending())
            });
            assert!(pending.await && near.pending);
            let deadline = near.timer.deadline();
            assert!(last.is_none_or(|last| last < deadline), "{last:?} {deadline:?}");
            last = Some(deadline);
            let written = poll_fn(|context| Pin::new(&mut near).poll_write(context, b"x")).await;
            assert_eq!(written.expect("written"), 1);
            assert!(!near.pending);
        }
    }
}
