//! TLS as a server: the certificate, and its replacement without a restart.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ServerConfig;
use rustls::crypto::ring;
use tokio::sync::watch;

use super::pem;
use crate::config::file_watch::{FileFingerprint, FileWatch, POLL_INTERVAL};
use crate::telemetry::NO_DEDUP;

/// Files of a server certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// PEM file with the certificate chain, the server's own certificate first.
    pub cert: PathBuf,
    /// PEM file with the private key.
    pub key: PathBuf,
}

/// Error of loading a server certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("TLS file {path} cannot be used: {reason}")]
pub struct CertificateError {
    /// The file.
    pub path: PathBuf,
    /// Reason, with a remedy.
    pub reason: String,
}

/// Server certificate in use. Clones share it.
///
/// Each new connection uses the newest certificate and keeps it. A new certificate starts with an empty session cache,
/// so no client can resume a session of an old certificate.
#[derive(Clone, Debug)]
pub struct Certificate {
    files: CertificateFiles,
    current: watch::Sender<Arc<ServerConfig>>,
    watch: Arc<Mutex<FileWatch>>,
}

impl Certificate {
    /// Loads the files. Blocking.
    pub fn load(files: CertificateFiles) -> Result<Self, CertificateError> {
        // The fingerprint is taken before the files are read, so that the next poll detects a change in between.
        let watch = FileWatch::new(files.fingerprint());
        let current = watch::Sender::new(files.server_config()?);
        Ok(Self { files, current, watch: Arc::new(Mutex::new(watch)) })
    }

    /// Returns the TLS configuration for a new connection.
    pub fn newest(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.borrow())
    }

    /// Reloads the files, even if they have not changed. Blocking.
    pub fn reload(&self) {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner).set_current(self.files.fingerprint());
        self.load_files();
    }

    /// Polls the files and loads changed ones, until the returned future is dropped.
    pub async fn watch_files(self) {
        let mut ticks = tokio::time::interval(POLL_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let this = self.clone();
            let polled = tokio::task::spawn_blocking(move || {
                let found = this.files.fingerprint();
                if this.watch.lock().unwrap_or_else(PoisonError::into_inner).is_new_and_stable(found) {
                    this.load_files();
                }
            });
            if polled.await.is_err() {
                // The runtime shuts down.
                return;
            }
        }
    }

    fn load_files(&self) {
        match self.files.server_config() {
            Ok(config) => {
                self.current.send_replace(config);
                tracing::info!(cert = %self.files.cert.display(), "TLS certificate reloaded");
            }
            Err(error) => {
                tracing::error!(target: NO_DEDUP, %error, "TLS certificate cannot be reloaded; the previous one stays in use");
            }
        }
    }
}

impl CertificateFiles {
    fn fingerprint(&self) -> FileFingerprint {
        FileFingerprint::of(&[self.cert.clone(), self.key.clone()])
    }

    fn server_config(&self) -> Result<Arc<ServerConfig>, CertificateError> {
        let unusable = |path: &Path, reason| CertificateError { path: path.to_owned(), reason };
        let chain = pem::certificates(&self.cert).map_err(|reason| unusable(&self.cert, reason))?;
        let key = pem::private_key(&self.key).map_err(|reason| unusable(&self.key, reason))?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&self.cert, error.to_string()))?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => unusable(&self.key, pem::wrong_key(&self.cert)),
                rustls::Error::InvalidCertificate(_) => unusable(&self.cert, error.to_string()),
                other => unusable(&self.key, other.to_string()),
            })?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}
