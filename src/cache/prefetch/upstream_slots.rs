//! Slots for prefetch: each upstream has its own, and divides them among its repositories. Neither a slow upstream nor an image
//! with many children delays the prefetch of others for long.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::oci::{Name, Repository, UpstreamName};
use crate::upstream::{DividedSlots, Slot};

/// Slots of all upstreams.
#[derive(Debug)]
pub(super) struct UpstreamSlots {
    /// Number of slots of one upstream.
    count: usize,
    /// Upstreams come from the configuration, so their number is bounded.
    upstreams: Mutex<HashMap<UpstreamName, Arc<DividedSlots<Name>>>>,
}

impl UpstreamSlots {
    /// Creates `count` slots for each upstream.
    pub(super) fn new(count: usize) -> Self {
        Self { count, upstreams: Mutex::default() }
    }

    /// Waits for a slot of a repository.
    pub(super) async fn acquire(&self, repository: &Repository) -> Slot<Name> {
        let slots = {
            let mut upstreams = self.upstreams.lock().unwrap_or_else(PoisonError::into_inner);
            let slots = upstreams.entry(repository.upstream.clone());
            Arc::clone(slots.or_insert_with(|| Arc::new(DividedSlots::new(self.count))))
        };
        slots.acquire(&repository.name).await
    }
}
