//! Sockets, TLS, HTTP/1.1 and HTTP/2: accepts connections, limits them, and drains them at shutdown. Knows no registry.

mod activity;
mod connection;
mod h2_keepalive;
mod limits;
mod lingering_close;
mod listen;
mod serve;
mod slots;

pub use limits::ConnectionLimits;
pub use listen::{InheritedSockets, ListenError};
pub use serve::{Listener, serve};
pub use slots::ConnectionMetrics;
