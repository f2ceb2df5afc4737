//! Map of running fills and removals. It guarantees that a digest is stored by one fill at a time, and never while it is being
//! removed.
//!
//! A repository of another upstream does not join that fill: the bytes do not show that its own upstream has them, and a slow
//! upstream must not delay other upstreams. It gets a fill that stores nothing, at most one for each upstream and digest.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;
use tracing::Span;

use crate::oci::{Digest, Repository, UpstreamName};
use crate::store::{BlobEntry, Draft, DraftEnd, DraftKey};
use crate::telemetry::trace;

use super::error::CacheError;

/// Progress of a fill, as far as a new reader must know it.
#[derive(Clone, Debug)]
pub(super) enum FillPhase {
    /// The upstream has not answered yet.
    Starting,
    /// The draft can be read.
    Running(Arc<Draft>),
    /// The blob is stored.
    Stored(BlobEntry),
    /// The fill ended without content.
    Failed(CacheError),
}

impl FillPhase {
    /// Returns true if all bytes have arrived and match the digest.
    pub(super) fn is_verified(&self) -> bool {
        matches!(self, Self::Running(draft) if draft.progress().end == Some(DraftEnd::Verified))
    }
}

/// Waits for the end of a fill or a removal. A dropped sender ends it too.
pub(super) async fn fill_ended(mut phase: watch::Receiver<FillPhase>) {
    let ended = phase.wait_for(|phase| matches!(phase, FillPhase::Stored(_) | FillPhase::Failed(_)));
    drop(ended.await);
}

/// Answer to a request to take part in a fill.
#[derive(Debug)]
pub(super) enum Admission {
    /// No fill is running: the caller starts one, and reports its progress through the sender.
    Start(watch::Sender<FillPhase>, watch::Receiver<FillPhase>, Span, FillKind),
    /// A fill is running. The flag is true if it runs for the same repository.
    Join(watch::Receiver<FillPhase>, bool, FillKind),
    /// A fill is running for another repository of the upstream: this repository must confirm its access first.
    NeedsAccess,
    /// The old bytes of the digest are being removed: the caller waits for the end of the removal.
    AwaitRemoval(watch::Receiver<FillPhase>),
}

/// Purpose of a fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FillKind {
    /// Stores the bytes.
    Store,
    /// Shows that the upstream delivers the bytes, which are stored already or are being stored for another upstream.
    Prove,
}

/// Access of a repository to a digest, as far as it is known before a fill.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct KnownAccess {
    /// True if the repository is linked to the digest, or its upstream has confirmed the digest for it.
    pub(super) is_linked: bool,
    /// True if the upstream has delivered the bytes once.
    pub(super) is_delivered: bool,
    /// True if the bytes are stored.
    pub(super) is_stored: bool,
}

#[derive(Debug)]
enum FillEntry {
    Fill(FillState),
    /// Removal; the sender is dropped when it has ended.
    Removal(watch::Sender<FillPhase>),
}

#[derive(Debug)]
struct FillState {
    /// Repository of the fill; `None` for an import, which gives no repository access.
    owner: Option<Repository>,
    phase: watch::Receiver<FillPhase>,
    span: Span,
    since: Instant,
}

/// Fill in progress, for status output.
pub(super) struct RunningFill {
    pub(super) digest: Digest,
    pub(super) repository: Repository,
    pub(super) since: Instant,
    /// Draft; `None` until the upstream has answered.
    pub(super) draft: Option<Arc<Draft>>,
}

/// Fill of another upstream, import or removal, which others wait for.
pub(super) struct OtherWork {
    /// Repository of the fill; `None` for an import and a removal.
    pub(super) owner: Option<Repository>,
    pub(super) phase: watch::Receiver<FillPhase>,
}

/// Running fills and removals.
#[derive(Debug, Default)]
pub(super) struct Fills {
    entries: Mutex<HashMap<FillKey, FillEntry>>,
    /// Fills that can no longer be joined and still run, for status output.
    unjoinable: Mutex<Vec<(Digest, FillState)>>,
}

