//! Limits of one port: number of connections and time-outs.

use std::time::Duration;

/// Limits of one port. Changed limits apply to new connections.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Maximum number of open connections, over all sockets of the port.
    pub connections: usize,
    /// Maximum number of open connections of one client address.
    pub per_client: usize,
    /// Time-out for a TLS handshake and for a request head; also the idle time-out between requests.
    pub head: Duration,
    /// Time-out of a write: a client that reads nothing for this long is disconnected.
    pub write: Duration,
    /// Maximum time for running answers to finish after the port has stopped accepting connections.
    pub grace: Duration,
}
