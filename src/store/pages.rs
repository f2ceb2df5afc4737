//! Bytes in a sled tree, cut into pages that are keyed by digest and number.

use bytes::Bytes;

use crate::oci::Digest;

use super::{StoreError, key};

/// Look-ups of a page beside the one that reads or writes it. sled's cache hears of look-ups in blocks of 64 for each of
/// its 256 shards
/// and evicts only then, so that with one look-up a page it would keep up to 16 384 pages whatever its capacity.
const TOUCHES: usize = 15;

/// Empty entries behind each page of a blob, put in before the page. A leaf of sled's tree is split when its 17th
/// entry comes, and both halves are written anew: pages that are simply appended are written four times. With the
/// empty entries there first, the splits happen while there is nothing to copy, and each page goes once into a leaf
/// that is never split again. Fewer leave splits, more cost more than they save; `benches/store.rs` measures it.
const SPACERS: u8 = 3;

/// One tree of pages; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Pages {
    tree: sled::Tree,
    page_size: usize,
}

/// sled hands out reference-counted bytes; this lets a response carry them without a copy.
struct Shared(sled::IVec);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Pages {
    pub(super) fn new(tree: sled::Tree, page_size: usize) -> Self {
        Self { tree, page_size }
    }

    pub(super) fn page_size(&self) -> usize {
        self.page_size
    }

    pub(super) fn get(&self, digest: &Digest, number: u64) -> Result<Option<Bytes>, StoreError> {
        Ok(self.tree.get(key::page(digest, number))?.map(|page| Bytes::from_owner(Shared(page))))
    }

    pub(super) fn put(&self, digest: &Digest, number: u64, page: &[u8]) -> Result<(), StoreError> {
        let key = key::page(digest, number);
        self.tree.insert(&key, page)?;
        self.touch(&key)
    }

    /// Makes room in the tree for pages `first..last`, which come next.
    pub(super) fn prepare(&self, digest: &Digest, first: u64, last: u64) -> Result<(), StoreError> {
        for number in first..last {
            let mut key = key::page(digest, number);
            for spacer in 0..SPACERS {
                key.push(spacer);
                self.tree.insert(&key, &[])?;
                key.pop();
            }
        }
        Ok(())
    }

    fn touch(&self, key: &[u8]) -> Result<(), StoreError> {
        for _ in 0..TOUCHES {
            self.tree.contains_key(key)?;
        }
        Ok(())
    }

    /// Pages `first..last`, all of which must be there.
    pub(super) fn run(&self, digest: &Digest, first: u64, last: u64) -> Result<Vec<Bytes>, StoreError> {
        let mut pages = Vec::with_capacity(usize::try_from(last - first).unwrap_or_default());
        for number in first..last {
            let key = key::page(digest, number);
            self.touch(&key)?;
            let page = self.tree.get(&key)?.ok_or(StoreError::Damaged(*digest))?;
            pages.push(Bytes::from_owner(Shared(page)));
        }
        Ok(pages)
    }

    /// Removes every page of a digest, the last one first, so that a crash leaves a run that starts at zero.
    pub(super) fn remove(&self, digest: &Digest) -> Result<(), StoreError> {
        for item in self.tree.scan_prefix(key::pages_of(digest)).keys().rev() {
            self.tree.remove(item?)?;
        }
        Ok(())
    }
}
