//! HTTP towards upstreams: which addresses may be dialled, proxies, TLS, single requests, and when to retry.

pub(crate) mod address;
pub(crate) mod client;
mod connector;
#[cfg(test)]
mod fuzz;
pub(crate) mod peer;
pub(crate) mod pool;
pub(crate) mod proxy;
pub(crate) mod retry;
pub(crate) mod status;
