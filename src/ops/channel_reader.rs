//! Bytes that a task sends, for a blocking thread that reads them.

use std::io::{self, Read};

use bytes::{Buf as _, Bytes};
use tokio::sync::mpsc;

/// Pieces that may wait for who reads.
pub const QUEUE: usize = 4;

/// The reading side. Never to be read on an async thread.
#[derive(Debug)]
pub struct ChannelReader {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    /// What is left of the newest one.
    rest: Bytes,
}

impl ChannelReader {
    /// Both sides. An error that is sent is what the reader meets; without one, it ends when the sender goes.
    pub fn new() -> (mpsc::Sender<io::Result<Bytes>>, Self) {
        let (sender, pieces) = mpsc::channel(QUEUE);
        (sender, Self::over(pieces))
    }

    /// The reading side of what comes by a channel.
    pub fn over(pieces: mpsc::Receiver<io::Result<Bytes>>) -> Self {
        Self { pieces, rest: Bytes::new() }
    }
}

impl Read for ChannelReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.rest = piece?,
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
    fn pieces_are_read_in_order_up_to_the_end_or_an_error() {
        let (sender, mut pipe) = ChannelReader::new();
        for piece in [&b"ab"[..], b"", b"cde"] {
            sender.blocking_send(Ok(Bytes::from_static(piece))).expect("sent");
        }
        sender.blocking_send(Err(io::Error::other("gone"))).expect("sent");
        let mut start = [0; 4];
        pipe.read_exact(&mut start).expect("read");
        assert_eq!(&start, b"abcd");
        assert_eq!(pipe.read(&mut start).expect("read"), 1);
        assert_eq!(pipe.read(&mut start).expect_err("an error").to_string(), "gone");
        drop(sender);
        assert_eq!(pipe.read(&mut start).expect("the end"), 0);
    }
}
