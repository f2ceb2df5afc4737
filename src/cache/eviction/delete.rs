//! Deletion of cached content.

use std::collections::HashSet;

use crate::cache::Shared;
use crate::cache::blob::fills::Fills;
use crate::oci::Digest;
use crate::store::StoreError;

/// Blobs that no fill may bring while they are being removed.
pub(in crate::cache) struct BlockedFills<'a> {
    fills: &'a Fills,
    pub(super) digests: HashSet<Digest>,
}

impl<'a> BlockedFills<'a> {
    pub(in crate::cache) fn new(fills: &'a Fills) -> Self {
        Self { fills, digests: HashSet::new() }
    }

    /// Keeps fills of a blob away, unless one is running: then this is false.
    pub(in crate::cache) fn block(&mut self, digest: &Digest) -> bool {
        self.fills.block(digest) && self.digests.insert(*digest)
    }

    /// Lets fills of a blob come again.
    pub(in crate::cache) fn unblock(&mut self, digest: &Digest) {
        if self.digests.remove(digest) {
            self.fills.unblock(digest);
        }
    }
}

impl Drop for BlockedFills<'_> {
    fn drop(&mut self) {
        for digest in &self.digests {
            self.fills.unblock(digest);
        }
    }
}

/// Removes what interrupted copies left. Returns of how many blobs.
pub(in crate::cache) fn clear_leftovers(shared: &Shared) -> Result<u64, StoreError> {
    let (mut blocked, mut cleared) = (BlockedFills::new(&shared.fills), 0);
    for digest in shared.store.leftovers()? {
        if blocked.block(&digest) {
            shared.store.remove_leftovers(&digest)?;
            blocked.unblock(&digest);
            cleared += 1;
        }
    }
    Ok(cleared)
}
