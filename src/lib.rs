//! larder: a pull-through cache for container images.

pub mod app;
pub mod config;
pub mod oci;
pub mod store;
pub mod telemetry;
pub mod upstream;
