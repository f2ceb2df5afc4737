//! When an entry of the index was last asked for, and who reads it: what requests touch, without a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// How exactly it is known when something was asked for, in milliseconds.
const TOUCH: u64 = 1000;

/// The side of an entry that requests touch, without a lock.
#[derive(Debug, Default)]
pub(in crate::cache) struct Usage {
    /// When it was last asked for, in milliseconds since 1970.
    last: AtomicU64,
    /// The same as it was last written down.
    noted: AtomicU64,
    /// Who reads it now.
    readers: AtomicU32,
}

impl Usage {
    /// The usage of what came in, or was asked for, at `last`.
    pub(super) fn of(last: u64) -> Self {
        Self { last: last.into(), noted: last.into(), readers: 0.into() }
    }

    /// It is asked for. Requests within one second leave one mark, so that many cores can share what is hot. A clock
    /// that was set back counts from then on.
    pub(in crate::cache) fn touch(&self, now: u64) {
        if self.last.load(Ordering::Relaxed).abs_diff(now) >= TOUCH {
            self.last.store(now, Ordering::Relaxed);
        }
    }

    pub(super) fn last(&self) -> u64 {
        self.last.load(Ordering::Relaxed)
    }

    /// It was asked for at `last`, if nothing later is known.
    pub(super) fn advance(&self, last: u64) {
        self.last.fetch_max(last, Ordering::Relaxed);
    }

    /// When it was last asked for, if that was not told before.
    pub(super) fn news(&self) -> Option<u64> {
        let last = self.last();
        (self.noted.swap(last, Ordering::Relaxed) != last).then_some(last)
    }

    pub(super) fn is_read(&self) -> bool {
        self.readers.load(Ordering::Acquire) > 0
    }
}

/// Somebody reads an entry, which stays until this is dropped.
#[derive(Debug)]
pub struct ContentPin(Arc<Usage>);

impl ContentPin {
    /// One more reader, which by itself says nothing about what clients want.
    pub(super) fn begin(usage: Arc<Usage>) -> Self {
        usage.readers.fetch_add(1, Ordering::AcqRel);
        Self(usage)
    }

    /// A client is the reader.
    pub(super) fn touch(&self, now: u64) {
        self.0.touch(now);
    }
}

impl Clone for ContentPin {
    fn clone(&self) -> Self {
        Self::begin(Arc::clone(&self.0))
    }
}

impl Drop for ContentPin {
    fn drop(&mut self) {
        self.0.readers.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_touch_is_news_once() {
        let usage = Usage::of(5000);
        assert_eq!(usage.news(), None);
        usage.touch(5000 + TOUCH - 1);
        assert_eq!(usage.news(), None, "within a second");
        usage.touch(9000);
        assert_eq!((usage.news(), usage.news()), (Some(9000), None));
        // A clock that was set back counts; what a listing says does only if it is later.
        usage.touch(1000);
        usage.advance(500);
        assert_eq!(usage.last(), 1000);
        usage.advance(2000);
        assert_eq!(usage.last(), 2000);
    }

    #[test]
    fn every_copy_of_a_reading_counts() {
        let usage = Arc::new(Usage::of(0));
        let first = ContentPin::begin(Arc::clone(&usage));
        let second = first.clone();
        drop(first);
        assert!(usage.is_read());
        drop(second);
        assert!(!usage.is_read());
    }
}
