//! Content that could not be prefetched: blobs that were downloaded and could not be stored, and lists of referrers that
//! the upstream refused. Another attempt would end in the same way, so they are not prefetched again for some time.

use std::time::{Duration, Instant};

use quick_cache::sync::Cache as LruCache;

use crate::oci::Digest;

/// Time for which content is not prefetched again.
const PAUSE: Duration = Duration::from_hours(1);
/// Number of remembered digests.
const REMEMBERED: usize = 4096;

/// Content that could not be prefetched, with the end of its pause.
#[derive(Debug)]
pub(super) struct PausedContent(LruCache<Digest, Instant>);

impl PausedContent {
    pub(super) fn new() -> Self {
        Self(LruCache::new(REMEMBERED))
    }

    /// Remembers content that could not be prefetched.
    pub(super) fn add(&self, digest: &Digest, now: Instant) {
        self.0.insert(*digest, now + PAUSE);
    }

    /// Returns true while content is not prefetched again.
    pub(super) fn contains(&self, digest: &Digest, now: Instant) -> bool {
        self.0.get(digest).is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn content_is_left_out_for_an_hour() {
        let (blobs, now) = (PausedContent::new(), Instant::now());
        let digest = |text: &str| Digest::of(Algorithm::Sha256, text.as_bytes());
        blobs.add(&digest("a"), now);
        assert!(blobs.contains(&digest("a"), now + PAUSE / 2) && !blobs.contains(&digest("b"), now));
        assert!(!blobs.contains(&digest("a"), now + PAUSE));
    }
}
