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

/// Interval of the check whether content is due.
const LOOK_EVERY: Duration = Duration::from_hours(1);

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
    /// Whether a tag leads to what is held.
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

    /// Returns the pause after `bytes` more at `now`. Lost time is not made up for.
    fn rest(&mut self, bytes: u64, now: Instant) -> Duration {
        if self.rate == 0 {
            return Duration::ZERO;
        }
        self.done = self.done.saturating_add(bytes);
        let micros = u128::from(self.done) * 1_000_000 / u128::from(self.rate);
        let due = self.begin + Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX));
        let rest = due.saturating_duration_since(now);
        if rest.is_zero() {
            (self.begin, self.done) = (now, 0);
        }
        rest
    }
}

/// Verifies everything that was last verified before `before`, oldest first. `step` is told of
/// everything that is due in bytes, and of every number of bytes read.
pub async fn verify(
    cache: &Cache,
    metrics: &Metrics,
    before: Timestamp,
    pace: &mut Pace,
    mut step: impl FnMut(ScrubProgress) + Send,
) -> Result<ScrubReport, CacheError> {
    let due = cache.list_due(before).await?;
    step(ScrubProgress::Due(due.iter().map(|due| due.size).sum()));
    let mut report = ScrubReport::default();
    for due in due {
        let condition = cache
            .verify(&due, &mut |bytes| {
                report.bytes += bytes;
                metrics.scrubbed_bytes(bytes);
                step(ScrubProgress::Read(bytes));
                pace.rest(bytes, Instant::now())
            })
            .await?;
        count(&mut report, &due, condition);
        let kind = if due.manifest { "manifest" } else { "blob" };
        metrics.scrubbed(kind, condition != Integrity::Damaged);
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

fn count(report: &mut ScrubReport, due: &ScrubItem, condition: Integrity) {
    match condition {
        Integrity::Intact if due.manifest => report.manifests += 1,
        Integrity::Intact => report.blobs += 1,
        Integrity::Damaged => {
            report.damaged.push(DamagedContent { digest: due.digest, manifest: due.manifest });
        }
        Integrity::Missing => {}
    }
}

/// Tells what tags lead to, and removes what leads to nothing.
pub async fn collect(cache: &Cache, metrics: &Metrics, report: &mut ScrubReport) -> Result<(), CacheError> {
    report.collected = cache.collect_garbage().await?;
    report.reached = cache.reachability().await?;
    metrics.unreachable(report.reached.unreachable.bytes);
    for (kind, count) in report.collected.iter() {
        metrics.collected(kind, count);
    }
    Ok(())
}

/// Walks from time to time, so that everything is verified once in what `settings` say. Never ends.
pub async fn attend(cache: Cache, metrics: &Metrics, clock: Clock, mut settings: watch::Receiver<Settings>) {
    loop {
        let Settings { every, rate } = settings.borrow_and_update().clone();
        tokio::select! {
            () = changed(&mut settings) => continue,
            () = tokio::time::sleep(every.min(LOOK_EVERY)), if !every.is_zero() => {}
        }
        let now = clock.now();
        if let Err(error) = walk(&cache, metrics, (now.minus(every), now), rate.as_u64()).await {
            tracing::error!(%error, "the scrub broke off; it goes on the next time");
        }
    }
}

/// Waits until the settings change; for ever if nobody can change them.
async fn changed(settings: &mut watch::Receiver<Settings>) {
    if settings.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn walk(
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
    fn pace_does_not_make_up_for_lost_time() {
        let mut pace = Pace::new(1000);
        let begin = pace.begin;
        assert_eq!(pace.rest(500, begin), Duration::from_millis(500));
        assert_eq!(pace.rest(500, begin + Duration::from_millis(500)), Duration::from_millis(500));
        // Ten seconds in which nothing could be read are no leave to read ten thousand bytes at once.
        let late = begin + Duration::from_secs(11);
        assert_eq!(pace.rest(100, late), Duration::ZERO);
        assert_eq!(pace.rest(100, late), Duration::from_millis(100));
        assert_eq!(Pace::new(0).rest(u64::MAX, begin), Duration::ZERO);
    }
}
