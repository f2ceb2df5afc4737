//! Newest bytes of a draft in memory, and the positions of its readers.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Notify;

use crate::store::draft::budget::WindowShare;
use crate::store::draft::progress::Progress;

/// Newest bytes by offset, without gaps, up to the last received byte.
#[derive(Debug, Default)]
pub(in crate::store) struct Window {
    chunks: VecDeque<(u64, Bytes)>,
    /// Position of each reader.
    followers: HashMap<u64, u64>,
    /// Readers that are no clients.
    background: HashSet<u64>,
    next_id: u64,
    /// Share of the memory budget, until all bytes are in the file.
    share: Option<WindowShare>,
    /// Notified when a reader advances or ends.
    pub(in crate::store) moved: Arc<Notify>,
}

impl Window {
    pub(in crate::store) fn new(share: WindowShare) -> Self {
        Self { share: Some(share), ..Self::default() }
    }

    /// Returns the bytes that may stay in memory, at most `most`.
    pub(in crate::store) fn limit(&self, most: u64) -> u64 {
        self.share.as_ref().map_or(most, |share| share.bytes(most))
    }

    /// Releases all bytes, which are in the file, and the share of the memory budget.
    pub(in crate::store) fn release_all(&mut self) {
        self.chunks = VecDeque::new();
        self.share = None;
    }

    /// Replaces all bytes by equal ones, and releases the share of the memory budget: the bytes have a budget of their own.
    pub(in crate::store) fn replace_all(&mut self, bytes: Bytes) {
        self.chunks = VecDeque::from([(0, bytes)]);
        self.share = None;
    }

    /// Appends bytes after the first `received` bytes.
    pub(in crate::store) fn push(&mut self, received: u64, bytes: Bytes) {
        let at = self.newest().unwrap_or(received);
        self.chunks.push_back((at, bytes));
        self.count();
    }

    /// Counts the bytes in memory in the memory budget.
    fn count(&mut self) {
        let bytes = self.bytes();
        if let Some(share) = &mut self.share {
            share.set_used(bytes);
        }
    }

    fn newest(&self) -> Option<u64> {
        self.chunks.back().map(|(at, last)| at + last.len() as u64)
    }

    /// Returns the bytes in memory.
    pub(in crate::store) fn bytes(&self) -> u64 {
        let oldest = self.chunks.front().map_or(0, |(at, _)| *at);
        self.newest().unwrap_or_default() - oldest
    }

    /// Returns the bytes in memory from the start of `range`.
    pub(in crate::store) fn get(&self, range: Range<u64>) -> Option<Vec<Bytes>> {
        let first = self.chunks.partition_point(|(at, bytes)| at + bytes.len() as u64 <= range.start);
        if self.chunks.get(first).is_none_or(|(at, _)| *at > range.start) {
            return None;
        }
        let mut found = Vec::new();
        for (at, bytes) in self.chunks.range(first..) {
            if *at >= range.end {
                break;
            }
            let from = range.start.saturating_sub(*at);
            let to = (bytes.len() as u64).min(range.end - at);
            // Both are at most the chunk's length, which is a usize.
            found.push(
                bytes.slice(
                    usize::try_from(from).unwrap_or_default()..usize::try_from(to).unwrap_or_default(),
                ),
            );
        }
        Some(found)
    }

    /// Releases written bytes, except the newest `keep` bytes.
    pub(in crate::store) fn trim(&mut self, written: u64, keep: u64) {
        let newest = self.newest().unwrap_or_default();
        self.drop_before(written.min(newest.saturating_sub(keep)));
    }

    fn drop_before(&mut self, until: u64) {
        while self.chunks.front().is_some_and(|(at, bytes)| at + bytes.len() as u64 <= until) {
            self.chunks.pop_front();
        }
        self.count();
    }

