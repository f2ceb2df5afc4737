//! Slots that are divided among keys and clients: one key or client never gets all of them.
//!
//! A key may hold two thirds of the slots that are left by the other keys, and always one. So a repository with many slow
//! downloads leaves slots for others, and each further such repository leaves some again. In the same way a client leaves
//! a ninth of the slots. Its share is larger than that of a key, because all clients behind a proxy have one address. Callers
//! that wait take turns, those of the client with the fewest slots first.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::request_origin::RequestOrigin;

/// Slots that a key may hold for each slot that it leaves free.
const KEY_RATIO: usize = 2;
/// Slots that a client may hold for each slot that it leaves free.
const CLIENT_RATIO: usize = 8;

/// Slots for concurrent work, divided among keys, and among the clients that the work is for.
#[derive(Debug)]
pub(crate) struct DividedSlots<K: Clone + Eq + Hash>(Arc<Mutex<SlotState<K>>>);

/// Slot in use. It is returned when this is dropped.
#[derive(Debug)]
pub(crate) struct Slot<K: Clone + Eq + Hash> {
    slots: Arc<Mutex<SlotState<K>>>,
    holder: Option<Holder<K>>,
}

/// Key and client that a slot is counted for. The work of the server itself counts as one client.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Holder<K> {
    key: K,
    client: Option<IpAddr>,
}

#[derive(Debug)]
struct SlotState<K: Clone + Eq + Hash> {
    free: usize,
    /// True if there are enough slots to leave some for other clients.
    has_client_shares: bool,
    held: HashMap<K, usize>,
    held_by_clients: HashMap<Option<IpAddr>, usize>,
    waiting: HashMap<Holder<K>, VecDeque<oneshot::Sender<Slot<K>>>>,
    /// Holders with waiting callers, in the order of their turns.
    turns: VecDeque<Holder<K>>,
}

impl<K: Clone + Eq + Hash> DividedSlots<K> {
    /// Creates `count` free slots.
    pub(crate) fn new(count: usize) -> Self {
        Self(Arc::new(Mutex::new(SlotState {
            free: count,
            has_client_shares: count >= CLIENT_RATIO,
            held: HashMap::new(),
            held_by_clients: HashMap::new(),
            waiting: HashMap::new(),
            turns: VecDeque::new(),
        })))
    }

    /// Waits for a slot for the current request. Dropping the future gives up the place in the queue.
    pub(crate) async fn acquire(&self, key: &K) -> Slot<K> {
        let waiting = {
            let holder = Holder::current(key);
            let mut state = lock(&self.0);
            if state.may_take(&holder) && !state.waiting.contains_key(&holder) {
                return self.slot(&mut state, holder);
            }
            let (sender, receiver) = oneshot::channel();
            state.enqueue(&holder, sender);
            receiver
        };
        match waiting.await {
            Ok(slot) => slot,
            // A waiting caller is served or stays in the queue.
            Err(_) => std::future::pending().await,
        }
    }

    /// Takes a slot for the current request, if it may have one now.
    pub(crate) fn try_acquire(&self, key: &K) -> Option<Slot<K>> {
        self.try_acquire_for(Holder::current(key))
    }

    fn try_acquire_for(&self, holder: Holder<K>) -> Option<Slot<K>> {
        let mut state = lock(&self.0);
        state.may_take(&holder).then(|| self.slot(&mut state, holder))
    }

    fn slot(&self, state: &mut SlotState<K>, holder: Holder<K>) -> Slot<K> {
        state.take(&holder);
        Slot { slots: Arc::clone(&self.0), holder: Some(holder) }
    }
}

impl<K: Clone> Holder<K> {
    fn current(key: &K) -> Self {
        Self { key: key.clone(), client: RequestOrigin::current().client }
    }
}

impl<K: Clone + Eq + Hash> SlotState<K> {
    /// Returns true if a key and a client may hold one more slot.
    fn may_take(&self, holder: &Holder<K>) -> bool {
        let Some(left) = self.free.checked_sub(1) else { return false };
        let is_below =
            |held: Option<&usize>, ratio: usize| held.is_none_or(|held| *held < left.saturating_mul(ratio));
        is_below(self.held.get(&holder.key), KEY_RATIO)
            && (!self.has_client_shares || is_below(self.held_by_clients.get(&holder.client), CLIENT_RATIO))
    }

    fn take(&mut self, holder: &Holder<K>) {
        self.free -= 1;
        *self.held.entry(holder.key.clone()).or_default() += 1;
        *self.held_by_clients.entry(holder.client).or_default() += 1;
    }

    fn give_back(&mut self, holder: &Holder<K>) {
        self.free += 1;
        release(&mut self.held, &holder.key);
        release(&mut self.held_by_clients, &holder.client);
    }

