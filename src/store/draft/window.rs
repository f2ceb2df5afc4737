//! The newest bytes of a draft, in memory, and how far its readers have come.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Notify;

use crate::store::draft::Progress;

/// The newest bytes, by offset, without gaps up to what was received.
#[derive(Debug, Default)]
pub(in crate::store) struct Window {
    chunks: VecDeque<(u64, Bytes)>,
    /// Where each reader stands.
    followers: HashMap<u64, u64>,
    next_id: u64,
    /// Told whenever a reader moves on or leaves.
    pub(in crate::store) moved: Arc<Notify>,
}

impl Window {
    /// Adds what comes after `received` bytes.
    pub(in crate::store) fn push(&mut self, received: u64, bytes: Bytes) {
        let at = self.newest().unwrap_or(received);
        self.chunks.push_back((at, bytes));
    }

    fn newest(&self) -> Option<u64> {
        self.chunks.back().map(|(at, last)| at + last.len() as u64)
    }

    /// Bytes held.
    pub(in crate::store) fn held(&self) -> u64 {
        let oldest = self.chunks.front().map_or(0, |(at, _)| *at);
        self.newest().unwrap_or_default() - oldest
    }

    /// What is held of `range`, from its start.
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

    /// Drops what is written, up to `keep` bytes behind the newest.
    pub(in crate::store) fn trim(&mut self, written: u64, keep: u64) {
        let newest = self.newest().unwrap_or_default();
        self.drop_before(written.min(newest.saturating_sub(keep)));
    }

    fn drop_before(&mut self, until: u64) {
        while self.chunks.front().is_some_and(|(at, bytes)| at + bytes.len() as u64 <= until) {
            self.chunks.pop_front();
        }
    }

    /// Whether everything from `at` on is held or written.
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

    pub(in crate::store) fn followers(&self) -> usize {
        self.followers.len()
    }

    pub(in crate::store) fn moved_to(&mut self, id: u64, at: u64) {
        // Whoever was lost stays so.
        if let Some(before) = self.followers.get_mut(&id) {
            *before = at;
            self.moved.notify_one();
        }
    }

    pub(in crate::store) fn leave(&mut self, id: u64) {
        self.followers.remove(&id);
        self.moved.notify_one();
    }

    /// Drops what all have taken of what is not written. Returns whether anything went.
    pub(in crate::store) fn pass(&mut self, written: u64) -> bool {
        let before = self.chunks.len();
        let last = self.last(written);
        self.drop_before(last);
        self.chunks.len() < before
    }

    /// Waits no longer for those who are the furthest behind.
    pub(in crate::store) fn lose_the_last(&mut self, written: u64) {
        let last = self.last(written);
        self.followers.retain(|_, at| (*at).max(written) > last);
    }

    /// What the furthest behind needs next that is not written.
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
    fn what_is_held_is_found() {
        let mut window = window();
        assert_eq!(window.held(), 40);
        assert_eq!(
            window.get(5..25).expect("held").concat(),
            [[0; 5].as_slice(), &[1; 10], &[2; 5]].concat()
        );
        window.trim(25, 0);
        assert_eq!(
            (window.held(), window.get(5..25), window.get(20..21)),
            (20, None, Some(vec![Bytes::from_static(&[2])]))
        );
        window.trim(40, 15);
        assert_eq!(window.held(), 20);
    }

    #[test]
    fn only_what_all_have_taken_goes() {
        let mut window = window();
        let (slow, fast) = (window.follow(0), window.follow(0));
        window.moved_to(fast, 40);
        assert!(!window.pass(0));
        window.moved_to(slow, 15);
        assert!(window.pass(0));
        assert_eq!(window.held(), 30);
        // Who reads what is written needs everything after it.
        assert!(!window.pass(10));
        window.lose_the_last(0);
        assert!(window.pass(0) && window.is_followed());
        assert_eq!(window.held(), 0);
        window.leave(fast);
        assert!(!window.is_followed());
        // Who was lost does not come back.
        window.moved_to(slow, 16);
        assert!(!window.is_followed());
    }

    #[test]
    fn nobody_begins_behind_a_gap() {
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
