//! Degraded mode: while the store fails, clients are served directly from the upstreams, and nothing is stored. The failure
//! is logged once, and the store is retried until it works.

use std::sync::Arc;
use std::time::Duration;

use crate::store::StoreError;

use super::error::CacheError;
use super::storage::Storage;

/// Interval of checks without any request.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

impl Storage {
    /// Reports a failed operation of the store, after which the caller continues: verified content can still be served. A
    /// failure of the disk begins degraded mode, and is logged once, not for every request.
    pub(super) fn report_store_error(&self, operation: &str, error: &StoreError) {
        self.metrics.store_error();
        if !error.is_disk_failure() {
            tracing::error!(%error, "{operation}");
            return;
        }
        let needs_reopen =
            matches!(error, StoreError::Database(_) | StoreError::Closed | StoreError::Panicked);
        if self.store_health.fail(self.clock.instant(), needs_reopen) {
            self.metrics.set_store_degraded(true);
            // The cause may be a full disk.
            self.capacity.wake_evictor();
            tracing::error!(
                %error,
                "the store fails: {operation}; clients are served directly from the upstreams and nothing is stored until it \
                 works again, which is retried every few seconds; check the disk"
            );
        } else {
            tracing::debug!(%error, "{operation}");
        }
    }

    /// Reports an error like [`report_store_error`](Self::report_store_error), if it is one of the store.
    pub(super) fn report_error(&self, operation: &str, error: &CacheError) {
        if let CacheError::Store(error) = error {
            return self.report_store_error(operation, error);
        }
        self.metrics.store_error();
        tracing::error!(%error, "{operation}");
    }

    /// Returns the default in place of a failure of the disk, so that the caller asks the upstream.
    pub(super) fn or_default<T: Default>(
        &self,
        operation: &str,
        result: Result<T, CacheError>,
    ) -> Result<T, CacheError> {
        match result {
            Err(CacheError::Store(error)) if error.is_disk_failure() => {
                self.report_store_error(operation, &error);
                Ok(T::default())
            }
            result => result,
        }
    }

    /// Retries a failed store in the background, if a retry is due.
    pub(super) fn retry_store(self: &Arc<Self>) {
        if self.store_health.begin_retry(self.clock.instant()) {
            let storage = Arc::clone(self);
            tokio::spawn(async move {
                if let Ok(_retrying) = storage.store_health.retrying.try_lock() {
                    storage.recover_store().await;
                }
            });
        }
    }

    async fn recover_store(self: &Arc<Self>) {
        let recovered = self.store.recover(self.store_health.needs_reopen()).await;
        // A reopened store may have lost content.
        self.memory.blobs.clear();
        self.memory.prefetched.clear();
        if let Err(error) = recovered {
            tracing::debug!(%error, "the store still fails");
            return;
        }
        let storage = Arc::clone(self);
        if let Err(error) = self.with_store(move |store| storage.memory.remove_unstored(store)).await {
            tracing::debug!(%error, "cannot compare memory with the store");
        }
        self.content.set_incomplete();
        self.capacity.wake_evictor();
        if let Some(duration) = self.store_health.recover(self.clock.instant()) {
            self.metrics.set_store_degraded(false);
            tracing::info!(?duration, "the store works again: content is stored again");
        }
    }
}

/// Checks without any request whether the store's folder exists, and retries a failed store. Never returns.
pub(super) async fn watch_store(storage: &Arc<Storage>) {
    let mut ticks = tokio::time::interval(CHECK_INTERVAL);
    loop {
        ticks.tick().await;
        if !storage.store_health.is_degraded() && !storage.store.is_available().await {
            storage.report_store_error("its folder is missing", &StoreError::Closed);
            // A folder does not come back by itself, so there is nothing to wait for.
            storage.recover_store().await;
        }
        storage.retry_store();
    }
}
