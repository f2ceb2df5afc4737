//! Bytes in a sled tree, cut into pages that are keyed by digest and number.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::{Buf as _, Bytes, BytesMut};

use crate::oci::Digest;

use crate::store::error::{StoreError, is_unreadable};
use crate::store::index::key;

/// Look-ups of a page beside the one that reads or writes it. sled's cache hears of look-ups in blocks of 64 for each of its
/// 256 shards and evicts only then, so that with one look-up a page it would keep up to 16 384 pages whatever its capacity.
const TOUCHES: usize = 15;

/// Empty entries behind each page of a blob, put in before the page. A leaf of sled's tree is split when its 17th
/// entry comes, and both halves are written anew: pages that are simply appended are written four times. With the
/// empty entries there first, the splits happen while there is nothing to copy, and each page goes once into a leaf
/// that is never split again. Fewer leave splits, more cost more than they save; `benches/store.rs` measures it.
const SPACERS: u8 = 3;

/// Leaves moved for one page that comes or goes, at most.
const MOVES: u32 = 4;
/// How many times as long as the changes alone they take with a leaf that is moved: it has hundreds of KiB.
const MOVED: u64 = 4;
/// Changes to one entry after which sled writes its leaf anew instead of noting one more change to it.
const CHANGES: u8 = 10;

/// One tree of pages; clones share it.
#[derive(Clone, Debug)]
pub(in crate::store) struct Pages {
    tree: sled::Tree,
    /// A tree of the same database with one entry that says nothing, see `collect`.
    spare: sled::Tree,
    /// Nanoseconds that changes to it took when there was nothing to move.
    least: Arc<AtomicU64>,
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

    /// Lets sled move leaves out of segments that are mostly garbage. It moves one whenever it writes a leaf anew, and
    /// otherwise some for half of each half second, beginning at the front of its file. Where content comes and goes that
    /// is too seldom: the file grows by a twentieth of all that comes, without end. So each page that comes or goes has it
    /// move one more, and a few if there are more: that shows in the time it takes.
    fn collect(&self) -> Result<(), StoreError> {
        for _ in 0..MOVES {
            let begin = Instant::now();
            for change in 0..CHANGES {
                // A value that is there already is no change.
                match self.spare.insert(b"", &[change]) {
                    // The leaf that was to move is damaged. Whoever asks for what lies in it is told.
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

    /// Makes room in the tree for pages `first..last`, which come next.
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

    /// Pages `first..last`, all of which must be there.
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

    /// Reads whole pages that cover the start of `range`, cut to it: page by page, uncopied.
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
            // Every page but a blob's last is full; a short one in the middle would shift all that follows.
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

    /// Takes the `total` bytes of a blob, from the first page on.
    pub(in crate::store) fn writer<'a>(&'a self, digest: &'a Digest, total: u64) -> PageWriter<'a> {
        let last = total.div_ceil(self.page_size as u64);
        PageWriter { pages: self, digest, last, rest: BytesMut::new(), next: 0 }
    }

    /// The keys of all pages.
    pub(in crate::store) fn keys(&self) -> impl Iterator<Item = Result<sled::IVec, StoreError>> {
        self.tree.iter().keys().map(|key| Ok(key?))
    }

    /// Removes every page of a digest, in their order: against it sled writes twice as much.
    pub(in crate::store) fn remove(&self, digest: &Digest) -> Result<(), StoreError> {
        let each = usize::from(SPACERS) + 1;
        for (place, item) in self.tree.scan_prefix(key::pages_of(digest)).keys().enumerate() {
            match item.and_then(|key| self.tree.remove(key)) {
                // What cannot be read is never content.
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

/// sled found that a leaf is not as it wrote it: that is the end of what lies in it, and of nothing else.
fn damaged(digest: &Digest) -> impl FnOnce(sled::Error) -> StoreError {
    move |error| match error {
        sled::Error::Corruption { .. } => {
            tracing::error!(%digest, %error, "sled cannot read a page");
            StoreError::Damaged(*digest)
        }
        other => StoreError::Sled(other),
    }
}

/// The same for who only reads: a bad spot of the disk has taken what was there.
fn lost(digest: &Digest) -> impl FnOnce(sled::Error) -> StoreError {
    move |error| match error {
        sled::Error::Io(error) if is_unreadable(&error) => {
            tracing::error!(%digest, %error, "a page cannot be read");
            StoreError::Damaged(*digest)
        }
        other => damaged(digest)(other),
    }
}

/// Pages for which room is made at a time.
const PREPARED: u64 = 32;

/// Cuts a blob's bytes into pages.
#[derive(Debug)]
pub(in crate::store) struct PageWriter<'a> {
    pages: &'a Pages,
    digest: &'a Digest,
    last: u64,
    /// What does not fill a page yet.
    rest: BytesMut,
    next: u64,
}

impl PageWriter<'_> {
    /// Writes the pages that `bytes` fill.
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

    /// Writes what fills no page.
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