/// Key of a fill or a removal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct FillKey {
    digest: Digest,
    /// Upstream of a fill that stores nothing; `None` for the one fill that stores, and for a removal.
    prover: Option<UpstreamName>,
}

impl FillKey {
    fn new(repository: &Repository, digest: &Digest, kind: FillKind) -> Self {
        let prover = (kind == FillKind::Prove).then(|| repository.upstream.clone());
        Self { digest: *digest, prover }
    }

    fn of_store(digest: &Digest) -> Self {
        Self { digest: *digest, prover: None }
    }
}

impl Fills {
    /// Decides how a repository takes part in the fill of a digest.
    ///
    /// The decision is made under one lock, so that no fill is joined without access and none is started twice.
    pub(super) fn admit(&self, repository: &Repository, digest: &Digest, access: KnownAccess) -> Admission {
        let mut entries = self.lock();
        let is_proof_needed = access.is_stored && !access.is_delivered;
        let kind = match entries.get(&FillKey::of_store(digest)) {
            _ if is_proof_needed => FillKind::Prove,
            Some(FillEntry::Removal(sender)) => return Admission::AwaitRemoval(sender.subscribe()),
            Some(FillEntry::Fill(fill)) => match fill.admit(repository, access, FillKind::Store) {
                Some(admission) => return admission,
                None => FillKind::Prove,
            },
            None => FillKind::Store,
        };
        let key = FillKey::new(repository, digest, kind);
        if let Some(FillEntry::Fill(fill)) = entries.get(&key)
            && let Some(admission) = fill.admit(repository, access, kind)
        {
            return admission;
        }
        let (sender, phase) = watch::channel(FillPhase::Starting);
        let span = trace::fill(repository, digest);
        let fill = FillState {
            owner: Some(repository.clone()),
            phase: phase.clone(),
            span: span.clone(),
            since: Instant::now(),
        };
        entries.insert(key, FillEntry::Fill(fill));
        Admission::Start(sender, phase, span, kind)
    }

    /// Returns the fill of a digest by another upstream, or the import or the removal of the digest.
    pub(super) fn other_work(&self, upstream: &UpstreamName, digest: &Digest) -> Option<OtherWork> {
        match self.lock().get(&FillKey::of_store(digest))? {
            FillEntry::Fill(fill) if fill.is_of(upstream) => None,
            FillEntry::Fill(fill) => Some(OtherWork { owner: fill.owner.clone(), phase: fill.phase.clone() }),
            FillEntry::Removal(sender) => Some(OtherWork { owner: None, phase: sender.subscribe() }),
        }
    }

    /// Adds the import of a digest. Fails while a fill or a removal of the digest is running: the caller waits for the end
    /// of the returned phase.
    pub(super) fn start_import(
        &self,
        digest: &Digest,
    ) -> Result<watch::Sender<FillPhase>, watch::Receiver<FillPhase>> {
        match self.lock().entry(FillKey::of_store(digest)) {
            Entry::Occupied(entry) => Err(match entry.get() {
                FillEntry::Fill(fill) => fill.phase.clone(),
                FillEntry::Removal(sender) => sender.subscribe(),
            }),
            Entry::Vacant(entry) => {
                let (sender, phase) = watch::channel(FillPhase::Starting);
                let import = FillState { owner: None, phase, span: Span::none(), since: Instant::now() };
                entry.insert(FillEntry::Fill(import));
                Ok(sender)
            }
        }
    }

    /// Removes a fill that has ended.
    pub(super) fn remove(
        &self,
        repository: &Repository,
        digest: &Digest,
        kind: FillKind,
        phase: &watch::Sender<FillPhase>,
    ) {
        drop(self.remove_key(FillKey::new(repository, digest, kind), phase));
        let own = phase.subscribe();
        self.lock_unjoinable().retain(|(_, fill)| !fill.phase.same_channel(&own));
    }

