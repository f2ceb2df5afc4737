//! TLS set-up for both directions: certificates of the server, and trust and client certificates towards upstreams.

mod client;
mod pem;
mod server;
mod trust;

pub use client::{ClientTls, ClientTlsError, client_config};
pub use pem::{certificates, private_key};
pub use server::{Certificate, CertificateError, CertificateFiles};
pub use trust::verifier;
