//! What the endpoints of an upstream are built from: as long as it stays, so may they.

use std::path::PathBuf;

use crate::config::file_watch::FileFingerprint;
use crate::config::schema::Upstream;

/// The settings that endpoints are built from, and what the files hold that were read for them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct EndpointFingerprint {
    settings: Upstream,
    files: FileFingerprint,
}

impl EndpointFingerprint {
    pub(crate) fn of(upstream: &Upstream) -> Self {
        let settings = Upstream {
            // Each endpoint is compared by itself.
            endpoints: Vec::new(),
            // For the router.
            default: false,
            hostnames: Vec::new(),
            allow: Vec::new(),
            deny: Vec::new(),
            // For the cache.
            tag_ttl: None,
            negative_ttl: None,
            stale_if_error: None,
            stale_while_revalidate: None,
            revalidate_timeout: None,
            tags_list: None,
            on_upstream_404: None,
            ..upstream.clone()
        };
        Self { settings, files: FileFingerprint::of(&files(upstream)) }
    }
}

/// The files that are read when endpoints are built; those with credentials are read when they are needed.
pub fn files(upstream: &Upstream) -> Vec<PathBuf> {
    let Upstream { ca_file, client_cert, client_key, .. } = upstream;
    [ca_file, client_cert, client_key].into_iter().flatten().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_endpoints_do_not_know_of_leaves_them_alone() {
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
    fn a_file_with_other_content_is_another_origin() {
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
