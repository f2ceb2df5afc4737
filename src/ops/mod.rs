//! Operations for operators and timers, one verb per file.

pub mod check;
pub mod convert;
pub mod encoding;
mod error;
pub mod export;
pub mod image_tree;
pub mod import;
pub mod inspect;
pub mod job_spec;
pub mod jobs;
pub mod list;
mod operations;
pub mod platform;
pub mod progress;
pub mod query;
pub mod reference;
pub mod remove;
pub mod scrub;
pub mod status;
pub mod warm;

pub use error::{Failure, OpsError};
pub use operations::{Operations, Service};
