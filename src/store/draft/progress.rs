//! Progress and end of a draft.

/// Progress of a draft.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes received.
    pub received: u64,
    /// Bytes written, which can be read back.
    pub written: u64,
    /// Length of the blob; `None` while it is unknown.
    pub total: Option<u64>,
    /// End of the draft; `None` while more bytes may follow.
    pub end: Option<DraftEnd>,
}

impl Progress {
    /// Returns the number of bytes that readers may have: the last byte only after verification.
    pub fn readable(&self) -> u64 {
        if self.end == Some(DraftEnd::Verified) {
            return self.received;
        }
        let withheld = self.total.map_or(self.received, |total| self.received.min(total));
        withheld.saturating_sub(u64::from(self.total.is_none_or(|total| withheld == total)))
    }
}

/// End of a draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DraftEnd {
    /// Size and digest matched: the draft is content, or waits to be committed.
    Verified,
    /// Size or digest did not match; the bytes were removed.
    Mismatch,
    /// The fill failed.
    Abandoned,
}