    fn enqueue(&mut self, holder: &Holder<K>, sender: oneshot::Sender<Slot<K>>) {
        let queue = self.waiting.entry(holder.clone()).or_default();
        if queue.is_empty() {
            self.turns.push_back(holder.clone());
        }
        queue.push_back(sender);
    }

    /// Takes a slot for the next waiting caller that may have one: the first of the client with the fewest slots, so that a
    /// client with requests for many keys does not delay others.
    fn next(&mut self) -> Option<(Holder<K>, oneshot::Sender<Slot<K>>)> {
        self.forget_closed();
        let held = |holder: &Holder<K>| self.held_by_clients.get(&holder.client).copied().unwrap_or(0);
        let turns = self.turns.iter().enumerate().filter(|(_, holder)| self.may_take(holder));
        let (at, _) = turns.min_by_key(|(_, holder)| held(holder))?;
        let holder = self.turns.remove(at)?;
        let queue = self.waiting.get_mut(&holder)?;
        let sender = queue.pop_front()?;
        if queue.is_empty() {
            self.waiting.remove(&holder);
        } else {
            self.turns.push_back(holder.clone());
        }
        self.take(&holder);
        Some((holder, sender))
    }

    /// Removes callers that no longer wait from the beginning of each queue, and empty queues.
    fn forget_closed(&mut self) {
        self.waiting.retain(|_, queue| {
            while queue.front().is_some_and(oneshot::Sender::is_closed) {
                queue.pop_front();
            }
            !queue.is_empty()
        });
        let waiting = &self.waiting;
        self.turns.retain(|holder| waiting.contains_key(holder));
    }
}

/// Reduces the number of slots that `owner` holds.
fn release<O: Eq + Hash>(held: &mut HashMap<O, usize>, owner: &O) {
    if let Some(count) = held.get_mut(owner) {
        *count -= 1;
        if *count == 0 {
            held.remove(owner);
        }
    }
}

impl<K: Clone + Eq + Hash> Drop for Slot<K> {
    fn drop(&mut self) {
        let Some(holder) = self.holder.take() else { return };
        lock(&self.slots).give_back(&holder);
        loop {
            let Some((holder, sender)) = lock(&self.slots).next() else { return };
            let slot = Self { slots: Arc::clone(&self.slots), holder: Some(holder) };
            if let Err(mut refused) = sender.send(slot)
                && let Some(holder) = refused.holder.take()
            {
                lock(&self.slots).give_back(&holder);
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

    /// Takes a slot for a key, and for a client with this number.
    fn take(slots: &DividedSlots<u8>, key: u8, client: u8) -> Option<Slot<u8>> {
        slots.try_acquire_for(Holder { key, client: Some([10, 0, 0, client].into()) })
    }

    /// Takes as many slots for a key as it may have, each for another client.
    fn take_all(slots: &DividedSlots<u8>, key: u8) -> Vec<Slot<u8>> {
        (key * 40..).map_while(|client| take(slots, key, client)).collect()
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
    fn no_client_gets_all_slots() {
        let all_for = |slots: &DividedSlots<u8>, client: u8| -> Vec<_> {
            (client * 60..).map_while(|key| take(slots, key, client)).collect()
        };
        let slots = DividedSlots::new(48);
        let held: Vec<_> = (0..4).map(|client| all_for(&slots, client)).collect();
        assert_eq!(held.iter().map(Vec::len).collect::<Vec<_>>(), [42, 5, 1, 0]);
        drop(held);
        // The server itself has a share, too.
        let held: Vec<_> = (0..).map_while(|key| slots.try_acquire(&key)).collect();
        assert_eq!((held.len(), all_for(&slots, 1).len()), (42, 5));
        // One of few slots would be too large a reserve.
        assert_eq!(all_for(&DividedSlots::new(7), 0).len(), 7);
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
    async fn client_with_fewer_slots_comes_first() {
        let slots = DividedSlots::new(2);
        let of = |client: u8| RequestOrigin {
            client: Some([10, 0, 0, client].into()),
            ..RequestOrigin::default()
        };
        let held = [take(&slots, 0, 1).expect("a slot"), take(&slots, 1, 1).expect("a slot")];
        let mut many: Vec<_> = (2..6).map(|key| Box::pin(of(1).scope(slots_of(&slots, key)))).collect();
        for waiting in &mut many {
            assert!(poll(waiting).await.is_none());
        }
        let mut other = Box::pin(of(2).scope(slots_of(&slots, 9)));
        assert!(poll(&mut other).await.is_none());
        let [first, _second] = held;
        drop(first);
        assert!(poll(&mut other).await.is_some());
    }

    async fn slots_of(slots: &DividedSlots<u8>, key: u8) -> Slot<u8> {
        slots.acquire(&key).await
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