    /// Returns true if all bytes from `at` on are in memory or written.
    pub(in crate::store) fn reaches(&self, at: u64, progress: &Progress) -> bool {
        let oldest = self.chunks.front().map_or(progress.received, |(at, _)| *at);
        at >= oldest || (at < progress.written && oldest <= progress.written)
    }

    pub(in crate::store) fn follow(&mut self, at: u64) -> u64 {
        self.next_id += 1;
        self.followers.insert(self.next_id, at);
        self.next_id
    }

    pub(in crate::store) fn is_followed(&self) -> bool {
        !self.followers.is_empty()
    }

    /// Returns the number of readers that are clients.
    pub(in crate::store) fn clients(&self) -> usize {
        self.followers.keys().filter(|id| !self.background.contains(id)).count()
    }

    /// Marks a reader as work of the server itself.
    pub(in crate::store) fn set_background(&mut self, id: u64) {
        self.background.insert(id);
    }

    pub(in crate::store) fn moved_to(&mut self, id: u64, at: u64) {
        // A dropped reader stays dropped.
        if let Some(before) = self.followers.get_mut(&id) {
            *before = at;
            self.moved.notify_one();
        }
    }

    pub(in crate::store) fn remove_reader(&mut self, id: u64) {
        self.followers.remove(&id);
        self.background.remove(&id);
        self.moved.notify_one();
    }

    /// Releases unwritten bytes that all readers have taken. Returns true if there were any.
    pub(in crate::store) fn release(&mut self, written: u64) -> bool {
        let before = self.chunks.len();
        let last = self.last(written);
        self.drop_before(last);
        self.chunks.len() < before
    }

    /// Drops the slowest readers.
    pub(in crate::store) fn drop_slowest(&mut self, written: u64) {
        let last = self.last(written);
        self.followers.retain(|_, at| (*at).max(written) > last);
    }

    /// Returns the next unwritten byte of the slowest reader.
    fn last(&self, written: u64) -> u64 {
        self.followers.values().min().map_or(u64::MAX, |at| (*at).max(written))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window() -> Window {
        let mut window = Window::default();
        for n in 0..4 {
            window.push(0, Bytes::from(vec![n; 10]));
        }
        window
    }

    #[test]
    fn window_returns_bytes_in_memory() {
        let mut window = window();
        assert_eq!(window.bytes(), 40);
        assert_eq!(
            window.get(5..25).expect("in memory").concat(),
            [[0; 5].as_slice(), &[1; 10], &[2; 5]].concat()
        );
        window.trim(25, 0);
        assert_eq!(
            (window.bytes(), window.get(5..25), window.get(20..21)),
            (20, None, Some(vec![Bytes::from_static(&[2])]))
        );
        window.trim(40, 15);
        assert_eq!(window.bytes(), 20);
    }

    #[test]
    fn window_releases_bytes_that_all_readers_have_taken() {
        let mut window = window();
        let (slow, fast) = (window.follow(0), window.follow(0));
        window.moved_to(fast, 40);
        assert!(!window.release(0));
        window.moved_to(slow, 15);
        assert!(window.release(0));
        assert_eq!(window.bytes(), 30);
        // A reader of written bytes needs everything after them.
        assert!(!window.release(10));
        window.drop_slowest(0);
        assert!(window.release(0) && window.is_followed());
        assert_eq!(window.bytes(), 0);
        window.remove_reader(fast);
        assert!(!window.is_followed());
        // A dropped reader does not return.
        window.moved_to(slow, 16);
        assert!(!window.is_followed());
    }

    #[test]
    fn reader_cannot_start_in_a_gap() {
        let mut window = window();
        let progress = Progress { received: 40, written: 20, total: None, end: None };
        assert!(
            window.reaches(0, &progress) && window.reaches(39, &progress) && window.reaches(90, &progress)
        );
        window.trim(20, 0);
        assert!(window.reaches(0, &progress));
        window.drop_before(30);
        assert!(!window.reaches(0, &progress) && !window.reaches(25, &progress));
        assert!(window.reaches(30, &progress));
    }
}
