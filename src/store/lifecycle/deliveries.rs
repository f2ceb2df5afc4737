//! Deliveries of a store that was written before deliveries were recorded.
//!
//! Links were the only evidence then. Content that the repositories of one upstream are linked to was delivered by this
//! upstream. If repositories of several upstreams are linked to it, the delivering upstream is not known, so the content
//! counts for none of them: each one delivers the bytes once more, which are compared and not stored again.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::oci::{Digest, UpstreamName};
use crate::store::error::StoreError;
use crate::store::index::key::Key;
use crate::store::index::trees::Trees;

/// Records the deliveries of the stored content, unless the store records them already.
pub(in crate::store) fn record(trees: &Trees) -> Result<(), StoreError> {
    if trees.facts.contains_key(Key::deliveries_mark())? {
        return Ok(());
    }
    let mut senders: HashMap<Digest, Option<UpstreamName>> = HashMap::new();
    for key in trees.facts.scan_prefix(Key::links()).keys() {
        let Some((repository, digest)) = Key::read_link(&key?) else { continue };
        match senders.entry(digest) {
            Entry::Vacant(entry) => {
                let is_stored = trees.facts.contains_key(Key::Manifest(&digest).to_bytes())?
                    || trees.facts.contains_key(Key::Blob(&digest).to_bytes())?;
                if is_stored {
                    entry.insert(Some(repository.upstream));
                }
            }
            Entry::Occupied(mut entry) => {
                if entry.get().as_ref().is_some_and(|sender| *sender != repository.upstream) {
                    entry.insert(None);
                }
            }
        }
    }
    let mut unknown = 0_u64;
    for (digest, sender) in &senders {
        match sender {
            Some(sender) => {
                trees.facts.insert(Key::Delivered(digest, sender).to_bytes(), &[][..])?;
            }
            None => unknown += 1,
        }
    }
    if unknown > 0 {
        tracing::info!(
            digests = unknown,
            "content is linked to several upstreams; each of them delivers it once more before it is served again"
        );
    }
    trees.facts.insert(Key::deliveries_mark(), &[])?;
    trees.flush()
}
