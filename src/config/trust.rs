//! Whom larder trusts where it is the client of TLS: Mozilla's roots, and what a file of the operator's holds.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};

use super::pem;

/// Trusts Mozilla's roots, and the certificates in `file` if there is one; an error names it.
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
    Ok(Arc::new(Trust { chains, own }))
}

/// Chains up to a root, and beside them a server's own certificate that the operator names although it says that it is
/// an authority's. `openssl req -x509` makes such ones unless it is told otherwise, and Go's clients take them.
#[derive(Debug)]
struct Trust {
    chains: Arc<WebPkiServerVerifier>,
    own: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Trust {
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
            // Its dates were looked at before; whose it is was not.
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

    /// As `openssl req -x509` makes it.
    fn authority(name: &str) -> rcgen::Certificate {
        let mut params = CertificateParams::new([name.to_owned()]).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = (SystemTime::now() + 2 * DAY).into();
        params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate")
    }

    #[test]
    fn a_servers_own_certificate_is_trusted_also_as_an_authoritys() {
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
        // It vouches for nothing but itself, by its name and for its time.
        for (certificate, name, later) in [
            (&own, "other.test", Duration::ZERO),
            (&own, "registry.test", 3 * DAY),
            (&other, "registry.test", Duration::ZERO),
        ] {
            assert!(shown(certificate, name, later).is_err(), "{name} {later:?}");
        }
    }
}
