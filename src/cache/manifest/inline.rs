//! Blobs that the descriptors of a manifest contain. Registries need not have them, so they are stored with the manifest.

use std::sync::Arc;

use bytes::Bytes;

use crate::cache::error::CacheError;
use crate::cache::fills::FillPhase;
use crate::cache::storage::Storage;
use crate::oci::{Digest, Repository, inline_blobs};
use crate::store::{BlobEntry, Change, DraftKey, Removal, StoreError, StoreSession};

/// Stores the blobs that a verified manifest contains, as if the upstream of `repository` had sent them as blobs. Blocks.
pub(super) fn store_inline_blobs(
    storage: &Storage,
    store: &StoreSession,
    repository: &Repository,
    manifest: &[u8],
) -> Result<(), StoreError> {
    for (digest, data) in inline_blobs(manifest) {
        if store.blob(&digest)?.is_some() {
            store.apply(&[Change::AddDelivered(repository.upstream.clone(), digest)])?;
            continue;
        }
        // A running download or removal of the blob has precedence. The next request asks the upstream.
        let Ok(phase) = storage.fills.start_import(&digest) else { continue };
        let stored = store_blob(storage, store, repository, &digest, data);
        storage.fills.remove_import(&digest, &phase);
        phase.send_replace(match &stored {
            Ok(Some(entry)) => FillPhase::Stored(entry.clone()),
            Ok(None) | Err(_) => FillPhase::Failed(CacheError::Interrupted),
        });
        stored?;
    }
    Ok(())
}

/// Stores one blob. `None` if the store takes no content now.
fn store_blob(
    storage: &Storage,
    store: &StoreSession,
    repository: &Repository,
    digest: &Digest,
    data: Bytes,
) -> Result<Option<BlobEntry>, StoreError> {
    let (key, size, now) = (DraftKey::unowned(digest), data.len() as u64, storage.clock.now());
    store.remove(Removal::Draft(&key))?;
    let mut writer = store.open_draft(&key)?;
    let draft = Arc::clone(writer.draft());
    draft.announce(size);
    if !data.is_empty() {
        draft.receive(data.clone());
        writer.append(data)?;
    }
    let Some(verified) = writer.verify(Some(size))? else { return Ok(None) };
    if !verified.commit(Some(repository), now)? {
        return Ok(None);
    }
    let entry = store.blob(digest)?;
    if let Some(entry) = &entry {
        storage.content.add_blob(digest, entry.size(), now);
        storage.capacity.wake_evictor();
    }
    Ok(entry)
}
