//! Tree of pages: bytes in sled, split into pages that are keyed by digest and number.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::{Buf as _, Bytes, BytesMut};

use crate::oci::Digest;

use crate::store::error::{StoreError, is_unreadable};
use crate::store::index::key;

/// Extra look-ups of a page for each read or write. sled's cache processes look-ups in blocks of 64 for each of its 256
/// shards, and evicts only then: with one look-up for each page it keeps up to 16,384 pages, whatever its capacity.
const TOUCHES: usize = 15;

/// Empty entries after each page of a blob, inserted before the page. sled splits a leaf at its 17th entry and writes both
/// halves again, so pages that are only appended are written four times. With empty entries first, the splits copy nothing,
/// and each page is written once. Fewer entries do not avoid all splits, more cost more than they save; `benches/store.rs`
/// measures it.
const SPACERS: u8 = 3;

/// Largest number of leaves that are moved for each page that is added or removed.
const MOVES: u32 = 4;
/// Factor by which the changes of one round take longer if sled has moved a leaf, which has hundreds of KiB.
const MOVED: u64 = 4;
/// Changes of one entry after which sled writes its leaf again instead of a further change.
const CHANGES: u8 = 10;

/// Tree of pages; clones share it.
#[derive(Clone, Debug)]
pub(in crate::store) struct PageTree {
    tree: sled::Tree,
    /// Tree of the same database with one meaningless entry; see `collect`.
    spare: sled::Tree,
    /// Shortest time of one round of changes in nanoseconds: without a leaf to move.
    least: Arc<AtomicU64>,
    page_size: usize,
}

/// Reference-counted bytes of sled, which a response sends without a copy.
struct Shared(sled::IVec);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl PageTree {
    pub(in crate::store) fn new(tree: sled::Tree, spare: sled::Tree, page_size: usize) -> Self {
        Self { tree, spare, least: Arc::new(AtomicU64::new(u64::MAX)), page_size }
    }

    pub(in crate::store) fn page_size(&self) -> usize {
        self.page_size
    }

    pub(in crate::store) fn get(&self, digest: &Digest, number: u64) -> Result<Option<Bytes>, StoreError> {
        let page = self.tree.get(key::page(digest, number)).map_err(lost(digest))?;
        Ok(page.map(|page| Bytes::from_owner(Shared(page))))
    }

    pub(in crate::store) fn put(&self, digest: &Digest, number: u64, page: &[u8]) -> Result<(), StoreError> {
        let key = key::page(digest, number);
        self.tree.insert(&key, page).and_then(|_| self.touch(&key)).map_err(damaged(digest))?;
        self.collect()
    }

    /// Has sled move leaves out of segments that are mostly garbage. sled moves one leaf whenever it writes a leaf again, and
    /// some in the background. With a high turnover of content this is not enough: the file grows by a twentieth of all new
    /// content, without end. So each page that is added or removed causes one more move, and a few moves while the time of a
    /// round shows that there was something to move.
    fn collect(&self) -> Result<(), StoreError> {
        for _ in 0..MOVES {
            let begin = Instant::now();
            for change in 0..CHANGES {
                // Different values, because sled ignores an equal value.
                match self.spare.insert(b"", &[change]) {
                    // The leaf to move is damaged. A later read of its entries reports that.
                    Err(sled::Error::Corruption { .. }) => return Ok(()),
                    changed => drop(changed?),
                }
            }
            let took = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
            let least = self.least.fetch_min(took, Ordering::Relaxed);
            if took < least.saturating_mul(MOVED) {
                break;
            }
        }
        Ok(())
    }

    /// Inserts the empty entries of pages `first..last`, which are written next.
    pub(in crate::store) fn prepare(&self, digest: &Digest, first: u64, last: u64) -> Result<(), StoreError> {
        for number in first..last {
            let mut key = key::page(digest, number);
            for spacer in 0..SPACERS {
                key.push(spacer);
                self.tree.insert(&key, &[]).map_err(damaged(digest))?;
                key.pop();
            }
        }
        Ok(())
    }

    fn touch(&self, key: &[u8]) -> sled::Result<()> {
        for _ in 0..TOUCHES {
            self.tree.contains_key(key)?;
        }
        Ok(())
    }

    /// Reads pages `first..last`, all of which must exist.
    fn run(&self, digest: &Digest, first: u64, last: u64) -> Result<Vec<Bytes>, StoreError> {
        let mut pages = Vec::with_capacity(usize::try_from(last - first).unwrap_or_default());
        for number in first..last {
            let key = key::page(digest, number);
            let page = self.touch(&key).and_then(|()| self.tree.get(&key)).map_err(lost(digest))?;
            let page = page.ok_or(StoreError::Damaged(*digest))?;
            pages.push(Bytes::from_owner(Shared(page)));
        }
        Ok(pages)
    }

