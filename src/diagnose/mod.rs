//! Checks of `larder doctor`: store and disk, upstreams, open files, the running server, and the requests of clients.
//!
//! Each check returns [`Step`]s with a verdict and a remedy. The command line opens what the checks need (configuration,
//! store, admin API) and prints the [`Report`].

pub mod clients;
mod connection;
pub mod open_files;
mod registry;
mod remedies;
mod report;
pub mod running_server;
pub mod store;
pub mod upstreams;

pub use report::{Check, Report, Step, Verdict};
