//! Pool of buffers: the buffer that was returned last is still in the CPU cache.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Largest piece of one read. A larger piece leaves the CPU cache before it is sent.
pub(super) const PIECE: usize = 256 << 10;
/// Largest piece with memory of its own, which is cheaper than to occupy a whole buffer.
const SMALL: usize = 32 << 10;
/// Largest number of unused buffers in the pool.
const KEPT: usize = 32;

/// Unused buffers.
#[derive(Debug, Default)]
pub(super) struct Buffers(Mutex<Vec<Vec<u8>>>);

/// Buffer in use.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    length: usize,
    home: Option<Arc<Buffers>>,
}

impl Buffers {
    /// Returns a buffer for up to `length` bytes, at most one piece.
    pub(super) fn take(self: &Arc<Self>, length: usize) -> Buffer {
        let length = length.min(PIECE);
        if length <= SMALL {
            return Buffer { bytes: vec![0; length], length, home: None };
        }
        let bytes = self.free().pop().unwrap_or_else(|| vec![0; PIECE]);
        Buffer { bytes, length, home: Some(Arc::clone(self)) }
    }

    fn free(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        // No code under this lock can panic in the middle of a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buffer {
    /// Returns the memory to fill.
    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.length]
    }

    /// Returns the first `filled` bytes. The buffer returns to the pool when the last reader drops them.
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
    fn pool_reuses_buffers_up_to_a_limit() {
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
