//! HTTP in and out: what a request means, what the cache says to it, and which status that becomes.

mod access;
mod admin;
mod blobs;
mod body;
mod lists;
mod registry;
mod response;
mod route;
mod ui;

pub use admin::Admin;
pub use body::Body;
pub use registry::{Manners, Registry};
