//! Observability: metrics, the log, recent warnings, and traces.

mod labels;
mod log;
mod log_dedup;
mod metrics;
mod process;
mod series;
mod store;
mod store_series;
mod totals;
pub mod trace;
mod upstream;
mod upstream_series;
mod warnings;

pub use labels::{Outcome, RequestKind};
pub use log::{LogError, LogLevel, init, init_log};
pub use log_dedup::NO_DEDUP;
pub use metrics::Metrics;
pub use process::resident_memory;
pub use totals::TrafficTotals;
pub use warnings::{Warning, Warnings};
