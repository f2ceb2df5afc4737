//! Certificates and private keys in PEM files. Errors include the remedy.

use std::path::Path;

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Reads all certificates of a PEM file. A file without certificates is an error.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match found {
        Ok(found) if found.is_empty() => Err("no certificate in PEM format".to_owned()),
        found => found.map_err(|error| error.to_string()),
    }
}

/// Reads the private key of a PEM file.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| match error {
        pem::Error::NoItemsFound => {
            "no private key in PEM format, or the key has a passphrase; store it without a passphrase"
                .to_owned()
        }
        other => other.to_string(),
    })
}

/// Returns the error text for a private key that does not belong to the certificate in `cert`.
pub(super) fn wrong_key(cert: &Path) -> String {
    format!("the key does not belong to the certificate in {}", cert.display())
}
