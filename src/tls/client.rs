//! TLS as a client of upstreams: rustls with ring, trusted root certificates and an optional client certificate.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};

use super::{pem, trust};

/// Error of the TLS set-up for an upstream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientTlsError {
    /// A PEM file cannot be used.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Reason, with a remedy.
        reason: String,
    },
    /// The set-up failed for another reason.
    #[error("{0}")]
    Setup(String),
}

/// TLS settings for an upstream: trust, and the client certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientTls {
    /// PEM file with certificate authorities trusted beside the built-in ones.
    pub ca_file: Option<PathBuf>,
    /// PEM file with the client certificate.
    pub client_cert: Option<PathBuf>,
    /// PEM file with the private key of the client certificate.
    pub client_key: Option<PathBuf>,
    /// True to accept every certificate.
    pub insecure_skip_verify: bool,
}

/// Returns the TLS configuration for the upstream `name`.
pub fn client_config(name: &str, settings: &ClientTls) -> Result<ClientConfig, ClientTlsError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| ClientTlsError::Setup(error.to_string()))?;
    let unusable = |path: &Path, reason| ClientTlsError::File { path: path.to_owned(), reason };
    let verifier: Arc<dyn ServerCertVerifier> = if settings.insecure_skip_verify {
        tracing::warn!(upstream = name, "certificates are not verified (insecure_skip_verify)");
        Arc::new(AnyCertificate::new(&provider))
    } else {
        trust::verifier(settings.ca_file.as_deref(), provider).map_err(ClientTlsError::Setup)?
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = match (&settings.client_cert, &settings.client_key) {
        (Some(cert), Some(key)) => {
            let chain = pem::certificates(cert).map_err(|reason| unusable(cert, reason))?;
            let secret = pem::private_key(key).map_err(|reason| unusable(key, reason))?;
            builder.with_client_auth_cert(chain, secret).map_err(|error| {
                let reason = match error {
                    rustls::Error::InconsistentKeys(_) => pem::wrong_key(cert),
                    other => other.to_string(),
                };
                unusable(key, reason)
            })?
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Verifier that accepts every certificate (`insecure_skip_verify`). It still checks that the peer has the private key;
/// only the name and the chain are not verified.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl AnyCertificate {
    fn new(provider: &CryptoProvider) -> Self {
        Self(provider.signature_verification_algorithms)
    }
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_names_a_file_without_certificates() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ca.pem");
        std::fs::write(&path, "nothing here").expect("written");
        let settings = ClientTls { ca_file: Some(path.clone()), ..ClientTls::default() };
        let error = client_config("reg.test", &settings).expect_err("refused").to_string();
        assert!(error.contains("ca.pem") && error.contains("no certificate"), "{error}");
        std::fs::remove_file(&path).expect("removed");
        let error = client_config("reg.test", &settings).expect_err("refused").to_string();
        assert!(error.contains("ca.pem"), "{error}");
    }

    #[test]
    fn client_config_offers_both_http_versions() {
        let config = client_config("reg.test", &ClientTls::default()).expect("a configuration");
        assert_eq!(config.alpn_protocols, [b"h2".to_vec(), b"http/1.1".to_vec()]);
    }
}
