//! Connection slots of a port: a limit for the port and one for each client address.
//!
//! At a limit, an idle connection is closed for the new one: a client that opens connections and sends nothing keeps no other
//! client out. Only connections that wait for a request are idle, including those with an unfinished request head.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus::{IntCounter, IntGauge};
use tokio::sync::watch;

use crate::config::address::client_network;

use super::activity::{ConnectionActivity, Waiting};
use super::limits::ConnectionLimits;

/// Maximum number of connections that were told to close and are still open. They are not counted in the limits.
const CLOSING_MAX: usize = 64;
/// Minimum time between two warnings about one client.
const WARNING_INTERVAL: Duration = Duration::from_mins(10);

/// Metrics of a port.
#[derive(Clone, Debug)]
pub struct ConnectionMetrics {
    /// Open connections.
    pub open: IntGauge,
    /// Connections closed at once, because their client had too many.
    pub refused: IntCounter,
    /// Idle connections closed for new ones.
    pub reclaimed: IntCounter,
}

/// Client that connections are counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ClientAddress {
    /// IPv4 address or IPv6 network.
    Network(IpAddr),
    /// All clients of the Unix sockets. Only the limit of the port applies to them.
    Unix,
}

impl ClientAddress {
    pub(super) fn new(peer: SocketAddr) -> Self {
        Self::Network(client_network(peer))
    }
}

/// Slots of a port; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Slots(Arc<SharedSlots>);

#[derive(Debug)]
struct SharedSlots {
    limits: watch::Receiver<ConnectionLimits>,
    metrics: Option<ConnectionMetrics>,
    state: Mutex<SlotState>,
    waiting: Arc<Waiting>,
}

#[derive(Debug, Default)]
struct SlotState {
    next_id: u64,
    /// Open connections that count, by client.
    clients: HashMap<ClientAddress, Client>,
    /// Number of open connections that count.
    open: usize,
    /// Number of connections that were told to close.
    closing: usize,
}

#[derive(Debug, Default)]
struct Client {
    connections: HashMap<u64, Arc<ConnectionActivity>>,
    warned: Option<Instant>,
}

/// Slot of one connection. Dropping it frees the slot.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    slots: Slots,
    client: ClientAddress,
    id: u64,
    activity: Arc<ConnectionActivity>,
}

/// Result of a request for a slot.
enum Decision {
    Admitted(ConnectionSlot),
    Refused,
    /// All connections of the port are answering requests.
    Full,
}

impl Slots {
    pub(super) fn new(limits: watch::Receiver<ConnectionLimits>, metrics: Option<ConnectionMetrics>) -> Self {
        Self(Arc::new(SharedSlots { limits, metrics, state: Mutex::default(), waiting: Arc::default() }))
    }

    /// Waits for a slot of the port. Returns `None` if the client has too many connections that are answering requests.
    pub(super) async fn admit(&self, client: ClientAddress) -> Option<ConnectionSlot> {
        let mut limits = self.0.limits.clone();
        let waiting = self.0.waiting.enter();
        loop {
            let available = waiting.0.available.notified();
            tokio::pin!(available);
            // Enabled before the check, so that no notification is missed.
            available.as_mut().enable();
            let now = *limits.borrow_and_update();
            match self.decide(client, &now) {
                Decision::Admitted(slot) => return Some(slot),
                Decision::Refused => return None,
                Decision::Full => {}
            }
            tokio::select! {
                () = available => {}
                Ok(()) = limits.changed() => {}
            }
        }
    }

    fn decide(&self, client: ClientAddress, limits: &ConnectionLimits) -> Decision {
        let mut state = self.lock();
        let of_client = state.clients.get(&client).map_or(0, |client| client.connections.len());
        // If one client may have all connections, the limit of the port applies: it waits instead of being refused.
        let is_limited = client != ClientAddress::Unix && limits.per_client < limits.connections;
        if is_limited && of_client >= limits.per_client {
            state.warn(client, limits.per_client);
            if !self.reclaim(&mut state, client) {
                if let Some(metrics) = &self.0.metrics {
                    metrics.refused.inc();
                }
                return Decision::Refused;
            }
        }
        if state.open >= limits.connections {
            let Some(busiest) = state.busiest_with_idle() else { return Decision::Full };
            if !self.reclaim(&mut state, busiest) {
                return Decision::Full;
            }
        }
        Decision::Admitted(self.open(&mut state, client))
    }

    fn open(&self, state: &mut SlotState, client: ClientAddress) -> ConnectionSlot {
        let id = state.next_id;
        state.next_id += 1;
        state.open += 1;
        let activity = Arc::new(ConnectionActivity::new(&self.0.waiting));
        state.clients.entry(client).or_default().connections.insert(id, Arc::clone(&activity));
        if let Some(metrics) = &self.0.metrics {
            metrics.open.inc();
        }
        ConnectionSlot { slots: self.clone(), client, id, activity }
    }

