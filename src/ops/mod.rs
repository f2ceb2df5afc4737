//! What a timer or an operator can ask for, one verb per file.

pub mod check;
pub mod convert;
mod error;
pub mod export;
pub mod folder;
pub mod import;
pub mod inspect;
pub mod jobs;
pub mod layout;
pub mod list;
mod operations;
pub mod pack;
pub mod pipe;
pub mod platform;
pub mod progress;
pub mod question;
pub mod reference;
pub mod remove;
pub mod scrub;
pub mod status;
pub mod task;
pub mod tree;
pub mod unpack;
pub mod warm;

pub use error::{Failure, OpsError};
pub use operations::{Operations, Service};
