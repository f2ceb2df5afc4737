//! Kinds of blob stores, by their name in the configuration.

use std::path::Path;
use std::sync::Arc;

use crate::config::schema::BlobStoreKind;
use crate::store::blobs::Blobs;
use crate::store::blobs::files::{FileBlobs, Files};
use crate::store::blobs::pages::PageBlobs;
use crate::store::index::database::Database;

/// Creates the blob store of a kind in the store's folder.
pub(in crate::store) fn create(kind: BlobStoreKind, folder: &Path, database: &Database) -> Arc<dyn Blobs> {
    let files = Files::new(folder);
    match kind {
        BlobStoreKind::Sled => Arc::new(PageBlobs::new(database.clone(), files)),
        BlobStoreKind::Files => Arc::new(FileBlobs::new(files)),
    }
}
