//! Trust in the certificates of other servers: Mozilla's root certificates, and those in a file of the operator.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};

use super::pem;

/// Returns a verifier that trusts Mozilla's root certificates, and the certificates in `file` if one is given. Errors name
/// the file.
pub fn verifier(
    file: Option<&Path>,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, String> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let mut own = Vec::new();
    if let Some(path) = file {
        let wrong = |reason| format!("{}: {reason}", path.display());
        own = pem::certificates(path).map_err(wrong)?;
        for certificate in &own {
            roots.add(certificate.clone()).map_err(|error| wrong(error.to_string()))?;
        }
    }
    let chains = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| error.to_string())?;
    Ok(Arc::new(OperatorTrust { chains, own }))
}

/// Verifier of chains up to a root certificate. It also accepts a self-signed server certificate that the operator has
/// listed although it is marked as a CA. `openssl req -x509` creates such certificates by default, and clients written
/// in Go accept them.
#[derive(Debug)]
struct OperatorTrust {
    chains: Arc<WebPkiServerVerifier>,
    own: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for OperatorTrust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified =
            self.chains.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // WebPKI has checked the validity period, but not the server name.
            Err(error) if is_authority(&error) && self.own.iter().any(|own| own == end_entity) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

fn is_authority(error: &Error) -> bool {
    let Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) = error else { return false };
    matches!(cause.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
    use rustls::crypto::ring;

    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    /// Returns a certificate as created by `openssl req -x509`.
    fn authority(name: &str) -> rcgen::Certificate {
        let mut params = CertificateParams::new([name.to_owned()]).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = (SystemTime::now() + 2 * DAY).into();
        params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate")
    }

    #[test]
    fn verifier_accepts_a_listed_server_certificate_that_is_marked_as_ca() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("ca.pem");
        let (own, other) = (authority("registry.test"), authority("registry.test"));
        std::fs::write(&file, own.pem()).expect("written");
        let trust = verifier(Some(&file), Arc::new(ring::default_provider())).expect("a verifier");
        let shown = |certificate: &rcgen::Certificate, name: &'static str, later: Duration| {
            let now = SystemTime::now() + later;
            let now = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).expect("a time"));
            let name = ServerName::try_from(name).expect("a name");
            trust.verify_server_cert(certificate.der(), &[], &name, &[], now).map(drop)
        };
        assert_eq!(shown(&own, "registry.test", Duration::ZERO), Ok(()));
        // The certificate is accepted for its own name and validity period only, and it does not act as a CA.
        for (certificate, name, later) in [
            (&own, "other.test", Duration::ZERO),
            (&own, "registry.test", 3 * DAY),
            (&other, "registry.test", Duration::ZERO),
        ] {
            assert!(shown(certificate, name, later).is_err(), "{name} {later:?}");
        }
    }
}
