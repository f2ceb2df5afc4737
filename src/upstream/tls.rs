//! TLS towards upstreams: rustls on ring, Mozilla's roots and the operator's own.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};

use super::error::BuildError;
use crate::config::{pem, schema, trust};

/// The TLS set-up of one upstream.
pub(crate) fn client_config(name: &str, upstream: &schema::Upstream) -> Result<ClientConfig, BuildError> {
    let provider = Arc::new(ring::default_provider());
    let broken = |reason| BuildError::Client { upstream: name.to_owned(), reason };
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| broken(error.to_string()))?;
    let wrong =
        |path: &Path, reason| BuildError::Pem { upstream: name.to_owned(), path: path.to_owned(), reason };
    let builder = if upstream.insecure_skip_verify {
        tracing::warn!(upstream = name, "certificates are not verified (insecure_skip_verify)");
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate::new(&provider)))
    } else {
        let trust = trust::verifier(upstream.ca_file.as_deref(), provider).map_err(broken)?;
        builder.dangerous().with_custom_certificate_verifier(trust)
    };
    let mut config = match (&upstream.client_cert, &upstream.client_key) {
        (Some(cert), Some(key)) => {
            let chain = pem::certificates(cert).map_err(|reason| wrong(cert, reason))?;
            let secret = pem::private_key(key).map_err(|reason| wrong(key, reason))?;
            builder.with_client_auth_cert(chain, secret).map_err(|error| {
                let reason = match error {
                    rustls::Error::InconsistentKeys(_) => {
                        format!("it is not the key of the certificate in {}", cert.display())
                    }
                    other => other.to_string(),
                };
                wrong(key, reason)
            })?
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Accepts every certificate but still checks that the peer holds its key, so that only the name and the chain
/// go unproven.
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
    fn a_file_without_certificates_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ca.pem");
        std::fs::write(&path, "nothing here").expect("written");
        let upstream = schema::Upstream { ca_file: Some(path.clone()), ..schema::Upstream::default() };
        let error = client_config("reg.test", &upstream).expect_err("refused").to_string();
        assert!(error.contains("ca.pem") && error.contains("no certificate"), "{error}");
        std::fs::remove_file(&path).expect("removed");
        let error = client_config("reg.test", &upstream).expect_err("refused").to_string();
        assert!(error.contains("ca.pem"), "{error}");
    }

    #[test]
    fn both_http_versions_are_offered() {
        let config = client_config("reg.test", &schema::Upstream::default()).expect("a configuration");
        assert_eq!(config.alpn_protocols, [b"h2".to_vec(), b"http/1.1".to_vec()]);
    }
}
