//! larder: a pull-through cache for container images.

pub mod app;
pub mod cli;
pub mod config;
pub mod oci;
pub mod ops;
pub mod telemetry;
