//! Configuration: the schema, loading from file, environment and flags, validation, and detection of changes.

pub mod address;
pub mod advice;
pub mod change;
pub mod docker;
mod endpoint;
pub mod file_watch;
#[cfg(test)]
mod fuzz;
mod keys;
pub mod load;
pub mod open_files;
pub mod proxy;
pub mod schema;
pub mod validate;

pub use keys::{Hint, variables};
pub use load::{Flags, LoadError, file, load, load_valid_keys};
pub use schema::Config;
pub use validate::{ConfigProblem, InvalidConfig, validate};