    /// Tells the connection of a client that is idle for the longest time to close. Returns false if there is none.
    fn reclaim(&self, state: &mut SlotState, client: ClientAddress) -> bool {
        if state.closing >= CLOSING_MAX {
            return false;
        }
        let Some(connections) = state.clients.get_mut(&client).map(|client| &mut client.connections) else {
            return false;
        };
        let idle = connections.iter().filter_map(|(id, activity)| Some((activity.idle_since()?, *id)));
        let Some(activity) = idle.min().and_then(|(_, id)| connections.remove(&id)) else { return false };
        activity.reclaim();
        state.open -= 1;
        state.closing += 1;
        if let Some(metrics) = &self.0.metrics {
            metrics.reclaimed.inc();
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, SlotState> {
        // No code under this lock can panic in the middle of a change.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SlotState {
    /// Returns the client with the most connections among those with an idle one.
    fn busiest_with_idle(&self) -> Option<ClientAddress> {
        let has_idle = |client: &Client| client.connections.values().any(|it| it.idle_since().is_some());
        let clients = self.clients.iter().filter(|(_, client)| has_idle(client));
        clients.max_by_key(|(_, client)| client.connections.len()).map(|(address, _)| *address)
    }

    /// Removes a connection that has ended.
    fn remove(&mut self, address: ClientAddress, id: u64) {
        let mut counted = false;
        if let Some(client) = self.clients.get_mut(&address) {
            counted = client.connections.remove(&id).is_some();
            if client.connections.is_empty() {
                self.clients.remove(&address);
            }
        }
        if counted {
            self.open -= 1;
        } else {
            self.closing -= 1;
        }
    }

    /// Logs that a client has reached its limit, once in a while.
    fn warn(&mut self, address: ClientAddress, limit: usize) {
        let ClientAddress::Network(network) = address else { return };
        let Some(client) = self.clients.get_mut(&address) else { return };
        let now = Instant::now();
        if client.warned.is_some_and(|warned| now.saturating_duration_since(warned) < WARNING_INTERVAL) {
            return;
        }
        client.warned = Some(now);
        tracing::warn!(
            client = %network,
            limit,
            "a client has reached server.max_connections_per_client; its idle connections are closed, further ones are refused"
        );
    }
}

impl ConnectionSlot {
    pub(super) fn activity(&self) -> &Arc<ConnectionActivity> {
        &self.activity
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.slots.lock().remove(self.client, self.id);
        if let Some(metrics) = &self.slots.0.metrics {
            metrics.open.dec();
        }
        self.slots.0.waiting.notify();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(connections: usize, per_client: usize) -> Slots {
        let long = Duration::from_mins(1);
        let limits = ConnectionLimits { connections, per_client, head: long, write: long, grace: long };
        Slots::new(watch::channel(limits).1, None)
    }

    fn address(text: &str) -> ClientAddress {
        ClientAddress::new(text.parse().expect("an address"))
    }

    fn open(slots: &Slots, client: ClientAddress) -> Option<ConnectionSlot> {
        let limits = *slots.0.limits.borrow();
        match slots.decide(client, &limits) {
            Decision::Admitted(slot) => Some(slot),
            Decision::Refused | Decision::Full => None,
        }
    }

    #[test]
    fn ipv6_addresses_of_one_network_are_one_client() {
        assert_eq!(address("[2001:db8::1]:1"), address("[2001:db8::ffff:2]:2"));
        assert_ne!(address("[2001:db8::1]:1"), address("[2001:db8:0:1::1]:1"));
        assert_eq!(address("192.0.2.1:1"), address("[::ffff:192.0.2.1]:2"));
        assert_ne!(address("192.0.2.1:1"), address("192.0.2.2:1"));
    }

    #[test]
    fn client_at_its_limit_loses_an_idle_connection_or_is_refused() {
        let (slots, client) = (slots(10, 2), address("192.0.2.1:1"));
        let first = open(&slots, client).expect("a slot");
        let second = open(&slots, client).expect("a slot");
        let request = first.activity().begin();
        let third = open(&slots, client).expect("the slot of the second connection");
        assert!(second.activity().is_reclaimed() && !first.activity().is_reclaimed());
        let of_third = third.activity().begin();
        assert!(open(&slots, client).is_none(), "both connections are answering");
        assert!(open(&slots, address("192.0.2.2:1")).is_some(), "other clients have their own limit");
        assert!(open(&slots, ClientAddress::Unix).is_some(), "a Unix socket has no client address");
        drop(of_third);
        drop(second);
        assert_eq!(slots.lock().closing, 0);
        drop(third);
        assert!(open(&slots, client).is_some());
        drop((request, first));
        assert!(slots.lock().clients.is_empty());
        assert_eq!(slots.lock().open, 0);
    }

    #[test]
    fn full_port_closes_idle_connections_of_the_client_with_the_most() {
        let (slots, greedy, modest) = (slots(3, 3), address("192.0.2.1:1"), address("192.0.2.2:1"));
        let held = [open(&slots, modest), open(&slots, greedy), open(&slots, greedy)].map(Option::unwrap);
        let next = open(&slots, address("192.0.2.3:1")).expect("a slot");
        assert!(!held[0].activity().is_reclaimed());
        assert!(held[1].activity().is_reclaimed());
        let requests: Vec<_> = held.iter().chain([&next]).map(|slot| slot.activity().begin()).collect();
        assert!(open(&slots, address("192.0.2.4:1")).is_none(), "all are answering");
        drop(requests);
    }

    #[test]
    fn connections_that_do_not_close_are_limited() {
        let (slots, client) = (slots(1, 1), address("192.0.2.1:1"));
        let held: Vec<_> = (0..=CLOSING_MAX).map(|_| open(&slots, client).expect("a slot")).collect();
        assert!(open(&slots, client).is_none());
        drop(held);
        assert!(open(&slots, client).is_some());
    }

    #[tokio::test]
    async fn full_port_admits_the_next_connection_when_a_slot_is_free() {
        let slots = slots(1, 1);
        let first = slots.admit(address("192.0.2.1:1")).await.expect("a slot");
        let request = first.activity().begin();
        let next = tokio::spawn({
            let slots = slots.clone();
            async move { slots.admit(address("192.0.2.2:1")).await.is_some() }
        });
        tokio::task::yield_now().await;
        assert!(!next.is_finished());
        drop((request, first));
        assert!(next.await.expect("no panic"));
    }
}
