//! Client for the admin API of a running server, over HTTP, HTTPS or a Unix socket.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use reqwest::{Client, Method, RequestBuilder, Response};
use rustls::ClientConfig;
use serde::Deserialize;
use serde_json::Value;
use url::{Host, Url};

use super::events::Events;
use super::serve::shutdown_signal;
use crate::config::address::ListenAddress;
use crate::config::schema::Admin;
use crate::ops::protocol::{Failure, JobSpec, JobState, JobView, Progress, Query, ROOT};
use crate::tls;

/// Time-out for connecting.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// Address of an admin API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AdminAddress {
    Url(Url),
    Unix(PathBuf),
}

impl FromStr for AdminAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.starts_with('/') {
                Ok(Self::Unix(path.into()))
            } else {
                Err("the path of a socket must be absolute, as in unix:/run/larder/admin.sock".to_owned())
            };
        }
        let whole = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        match Url::parse(&whole) {
            Ok(url) if ["http", "https"].contains(&url.scheme()) && url.has_host() => Ok(Self::Url(url)),
            _ => Err("write a URL such as http://127.0.0.1:5001, or unix:/PATH".to_owned()),
        }
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => f.write_str(url.as_str().trim_end_matches('/')),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl AdminAddress {
    /// Returns the address under which this machine reaches the admin API of a configuration, if there is one.
    pub(super) fn of(admin: &Admin) -> Option<Self> {
        match admin.listen.reachable()? {
            ListenAddress::Unix(path) => Some(Self::Unix(path)),
            address => Url::parse(&format!("http://{address}")).ok().map(Self::Url),
        }
    }

    /// Returns true if only this machine can have the address.
    pub(super) fn is_loopback(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Url(url) => match url.host() {
                Some(Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
                Some(Host::Ipv4(address)) => address.is_loopback(),
                Some(Host::Ipv6(address)) => address.is_loopback(),
                None => false,
            },
        }
    }
}

/// Error document of the admin API.
#[derive(Deserialize)]
struct ErrorDocument {
    error: Failure,
}

/// Client for one admin API.
#[derive(Debug)]
pub(super) struct Remote {
    client: Client,
    address: AdminAddress,
    base: Url,
    token: Option<String>,
}

impl Remote {
    /// Creates the client without connecting.
    pub(super) fn new(
        address: AdminAddress,
        token: Option<String>,
        ca: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let mut builder =
            Client::builder().no_proxy().connect_timeout(CONNECT_WITHIN).tls_backend_preconfigured(tls(ca)?);
        let base = match &address {
            AdminAddress::Url(url) => url.clone(),
            AdminAddress::Unix(path) => {
                builder = builder.unix_socket(path.clone());
                Url::parse("http://localhost")?
            }
        };
        Ok(Self { client: builder.build()?, address, base, token })
    }

    /// Returns the address.
    pub(super) fn address(&self) -> &AdminAddress {
        &self.address
    }

    /// Returns true if a server answers.
    pub(super) async fn is_there(&self) -> bool {
        match self.request(Method::GET, "/livez") {
            Ok(request) => request.send().await.is_ok_and(|answer| answer.status().is_success()),
            Err(_) => false,
        }
    }

