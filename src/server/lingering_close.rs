//! Lingering close: after shutdown of the write side, the stream reads until the peer has closed its side.
//!
//! A socket that is closed with unread bytes in its receive buffer sends a reset. The reset makes the peer discard bytes
//! that it has received but not read yet, such as the end of a body. Unread bytes are common with HTTP/2, where the peer
//! sends `WINDOW_UPDATE` frames. RFC 9112, section 9.6 describes the same for HTTP/1.1.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// Maximum time to wait for the peer to close its side.
const LINGER: Duration = Duration::from_secs(1);
/// Maximum number of bytes that are read and discarded during this time.
const DISCARDED_MAX: usize = 256 << 10;

/// Stream with a lingering close.
#[derive(Debug)]
pub(super) struct LingeringClose<S> {
    stream: S,
    /// Timer that starts when the write side is shut down.
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
                // The peer has closed its side, or the connection is broken.
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
    async fn lingering_close_lets_the_peer_read_everything_although_it_still_sends() {
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
