//! TLS on our own port: the certificate, and how a new one comes into use while connections go on.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ServerConfig;
use rustls::crypto::ring;
use tokio::sync::watch;

use crate::config::file_watch::{FileFingerprint, FileWatch, POLL_INTERVAL};
use crate::config::pem;
use crate::telemetry::NO_DEDUP;

/// The files of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// PEM, the server's own certificate first.
    pub cert: PathBuf,
    /// PEM.
    pub key: PathBuf,
}

/// Why a certificate cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the TLS file {path} cannot be used: {reason}")]
pub struct CertificateError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong and what to do.
    pub reason: String,
}

/// A certificate in use; clones share it.
///
/// Each connection takes the newest set-up when it begins and keeps it. A new set-up comes with a new memory of
/// sessions, so that nobody resumes one that an old certificate began.
#[derive(Clone, Debug)]
pub struct Certificate {
    files: CertificateFiles,
    used: watch::Sender<Arc<ServerConfig>>,
    seen: Arc<Mutex<FileWatch>>,
}

impl Certificate {
    /// Reads the files; blocks.
    pub fn load(files: CertificateFiles) -> Result<Self, CertificateError> {
        // Taken before they are read: what changes in between is found by the next look.
        let seen = FileWatch::new(files.fingerprint());
        let used = watch::Sender::new(files.server_config()?);
        Ok(Self { files, used, seen: Arc::new(Mutex::new(seen)) })
    }

    /// The newest set-up.
    pub(super) fn newest(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.used.borrow())
    }

    /// Reads the files again, whether or not they have changed. Blocks.
    pub fn reload(&self) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).set_current(self.files.fingerprint());
        self.use_files();
    }

    /// Looks at the files now and then and uses what has changed, until it is dropped.
    pub async fn attend(self) {
        let mut ticks = tokio::time::interval(POLL_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let this = self.clone();
            let looked = tokio::task::spawn_blocking(move || {
                let found = this.files.fingerprint();
                if this.seen.lock().unwrap_or_else(PoisonError::into_inner).is_new_and_stable(found) {
                    this.use_files();
                }
            });
            if looked.await.is_err() {
                // The runtime ends.
                return;
            }
        }
    }

    fn use_files(&self) {
        match self.files.server_config() {
            Ok(config) => {
                self.used.send_replace(config);
                tracing::info!(cert = %self.files.cert.display(), "the TLS certificate was read again");
            }
            Err(error) => {
                tracing::error!(target: NO_DEDUP, %error, "the TLS certificate stays the one that was read before");
            }
        }
    }
}

impl CertificateFiles {
    fn fingerprint(&self) -> FileFingerprint {
        FileFingerprint::of(&[self.cert.clone(), self.key.clone()])
    }

    fn server_config(&self) -> Result<Arc<ServerConfig>, CertificateError> {
        let wrong = |path: &Path, reason| CertificateError { path: path.to_owned(), reason };
        let chain = pem::certificates(&self.cert).map_err(|reason| wrong(&self.cert, reason))?;
        let key = pem::private_key(&self.key).map_err(|reason| wrong(&self.key, reason))?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(&self.cert, error.to_string()))?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => {
                    let cert = self.cert.display();
                    wrong(&self.key, format!("it is not the key of the certificate in {cert}"))
                }
                rustls::Error::InvalidCertificate(_) => wrong(&self.cert, error.to_string()),
                other => wrong(&self.key, other.to_string()),
            })?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}
