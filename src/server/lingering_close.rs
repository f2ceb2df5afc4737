//! A stream that, once it is shut down, waits a moment for its peer to be done.
//!
//! A socket that is closed with bytes in it that nobody read tells its peer so by a reset, which throws away what the peer
//! has received and not read yet: the end of a body, if the peer has just said that it has room for more (HTTP/2's
//! `WINDOW_UPDATE`). RFC 9112, 9.6 has the same for HTTP/1.1.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// How long a peer may take to close its side.
const LINGER: Duration = Duration::from_secs(1);
/// Bytes that are read and thrown away meanwhile.
const DISCARDED_MAX: usize = 256 << 10;

/// A stream that lingers.
#[derive(Debug)]
pub(super) struct LingeringClose<S> {
    stream: S,
    /// Runs since our side was shut down.
    timer: Option<Pin<Box<Sleep>>>,
    discarded: usize,
}

impl<S> LingeringClose<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, timer: None, discarded: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for LingeringClose<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for LingeringClose<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.timer.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
        }
        let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        while this.discarded < DISCARDED_MAX && timer.as_mut().poll(context).is_pending() {
            let mut block = [0; 4096];
            let mut buffer = ReadBuf::new(&mut block);
            match ready!(Pin::new(&mut this.stream).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => this.discarded += buffer.filled().len(),
                // It has closed its side, in one way or another.
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    #[tokio::test]
    async fn what_a_peer_still_sends_does_not_cost_it_what_it_has_not_read() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (near, far) = tokio::join!(listener.accept(), TcpStream::connect(address));
        let (near, mut far) = (near.expect("a connection").0, far.expect("a connection"));
        let mut near = LingeringClose::new(near);
        near.write_all(&vec![7; 100_000]).await.expect("written");
        far.write_all(b"there is room for more").await.expect("written");
        let closing = tokio::spawn(async move { near.shutdown().await });
        let mut read = Vec::new();
        far.read_to_end(&mut read).await.expect("no reset");
        assert_eq!(read.len(), 100_000);
        far.write_all(b"and more").await.expect("written");
        drop(far);
        closing.await.expect("it ends").expect("in good order");
    }
}
