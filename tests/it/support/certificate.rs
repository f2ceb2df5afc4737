//! Generated certificates, and clients that trust them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

use super::TIME_LIMIT;

/// A self-signed certificate for 127.0.0.1.
#[derive(Clone, Debug)]
pub struct TestCertificate {
    pub cert: String,
    pub key: String,
    pub der: CertificateDer<'static>,
}

impl TestCertificate {
    pub fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let der = made.cert.der().clone();
        Self { cert: made.cert.pem(), key: made.signing_key.serialize_pem(), der }
    }

    /// Writes `tls.crt` and `tls.key` into a folder. Creates the folder if necessary.
    pub fn write_into(&self, folder: &Path) -> (PathBuf, PathBuf) {
        std::fs::create_dir_all(folder).unwrap();
        let (cert, key) = (folder.join("tls.crt"), folder.join("tls.key"));
        std::fs::write(&cert, &self.cert).unwrap();
        std::fs::write(&key, &self.key).unwrap();
        (cert, key)
    }
}

/// Returns a client that trusts these certificates and offers only this protocol: `h2` or `http/1.1`.
pub fn client<'a>(trusted: impl IntoIterator<Item = &'a TestCertificate>, version: &str) -> reqwest::Client {
    let mut roots = RootCertStore::empty();
    for issued in trusted {
        roots.add(issued.der.clone()).unwrap();
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![version.as_bytes().to_vec()];
    reqwest::Client::builder()
        .tls_backend_preconfigured(config)
        .tls_info(true)
        .no_proxy()
        .timeout(TIME_LIMIT)
        .build()
        .unwrap()
}

/// Returns the certificate of the server that sent the answer.
pub fn peer_certificate(answer: &reqwest::Response) -> CertificateDer<'static> {
    let info = answer.extensions().get::<reqwest::tls::TlsInfo>().expect("TLS");
    CertificateDer::from(info.peer_certificate().expect("a certificate").to_vec())
}
