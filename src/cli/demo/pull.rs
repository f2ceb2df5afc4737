//! Client that pulls all platforms of an image and verifies every digest.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use bytesize::ByteSize;
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};

use crate::oci::{Digest, Manifest, media};

/// Time-out of one request. Far longer than a request over loopback takes.
const TIMEOUT: Duration = Duration::from_secs(30);
const FETCHED: &str = "larder_fetched_bytes_total";

/// Result of one verified pull.
#[derive(Debug)]
pub(super) struct Pull {
    pub(super) requests: usize,
    /// Number of answers by outcome.
    pub(super) outcomes: BTreeMap<String, usize>,
    /// Bytes that the server fetched from upstreams during the pull.
    pub(super) fetched: ByteSize,
    pub(super) took: Duration,
}

#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    api: SocketAddr,
    admin: SocketAddr,
}

impl Client {
    pub(super) fn new(api: SocketAddr, admin: SocketAddr) -> anyhow::Result<Self> {
        // No connection uses TLS, but the client needs a TLS configuration: this one has no roots.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .timeout(TIMEOUT)
            .build()
            .context("the HTTP client cannot be built")?;
        Ok(Self { http, api, admin })
    }

    pub(super) fn api(&self) -> SocketAddr {
        self.api
    }

    pub(super) fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Pulls the index of a tag and all its content. The tag must point to the digest `wanted`.
    pub(super) async fn pull(&self, repository: &str, tag: &str, wanted: &Digest) -> anyhow::Result<Pull> {
        let before = self.fetched().await?;
        let start = Instant::now();
        let base = format!("http://{}/v2/{repository}", self.api);
        let mut outcomes = BTreeMap::new();
        let index = self.content(&format!("{base}/manifests/{tag}"), wanted, None, &mut outcomes).await?;
        let mut manifests = vec![index];
        while let Some(manifest) = manifests.pop() {
            for child in &manifest.children {
                let url = format!("{base}/manifests/{}", child.digest);
                manifests.push(self.content(&url, &child.digest, child.size, &mut outcomes).await?);
            }
            for blob in &manifest.blobs {
                let url = format!("{base}/blobs/{}", blob.digest);
                self.verified(&url, &blob.digest, blob.size, &mut outcomes).await?;
            }
        }
        let took = start.elapsed();
        let fetched = ByteSize(self.fetched().await?.saturating_sub(before));
        Ok(Pull { requests: outcomes.values().sum(), outcomes, fetched, took })
    }

    /// Returns a verified manifest or index.
    async fn content(
        &self,
        url: &str,
        digest: &Digest,
        size: Option<u64>,
        outcomes: &mut BTreeMap<String, usize>,
    ) -> anyhow::Result<Manifest> {
        let (headers, body) = self.verified(url, digest, size, outcomes).await?;
        let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        Manifest::read(&body, media_type).with_context(|| format!("{url} is not a manifest"))
    }

    /// Returns content after its size and digest were verified.
    async fn verified(
        &self,
        url: &str,
        digest: &Digest,
        size: Option<u64>,
        outcomes: &mut BTreeMap<String, usize>,
    ) -> anyhow::Result<(HeaderMap, Bytes)> {
        let answer = self.http.get(url).header(ACCEPT, media::CANONICAL_ACCEPT).send().await?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = answer.bytes().await.with_context(|| format!("the body of {url} is incomplete"))?;
        ensure!(status.as_u16() == 200, "{url} was answered with {status}: {}", excerpt(&body));
        ensure!(size.is_none_or(|size| size == body.len() as u64), "{url} has a wrong size: {}", body.len());
        let found = Digest::of(digest.algorithm(), &body);
        ensure!(found == *digest, "{url} has the digest {found} instead of {digest}");
        let said = headers.get("cache-status").and_then(|value| value.to_str().ok());
        let Some(word) = said.and_then(outcome) else {
            bail!("the answer for {url} has no Cache-Status of larder");
        };
        *outcomes.entry(word.to_owned()).or_default() += 1;
        Ok((headers, body))
    }

    /// Returns the bytes that the server fetched from upstreams since its start.
    async fn fetched(&self) -> anyhow::Result<u64> {
        let url = format!("http://{}/metrics", self.admin);
        let answer = self.http.get(&url).send().await?.error_for_status()?;
        Ok(total(&answer.text().await?, FETCHED))
    }
}

/// Returns the outcome in a Cache-Status value (RFC 9211): the detail if there is one, else `hit`.
fn outcome(value: &str) -> Option<&str> {
    let mut parts = value.split(',').next()?.split(';').map(str::trim);
    if parts.next()? != "larder" {
        return None;
    }
    let mut hit = None;
    for part in parts {
        match part.split_once('=') {
            Some(("detail", detail)) => return Some(detail.trim_matches('"')),
            None if part == "hit" => hit = Some("hit"),
            _ => {}
        }
    }
    hit
}

/// Returns the sum of all samples of a counter.
fn total(exposition: &str, name: &str) -> u64 {
    exposition
        .lines()
        .filter_map(|line| line.strip_prefix(name))
        .filter(|rest| rest.starts_with(['{', ' ']))
        .filter_map(|rest| rest.rsplit_once(' ')?.1.parse::<u64>().ok())
        .sum()
}

/// Returns the beginning of an error document, for a message.
fn excerpt(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(300)]).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn outcome_is_read_from_cache_status() {
        assert_eq!(outcome("larder; hit"), Some("hit"));
        assert_eq!(outcome("larder; fwd=uri-miss; stored; detail=miss"), Some("miss"));
        assert_eq!(outcome("larder;hit;ttl=-5;detail=\"stale\", other; hit"), Some("stale"));
        assert_eq!(outcome("other; hit"), None);
        assert_eq!(outcome("larder; fwd=bypass"), None);
        assert_eq!(outcome(""), None);
    }

    #[test]
    fn counter_exists_in_the_metrics() {
        let metrics = Metrics::new();
        metrics.fetched("docker.io", "blob", 5);
        metrics.fetched("docker.io", "manifest", 2);
        metrics.fetched("ghcr.io", "blob", 10);
        let text = String::from_utf8(metrics.render()).expect("text");
        assert_eq!(total(&text, FETCHED), 17);
        assert_eq!(total(&text, "larder_fetched"), 0);
    }
}
