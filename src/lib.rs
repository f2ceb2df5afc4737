//! larder: a pull-through cache for container images.

pub mod api;
pub mod app;
pub mod cache;
pub mod cli;
pub mod config;
pub mod oci;
pub mod ops;
pub mod server;
pub mod store;
pub mod telemetry;
pub mod upstream;
