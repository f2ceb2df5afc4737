//! The store: blobs and manifests by digest, and facts about them by key.
//!
//! [`Store`] is the async handle. [`Store::run`] runs a unit of work on a thread that may block, and gives it a
//! [`StoreSession`] with all look-ups and changes. One unit of work needs one thread hop, however many steps it has, and
//! runs to its end even if its caller is cancelled.
//!
//! Facts (tags, links, manifests, blobs, referrers) and the bytes of manifests are in sled. The bytes of blobs are in
//! sled too, or in files beside it; drafts are always files. Bytes are stored before the fact that points at them: sled
//! recovers a prefix of its log, and a file is synchronised first. So a crash can lose the newest facts, but never leaves
//! a fact without its bytes. Bytes that are missing or changed all the same are [`StoreError::Damaged`], never content.

mod blobs;
mod draft;
mod engine;
mod error;
#[cfg(test)]
mod fuzz;
mod index;
mod lifecycle;
mod session;
#[cfg(test)]
mod tests;
mod work;

use std::path::Path;

use tokio::sync::oneshot;

use crate::config::schema::{self, BlobStoreKind};
use engine::Engine;

pub use blobs::SpaceModel;
pub use blobs::entry::{BlobEntry, OpenBlob};
pub use blobs::files::{DraftKey, DraftUsage};
pub use draft::{
    CommitPermit, Draft, DraftEnd, DraftFile, DraftHasher, DraftWriter, Follower, Progress, VerifiedDraft,
};
pub use engine::{Counts, StoredManifest};
pub use error::StoreError;
pub use index::change::Change;
pub use index::fact::{AbsenceFact, LinkFact, TagFact};
pub use index::inventory::ContentEntry;
pub use index::pointer::{NameList, Pointer, PointerScope, TagKey};
pub use lifecycle::convert::{Conversion, Step, StepEnd};
pub use lifecycle::gc::Collected;
pub use lifecycle::header::Geometry;
pub use session::{DiskUsage, Inventory, Removal, StoreSession};
pub use work::Work;

/// Handle of a store; clones share the store.
#[derive(Clone, Debug)]
pub struct Store(Engine);

/// Returns true if a folder contains a store, in whatever condition.
pub fn exists_in(folder: &Path) -> bool {
    lifecycle::open::exists_in(folder)
}

impl Store {
    /// Opens the store in `options.path`, or creates it. `geometry` applies to a new store only; `None` is the default.
    ///
    /// A corrupt store is quarantined if `options` says so, and an empty one is created. If the disk fails, the store stays
    /// closed until [`recover`](Self::recover) succeeds.
    pub async fn open(options: &schema::Store, geometry: Option<Geometry>) -> Result<Self, StoreError> {
        let options = options.clone();
        Work::start(move || Ok(Self(Engine::open(&options, geometry.unwrap_or(Geometry::CHOSEN))?))).await
    }

    /// Runs `work` on a thread that may block. The work runs to its end even if the caller drops the [`Work`].
    ///
    /// The number of such threads is limited, so `work` must end soon and must not wait for other work; see
    /// [`run_long`](Self::run_long). The values that a session returns (entries, open blobs, drafts) block too: use them in a unit of work.
    pub fn run<T, F>(&self, work: F) -> Work<T>
    where
        T: Send + 'static,
        F: FnOnce(&StoreSession) -> Result<T, StoreError> + Send + 'static,
    {
        let session = StoreSession(self.0.clone());
        self.0.threads.short(move || work(&session))
    }

    /// Runs `work` that may take long: it hashes, copies, lists or synchronises much. Such work has threads of its own, so
    /// that it does not delay look-ups.
    pub fn run_long<T, F>(&self, work: F) -> Work<T>
    where
        T: Send + 'static,
        F: FnOnce(&StoreSession) -> Result<T, StoreError> + Send + 'static,
    {
        let session = StoreSession(self.0.clone());
        self.0.threads.long(move || work(&session))
    }

    /// Returns the amount of stored content. Does not block.
    pub fn counts(&self) -> Counts {
        self.0.counts()
    }

    /// Returns the name of the kind of blob store, for display only.
    pub fn kind(&self) -> BlobStoreKind {
        self.0.location.kind
    }

    /// Returns the way in which the store uses and frees disk space.
    pub fn space_model(&self) -> SpaceModel {
        self.0.blobs.space_model()
    }

    /// Creates a draft that is kept in memory only, for a disk that fails or is full. Does not block.
    pub fn memory_draft(&self, digest: &crate::oci::Digest) -> DraftWriter {
        self.0.memory_draft(digest)
    }

    /// Waits for a permit to commit a verified draft: only a few drafts are copied at the same time.
    pub async fn commit_permit(&self, verified: &VerifiedDraft) -> CommitPermit {
        self.0.commit_permit(verified).await
    }

    /// Returns true if the store is open and its files are still where it was opened.
    pub async fn is_available(&self) -> bool {
        let engine = self.0.clone();
        Work::start(move || Ok(engine.is_available())).await.unwrap_or(true)
    }

    /// Tests whether the disk accepts writes, and then whether the store does. Opens the store again if it does not, or if
    /// it is known to be `broken`.
    pub async fn recover(&self, broken: bool) -> Result<(), StoreError> {
        let engine = self.0.clone();
        Work::start(move || engine.recover(broken)).await
    }

    /// Waits until everything written so far is on disk. Waits a few seconds for verified drafts to be committed; what is
    /// not committed by then stays a complete draft, which the next fill commits.
    pub async fn flush(&self) -> Result<(), StoreError> {
        let engine = self.0.clone();
        Work::start(move || engine.flush()).await
    }

    /// Closes the store for good. Opens and closes its database once more, so that sled saves where everything is and
    /// the next start is fast. Takes as long as that start would.
    pub async fn close(&self) -> Result<(), StoreError> {
        let (engine, (sender, closed)) = (self.0.clone(), oneshot::channel());
        // Not a thread of the runtime, whose shutdown would wait for it.
        std::thread::spawn(move || sender.send(engine.close()));
        closed.await.unwrap_or(Err(StoreError::Panicked))
    }
}