    /// Reads the pages that cover the start of `range`, cut to the range, without a copy.
    pub(in crate::store) fn read(
        &self,
        digest: &Digest,
        range: Range<u64>,
        step: u64,
    ) -> Result<Vec<Bytes>, StoreError> {
        let page_size = self.page_size as u64;
        let first = range.start / page_size;
        let wanted = range.end.min(range.start.saturating_add(step));
        let last = wanted.div_ceil(page_size);
        let mut found = self.run(digest, first, last)?;
        let mut at = first * page_size;
        for page in &mut found {
            let whole = page.len() as u64;
            // Every page except the last is full. A short page would shift all following bytes.
            let expected = page_size.min(range.end - at);
            if whole < expected {
                return Err(StoreError::Damaged(*digest));
            }
            let from = range.start.saturating_sub(at);
            let to = whole.min(range.end - at);
            // Both are at most the page's length, which is a usize.
            *page = page
                .slice(usize::try_from(from).unwrap_or_default()..usize::try_from(to).unwrap_or_default());
            at += page_size;
        }
        Ok(found)
    }

    /// Returns a writer for the `total` bytes of a blob.
    pub(in crate::store) fn writer<'a>(&'a self, digest: &'a Digest, total: u64) -> PageWriter<'a> {
        let last = total.div_ceil(self.page_size as u64);
        PageWriter { pages: self, digest, last, rest: BytesMut::new(), next: 0 }
    }

    /// Returns the keys of all pages.
    pub(in crate::store) fn keys(&self) -> impl Iterator<Item = Result<sled::IVec, StoreError>> {
        self.tree.iter().keys().map(|key| Ok(key?))
    }

    /// Removes all pages of a digest in their order: in reverse order sled writes twice as much.
    pub(in crate::store) fn remove(&self, digest: &Digest) -> Result<(), StoreError> {
        let each = usize::from(SPACERS) + 1;
        for (place, item) in self.tree.scan_prefix(key::pages_of(digest)).keys().enumerate() {
            match item.and_then(|key| self.tree.remove(key)) {
                // Unreadable pages are never content.
                Err(sled::Error::Corruption { .. }) => return Ok(()),
                removed => drop(removed?),
            }
            if place.is_multiple_of(each) {
                self.collect()?;
            }
        }
        Ok(())
    }
}

/// Converts an error of sled. A corrupt leaf damages the content in it, and nothing else.
fn damaged(digest: &Digest) -> impl FnOnce(sled::Error) -> StoreError {
    move |error| match error {
        sled::Error::Corruption { .. } => {
            tracing::error!(%digest, %error, "sled cannot read a page");
            StoreError::Damaged(*digest)
        }
        other => other.into(),
    }
}

/// Converts an error of a read. A defect of the disk damages the content that is read.
fn lost(digest: &Digest) -> impl FnOnce(sled::Error) -> StoreError {
    move |error| match error {
        sled::Error::Io(error) if is_unreadable(&error) => {
            tracing::error!(%digest, %error, "cannot read a page of a blob");
            StoreError::Damaged(*digest)
        }
        other => damaged(digest)(other),
    }
}

/// Number of pages whose empty entries are inserted at a time.
const PREPARED: u64 = 32;

/// Writer that splits the bytes of a blob into pages.
#[derive(Debug)]
pub(in crate::store) struct PageWriter<'a> {
    pages: &'a PageTree,
    digest: &'a Digest,
    last: u64,
    /// Bytes that do not fill a page yet.
    rest: BytesMut,
    next: u64,
}

impl PageWriter<'_> {
    /// Appends bytes, and writes all full pages.
    pub(in crate::store) fn append(&mut self, mut bytes: Bytes) -> Result<(), StoreError> {
        let page_size = self.pages.page_size;
        while self.rest.len() + bytes.len() >= page_size {
            let needed = page_size - self.rest.len();
            if self.rest.is_empty() {
                self.write(&bytes[..needed])?;
            } else {
                self.rest.extend_from_slice(&bytes[..needed]);
                let page = std::mem::take(&mut self.rest);
                self.write(&page)?;
                self.rest = page;
                self.rest.clear();
            }
            bytes.advance(needed);
        }
        self.rest.extend_from_slice(&bytes);
        Ok(())
    }

    /// Writes the last, incomplete page.
    pub(in crate::store) fn complete(mut self) -> Result<(), StoreError> {
        if !self.rest.is_empty() {
            let page = std::mem::take(&mut self.rest);
            self.write(&page)?;
        }
        Ok(())
    }

    fn write(&mut self, page: &[u8]) -> Result<(), StoreError> {
        if self.next.is_multiple_of(PREPARED) {
            self.pages.prepare(self.digest, self.next, self.last.min(self.next + PREPARED))?;
        }
        self.pages.put(self.digest, self.next, page)?;
        self.next += 1;
        Ok(())
    }
}
