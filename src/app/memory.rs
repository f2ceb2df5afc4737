//! Return of freed memory to the system.

use std::time::Duration;

use crate::telemetry::resident_memory;

/// Interval of checks.
const INTERVAL: Duration = Duration::from_secs(15);
/// Growth of the resident memory after which freed memory is looked for.
const GROWTH: u64 = 16 << 20;

/// Calls `release` when the resident memory has grown and is not growing any more: after a time of load.
pub(super) async fn release_periodically(release: fn()) {
    let mut memory = Growth::since(resident_memory());
    loop {
        tokio::time::sleep(INTERVAL).await;
        if memory.has_settled(resident_memory()) {
            // Takes the locks of the allocator for some milliseconds.
            if tokio::task::spawn_blocking(release).await.is_err() {
                return;
            }
            memory = Growth::since(resident_memory());
        }
    }
}

/// Resident memory at the last checks.
#[derive(Debug)]
struct Growth {
    /// Smallest value since the start, or since the last release.
    base: u64,
    last: u64,
}

impl Growth {
    fn since(now: u64) -> Self {
        Self { base: now, last: now }
    }

    /// Returns true if memory has grown since the last release, but not since the last check.
    fn has_settled(&mut self, now: u64) -> bool {
        let last = std::mem::replace(&mut self.last, now);
        self.base = self.base.min(now);
        now > self.base.saturating_add(GROWTH) && now <= last.saturating_add(GROWTH / 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_released_once_after_it_has_grown() {
        let mut memory = Growth::since(40 << 20);
        let settled = |memory: &mut Growth, mib: u64| memory.has_settled(mib << 20);
        assert!(!settled(&mut memory, 41) && !settled(&mut memory, 50));
        assert!(!settled(&mut memory, 150), "still growing");
        assert!(settled(&mut memory, 152));
        memory = Growth::since(100 << 20);
        assert!(!settled(&mut memory, 101) && !settled(&mut memory, 116));
        assert!(!settled(&mut memory, 60), "shrunk by itself");
        assert!(!settled(&mut memory, 80) && settled(&mut memory, 80));
    }
}
