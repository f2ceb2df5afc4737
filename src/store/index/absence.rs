//! Absences: answers of an upstream that a manifest has no list of referrers, or no tag with a signature.
//!
//! An absence belongs to its subject: it is removed with the subject's manifest. Clients may also ask about manifests that are
//! not stored. The number of absences without a stored subject is limited, and the oldest ones are removed first.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use crate::oci::{Digest, Repository};
use crate::store::engine::Engine;
use crate::store::error::StoreError;
use crate::store::index::fact::{AbsenceFact, Fact as _, readable};
use crate::store::index::key::Key;
use crate::store::index::pointer::Pointer;

/// Number of absences without a stored subject that remain when absences are counted.
pub(in crate::store) const UNOWNED_MAX: usize = 16_384;
/// Number of new absences after which they are counted again.
const COUNT_INTERVAL: usize = 4096;

impl Engine {
    /// Returns the absence of a pointer.
    pub(in crate::store) fn absence(&self, pointer: &Pointer) -> Result<Option<AbsenceFact>, StoreError> {
        let Some(key) = Key::absence_of(pointer) else { return Ok(None) };
        Ok(self.database.facts()?.get(key)?.and_then(|bytes| readable(&bytes)))
    }

    /// Records the absence of a pointer.
    pub(in crate::store) fn set_absence(
        &self,
        pointer: &Pointer,
        fact: AbsenceFact,
    ) -> Result<(), StoreError> {
        let Some(key) = Key::absence_of(pointer) else { return Ok(()) };
        if self.database.facts()?.insert(key, fact.encode())?.is_some() {
            return Ok(());
        }
        let new = self.new_absences.fetch_add(1, Ordering::Relaxed) + 1;
        if new >= COUNT_INTERVAL {
            self.new_absences.store(0, Ordering::Relaxed);
            self.collect_absences(UNOWNED_MAX)?;
        }
        Ok(())
    }

    /// Removes the absences that belong to `manifests`.
    pub(in crate::store) fn remove_absences_of(&self, manifests: &HashSet<Digest>) -> Result<(), StoreError> {
        for item in self.database.facts()?.scan_prefix(Key::absences()).keys() {
            let key = item?;
            if Key::read_absence(&key).is_some_and(|(_, subject)| manifests.contains(&subject)) {
                self.database.facts()?.remove(&key)?;
            }
        }
        Ok(())
    }

    /// Removes absences that cannot be decoded, and the oldest ones without a stored subject beyond a number. Returns the
    /// number of removed absences.
    pub(in crate::store) fn collect_absences(&self, unowned_max: usize) -> Result<u64, StoreError> {
        let (mut unowned, mut removed) = (Vec::new(), 0);
        for item in self.database.facts()?.scan_prefix(Key::absences()) {
            let (key, value) = item?;
            if let Some((repository, subject)) = Key::read_absence(&key)
                && let Some(fact) = readable::<AbsenceFact>(&value)
            {
                if !self.is_stored_in(&repository, &subject)? {
                    unowned.push((fact.checked_at, key));
                }
            } else {
                self.database.facts()?.remove(&key)?;
                removed += 1;
            }
        }
        let excess = unowned.len().saturating_sub(unowned_max);
        unowned.sort_unstable();
        for (_, key) in &unowned[..excess] {
            self.database.facts()?.remove(key)?;
            removed += 1;
        }
        Ok(removed)
    }

    /// Returns true if a manifest is stored and linked to the repository.
    fn is_stored_in(&self, repository: &Repository, digest: &Digest) -> Result<bool, StoreError> {
        Ok(self.has_manifest(digest)? && self.linked(repository, digest)?.is_some())
    }
}
