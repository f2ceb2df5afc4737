//! Sizes in descriptors that contradict the content. The cache serves such content, because the digest decides. Some
//! clients refuse it, so the operations report it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cache::{Cache, CacheView};
use crate::oci::{Descriptor, Digest, Manifest, Repository};
use crate::store::StoreError;

use super::protocol::OpsError;

/// Size in a descriptor that contradicts the cached content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WrongSize {
    /// Digest of the content.
    pub digest: Digest,
    /// Length that the descriptor states.
    pub stated: u64,
    /// Length of the content.
    pub size: u64,
}

impl fmt::Display for WrongSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { digest, stated, size } = self;
        write!(
            f,
            "{digest} has {size} bytes, its descriptor states {stated}; containerd refuses such an image"
        )
    }
}

/// Returns the wrong sizes in the descriptors of manifests and indexes. Content that is not cached is skipped.
pub(super) async fn wrong_sizes(
    cache: &Cache,
    repository: &Repository,
    documents: impl Iterator<Item = Manifest>,
) -> Result<Vec<WrongSize>, OpsError> {
    let mut named: Vec<Descriptor> =
        documents.flat_map(|read| read.children.into_iter().chain(read.blobs)).collect();
    named.retain(|descriptor| descriptor.size.is_some());
    named.sort_by_key(|descriptor| (descriptor.digest, descriptor.size));
    named.dedup_by_key(|descriptor| (descriptor.digest, descriptor.size));
    let repository = repository.clone();
    Ok(cache.view(move |view| compare(&view, &repository, &named)).await?)
}

fn compare(
    view: &CacheView<'_>,
    repository: &Repository,
    named: &[Descriptor],
) -> Result<Vec<WrongSize>, StoreError> {
    let mut found = Vec::new();
    for Descriptor { digest, size, .. } in named {
        let actual = match view.manifest(repository, digest)? {
            Some(document) => Some(document.body.len() as u64),
            None => view.blob(repository, digest)?,
        };
        found.extend(wrong_size(digest, *size, actual));
    }
    Ok(found)
}

/// Compares the size in a descriptor with the length of the content.
pub(super) fn wrong_size(digest: &Digest, stated: Option<u64>, actual: Option<u64>) -> Option<WrongSize> {
    let (stated, size) = (stated?, actual?);
    (stated != size).then_some(WrongSize { digest: *digest, stated, size })
}
