//! Simulated pulls: the requests of real client programs, and whether they take the answers for success.

use std::collections::BTreeSet;

use serde_json::Value;

use super::client::{Answer, Client};
use super::content::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};

/// Client program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Puller {
    /// dockerd 29 with the containerd image store: with attestations and their referrers.
    Docker29,
    /// containerd 2.4 with the capability `referrers` for the mirror.
    ContainerdWithReferrers,
    /// containerd 2.4 without this capability.
    Containerd,
    /// podman: no attestations, no referrers.
    Podman,
}

impl Puller {
    pub const ALL: [Self; 4] =
        [Self::Docker29, Self::ContainerdWithReferrers, Self::Containerd, Self::Podman];

    /// Pulls one platform of an image. Returns the first request that makes the pull fail.
    pub fn pull(self, client: Client, image: &str, tag: &str, platform: &str) -> Result<(), String> {
        let pull = Pull { client, image };
        // podman requests the tag twice; the others request the digest that the answer to HEAD names.
        let head = pull.send("HEAD", &format!("manifests/{tag}"))?;
        let root = head.header("docker-content-digest").unwrap_or(tag).to_owned();
        let index = pull.manifest(&root)?;
        let Some(children) = index["manifests"].as_array() else {
            pull.blobs(&index)?;
            return if self == Self::ContainerdWithReferrers { pull.referrers(&root) } else { Ok(()) };
        };
        let (os, architecture) = platform.split_once('/').unwrap();
        let is_wanted = |child: &&Value| {
            child["platform"]["os"] == os && child["platform"]["architecture"] == architecture
        };
        let child = children.iter().find(is_wanted).ok_or(format!("no image for {platform}"))?;
        let digest = child["digest"].as_str().unwrap();
        pull.image(digest)?;
        if self == Self::ContainerdWithReferrers {
            pull.referrers(&root)?;
            pull.referrers(digest)?;
        }
        if self == Self::Docker29 {
            let attests = |child: &&Value| child["annotations"]["vnd.docker.reference.digest"] == digest;
            for attestation in children.iter().filter(attests) {
                let attestation = attestation["digest"].as_str().unwrap();
                pull.image(attestation)?;
                pull.referrers(attestation)?;
            }
        }
        Ok(())
    }
}

/// Pull from one repository.
struct Pull<'a> {
    client: Client,
    image: &'a str,
}

impl Pull<'_> {
    /// Sends a request that must be answered with 200.
    fn send(&self, method: &str, path: &str) -> Result<Answer, String> {
        let answer = self.ask(method, path)?;
        if answer.status() == 200 { Ok(answer) } else { Err(format!("{} {method} {path}", answer.status())) }
    }

    fn ask(&self, method: &str, path: &str) -> Result<Answer, String> {
        let accept = [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST].join(", ");
        let sent =
            self.client.try_send(method, &format!("/v2/{}/{path}", self.image), &[("Accept", &accept)]);
        sent.map_err(|error| format!("{method} {path}: {error:?}"))
    }

    fn manifest(&self, reference: &str) -> Result<Value, String> {
        let body = self.send("GET", &format!("manifests/{reference}"))?.body;
        serde_json::from_slice(&body).map_err(|error| error.to_string())
    }

    /// Pulls a manifest with its config and layers.
    fn image(&self, digest: &str) -> Result<(), String> {
        let manifest = self.manifest(digest)?;
        self.blobs(&manifest)
    }

    fn blobs(&self, manifest: &Value) -> Result<(), String> {
        let layers = manifest["layers"].as_array().into_iter().flatten();
        let digests = std::iter::once(&manifest["config"]).chain(layers).map(|it| it["digest"].as_str());
        // Each blob once.
        for digest in digests.flatten().collect::<BTreeSet<_>>() {
            self.send("GET", &format!("blobs/{digest}"))?;
        }
        Ok(())
    }

    /// Requests the referrers of a manifest: from the API, and after an error by the fall-back tag. Any other answer than
    /// 200 or 404 fails the pull.
    fn referrers(&self, subject: &str) -> Result<(), String> {
        let api = self.ask("GET", &format!("referrers/{subject}"))?;
        if api.status() == 200 {
            return Ok(());
        }
        let tag = format!("manifests/{}", subject.replacen(':', "-", 1));
        let answer = self.ask("GET", &tag)?;
        match answer.status() {
            200 | 404 => Ok(()),
            status => Err(format!("{} for the referrers of {subject}, then {status}", api.status())),
        }
    }
}
