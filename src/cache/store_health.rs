//! A store that takes nothing, or gives nothing: clients are served straight through, it is said once, and it is tried
//! again until it works.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::store::StoreError;

use super::{Cache, CacheError, Shared, blocking};

/// How long the store is left alone before it is tried again.
const PAUSE: Duration = Duration::from_secs(5);
/// And at most, if it keeps failing soon after it worked.
const LONGEST: Duration = Duration::from_mins(1);
/// How soon is soon.
const RELAPSE: Duration = Duration::from_mins(1);
/// How often it is looked after without anybody asking for anything.
const WATCHED_EVERY: Duration = Duration::from_secs(2);

/// What is known of the store's trouble. Pure: the time is an argument.
#[derive(Debug)]
struct StoreHealthState {
    since: Option<Instant>,
    tried: Option<Instant>,
    ended: Option<Instant>,
    pause: Duration,
    /// Whether nothing but to open it anew can help.
    broken: bool,
}

impl Default for StoreHealthState {
    fn default() -> Self {
        Self { since: None, tried: None, ended: None, pause: PAUSE, broken: false }
    }
}

impl StoreHealthState {
    /// Notes a failure. Returns whether that is news.
    fn failed(&mut self, now: Instant, broken: bool) -> bool {
        self.broken |= broken;
        if self.since.is_some() {
            return false;
        }
        let relapse = self.ended.is_some_and(|ended| now.saturating_duration_since(ended) < RELAPSE);
        self.pause = if relapse { self.pause.saturating_mul(2).min(LONGEST) } else { PAUSE };
        (self.since, self.tried) = (Some(now), Some(now));
        true
    }

    /// Whether the store is to be tried now, by the caller and nobody else.
    fn try_now(&mut self, now: Instant) -> bool {
        let due = self.tried.is_none_or(|tried| now.saturating_duration_since(tried) >= self.pause);
        if self.since.is_none() || !due {
            return false;
        }
        self.tried = Some(now);
        true
    }

    /// The store works again. Returns how long it did not.
    fn worked(&mut self, now: Instant) -> Option<Duration> {
        let since = self.since.take()?;
        self.ended = Some(now);
        self.broken = false;
        Some(now.saturating_duration_since(since))
    }
}

/// The trouble of one store.
#[derive(Debug, Default)]
pub(super) struct StoreHealth {
    state: Mutex<StoreHealthState>,
    /// Held while the store is tried.
    trying: tokio::sync::Mutex<()>,
}

impl StoreHealth {
    /// Whether the store is in trouble, and had better be left alone.
    pub(super) fn is_degraded(&self) -> bool {
        self.state().since.is_some()
    }

    /// How long it has been in trouble.
    pub(super) fn degraded_for(&self, now: Instant) -> Option<Duration> {
        self.state().since.map(|since| now.saturating_duration_since(since))
    }

    fn state(&self) -> MutexGuard<'_, StoreHealthState> {
        // Nothing under this lock can panic halfway through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Notes that the store failed, and goes on: what was verified can be served all the same. A disk that is full or
    /// broken is spoken of once, not for every request.
    pub(super) fn report_store_error(&self, what: &str, error: &StoreError) {
        self.metrics.store_error();
        if !error.is_disk_failure() {
            tracing::error!(%error, "{what}");
            return;
        }
        let broken = matches!(error, StoreError::Sled(_) | StoreError::Closed | StoreError::GaveUp);
        if self.store_health.state().failed(self.clock.instant(), broken) {
            self.metrics.set_store_degraded(true);
            // What is missing may be room.
            self.eviction.look();
            tracing::error!(
                %error,
                "the store fails: {what}. Clients are served straight from the upstreams, and nothing more is kept, until \
                 it works again; that is tried every few seconds"
            );
        } else {
            tracing::debug!(%error, "{what}");
        }
    }

    /// The same for an error that has been through the cache.
    pub(super) fn report_error(&self, what: &str, error: &CacheError) {
        if let CacheError::Store(error) = error {
            return self.report_store_error(what, error);
        }
        self.metrics.store_error();
        tracing::error!(%error, "{what}");
    }

    /// What the store says; nothing where it fails, so that the upstream is asked.
    pub(super) fn or_default<T: Default>(
        &self,
        what: &str,
        told: Result<T, CacheError>,
    ) -> Result<T, CacheError> {
        match told {
            Err(CacheError::Store(error)) if error.is_disk_failure() => {
                self.report_store_error(what, &error);
                Ok(T::default())
            }
            told => told,
        }
    }

    /// Tries a store that is in trouble again, in the background, if it is time.
    pub(super) fn retry_store(self: &Arc<Self>) {
        if self.store_health.state().try_now(self.clock.instant()) {
            let shared = Arc::clone(self);
            tokio::spawn(async move {
                // A slow disk is not tried twice at once.
                if let Ok(_turn) = shared.store_health.trying.try_lock() {
                    shared.mend_store().await;
                }
            });
        }
    }

    async fn mend_store(self: &Arc<Self>) {
        let (store, broken) = (self.store.clone(), self.store_health.state().broken);
        let mended = blocking(move || store.recover(broken)).await;
        // What was open may hold less now, or nothing.
        self.memory.blobs.clear();
        self.memory.prefetched.clear();
        match mended {
            Ok(()) => {
                let of = Arc::clone(self);
                if let Err(error) = blocking(move || of.memory.remove_unstored(&of.store)).await {
                    tracing::debug!(%error, "what is in memory alone cannot be told");
                }
                self.eviction.invalidate_index();
                if let Some(time) = self.store_health.state().worked(self.clock.instant()) {
                    self.metrics.set_store_degraded(false);
                    tracing::info!(?time, "the store works again: what comes is kept");
                }
            }
            Err(error) => tracing::debug!(%error, "the store still fails"),
        }
    }
}

impl Cache {
    /// Looks after the store when nobody asks for anything: whether it still lies where it was opened, and in trouble
    /// whether that has passed. Never ends.
    pub async fn watch_store(self) {
        let shared = &self.0;
        let mut ticks = tokio::time::interval(WATCHED_EVERY);
        loop {
            ticks.tick().await;
            let store = shared.store.clone();
            if !shared.store_health.is_degraded()
                && !blocking(move || Ok(store.is_available())).await.unwrap_or(true)
            {
                shared.report_store_error("its folder is not there", &StoreError::Closed);
                // Nothing can be waited for.
                shared.mend_store().await;
            }
            shared.retry_store();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_news_once_and_tried_now_and_then() {
        let (mut state, mut now) = (StoreHealthState::default(), Instant::now());
        assert!(!state.try_now(now));
        assert!(state.failed(now, false) && !state.failed(now, true));
        assert!(!state.try_now(now));
        now += PAUSE;
        assert!(state.try_now(now) && !state.try_now(now));
        assert!(state.broken);
        assert_eq!(state.worked(now + PAUSE), Some(PAUSE * 2));
        assert_eq!(state.worked(now + PAUSE), None);
        assert!(!state.broken);
    }

    #[test]
    fn what_soon_fails_again_is_tried_less_often() {
        let (mut state, mut now) = (StoreHealthState::default(), Instant::now());
        for pause in [5, 10, 20, 40, 60, 60].map(Duration::from_secs) {
            assert!(state.failed(now, false));
            assert!(!state.try_now(now + pause / 2));
            now += pause;
            assert!(state.try_now(now));
            state.worked(now);
        }
        now += RELAPSE;
        assert!(state.failed(now, false) && state.try_now(now + PAUSE));
    }
}
