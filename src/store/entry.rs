//! A stored blob, to be read.

use std::ops::Range;

use bytes::Bytes;

use crate::oci::Digest;

use super::StoreError;
use super::fact::BlobFact;
use super::pages::Pages;

/// A blob that is held whole and verified.
#[derive(Clone, Debug)]
pub struct BlobEntry {
    digest: Digest,
    /// As it was looked up: another fill of the same digest makes another fact.
    fact: BlobFact,
    pages: Pages,
}

impl BlobEntry {
    pub(super) fn new(digest: Digest, fact: BlobFact, pages: Pages) -> Self {
        Self { digest, fact, pages }
    }

    /// The blob's digest.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The blob's size in bytes.
    pub fn size(&self) -> u64 {
        self.fact.size
    }

    pub(super) fn fact(&self) -> BlobFact {
        self.fact
    }

    /// Reads from `range.start` up to about `step` bytes, and never past `range.end`: page by page, uncopied.
    ///
    /// Fewer bytes than asked for is normal; none means that the range is at its end.
    pub fn read(&self, range: Range<u64>, step: u64) -> Result<Vec<Bytes>, StoreError> {
        read(&self.pages, &self.digest, range.start..range.end.min(self.fact.size), step)
    }
}

/// Reads whole pages that cover the start of `range`, cut to it.
pub(super) fn read(
    pages: &Pages,
    digest: &Digest,
    range: Range<u64>,
    step: u64,
) -> Result<Vec<Bytes>, StoreError> {
    if range.start >= range.end {
        return Ok(Vec::new());
    }
    let page_size = pages.page_size() as u64;
    let first = range.start / page_size;
    let wanted = range.end.min(range.start.saturating_add(step));
    let last = wanted.div_ceil(page_size);
    let mut found = pages.run(digest, first, last)?;
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
        *page =
            page.slice(usize::try_from(from).unwrap_or_default()..usize::try_from(to).unwrap_or_default());
        at += page_size;
    }
    Ok(found)
}
