//! Observability: metrics, the log, recent warnings, and traces.

mod labels;
mod log;
mod log_dedup;
mod metrics;
mod series;
mod store;
mod totals;
pub mod trace;
mod upstream;
mod warnings;

pub use labels::{Outcome, RequestKind};
pub use log::{LogError, LogLevel, init, init_log};
pub use log_dedup::NO_DEDUP;
pub use metrics::Metrics;
pub use totals::TrafficTotals;
pub use warnings::{Warning, Warnings};
