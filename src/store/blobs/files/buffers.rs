//! Buffers that are used again: the one that was given back last is still in the processor's cache.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// The longest piece that is read at once. Longer ones leave the processor's cache before they are sent.
pub(super) const PIECE: usize = 256 << 10;
/// Pieces up to this length get memory of their own: it costs less than it saves to keep a whole buffer for them.
const SMALL: usize = 32 << 10;
/// Buffers kept while nobody uses them.
const KEPT: usize = 32;

/// Buffers that nobody uses.
#[derive(Debug, Default)]
pub(super) struct Buffers(Mutex<Vec<Vec<u8>>>);

/// A buffer in use.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    length: usize,
    home: Option<Arc<Buffers>>,
}

impl Buffers {
    /// A buffer for up to `length` bytes, and no more than a piece.
    pub(super) fn take(self: &Arc<Self>, length: usize) -> Buffer {
        let length = length.min(PIECE);
        if length <= SMALL {
            return Buffer { bytes: vec![0; length], length, home: None };
        }
        let bytes = self.free().pop().unwrap_or_else(|| vec![0; PIECE]);
        Buffer { bytes, length, home: Some(Arc::clone(self)) }
    }

    fn free(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        // Nothing under this lock can panic halfway through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buffer {
    /// What is to be filled.
    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.length]
    }

    /// The first `filled` bytes; the buffer goes back when their last reader drops them.
    pub(super) fn into_bytes(mut self, filled: usize) -> Bytes {
        self.length = self.length.min(filled);
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            let mut free = home.free();
            if free.len() < KEPT {
                free.push(std::mem::take(&mut self.bytes));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_and_no_more_than_a_few_are_kept() {
        let buffers = Arc::new(Buffers::default());
        let mut buffer = buffers.take(100_000);
        buffer.room()[..3].copy_from_slice(b"abc");
        let bytes = buffer.into_bytes(3);
        let copy = bytes.slice(1..);
        drop(bytes);
        assert!(buffers.free().is_empty());
        assert_eq!(&copy[..], b"bc");
        drop(copy);
        assert_eq!(buffers.free().len(), 1);
        let many: Vec<_> = (0..KEPT * 2).map(|_| buffers.take(usize::MAX)).collect();
        assert!(buffers.free().is_empty());
        assert_eq!(many[0].as_ref().len(), PIECE);
        drop(many);
        assert_eq!(buffers.free().len(), KEPT);
        drop(buffers.take(SMALL));
        assert_eq!(buffers.free().len(), KEPT);
    }
}
