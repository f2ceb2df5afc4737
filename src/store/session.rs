//! Unit of work on the store: the blocking interface inside [`Store::run`](super::Store::run).

use std::collections::HashSet;

use crate::clock::Timestamp;
use crate::oci::{Digest, MediaType, Repository, UpstreamName};

use super::blobs::entry::BlobEntry;
use super::blobs::files::{DraftKey, DraftUsage};
use super::draft::DraftWriter;
use super::engine::{Engine, StoredManifest};
use super::error::StoreError;
use super::index::change::Change;
use super::index::fact::{AbsenceFact, LinkFact, TagFact};
use super::index::inventory::ContentEntry;
use super::index::pointer::{NameList, Pointer, PointerScope};
use super::lifecycle::gc::Collected;
use super::lifecycle::quarantine;

/// Blocking access to the store, for one unit of work on a thread that may block.
///
/// Each method is one atomic step. Several steps in one unit of work are not one transaction, but they run to their end
/// even if the caller of [`Store::run`](super::Store::run) no longer waits.
#[derive(Debug)]
pub struct StoreSession(pub(super) Engine);

/// Content to remove. The caller makes sure that no fill writes it meanwhile.
#[derive(Clone, Copy, Debug)]
pub enum Removal<'a> {
    /// All tags and lists of referrers that point at these manifests, their entries as referrers, and the absences that
    /// belong to them.
    Pointers(&'a HashSet<Digest>),
    /// A manifest. Pointers to it stay, and find nothing.
    Manifest(&'a Digest),
    /// A blob that has no reader. Its fact is removed first, so that a crash never leaves a part of the blob as content.
    Blob(&'a Digest),
    /// A blob that is corrupt. A blob that was filled again since the entry was read stays. Readers that have it open
    /// are not disturbed. Its fact is removed and its bytes are marked as leftovers in one atomic step.
    CorruptBlob(&'a BlobEntry),
    /// The leftovers of a blob: bytes that no fact points at.
    Leftovers(&'a Digest),
    /// A draft that has no fill.
    Draft(&'a DraftKey),
}

/// All stored content.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// All manifests.
    pub manifests: Vec<ContentEntry>,
    /// All blobs.
    pub blobs: Vec<ContentEntry>,
    /// Blobs of which an interrupted copy or removal left bytes.
    pub leftovers: Vec<Digest>,
}

/// Disk usage of the store.
#[derive(Clone, Debug, Default)]
pub struct DiskUsage {
    /// Bytes on disk, including drafts and the database's own files.
    pub total: u64,
    /// All drafts that have a file, including those of running fills.
    pub drafts: Vec<DraftUsage>,
    /// Bytes that are free on the disk; `None` if the operating system does not report them.
    pub free: Option<u64>,
    /// Number of quarantined stores in the store's folder.
    pub quarantined: usize,
}

impl DiskUsage {
    /// Returns the bytes on disk of all drafts.
    pub fn draft_bytes(&self) -> u64 {
        self.drafts.iter().fold(0, |sum, draft| sum.saturating_add(draft.bytes))
    }
}

impl StoreSession {
    /// Returns the fact of a pointer.
    pub fn pointer(&self, pointer: &Pointer) -> Result<Option<TagFact>, StoreError> {
        self.0.pointer(pointer)
    }

    /// Returns the absence of a pointer, as the upstream last confirmed it.
    pub fn absence(&self, pointer: &Pointer) -> Result<Option<AbsenceFact>, StoreError> {
        self.0.absence(pointer)
    }

    /// Returns true if a manifest is stored. Does not read the manifest.
    pub fn has_manifest(&self, digest: &Digest) -> Result<bool, StoreError> {
        self.0.has_manifest(digest)
    }

    /// Returns all pointers of a scope with their facts, in byte order of their names.
    pub fn pointers(&self, scope: PointerScope<'_>) -> Result<Vec<(Pointer, TagFact)>, StoreError> {
        self.0.pointers(scope)
    }

    /// Returns up to `limit` names that sort after `last`, in byte order.
    pub fn names(
        &self,
        catalog: NameList<'_>,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, StoreError> {
        match catalog {
            NameList::Tags(repository) => self.0.tags(repository, last, limit),
            NameList::Repositories(upstream) => self.0.repositories(upstream, last, limit),
        }
    }

    /// Returns the link from a repository to a digest.
    pub fn link(&self, repository: &Repository, digest: &Digest) -> Result<Option<LinkFact>, StoreError> {
        self.0.linked(repository, digest)
    }

    /// Returns true if an upstream has delivered the bytes of a digest.
    ///
    /// Bytes are stored once for all upstreams. A repository may serve them only if its own upstream has delivered them, too.
    /// A manifest that names a digest, or an answer to HEAD, is not enough.
    pub fn is_delivered(&self, upstream: &UpstreamName, digest: &Digest) -> Result<bool, StoreError> {
        self.0.is_delivered(upstream, digest)
    }

    /// Returns the link from a repository to content that its upstream has delivered.
    pub fn access(&self, repository: &Repository, digest: &Digest) -> Result<Option<LinkFact>, StoreError> {
        match self.link(repository, digest)? {
            Some(link) if self.is_delivered(&repository.upstream, digest)? => Ok(Some(link)),
            _ => Ok(None),
        }
    }

    /// Returns the links of one repository, or of all repositories, for which `keep` returns true.
    pub fn links(
        &self,
        only: Option<&Repository>,
        keep: impl FnMut(&Repository, &Digest) -> bool,
    ) -> Result<Vec<(Repository, Digest)>, StoreError> {
        self.0.links(only, keep)
    }

    /// Returns up to `limit` stored manifests that refer to `subject`. Some of them may have been removed since.
    pub fn referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
        limit: usize,
    ) -> Result<Vec<Digest>, StoreError> {
        self.0.referrers(repository, subject, limit)
    }

    /// Returns all indexes in the prefetch queue.
    pub fn prefetch_queue(&self) -> Result<Vec<(Repository, Digest)>, StoreError> {
        self.0.prefetch_queue()
    }

    /// Applies changes in their order.
    pub fn apply(&self, changes: &[Change]) -> Result<(), StoreError> {
        self.0.apply(changes)
    }

    /// Returns a manifest.
    pub fn manifest(&self, digest: &Digest) -> Result<Option<StoredManifest>, StoreError> {
        self.0.manifest(digest)
    }

    /// Stores a verified manifest, and links its repository to it and to `links`.
    ///
    /// A manifest that is stored already keeps its media type. Returns that media type.
    pub fn put_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
        manifest: &StoredManifest,
        links: impl Iterator<Item = (Digest, Option<u64>)>,
        now: Timestamp,
    ) -> Result<MediaType, StoreError> {
        self.0.put_manifest(repository, digest, manifest, links, now)
    }

    /// Returns the entry of a blob.
    pub fn blob(&self, digest: &Digest) -> Result<Option<BlobEntry>, StoreError> {
        self.0.blob(digest)
    }

    /// Opens a draft and resumes what an interrupted fill left.
    pub fn open_draft(&self, key: &DraftKey) -> Result<DraftWriter, StoreError> {
        self.0.open_draft(key)
    }

    /// Removes content, pointers or drafts.
    pub fn remove(&self, removal: Removal<'_>) -> Result<(), StoreError> {
        match removal {
            Removal::Pointers(manifests) => self.0.remove_pointers_to(manifests),
            Removal::Manifest(digest) => self.0.remove_manifest(digest),
            Removal::Blob(digest) => self.0.remove_blob(digest),
            Removal::CorruptBlob(entry) => self.0.mark_corrupt(entry),
            Removal::Leftovers(digest) => self.0.remove_leftovers(digest),
            Removal::Draft(key) => self.0.blobs.files().remove_draft(key),
        }
    }

    /// Returns all stored content.
    pub fn inventory(&self) -> Result<Inventory, StoreError> {
        Ok(Inventory {
            manifests: self.0.stored_manifests()?,
            blobs: self.0.stored_blobs()?,
            leftovers: self.0.leftovers()?,
        })
    }

    /// Measures the disk usage. Lists all drafts.
    pub fn usage(&self) -> Result<DiskUsage, StoreError> {
        let drafts = self.0.drafts()?;
        let usage = DiskUsage { drafts, ..DiskUsage::default() };
        Ok(DiskUsage {
            total: self.stored_size()?.saturating_add(usage.draft_bytes()),
            free: self.free_space(),
            quarantined: quarantine::in_folder(&self.0.location.path)?.len(),
            ..usage
        })
    }

    /// Returns the number of lists of all drafts so far.
    #[cfg(test)]
    pub fn draft_lists(&self) -> u64 {
        self.0.blobs.files().draft_lists()
    }

    /// Returns the bytes on disk of content and database, without drafts. The cost does not depend on their number.
    pub fn stored_size(&self) -> Result<u64, StoreError> {
        self.0.stored_size()
    }

    /// Returns the free bytes on the disk; `None` if the operating system does not report them.
    pub fn free_space(&self) -> Option<u64> {
        self.0.location.free_space().ok()
    }

    /// Removes facts that lead to no content. `needed` returns true for content that a stored manifest needs. Pointers
    /// that were confirmed after `before` stay, because their manifest may still be on its way.
    pub fn collect_garbage(
        &self,
        needed: impl Fn(&Digest) -> bool,
        before: Timestamp,
    ) -> Result<Collected, StoreError> {
        self.0.collect_facts(needed, before)
    }
}
