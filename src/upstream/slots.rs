//! Slots that are divided among keys: one key never gets all of them.
//!
//! A key may hold two thirds of the slots that are left by the other keys, and always one. So a repository with many slow
//! downloads leaves slots for others, and each further such repository leaves some again. Keys that wait take turns.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Slots for concurrent work, divided among keys.
#[derive(Debug)]
pub(crate) struct DividedSlots<K: Clone + Eq + Hash>(Arc<Mutex<SlotState<K>>>);

/// Slot in use. It is returned when this is dropped.
#[derive(Debug)]
pub(crate) struct Slot<K: Clone + Eq + Hash> {
    slots: Arc<Mutex<SlotState<K>>>,
    key: Option<K>,
}

#[derive(Debug)]
struct SlotState<K: Clone + Eq + Hash> {
    free: usize,
    held: HashMap<K, usize>,
    waiting: HashMap<K, VecDeque<oneshot::Sender<Slot<K>>>>,
    /// Keys with waiting callers, in the order of their turns.
    turns: VecDeque<K>,
}

impl<K: Clone + Eq + Hash> DividedSlots<K> {
    /// Creates `count` free slots.
    pub(crate) fn new(count: usize) -> Self {
        let (held, waiting, turns) = (HashMap::new(), HashMap::new(), VecDeque::new());
        Self(Arc::new(SlotState { free: count, held, waiting, turns }.into()))
    }

    /// Waits for a slot. Dropping the future gives up the place in the queue.
    pub(crate) async fn acquire(&self, key: &K) -> Slot<K> {
        let waiting = {
            let mut state = lock(&self.0);
            if state.may_take(key) && !state.waiting.contains_key(key) {
                return self.slot(&mut state, key);
            }
            let (sender, receiver) = oneshot::channel();
            state.enqueue(key, sender);
            receiver
        };
        match waiting.await {
            Ok(slot) => slot,
            // A waiting caller is served or stays in the queue.
            Err(_) => std::future::pending().await,
        }
    }

    /// Takes a slot if the key may have one now.
    pub(crate) fn try_acquire(&self, key: &K) -> Option<Slot<K>> {
        let mut state = lock(&self.0);
        state.may_take(key).then(|| self.slot(&mut state, key))
    }

    fn slot(&self, state: &mut SlotState<K>, key: &K) -> Slot<K> {
        state.take(key);
        Slot { slots: Arc::clone(&self.0), key: Some(key.clone()) }
    }
}

impl<K: Clone + Eq + Hash> SlotState<K> {
    /// Returns true if a key may hold one more slot.
    fn may_take(&self, key: &K) -> bool {
        let Some(left) = self.free.checked_sub(1) else { return false };
        let held = self.held.get(key).copied().unwrap_or_default();
        held == 0 || held < left.saturating_mul(2)
    }

    fn take(&mut self, key: &K) {
        self.free -= 1;
        *self.held.entry(key.clone()).or_default() += 1;
    }

    fn give_back(&mut self, key: &K) {
        self.free += 1;
        if let Some(held) = self.held.get_mut(key) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(key);
            }
        }
    }

    fn enqueue(&mut self, key: &K, sender: oneshot::Sender<Slot<K>>) {
        let queue = self.waiting.entry(key.clone()).or_default();
        if queue.is_empty() {
            self.turns.push_back(key.clone());
        }
        queue.push_back(sender);
    }

    /// Takes a slot for the next waiting caller that may have one.
    fn next(&mut self) -> Option<(K, oneshot::Sender<Slot<K>>)> {
        for _ in 0..self.turns.len() {
            let key = self.turns.pop_front()?;
            let may_take = self.may_take(&key);
            let Some(queue) = self.waiting.get_mut(&key) else { continue };
            // Callers that no longer wait.
            while queue.front().is_some_and(oneshot::Sender::is_closed) {
                queue.pop_front();
            }
            let sender = if may_take { queue.pop_front() } else { None };
            if queue.is_empty() {
                self.waiting.remove(&key);
            } else {
                self.turns.push_back(key.clone());
            }
            if let Some(sender) = sender {
                self.take(&key);
                return Some((key, sender));
            }
        }
        None
    }
}

impl<K: Clone + Eq + Hash> Drop for Slot<K> {
    fn drop(&mut self) {
        let Some(key) = self.key.take() else { return };
        lock(&self.slots).give_back(&key);
        loop {
            let Some((key, sender)) = lock(&self.slots).next() else { return };
            let slot = Self { slots: Arc::clone(&self.slots), key: Some(key) };
            if let Err(mut refused) = sender.send(slot)
                && let Some(key) = refused.key.take()
            {
                lock(&self.slots).give_back(&key);
            }
        }
    }
}

fn lock<K: Clone + Eq + Hash>(slots: &Mutex<SlotState<K>>) -> MutexGuard<'_, SlotState<K>> {
    // No code under this lock can panic in the middle of a change.
    slots.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    /// Takes as many slots for a key as it may have.
    fn take_all(slots: &DividedSlots<u8>, key: u8) -> Vec<Slot<u8>> {
        std::iter::from_fn(|| slots.try_acquire(&key)).collect()
    }

    /// Polls a future once.
    async fn poll<T>(work: &mut (impl Future<Output = T> + Unpin)) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = std::future::ready(()) => None,
        }
    }

    #[test]
    fn no_key_gets_all_slots() {
        let slots = DividedSlots::new(48);
        let held: Vec<_> = (0..6).map(|key| take_all(&slots, key)).collect();
        assert_eq!(held.iter().map(Vec::len).collect::<Vec<_>>(), [32, 10, 4, 1, 1, 0]);
        for (count, most) in [(0, 0), (1, 1), (2, 1), (3, 2), (6, 4), (usize::MAX, 4)] {
            let slots = DividedSlots::new(count);
            let held: Vec<_> = (0..4).map_while(|_| slots.try_acquire(&0)).collect();
            assert_eq!(held.len(), most, "{count} slots");
        }
    }

    #[test]
    fn returned_slots_can_be_taken_by_any_key() {
        let slots = DividedSlots::new(6);
        assert_eq!(take_all(&slots, 0).len(), 4);
        assert_eq!(take_all(&slots, 1).len(), 4);
        assert!(lock(&slots.0).held.is_empty() && lock(&slots.0).free == 6);
    }

    #[tokio::test]
    async fn waiting_keys_take_turns() {
        let slots = DividedSlots::new(2);
        let first = slots.acquire(&0).await;
        let mut same = pin!(slots.acquire(&0));
        assert!(poll(&mut same).await.is_none());
        let second = slots.acquire(&1).await;
        let mut other = pin!(slots.acquire(&2));
        assert!(poll(&mut other).await.is_none());
        // Key 0 is first in the queue and may not have a second slot.
        drop(second);
        let third = poll(&mut other).await.expect("a slot");
        assert!(poll(&mut same).await.is_none());
        drop(first);
        assert!(poll(&mut same).await.is_some());
        drop(third);
    }

    #[tokio::test]
    async fn caller_that_gave_up_gets_no_slot() {
        let slots = DividedSlots::new(1);
        let held = slots.acquire(&0).await;
        {
            let mut waiting = pin!(slots.acquire(&1));
            assert!(poll(&mut waiting).await.is_none());
        }
        let mut last = pin!(slots.acquire(&2));
        assert!(poll(&mut last).await.is_none());
        drop(held);
        assert!(poll(&mut last).await.is_some());
        let state = lock(&slots.0);
        assert!(state.free == 1 && state.waiting.is_empty() && state.turns.is_empty());
    }
}
