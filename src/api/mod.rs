//! HTTP services: the registry API for clients, and the admin API and web page for operators.

mod admin;
mod body;
#[cfg(test)]
mod fuzz;
mod host;
mod multipart;
mod refusal;
mod registry;
mod request_log;
mod response;
mod route;
mod ui;

pub use admin::AdminApi;
pub use body::Body;
pub use registry::{RegistryApi, RegistryOptions};
