//! Operations for operators and timers, one verb per file.

pub mod artifacts;
pub mod check;
pub mod completeness;
pub mod convert;
mod execute;
pub mod export;
#[cfg(test)]
mod fuzz;
pub mod image_tree;
pub mod import;
pub mod inspect;
pub mod jobs;
pub mod list;
mod operations;
pub mod platform;
pub mod protocol;
pub mod reference;
pub mod remove;
pub mod scrub;
pub mod size_check;
pub mod status;
pub mod warm;

pub use operations::{Operations, Service};
pub use protocol::OpsError;
