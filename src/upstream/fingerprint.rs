//! Fingerprint of what the endpoints of an upstream are built from. At a reload, endpoints with the same fingerprint stay,
//! with their connections, tokens, health and quota.

use std::path::PathBuf;

use super::settings::EndpointSettings;
use crate::config::file_watch::FileFingerprint;
use crate::config::schema::Upstream;
use crate::tls::ClientTls;

/// Settings that endpoints are built from, and the content of the files that these name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct EndpointFingerprint {
    settings: EndpointSettings,
    files: FileFingerprint,
}

impl EndpointFingerprint {
    /// Returns the fingerprint of an upstream; reads files.
    pub(crate) fn of(upstream: &Upstream) -> Self {
        Self { settings: EndpointSettings::of(upstream), files: FileFingerprint::of(&files(upstream)) }
    }
}

/// Returns the files that are read when endpoints are built. Files with credentials are read when they are needed.
pub fn files(upstream: &Upstream) -> Vec<PathBuf> {
    let ClientTls { ca_file, client_cert, client_key, insecure_skip_verify: _ } =
        EndpointSettings::of(upstream).connection.tls;
    [ca_file, client_cert, client_key].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn fingerprint_ignores_settings_of_the_router_and_the_cache() {
        let one = Upstream { username: Some("me".to_owned()), ..Upstream::default() };
        let ttl = Some(Duration::from_secs(7));
        let same = Upstream { tag_ttl: ttl, deny: vec!["a/**".to_owned()], default: true, ..one.clone() };
        assert_eq!(EndpointFingerprint::of(&one), EndpointFingerprint::of(&same));
        let other = Upstream { username: Some("you".to_owned()), ..one.clone() };
        assert_ne!(EndpointFingerprint::of(&one), EndpointFingerprint::of(&other));
        let other = Upstream { idle_timeout: ttl, ..one.clone() };
        assert_ne!(EndpointFingerprint::of(&one), EndpointFingerprint::of(&other));
    }

    #[test]
    fn fingerprint_depends_on_the_content_of_files() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, "one").expect("a file");
        let upstream = Upstream { ca_file: Some(file.clone()), ..Upstream::default() };
        let before = EndpointFingerprint::of(&upstream);
        assert_eq!(before, EndpointFingerprint::of(&upstream));
        std::fs::write(&file, "two").expect("a file");
        assert_ne!(before, EndpointFingerprint::of(&upstream));
    }
}