    pub(super) fn request(&self, method: Method, target: &str) -> anyhow::Result<RequestBuilder> {
        let url = self.base.join(target).context("the address is invalid")?;
        let request = self.client.request(method, url);
        Ok(match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        })
    }

    /// Sends a request. An answer other than 2xx is an error.
    pub(super) async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let answer =
            request.send().await.with_context(|| format!("no server answers at {}", self.address))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let body = answer.bytes().await.unwrap_or_default();
        match serde_json::from_slice::<ErrorDocument>(&body) {
            Ok(refused) => Err(refused.error.into()),
            Err(_) => anyhow::bail!("{} answers {status}: it is not the admin API of larder", self.address),
        }
    }

    /// Sends a query.
    pub(super) async fn ask(&self, query: &Query) -> anyhow::Result<Value> {
        let answer = self.send(self.request(Method::GET, &query.target())?).await?;
        self.document(answer).await
    }

    pub(super) async fn document(&self, answer: Response) -> anyhow::Result<Value> {
        let body =
            answer.bytes().await.with_context(|| format!("the answer of {} is incomplete", self.address))?;
        serde_json::from_slice(&body).with_context(|| format!("the answer of {} is not JSON", self.address))
    }

    /// Starts a job, reports its progress to `on_progress`, and waits for its end. After a stop signal the job continues.
    pub(super) async fn run(
        &self,
        task: &JobSpec,
        on_progress: impl FnMut(&Progress),
    ) -> anyhow::Result<Value> {
        let request = self.request(Method::POST, &format!("{ROOT}/jobs"))?;
        let request = request.header("content-type", "application/json").body(serde_json::to_vec(task)?);
        let begun: JobView = serde_json::from_value(self.document(self.send(request).await?).await?)?;
        let id = begun.id;
        let stopped = shutdown_signal()?;
        tokio::select! {
            ended = self.watch(begun, on_progress) => ended,
            () = stopped => anyhow::bail!(
                "interrupted; job {id} continues on the server: `larder status` shows it, and DELETE {ROOT}/jobs/{id} ends it"
            ),
        }
    }

    /// Reports the progress of a job to `on_progress`, and waits for its end.
    async fn watch(&self, begun: JobView, mut on_progress: impl FnMut(&Progress)) -> anyhow::Result<Value> {
        let target = format!("{ROOT}/jobs/{}/events", begun.id);
        let mut answer = self.send(self.request(Method::GET, &target)?).await?;
        let mut events = Events::default();
        while let Some(piece) = answer
            .chunk()
            .await
            .with_context(|| format!("job {} continues, but its events were interrupted", begun.id))?
        {
            for event in events.feed(&piece) {
                let view: JobView = serde_json::from_str(&event.data)?;
                on_progress(&view.progress);
                match view.state {
                    JobState::Running => {}
                    JobState::Done => return view.report.context("the job ended without a report"),
                    JobState::Failed => {
                        return Err(view.error.map_or_else(|| anyhow::anyhow!("the job failed"), Into::into));
                    }
                    JobState::Cancelled => anyhow::bail!("the job was cancelled"),
                }
            }
        }
        anyhow::bail!("the events of job {} ended before the job; `larder status` shows it", begun.id)
    }
}

/// Returns a TLS configuration that trusts Mozilla's roots and the authority in `ca`.
pub(super) fn tls(ca: Option<&Path>) -> anyhow::Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let trust = tls::verifier(ca, Arc::clone(&provider)).map_err(anyhow::Error::msg);
    let trust = trust.context("unusable certificate authority")?;
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.dangerous().with_custom_certificate_verifier(trust).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_urls_and_sockets() {
        let read = |text: &str| text.parse::<AdminAddress>().map(|address| address.to_string());
        assert_eq!(read("127.0.0.1:5001").as_deref(), Ok("http://127.0.0.1:5001"));
        assert_eq!(read("https://larder.test/").as_deref(), Ok("https://larder.test"));
        assert_eq!(read("unix:/run/a.sock").as_deref(), Ok("unix:/run/a.sock"));
        assert_eq!(read("unix:///run/a.sock").as_deref(), Ok("unix:/run/a.sock"));
        for bad in ["unix:a.sock", "ftp://a", "", "http://"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn loopback_addresses_are_recognised() {
        let is_loopback = |text: &str| text.parse::<AdminAddress>().expect("an address").is_loopback();
        for own in ["localhost:5001", "127.0.0.1", "127.9.9.9:1", "https://[::1]:5001", "unix:/run/a.sock"] {
            assert!(is_loopback(own), "{own}");
        }
        for other in
            ["larder.test", "10.0.0.7:5001", "[2001:db8::1]:5001", "localhost.test", "127.0.0.1.test"]
        {
            assert!(!is_loopback(other), "{other}");
        }
    }

    #[test]
    fn address_comes_from_admin_listen() {
        let of = |text: &str| {
            let listen = text.parse::<ListenAddress>().expect("an address").into();
            AdminAddress::of(&Admin { listen, ..Admin::default() }).map(|address| address.to_string())
        };
        assert_eq!(of("0.0.0.0:5001").as_deref(), Some("http://127.0.0.1:5001"));
        assert_eq!(of("unix:/run/a.sock").as_deref(), Some("unix:/run/a.sock"));
        assert_eq!(of("systemd:larder.socket"), None);
    }
}
