//! Last access and pins of cached content, updated by requests without a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Timestamp;

/// Resolution of the last access.
const RESOLUTION: Duration = Duration::from_secs(1);

/// Last access and pins of one cached manifest or blob.
#[derive(Debug, Default)]
pub(in crate::cache) struct Usage {
    /// Last access, in milliseconds since 1970.
    last_access: AtomicU64,
    /// Last access as it was last returned by [`take_unsaved`](Self::take_unsaved).
    saved: AtomicU64,
    pins: AtomicU32,
}

impl Usage {
    /// Creates the usage of content that was stored, or accessed, at `last_access`.
    pub(super) fn new(last_access: Timestamp) -> Self {
        let millis = last_access.as_millis();
        Self { last_access: millis.into(), saved: millis.into(), pins: 0.into() }
    }

    /// Sets the last access, also to an earlier time if the clock was set back. Accesses within one second write once, so
    /// that CPUs do not contend for popular content.
    pub(in crate::cache) fn touch(&self, now: Timestamp) {
        if self.last_access().abs_diff(now) >= RESOLUTION {
            self.last_access.store(now.as_millis(), Ordering::Relaxed);
        }
    }

    pub(super) fn last_access(&self) -> Timestamp {
        Timestamp::from_millis(self.last_access.load(Ordering::Relaxed))
    }

    /// Sets the last access if `last_access` is later.
    pub(super) fn advance(&self, last_access: Timestamp) {
        self.last_access.fetch_max(last_access.as_millis(), Ordering::Relaxed);
    }

    /// Returns the last access if it has changed since the previous call.
    pub(super) fn take_unsaved(&self) -> Option<Timestamp> {
        let last_access = self.last_access();
        let saved = self.saved.swap(last_access.as_millis(), Ordering::Relaxed);
        (saved != last_access.as_millis()).then_some(last_access)
    }

    pub(super) fn is_pinned(&self) -> bool {
        self.pins.load(Ordering::Acquire) > 0
    }
}

/// Pin on cached content, which is not evicted or removed while the pin exists.
#[derive(Debug)]
pub struct ContentPin(Arc<Usage>);

impl ContentPin {
    /// Creates a pin. A pin alone does not count as an access.
    pub(super) fn new(usage: Arc<Usage>) -> Self {
        usage.pins.fetch_add(1, Ordering::AcqRel);
        Self(usage)
    }

    /// Counts an access by a client.
    pub(super) fn touch(&self, now: Timestamp) {
        self.0.touch(now);
    }
}

impl Clone for ContentPin {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.0))
    }
}

impl Drop for ContentPin {
    fn drop(&mut self) {
        self.0.pins.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn access_is_returned_once_for_saving() {
        let usage = Usage::new(at(5000));
        assert_eq!(usage.take_unsaved(), None);
        usage.touch(at(5999));
        assert_eq!(usage.take_unsaved(), None, "within the resolution");
        usage.touch(at(9000));
        assert_eq!((usage.take_unsaved(), usage.take_unsaved()), (Some(at(9000)), None));
    }

    #[test]
    fn touch_follows_a_clock_that_was_set_back_and_advance_does_not() {
        let usage = Usage::new(at(9000));
        usage.touch(at(1000));
        usage.advance(at(500));
        assert_eq!(usage.last_access(), at(1000));
        usage.advance(at(2000));
        assert_eq!(usage.last_access(), at(2000));
    }

    #[test]
    fn every_clone_of_a_pin_counts() {
        let usage = Arc::new(Usage::new(at(0)));
        let first = ContentPin::new(Arc::clone(&usage));
        let second = first.clone();
        drop(first);
        assert!(usage.is_pinned());
        drop(second);
        assert!(!usage.is_pinned());
    }
}
