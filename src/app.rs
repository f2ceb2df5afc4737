//! Composition root: builds every layer from the configuration, serves, drains and flushes.

mod background;
mod build;
mod limits;
mod memory;
mod offline;
mod reload;
mod run;
mod systemd;

pub use build::App;
pub use offline::{Offline, is_in_use};
pub use reload::{Load, Reload};

pub use crate::server::InheritedSockets;
pub use crate::telemetry::{init as init_telemetry, init_log};
