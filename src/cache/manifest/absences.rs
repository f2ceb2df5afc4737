//! Absences that are kept like the state of a tag: of lists of referrers, and of the tags of signatures.
//!
//! Clients treat an error in place of such an absence as a reason to refuse the whole image. So the absence survives a restart,
//! and is served stale while the upstream fails.

use std::sync::Arc;

use crate::cache::error::CacheError;
use crate::cache::memory::CheckTime;
use crate::cache::storage::Storage;
use crate::store::{AbsenceFact, Change, Pointer};

/// Kept absences, in memory and in the store.
#[derive(Debug)]
pub(super) struct Absences(Arc<Storage>);

impl Absences {
    pub(super) fn new(storage: &Arc<Storage>) -> Self {
        Self(Arc::clone(storage))
    }

    /// Returns the time at which the upstream last confirmed the absence of a pointer; `None` if the absence is not known, or
    /// of a kind that is not kept.
    pub(super) async fn get(&self, pointer: &Pointer) -> Result<Option<CheckTime>, CacheError> {
        if pointer.subject().is_none() {
            return Ok(None);
        }
        if let Some(check) = self.0.memory.absent_pointers.get(pointer) {
            return Ok(Some(check));
        }
        let owned = pointer.clone();
        let fact = self.0.with_store(move |store| store.absence(&owned)).await;
        let fact = self.0.or_default("the absence of a tag or list cannot be read", fact)?;
        let check = fact.map(|fact| CheckTime { checked_at: fact.checked_at, at: None });
        if let Some(check) = check {
            self.0.memory.absent_pointers.insert(pointer.clone(), check);
        }
        Ok(check)
    }

    /// Keeps the absence of a pointer, unless it is of a kind that is not kept. An absence that cannot be stored costs a
    /// request after the next start.
    pub(super) async fn put(&self, pointer: &Pointer, check: CheckTime) {
        if pointer.subject().is_none() || self.0.memory.absent_pointers.get(pointer) == Some(check) {
            return;
        }
        self.0.memory.absent_pointers.insert(pointer.clone(), check);
        let change = Change::SetAbsence(pointer.clone(), AbsenceFact { checked_at: check.checked_at });
        if let Err(error) = self.0.with_store(move |store| store.apply(&[change])).await {
            self.0.report_error("the absence of a tag or list could not be stored", &error);
        }
    }
}
