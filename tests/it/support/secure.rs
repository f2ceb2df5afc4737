//! Certificates made on the spot, and clients that trust them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

use super::PATIENCE;

/// A certificate for loopback that vouches for itself.
#[derive(Clone, Debug)]
pub struct Issued {
    pub cert: String,
    pub key: String,
    pub der: CertificateDer<'static>,
}

impl Issued {
    pub fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let der = made.cert.der().clone();
        Self { cert: made.cert.pem(), key: made.signing_key.serialize_pem(), der }
    }

    /// Writes `tls.crt` and `tls.key` into a folder, which is made if it is not there.
    pub fn write_into(&self, folder: &Path) -> (PathBuf, PathBuf) {
        std::fs::create_dir_all(folder).unwrap();
        let (cert, key) = (folder.join("tls.crt"), folder.join("tls.key"));
        std::fs::write(&cert, &self.cert).unwrap();
        std::fs::write(&key, &self.key).unwrap();
        (cert, key)
    }
}

/// A client that trusts these and offers just this version: `h2` or `http/1.1`.
pub fn client<'a>(trusted: impl IntoIterator<Item = &'a Issued>, version: &str) -> reqwest::Client {
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
        .timeout(PATIENCE)
        .build()
        .unwrap()
}

/// The certificate that the other end of an answer's connection showed.
pub fn shown(answer: &reqwest::Response) -> CertificateDer<'static> {
    let info = answer.extensions().get::<reqwest::tls::TlsInfo>().expect("TLS");
    CertificateDer::from(info.peer_certificate().expect("a certificate").to_vec())
}
