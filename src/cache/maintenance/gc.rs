//! Garbage collection: deletes facts, bytes and drafts that no cached content uses, and counts content without a tag.

use std::time::Duration;

use crate::cache::eviction::content::Reachability;
use crate::cache::storage::Storage;
use crate::store::{Collected, PointerScope, StoreError, StoreSession};

/// Age up to which a pointer without a manifest stays: the manifest may be in the process of being stored.
const POINTER_GRACE: Duration = Duration::from_hours(1);
/// Time without a write after which a draft is deleted.
const DRAFT_MAX_AGE: Duration = Duration::from_hours(24);

/// Deletes facts, bytes and drafts that no cached content uses. Blocks.
pub(in crate::cache) fn collect(storage: &Storage, store: &StoreSession) -> Result<Collected, StoreError> {
    let (deleter, now) = (storage.deleter(store), storage.clock.now());
    let is_needed = |digest: &_| storage.content.is_needed(digest);
    let mut collected = store.collect_garbage(is_needed, now.minus(POINTER_GRACE))?;
    collected.leftovers += deleter.delete_leftovers(&store.inventory()?.leftovers)?;
    let drafts = store.usage()?.drafts.into_iter();
    let abandoned = drafts.filter(|draft| draft.changed < now.minus(DRAFT_MAX_AGE));
    collected.drafts += deleter.delete_drafts(abandoned)?.0;
    Ok(collected)
}

/// Counts content that tags and lists of referrers lead to, and other content. Blocks.
pub(in crate::cache) fn reachability(
    storage: &Storage,
    store: &StoreSession,
) -> Result<Reachability, StoreError> {
    let pointers = store.pointers(PointerScope::All)?;
    let roots = pointers.into_iter().map(|(_, fact)| fact.digest).collect();
    Ok(storage.content.reachability(&roots))
}