    /// Removes a running fill from the map: no new reader can join it.
    pub(super) fn leave(
        &self,
        repository: &Repository,
        digest: &Digest,
        kind: FillKind,
        phase: &watch::Sender<FillPhase>,
    ) {
        // Locked first, so that status output never misses the fill.
        let mut unjoinable = self.lock_unjoinable();
        let fill = self.remove_key(FillKey::new(repository, digest, kind), phase);
        unjoinable.extend(fill.map(|fill| (*digest, fill)));
    }

    /// Removes an import from the map.
    pub(super) fn remove_import(&self, digest: &Digest, phase: &watch::Sender<FillPhase>) {
        drop(self.remove_key(FillKey::of_store(digest), phase));
    }

    fn remove_key(&self, key: FillKey, phase: &watch::Sender<FillPhase>) -> Option<FillState> {
        let mut entries = self.lock();
        let Entry::Occupied(entry) = entries.entry(key) else { return None };
        match entry.get() {
            FillEntry::Fill(fill) if fill.phase.same_channel(&phase.subscribe()) => match entry.remove() {
                FillEntry::Fill(fill) => Some(fill),
                FillEntry::Removal(_) => None,
            },
            FillEntry::Fill(_) | FillEntry::Removal(_) => None,
        }
    }

    /// Blocks fills of a digest until [`unblock`](Self::unblock). Returns false if a fill or a removal is running.
    pub(super) fn block(&self, digest: &Digest) -> bool {
        match self.lock().entry(FillKey::of_store(digest)) {
            Entry::Occupied(_) => false,
            Entry::Vacant(entry) => {
                entry.insert(FillEntry::Removal(watch::Sender::new(FillPhase::Starting)));
                true
            }
        }
    }

    /// Allows fills of a blocked digest.
    pub(super) fn unblock(&self, digest: &Digest) {
        self.lock().remove(&FillKey::of_store(digest));
    }

    /// Waits until a digest is not being filled, and so is stored or cannot be stored.
    pub(super) async fn wait_for_end(&self, digest: &Digest) {
        let phase = match self.lock().get(&FillKey::of_store(digest)) {
            Some(FillEntry::Fill(fill)) => fill.phase.clone(),
            Some(FillEntry::Removal(_)) | None => return,
        };
        fill_ended(phase).await;
    }

    /// Waits until no fill is running that stores nothing and is of this upstream.
    pub(super) async fn wait_for_proof(&self, upstream: &UpstreamName, digest: &Digest) {
        let key = FillKey { digest: *digest, prover: Some(upstream.clone()) };
        let phase = {
            let (unjoinable, entries) = (self.lock_unjoinable(), self.lock());
            if let Some(FillEntry::Fill(fill)) = entries.get(&key) {
                Some(fill.phase.clone())
            } else {
                let mut left = unjoinable.iter().filter(|(of, fill)| of == digest && fill.is_of(upstream));
                left.next().map(|(_, fill)| fill.phase.clone())
            }
        };
        if let Some(phase) = phase {
            fill_ended(phase).await;
        }
    }

    /// Returns the length that the upstream announced to the running fill of a repository.
    pub(super) fn announced_length(&self, repository: &Repository, digest: &Digest) -> Option<u64> {
        let entries = self.lock();
        [FillKind::Store, FillKind::Prove].into_iter().find_map(|kind| {
            let entry = entries.get(&FillKey::new(repository, digest, kind));
            let Some(FillEntry::Fill(FillState { owner, phase, .. })) = entry else { return None };
            match &*phase.borrow() {
                FillPhase::Running(draft) if owner.as_ref() == Some(repository) => draft.progress().total,
                _ => None,
            }
        })
    }

