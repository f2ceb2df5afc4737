//! Garbage collection: deletes facts, bytes and drafts that no cached content uses, and counts content without a tag.

use std::time::Duration;

use crate::cache::core::Shared;
use crate::cache::eviction::index::Reachability;
use crate::clock::Timestamp;
use crate::store::{Collected, StoreError};

/// Age up to which a pointer without a manifest stays: the manifest may be in the process of being stored.
const POINTER_GRACE: Duration = Duration::from_hours(1);
/// Time without a write after which a draft is deleted.
const DRAFT_MAX_AGE: Duration = Duration::from_hours(24);

/// Deletes facts, bytes and drafts that no cached content uses. Blocks.
pub(in crate::cache) fn collect(shared: &Shared) -> Result<Collected, StoreError> {
    let (store, deleter, now) = (&shared.store, shared.deleter(), shared.clock.now());
    let is_needed = |digest: &_| shared.eviction.is_needed(digest);
    let mut collected = store.collect_facts(is_needed, now.minus(POINTER_GRACE).as_millis())?;
    collected.leftovers += deleter.delete_leftovers()?;
    let is_old = |changed| Timestamp::from_millis(changed) < now.minus(DRAFT_MAX_AGE);
    let abandoned = store.drafts()?.into_iter().filter(|draft| is_old(draft.changed));
    collected.drafts += deleter.delete_drafts(abandoned)?.0;
    Ok(collected)
}

/// Counts content that tags and lists of referrers lead to, and other content. Blocks.
pub(in crate::cache) fn reachability(shared: &Shared) -> Result<Reachability, StoreError> {
    Ok(shared.eviction.reachability(&shared.store.pointed_at()?))
}
