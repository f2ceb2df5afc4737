//! Reader over a channel: an async task sends bytes, a blocking thread reads them.

use std::io::{self, Read};

use bytes::{Buf as _, Bytes};
use tokio::sync::mpsc;

/// Maximum number of chunks that wait in the channel.
pub const QUEUE: usize = 4;

/// Reading side of the channel. It blocks, so never use it on an async thread.
#[derive(Debug)]
pub struct ChannelReader {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    /// Unread rest of the newest chunk.
    rest: Bytes,
}

impl ChannelReader {
    /// Returns both sides. The reader returns an error that is sent. It ends when the sender is dropped.
    pub fn new() -> (mpsc::Sender<io::Result<Bytes>>, Self) {
        let (sender, chunks) = mpsc::channel(QUEUE);
        (sender, Self::over(chunks))
    }

    /// Creates a reader over an existing channel.
    pub fn over(chunks: mpsc::Receiver<io::Result<Bytes>>) -> Self {
        Self { chunks, rest: Bytes::new() }
    }
}

impl Read for ChannelReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.rest = chunk?,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.rest.len());
        self.rest.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channel_reader_returns_chunks_in_order_until_an_error_or_the_end() {
        let (sender, mut reader) = ChannelReader::new();
        for chunk in [&b"ab"[..], b"", b"cde"] {
            sender.blocking_send(Ok(Bytes::from_static(chunk))).expect("sent");
        }
        sender.blocking_send(Err(io::Error::other("gone"))).expect("sent");
        let mut start = [0; 4];
        reader.read_exact(&mut start).expect("read");
        assert_eq!(&start, b"abcd");
        assert_eq!(reader.read(&mut start).expect("read"), 1);
        assert_eq!(reader.read(&mut start).expect_err("an error").to_string(), "gone");
        drop(sender);
        assert_eq!(reader.read(&mut start).expect("the end"), 0);
    }
}
