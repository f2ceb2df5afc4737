//! Changes of facts.

use crate::clock::Timestamp;
use crate::oci::{Digest, Repository, UpstreamName};
use crate::store::engine::Engine;
use crate::store::error::StoreError;
use crate::store::index::fact::{AbsenceFact, AccessFact, Fact as _, LinkFact, TagFact, VerifiedFact};
use crate::store::index::key::Key;
use crate::store::index::pointer::{Pointer, TagKey};

/// Change of facts. No change touches content.
#[derive(Clone, Debug)]
pub enum Change {
    /// Sets a pointer. The manifest must be stored already.
    SetPointer(Pointer, TagFact),
    /// Removes a pointer. Its manifest stays.
    RemovePointer(Pointer),
    /// Records that the upstream does not have what a pointer names. Ignored for pointers without a subject.
    SetAbsence(Pointer, AbsenceFact),
    /// Links a repository to a digest that its upstream confirmed or delivered. An existing link stays as it is, because
    /// it may contain the size.
    AddLink(Repository, Digest),
    /// Records that an upstream has delivered the bytes of a digest. See [`StoreSession::is_delivered`].
    ///
    /// [`StoreSession::is_delivered`]: crate::store::StoreSession::is_delivered
    AddDelivered(UpstreamName, Digest),
    /// Removes a link to content that was removed.
    RemoveLink(Repository, Digest),
    /// Records that a stored manifest refers to a subject, which need not be stored.
    AddReferrer {
        /// The repository of both manifests.
        repository: Repository,
        /// The manifest that is referred to.
        subject: Digest,
        /// The manifest that refers to the subject.
        referrer: Digest,
    },
    /// Adds an index to the prefetch queue.
    EnqueuePrefetch(Repository, Digest),
    /// Removes an index from the prefetch queue.
    DequeuePrefetch(Repository, Digest),
    /// Records the time of the last access to content.
    SetAccessed(Digest, Timestamp),
    /// Records the time at which content was verified against its digest.
    SetVerified(Digest, Timestamp),
}

impl Engine {
    /// Applies changes in their order. Changes that need no look-up are applied together, in one atomic step.
    pub(in crate::store) fn apply(&self, changes: &[Change]) -> Result<(), StoreError> {
        let facts = self.database.facts()?;
        let mut batch = sled::Batch::default();
        for change in changes {
            if matches!(change, Change::RemovePointer(_) | Change::SetAbsence(..) | Change::AddLink(..)) {
                facts.apply_batch(std::mem::take(&mut batch))?;
            }
            match change {
                Change::SetPointer(pointer, fact) => {
                    batch.insert(Key::from(pointer).to_bytes(), fact.encode());
                    for key in pointer.refuted_absences().filter_map(|absent| Key::absence_of(&absent)) {
                        batch.remove(key);
                    }
                    if let Pointer::Tag(TagKey { repository, variant: None, .. }) = pointer {
                        batch.insert(catalog_key(repository), &[][..]);
                    }
                }
                Change::RemovePointer(pointer) => self.remove_pointer(pointer)?,
                Change::SetAbsence(pointer, fact) => self.set_absence(pointer, *fact)?,
                Change::AddLink(repository, digest) => self.add_link(repository, digest)?,
                Change::AddDelivered(upstream, digest) => {
                    batch.insert(Key::Delivered(digest, upstream).to_bytes(), &[][..]);
                }
                Change::RemoveLink(repository, digest) => {
                    batch.remove(Key::Link(repository, digest).to_bytes());
                }
                Change::AddReferrer { repository, subject, referrer } => {
                    batch.insert(Key::Referrer(repository, subject, referrer).to_bytes(), &[][..]);
                }
                Change::EnqueuePrefetch(repository, index) => {
                    batch.insert(Key::Prefetch(repository, index).to_bytes(), &[][..]);
                }
                Change::DequeuePrefetch(repository, index) => {
                    batch.remove(Key::Prefetch(repository, index).to_bytes());
                }
                Change::SetAccessed(digest, last) => {
                    batch.insert(Key::Access(digest).to_bytes(), AccessFact { last: *last }.encode());
                }
                Change::SetVerified(digest, at) => {
                    batch.insert(Key::Verified(digest).to_bytes(), VerifiedFact { at: *at }.encode());
                }
            }
        }
        facts.apply_batch(batch)?;
        Ok(())
    }

    fn remove_pointer(&self, pointer: &Pointer) -> Result<(), StoreError> {
        self.database.facts()?.remove(Key::from(pointer).to_bytes())?;
        match pointer {
            Pointer::Tag(TagKey { repository, variant: None, .. }) => {
                self.remove_untagged_from_catalog([repository.clone()])
            }
            Pointer::Tag(_) | Pointer::Referrers(..) => Ok(()),
        }
    }

    /// Links a repository to a digest. An existing link stays as it is, because it may contain the size.
    pub(in crate::store) fn add_link(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<(), StoreError> {
        let key = Key::Link(repository, digest).to_bytes();
        let link = LinkFact { size: None }.encode();
        // The result of the comparison does not matter: there is a link now in either case.
        let _ = self.database.facts()?.compare_and_swap(key, None::<&[u8]>, Some(link))?;
        Ok(())
    }

    /// Removes repositories without tags from the catalog.
    pub(in crate::store) fn remove_untagged_from_catalog(
        &self,
        repositories: impl IntoIterator<Item = Repository>,
    ) -> Result<(), StoreError> {
        for repository in repositories {
            if self.tags(&repository, None, 1)?.is_empty() {
                self.database.facts()?.remove(catalog_key(&repository))?;
            }
        }
        Ok(())
    }
}

fn catalog_key(repository: &Repository) -> Vec<u8> {
    Key::Repository(&repository.upstream, repository.name.as_str()).to_bytes()
}