    /// Returns true if a fill or an import writes a draft.
    pub(super) fn is_growing(&self, draft: &DraftKey) -> bool {
        match self.lock().get(&FillKey::of_store(&draft.digest)) {
            Some(FillEntry::Fill(fill)) => {
                fill.owner.as_ref().map(|owner| &owner.upstream) == draft.upstream.as_ref()
            }
            Some(FillEntry::Removal(_)) | None => false,
        }
    }

    /// Returns all fills of repositories, in no particular order. Imports are not listed.
    pub(super) fn running(&self) -> Vec<RunningFill> {
        let (unjoinable, entries) = (self.lock_unjoinable(), self.lock());
        let joinable = entries.iter().filter_map(|(key, entry)| match entry {
            FillEntry::Fill(fill) => Some((&key.digest, fill)),
            FillEntry::Removal(_) => None,
        });
        let fills = joinable.chain(unjoinable.iter().map(|(digest, fill)| (digest, fill)));
        fills.filter_map(|(digest, fill)| fill.running(*digest)).collect()
    }

    fn lock_unjoinable(&self) -> MutexGuard<'_, Vec<(Digest, FillState)>> {
        self.unjoinable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FillKey, FillEntry>> {
        // A poisoned lock is usable: no change under it can panic half-way.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FillState {
    /// Returns true if the fill runs for a repository of an upstream.
    fn is_of(&self, upstream: &UpstreamName) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.upstream == *upstream)
    }

    /// Returns the fill for status output. `None` for an import and after the end.
    fn running(&self, digest: Digest) -> Option<RunningFill> {
        let draft = match &*self.phase.borrow() {
            FillPhase::Starting => None,
            FillPhase::Running(draft) => Some(Arc::clone(draft)),
            FillPhase::Stored(_) | FillPhase::Failed(_) => return None,
        };
        Some(RunningFill { digest, repository: self.owner.clone()?, since: self.since, draft })
    }

    /// Decides how a repository takes part in this fill. `None` if it takes no part.
    fn admit(&self, repository: &Repository, access: KnownAccess, kind: FillKind) -> Option<Admission> {
        let is_own = self.owner.as_ref() == Some(repository);
        // An import is local, and a verified draft has no speed that another upstream could limit.
        let is_harmless = self.owner.is_none() || self.phase.borrow().is_verified();
        let takes_part = self.is_of(&repository.upstream) || (access.is_delivered && is_harmless);
        if !takes_part {
            return None;
        }
        if !is_own && !access.is_linked {
            return Some(Admission::NeedsAccess);
        }
        trace::join(&self.span);
        Some(Admission::Join(self.phase.clone(), is_own, kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    const UNKNOWN: KnownAccess = KnownAccess { is_linked: false, is_delivered: false, is_stored: false };
    const LINKED: KnownAccess = KnownAccess { is_linked: true, ..UNKNOWN };
    const DELIVERED: KnownAccess = KnownAccess { is_delivered: true, ..LINKED };

    fn repository(upstream: &str, name: &str) -> Repository {
        Repository { upstream: upstream.parse().expect("a name"), name: name.parse().expect("a name") }
    }

    fn digest() -> Digest {
        Digest::of(Algorithm::Sha256, b"x")
    }

    #[test]
    fn fill_starts_once_and_is_joined_with_access() {
        let (fills, digest) = (Fills::default(), digest());
        let [a, b] = ["a", "b"].map(|name| repository("docker.io", name));
        let Admission::Start(sender, ..) = fills.admit(&a, &digest, UNKNOWN) else { panic!("joined") };
        assert!(matches!(fills.admit(&a, &digest, UNKNOWN), Admission::Join(_, true, _)));
        assert!(matches!(fills.admit(&b, &digest, UNKNOWN), Admission::NeedsAccess));
        assert!(matches!(fills.admit(&b, &digest, LINKED), Admission::Join(_, false, _)));
        fills.remove(&a, &digest, FillKind::Store, &sender);
        let Admission::Start(next, ..) = fills.admit(&b, &digest, UNKNOWN) else { panic!("joined") };
        // The first fill has ended; it must not remove the second one.
        fills.remove(&a, &digest, FillKind::Store, &sender);
        assert!(matches!(fills.admit(&b, &digest, UNKNOWN), Admission::Join(..)));
        fills.remove(&b, &digest, FillKind::Store, &next);
        assert!(matches!(fills.admit(&b, &digest, UNKNOWN), Admission::Start(..)));
    }

    #[test]
    fn import_gives_no_repository_access() {
        let (fills, repository, digest) = (Fills::default(), repository("docker.io", "a"), digest());
        let sender = fills.start_import(&digest).expect("a place");
        assert!(fills.start_import(&digest).is_err() && !fills.block(&digest));
        let unlinked = KnownAccess { is_linked: false, ..DELIVERED };
        assert!(matches!(fills.admit(&repository, &digest, unlinked), Admission::NeedsAccess));
        assert!(matches!(fills.admit(&repository, &digest, DELIVERED), Admission::Join(_, false, _)));
        // The archive shows nothing about an upstream that has not delivered the bytes.
        assert!(matches!(fills.admit(&repository, &digest, LINKED), Admission::Start(.., FillKind::Prove)));
        assert!(fills.is_growing(&DraftKey::unowned(&digest)));
        fills.remove_import(&digest, &sender);
        assert!(!fills.is_growing(&DraftKey::unowned(&digest)));
    }

    #[test]
    fn other_upstream_takes_no_part_in_a_fill() {
        let (fills, digest) = (Fills::default(), digest());
        let (here, there) = (repository("docker.io", "a"), repository("other.test", "a"));
        let Admission::Start(first, .., FillKind::Store) = fills.admit(&here, &digest, LINKED) else {
            panic!("no fill")
        };
        let other = |repository: &Repository| fills.other_work(&repository.upstream, &digest);
        assert_eq!(other(&there).and_then(|work| work.owner).as_ref(), Some(&here));
        assert!(other(&here).is_none());
        // Neither a link nor an earlier delivery makes an upstream wait for another one.
        let Admission::Start(beside, .., FillKind::Prove) = fills.admit(&there, &digest, DELIVERED) else {
            panic!("no fill of its own")
        };
        assert!(matches!(fills.admit(&there, &digest, LINKED), Admission::Join(_, true, FillKind::Prove)));
        assert_eq!(fills.running().len(), 2);
        fills.leave(&there, &digest, FillKind::Prove, &beside);
        assert_eq!(fills.running().len(), 2, "still running");
        let draft = |repository: &Repository| DraftKey::of(&repository.upstream, &digest);
        assert!(fills.is_growing(&draft(&here)) && !fills.is_growing(&draft(&there)));
        fills.remove(&there, &digest, FillKind::Prove, &beside);
        assert_eq!(fills.running().len(), 1);
        assert!(matches!(fills.admit(&here, &digest, LINKED), Admission::Join(_, true, FillKind::Store)));
        fills.remove(&here, &digest, FillKind::Store, &first);
        // Stored bytes need a delivery of the upstream itself.
        let stored = KnownAccess { is_stored: true, ..LINKED };
        assert!(matches!(fills.admit(&there, &digest, stored), Admission::Start(.., FillKind::Prove)));
        assert!(!fills.is_growing(&draft(&here)) && other(&here).is_none());
    }

    #[tokio::test]
    async fn fill_waits_for_a_removal() {
        let (fills, repository, digest) = (Fills::default(), repository("docker.io", "a"), digest());
        assert!(fills.block(&digest) && !fills.block(&digest));
        let Admission::AwaitRemoval(mut phase) = fills.admit(&repository, &digest, LINKED) else {
            panic!("no removal")
        };
        fills.unblock(&digest);
        assert!(phase.changed().await.is_err());
        assert!(matches!(fills.admit(&repository, &digest, LINKED), Admission::Start(..)));
        assert!(!fills.block(&digest));
    }
}
