//! Connection check: DNS look-up, TCP connection, tunnel through a proxy, and TLS handshake, with the settings of an upstream.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{HOST, PROXY_AUTHORIZATION};
use http::{Request, StatusCode};
use hyper::client::conn::http1;
use hyper_util::client::proxy::matcher::Intercept;
use hyper_util::rt::TokioIo;
use rustls::Error as TlsError;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use url::{Host, Url};

use super::remedies::certificate_remedy;
use super::report::Step;
use crate::config::schema;
use crate::tls;
use crate::upstream::{BuildError, EndpointSettings, HttpClient, proxy};

const CHECK_ENDPOINT: &str =
    "check host and port in `endpoints`, the route and the firewalls, and that the registry is running";
const CHECK_PROXY: &str = "check host and port of the proxy in `proxy` or in the environment (HTTPS_PROXY), the route, and \
                           that the proxy is running; `proxy = \"direct\"` connects without a proxy";
const PROXY_NOT_USED: &str = "the environment names a proxy, but `proxy` or NO_PROXY excludes this registry; permit direct \
                              connections in the firewall, or use the proxy";

/// Marks that a step failed and that later steps cannot be run.
pub(super) struct Aborted;

/// Server at the other end of a TLS handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TlsPeer {
    Registry,
    Proxy,
}

impl TlsPeer {
    /// Returns the name of the step, and the setting that has the address.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Registry => ("tls", "`endpoints`"),
            Self::Proxy => ("proxy tls", "the proxy's URL"),
        }
    }
}

/// TCP or TLS connection.
trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

type Stream = Box<dyn Connection>;

/// Check of the connection to one endpoint.
pub(super) struct ConnectionCheck<'a> {
    pub(super) http: &'a HttpClient,
    pub(super) settings: &'a schema::Upstream,
    pub(super) steps: &'a mut Vec<Step>,
}

