//! Import of lists of referrers.

use std::sync::Arc;

use bytes::Bytes;

use super::import::{ImportError, Importer};
use crate::cache::manifest::put_list;
use crate::cache::memory::{CheckTime, CheckedPointer};
use crate::oci::{Digest, Referrers, Repository};
use crate::store::{AbsenceFact, Change, Pointer, TagFact};

impl Importer {
    /// Imports the list of referrers of a manifest, as if the upstream had just confirmed it. `None` states that there are no
    /// referrers.
    pub fn referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
        list: Option<&Referrers>,
    ) -> Result<(), ImportError> {
        let (storage, check) = (&self.storage, CheckTime::now(&self.storage.clock));
        let pointer = Pointer::Referrers(repository.clone(), *subject);
        let Some(list) = list else {
            let absence = Change::SetAbsence(pointer.clone(), AbsenceFact { checked_at: check.checked_at });
            let changes = [Change::RemovePointer(pointer.clone()), absence];
            self.runtime.block_on(storage.store.run(move |store| store.apply(&changes)))?;
            storage.memory.pointers.remove(&pointer);
            storage.memory.absent_pointers.insert(pointer, check);
            return Ok(());
        };
        let (owned, body, own) = (Arc::clone(storage), Bytes::from(list.to_index()), pointer.clone());
        let fact = self.runtime.block_on(storage.store.run(move |store| {
            let list = put_list(&owned, store, own.repository(), body)?;
            let CheckTime { checked_at, .. } = check;
            let fact = TagFact { digest: list.digest, checked_at, moved_at: checked_at };
            store.apply(&[Change::SetPointer(own, fact)])?;
            Ok(fact)
        }))?;
        storage.memory.insert_pointer(&pointer, CheckedPointer { fact, at: check.at });
        Ok(())
    }
}
