//! Scrub: verifies all cached content, finds content that no tag needs, and removes leftovers of deleted content.
//!
//! It runs periodically, or when an operator starts it.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::cache::{Cache, CacheError, DamagedContent, Integrity, Reachability, ScrubItem};
use crate::clock::{Clock, Timestamp};
use crate::config::schema::Scrub as Settings;
use crate::oci::Digest;
use crate::store::Collected;
use crate::telemetry::Metrics;

/// Interval at which the scrub looks for content that is due.
const CHECK_INTERVAL: Duration = Duration::from_hours(1);

/// Report of a scrub.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubReport {
    /// Intact manifests.
    pub manifests: u64,
    /// Intact blobs.
    pub blobs: u64,
    /// Verified bytes.
    pub bytes: u64,
    /// Corrupt content that was removed.
    pub damaged: Vec<DamagedContent>,
    /// Corrupt content that was fetched again.
    pub repaired: Vec<Digest>,
    /// Content that tags reach, and content that no tag reaches.
    pub reached: Reachability,
    /// Removed leftovers.
    pub collected: Collected,
}

/// Limit on the bytes per second.
#[derive(Debug)]
pub struct Pace {
    begin: Instant,
    rate: u64,
    done: u64,
}

impl Pace {
    /// Creates a limit of `rate` bytes per second. 0 means no limit.
    pub fn new(rate: u64) -> Self {
        Self { begin: Instant::now(), rate, done: 0 }
    }

    /// Returns the pause after `bytes` more bytes at `now`. Time in which nothing was read does not allow a burst.
    fn pause(&mut self, bytes: u64, now: Instant) -> Duration {
        if self.rate == 0 {
            return Duration::ZERO;
        }
        self.done = self.done.saturating_add(bytes);
        let micros = u128::from(self.done) * 1_000_000 / u128::from(self.rate);
        let due = self.begin + Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX));
        let pause = due.saturating_duration_since(now);
        if pause.is_zero() {
            (self.begin, self.done) = (now, 0);
        }
        pause
    }
}

/// Verifies all content that was last verified before `before`, oldest first. Reports the bytes that are due and the bytes
/// that were read to `progress`.
pub async fn verify(
    cache: &Cache,
    metrics: &Metrics,
    before: Timestamp,
    pace: &mut Pace,
    mut progress: impl FnMut(ScrubProgress) + Send,
) -> Result<ScrubReport, CacheError> {
    let due = cache.list_due(before).await?;
    progress(ScrubProgress::Due(due.iter().map(|due| due.size).sum()));
    let mut report = ScrubReport::default();
    for due in due {
        let integrity = cache
            .verify(&due, &mut |bytes| {
                report.bytes += bytes;
                metrics.scrubbed_bytes(bytes);
                progress(ScrubProgress::Read(bytes));
                pace.pause(bytes, Instant::now())
            })
            .await?;
        count(&mut report, &due, integrity);
        let kind = if due.manifest { "manifest" } else { "blob" };
        metrics.scrubbed(kind, integrity != Integrity::Damaged);
    }
    Ok(report)
}

/// Progress of a scrub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScrubProgress {
    /// Bytes to read.
    Due(u64),
    /// Bytes read since the last report.
    Read(u64),
}

fn count(report: &mut ScrubReport, due: &ScrubItem, integrity: Integrity) {
    match integrity {
        Integrity::Intact if due.manifest => report.manifests += 1,
        Integrity::Intact => report.blobs += 1,
        Integrity::Damaged => {
            report.damaged.push(DamagedContent { digest: due.digest, manifest: due.manifest });
        }
        Integrity::Missing => {}
    }
}

/// Removes leftovers of deleted content, and measures the content that no tag reaches.
pub async fn collect(cache: &Cache, metrics: &Metrics, report: &mut ScrubReport) -> Result<(), CacheError> {
    report.collected = cache.collect_garbage().await?;
    report.reached = cache.reachability().await?;
    metrics.unreachable(report.reached.unreachable.bytes);
    for (kind, count) in report.collected.iter() {
        metrics.collected(kind, count);
    }
    Ok(())
}

/// Scrubs periodically, so that all content is verified once per `every` of the settings. Never ends.
pub async fn run_periodically(
    cache: Cache,
    metrics: &Metrics,
    clock: Clock,
    mut settings: watch::Receiver<Settings>,
) {
    loop {
        let Settings { every, rate } = settings.borrow_and_update().clone();
        tokio::select! {
            () = changed(&mut settings) => continue,
            () = tokio::time::sleep(every.min(CHECK_INTERVAL)), if !every.is_zero() => {}
        }
        let now = clock.now();
        if let Err(error) = scrub(&cache, metrics, (now.minus(every), now), rate.as_u64()).await {
            tracing::error!(%error, "the scrub failed; it continues at the next interval");
        }
    }
}

/// Waits until the settings change. Never ends if they can no longer change.
async fn changed(settings: &mut watch::Receiver<Settings>) {
    if settings.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Verifies content that is due, and removes leftovers.
async fn scrub(
    cache: &Cache,
    metrics: &Metrics,
    (before, now): (Timestamp, Timestamp),
    rate: u64,
) -> Result<(), CacheError> {
    let mut report = verify(cache, metrics, before, &mut Pace::new(rate), |_| {}).await?;
    collect(cache, metrics, &mut report).await?;
    metrics.scrub_ended(now);
    let (damaged, verified) = (report.damaged.len(), report.manifests + report.blobs);
    if verified > 0 || damaged > 0 {
        tracing::info!(
            verified,
            bytes = report.bytes,
            damaged,
            unreachable = report.reached.unreachable.bytes,
            "scrubbed"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pace_does_not_allow_a_burst_after_a_pause() {
        let mut pace = Pace::new(1000);
        let begin = pace.begin;
        assert_eq!(pace.pause(500, begin), Duration::from_millis(500));
        assert_eq!(pace.pause(500, begin + Duration::from_millis(500)), Duration::from_millis(500));
        // Ten seconds without a read do not allow ten thousand bytes at once.
        let late = begin + Duration::from_secs(11);
        assert_eq!(pace.pause(100, late), Duration::ZERO);
        assert_eq!(pace.pause(100, late), Duration::from_millis(100));
        assert_eq!(Pace::new(0).pause(u64::MAX, begin), Duration::ZERO);
    }
}