impl ConnectionCheck<'_> {
    /// Connects to `url` like a request, through the proxy if there is one. Adds a step for each part.
    pub(super) async fn run(mut self, url: &Url) -> Result<(), Aborted> {
        let stream = self.connect(url).await?;
        if url.scheme() == "https" {
            self.handshake(TlsPeer::Registry, url, stream).await?;
        }
        Ok(())
    }

    fn fail(&mut self, step: Step) -> Aborted {
        self.steps.push(step);
        Aborted
    }

    /// Opens a connection to the endpoint, or through its proxy.
    async fn connect(&mut self, url: &Url) -> Result<Stream, Aborted> {
        let Some(intercept) = self.http.proxies.towards(url) else {
            let remedy = if proxy::environment().next().is_some() { PROXY_NOT_USED } else { CHECK_ENDPOINT };
            return Ok(Box::new(self.connect_tcp(url, remedy).await?));
        };
        let proxy = Url::parse(&intercept.uri().to_string())
            .map_err(|error| self.fail(Step::fails("proxy", error.to_string(), CHECK_PROXY)))?;
        let origin = if self.http.proxies.is_from_environment() { "the environment" } else { "`proxy`" };
        let found = format!("{}, from {origin}", proxy.as_str().trim_end_matches('/'));
        self.steps.push(Step::ok("proxy", found));
        let stream = self.connect_tcp(&proxy, CHECK_PROXY).await?;
        let stream: Stream = if proxy.scheme() == "https" {
            self.handshake(TlsPeer::Proxy, &proxy, stream).await?
        } else {
            Box::new(stream)
        };
        // The proxy forwards plain HTTP requests; only TLS needs a tunnel.
        if url.scheme() == "http" { Ok(stream) } else { self.open_tunnel(&intercept, url, stream).await }
    }

    async fn connect_tcp(&mut self, url: &Url, remedy: &str) -> Result<TcpStream, Aborted> {
        let addresses = self.look_up(url).await?;
        let limit = self.http.timeouts.connect;
        let started = Instant::now();
        let mut last = "no address to try".to_owned();
        // One time-out for all addresses, as for a request.
        let connecting = timeout(limit, async {
            for address in &addresses {
                match TcpStream::connect(address).await {
                    Ok(stream) => return Some((stream, *address)),
                    Err(error) => last = format!("{address}: {error}"),
                }
            }
            None
        });
        match connecting.await {
            Ok(Some((stream, address))) => {
                self.steps.push(Step::ok("connection", format!("to {address}")).since(started));
                return Ok(stream);
            }
            Ok(None) => {}
            Err(_) => last = format!("no connection within {}", humantime::format_duration(limit)),
        }
        Err(self.fail(Step::fails("connection", last, remedy).since(started)))
    }

    /// Returns the addresses of a host. Adds a step only if the host is a name.
    async fn look_up(&mut self, url: &Url) -> Result<Vec<SocketAddr>, Aborted> {
        let limit = self.http.timeouts.connect;
        let port = url.port_or_known_default().unwrap_or_default();
        let started = Instant::now();
        let name = match url.host() {
            Some(Host::Ipv4(ip)) => return Ok(vec![(ip, port).into()]),
            Some(Host::Ipv6(ip)) => return Ok(vec![(ip, port).into()]),
            Some(Host::Domain(name)) => name,
            None => return Err(self.fail(look_up_failed("", "the URL has no host").since(started))),
        };
        let error = match timeout(limit, tokio::net::lookup_host((name, port))).await {
            Ok(Ok(found)) => {
                let found: Vec<_> = found.collect();
                if !found.is_empty() {
                    let listed: Vec<_> = found.iter().map(|it| it.ip().to_string()).collect();
                    self.steps.push(Step::ok("name", listed.join(", ")).since(started));
                    return Ok(found);
                }
                "the name has no address".to_owned()
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => no_answer(limit),
        };
        Err(self.fail(look_up_failed(name, &error).since(started)))
    }

    /// Opens a tunnel through a proxy (RFC 9110, section 9.3.6).
    async fn open_tunnel(&mut self, proxy: &Intercept, url: &Url, stream: Stream) -> Result<Stream, Aborted> {
        let started = Instant::now();
        let port = url.port_or_known_default().unwrap_or_default();
        let target = format!("{}:{port}", url.host_str().unwrap_or_default());
        let limit = self.http.timeouts.connect;
        let answer = timeout(limit, request_tunnel(proxy, &target, stream)).await;
        let (found, remedy) = match answer.unwrap_or_else(|_| Err(no_answer(limit))) {
            Ok(Ok(stream)) => {
                self.steps.push(Step::ok("tunnel", format!("to {target}")).since(started));
                return Ok(stream);
            }
            Ok(Err(StatusCode::PROXY_AUTHENTICATION_REQUIRED)) => (
                "407: the proxy requires credentials".to_owned(),
                "write them into the proxy's URL in the environment: HTTPS_PROXY=http://user:password@host:port",
            ),
            Ok(Err(status @ (StatusCode::FORBIDDEN | StatusCode::METHOD_NOT_ALLOWED))) => (
                format!("{}: the proxy does not permit a tunnel to {target}", status.as_u16()),
                "permit CONNECT to this host and port in the proxy",
            ),
            Ok(Err(status)) => (
                format!("{}: the proxy cannot connect to {target}", status.as_u16()),
                "check host and port in `endpoints`, and that the proxy can reach them",
            ),
            Err(error) => (error, CHECK_PROXY),
        };
        Err(self.fail(Step::fails("tunnel", found, remedy).since(started)))
    }

    /// Runs the TLS handshake with the settings of a request.
    async fn handshake(
        &mut self,
        peer: TlsPeer,
        url: &Url,
        stream: impl Connection + 'static,
    ) -> Result<Stream, Aborted> {
        let started = Instant::now();
        let (step, key) = peer.names();
        let fails = |found: String, remedy: &str| Step::fails(step, found, remedy).since(started);
        let upstream = self.http.upstream.as_str();
        let settings = EndpointSettings::of(self.settings).connection.tls;
        let mut config = tls::client_config(upstream, &settings).map_err(|error| {
            let error = BuildError::tls(upstream, error).to_string();
            self.fail(fails(error, "correct the named file or key"))
        })?;
        if peer == TlsPeer::Proxy {
            // CONNECT is sent with HTTP/1.
            config.alpn_protocols.clear();
        }
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| self.fail(fails(error.to_string(), &format!("correct the host in {key}"))))?;
        let limit = self.http.timeouts.connect;
        let connected = timeout(limit, TlsConnector::from(Arc::new(config)).connect(name, stream)).await;
        let stream = match connected {
            Err(_) => {
                let remedy = format!("the port may not use TLS: check scheme and port in {key}");
                return Err(self.fail(fails(no_answer(limit), &remedy)));
            }
            Ok(Err(error)) => {
                let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
                return Err(self.fail(fails(error.to_string(), certificate_remedy(cause))));
            }
            Ok(Ok(stream)) => stream,
        };
        let (_, connection) = stream.get_ref();
        let version = match connection.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLS 1.2",
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLS 1.3",
            _ => "TLS",
        };
        let step = if self.settings.insecure_skip_verify {
            let remedy = "name the registry's authority in `ca_file`, and remove `insecure_skip_verify`";
            Step::warning(step, format!("{version}, the certificate is not verified"), remedy)
        } else {
            Step::ok(step, format!("{version}, the certificate is trusted"))
        };
        self.steps.push(step.since(started));
        Ok(Box::new(stream))
    }
}

/// Sends CONNECT to a proxy. The inner error is the status with which the proxy refuses.
async fn request_tunnel(
    proxy: &Intercept,
    target: &str,
    stream: Stream,
) -> Result<Result<Stream, StatusCode>, String> {
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection.with_upgrades());
    let mut request = Request::connect(target).header(HOST, target);
    if let Some(authorization) = proxy.basic_auth() {
        request = request.header(PROXY_AUTHORIZATION, authorization);
    }
    let request = request.body(String::new()).map_err(|error| error.to_string())?;
    let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
    if !answer.status().is_success() {
        connection.abort();
        return Ok(Err(answer.status()));
    }
    let tunnel = hyper::upgrade::on(answer).await.map_err(|error| error.to_string())?;
    Ok(Ok(Box::new(TokioIo::new(tunnel))))
}

fn no_answer(limit: Duration) -> String {
    format!("no answer within {}", humantime::format_duration(limit))
}

fn look_up_failed(name: &str, found: &str) -> Step {
    let remedy = "check the host in `endpoints` or `proxy`, and this machine's DNS (/etc/resolv.conf)";
    Step::fails("name", format!("{name}: {found}"), remedy)
}
