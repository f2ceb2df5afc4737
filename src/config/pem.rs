//! Certificates and keys in the files that the configuration names; what is wrong with one is said with the remedy.

use std::path::Path;

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// All certificates in a PEM file, of which there is at least one.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match found {
        Ok(found) if found.is_empty() => Err("the file holds no certificate in PEM form".to_owned()),
        found => found.map_err(|error| error.to_string()),
    }
}

/// The private key in a PEM file.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| match error {
        pem::Error::NoItemsFound => {
            "the file holds no private key in PEM form, or one that a passphrase locks; store it without one"
                .to_owned()
        }
        other => other.to_string(),
    })
}
