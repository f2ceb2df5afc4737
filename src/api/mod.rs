//! HTTP in and out: what a request means, what the cache says to it, and which status that becomes.

mod admin;
mod blobs;
mod body;
mod lists;
mod registry;
mod request_log;
mod response;
mod route;
mod ui;

pub use admin::AdminApi;
pub use body::Body;
pub use registry::{RegistryApi, RegistryOptions};
