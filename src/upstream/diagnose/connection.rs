//! The way until bytes can go: a name, a connection, a tunnel through a proxy, TLS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

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

use super::super::error::BuildError;
use super::super::probe::Step;
use super::super::registry::Registry;
use super::super::settings::EndpointSettings;
use super::super::transport::proxy;
use super::remedy::{End, distrusted};
use crate::config::schema;
use crate::tls;

const AT_ENDPOINT: &str = "check the host and port in `endpoints`, the route there and firewalls on it, and whether the registry runs";
const AT_PROXY: &str = "check host and port of the proxy, in `proxy` or in larder's environment (HTTPS_PROXY), the route \
                        there, and whether it runs; `proxy = \"direct\"` does without one";
const AROUND_PROXY: &str = "the environment names a proxy, which `proxy` or NO_PROXY has this registry asked without; \
                            let larder through the firewall, or have it ask through the proxy";

/// Who speaks TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// The registry itself.
    Endpoint,
    /// What stands before it, which is asked for a tunnel in HTTP/1.
    Proxy,
}

impl Peer {
    /// What the step is called, and the key that says where it is.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Endpoint => ("tls", "`endpoints`"),
            Self::Proxy => ("proxy tls", "the proxy's URL"),
        }
    }
}

/// What bytes go through.
pub(crate) trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

/// Anything that bytes go through.
pub(crate) type Stream = Box<dyn Bytes>;

impl Registry {
    /// A connection to an endpoint, or to what its proxy leads on to.
    pub(super) async fn reached(
        &self,
        url: &Url,
        settings: &schema::Upstream,
        steps: &mut Vec<Step>,
    ) -> Result<Stream, End> {
        let Some(by_way) = self.http.proxies.towards(url) else {
            let remedy = if proxy::environment().next().is_some() { AROUND_PROXY } else { AT_ENDPOINT };
            return Ok(Box::new(self.connected(url, remedy, steps).await?));
        };
        let proxy = Url::parse(&by_way.uri().to_string()).map_err(|error| {
            steps.push(Step::fails("proxy", error.to_string(), AT_PROXY));
            End
        })?;
        let who = if self.http.proxies.is_from_environment() { "larder's environment" } else { "`proxy`" };
        let found = format!("{}, as {who} says", proxy.as_str().trim_end_matches('/'));
        steps.push(Step::ok("proxy", found));
        let stream = self.connected(&proxy, AT_PROXY, steps).await?;
        let stream: Stream = if proxy.scheme() == "https" {
            self.secured(Peer::Proxy, &proxy, settings, stream, steps).await?
        } else {
            Box::new(stream)
        };
        // Plain requests are the proxy's to pass on; only TLS needs a way through it.
        if url.scheme() == "http" { Ok(stream) } else { self.tunnelled(&by_way, url, stream, steps).await }
    }

    /// Name look-up and a connection.
    async fn connected(&self, url: &Url, remedy: &str, steps: &mut Vec<Step>) -> Result<TcpStream, End> {
        let patience = self.http.timeouts.connect;
        let port = url.port_or_known_default().unwrap_or_default();
        let began = Instant::now();
        let addresses: Vec<SocketAddr> = match url.host() {
            Some(Host::Ipv4(ip)) => vec![(ip, port).into()],
            Some(Host::Ipv6(ip)) => vec![(ip, port).into()],
            Some(Host::Domain(name)) => {
                let found = match timeout(patience, tokio::net::lookup_host((name, port))).await {
                    Ok(Ok(found)) => Ok(found.collect::<Vec<_>>()),
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(_) => Err(format!("no answer within {}", humantime::format_duration(patience))),
                };
                match found {
                    Ok(found) if !found.is_empty() => {
                        let listed: Vec<_> = found.iter().map(|it| it.ip().to_string()).collect();
                        steps.push(Step::ok("name", listed.join(", ")).since(began));
                        found
                    }
                    Ok(_) => return Err(unnamed(name, "it has no address", began, steps)),
                    Err(error) => return Err(unnamed(name, &error, began, steps)),
                }
            }
            None => return Err(unnamed("", "there is no host in it", began, steps)),
        };
        let began = Instant::now();
        let mut last = "there was no address to try".to_owned();
        // One deadline for all addresses, as for a request.
        let connecting = timeout(patience, async {
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
                steps.push(Step::ok("connection", format!("to {address}")).since(began));
                return Ok(stream);
            }
            Ok(None) => {}
            Err(_) => last = format!("no connection within {}", humantime::format_duration(patience)),
        }
        steps.push(Step::fails("connection", last, remedy).since(began));
        Err(End)
    }

    /// A way through a proxy (RFC 9110, section 9.3.6).
    async fn tunnelled(
        &self,
        proxy: &Intercept,
        url: &Url,
        stream: Stream,
        steps: &mut Vec<Step>,
    ) -> Result<Stream, End> {
        let began = Instant::now();
        let port = url.port_or_known_default().unwrap_or_default();
        let to = format!("{}:{port}", url.host_str().unwrap_or_default());
        let patience = self.http.timeouts.connect;
        let asked = timeout(patience, connect(proxy, &to, stream)).await;
        let asked = asked
            .unwrap_or_else(|_| Err(format!("no answer within {}", humantime::format_duration(patience))));
        let (found, remedy) = match asked {
            Ok(Ok(stream)) => {
                steps.push(Step::ok("tunnel", format!("to {to}")).since(began));
                return Ok(stream);
            }
            Ok(Err(StatusCode::PROXY_AUTHENTICATION_REQUIRED)) => (
                "407: the proxy asks for credentials".to_owned(),
                "write them into the proxy's URL in larder's environment: HTTPS_PROXY=http://user:password@host:port",
            ),
            Ok(Err(status @ (StatusCode::FORBIDDEN | StatusCode::METHOD_NOT_ALLOWED))) => (
                format!("{}: the proxy does not let larder through to {to}", status.as_u16()),
                "have the proxy permit CONNECT to this host and port",
            ),
            Ok(Err(status)) => (
                format!("{}: the proxy does not get through to {to}", status.as_u16()),
                "check host and port in `endpoints`, and whether the proxy can reach them",
            ),
            Err(error) => (error, AT_PROXY),
        };
        steps.push(Step::fails("tunnel", found, remedy).since(began));
        Err(End)
    }

    /// TLS, just as a request would have it.
    pub(super) async fn secured(
        &self,
        peer: Peer,
        url: &Url,
        settings: &schema::Upstream,
        stream: impl Bytes + 'static,
        steps: &mut Vec<Step>,
    ) -> Result<Stream, End> {
        let began = Instant::now();
        let (step, key) = peer.names();
        let mut fail = |found: String, remedy: &str| {
            steps.push(Step::fails(step, found, remedy).since(began));
            End
        };
        let upstream = self.http.upstream.as_str();
        let mut config = tls::client_config(upstream, &EndpointSettings::of(settings).connection.tls)
            .map_err(|error| {
                fail(
                    BuildError::tls(upstream, error).to_string(),
                    "correct the file or the key that is named",
                )
            })?;
        if peer == Peer::Proxy {
            config.alpn_protocols.clear();
        }
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| fail(error.to_string(), &format!("correct the host in {key}")))?;
        let patience = self.http.timeouts.connect;
        let shaken = timeout(patience, TlsConnector::from(Arc::new(config)).connect(name, stream)).await;
        let stream = match shaken {
            Err(_) => {
                let found = format!("no answer within {}", humantime::format_duration(patience));
                let remedy = format!("it may not speak TLS there: check scheme and port in {key}");
                return Err(fail(found, &remedy));
            }
            Ok(Err(error)) => {
                let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
                return Err(fail(error.to_string(), distrusted(cause)));
            }
            Ok(Ok(stream)) => stream,
        };
        let (_, connection) = stream.get_ref();
        let version = match connection.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLS 1.2",
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLS 1.3",
            _ => "TLS",
        };
        let step = if settings.insecure_skip_verify {
            let remedy = "name the registry's authority in `ca_file`, and leave `insecure_skip_verify` out";
            Step::warning(step, format!("{version}, and nobody checks the certificate"), remedy)
        } else {
            Step::ok(step, format!("{version}, and the certificate is trusted"))
        };
        steps.push(step.since(began));
        Ok(Box::new(stream))
    }
}

/// Asks a proxy for a way through to `to`; a status other than success is its refusal.
async fn connect(proxy: &Intercept, to: &str, stream: Stream) -> Result<Result<Stream, StatusCode>, String> {
    let (mut proxied, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection.with_upgrades());
    let mut request = Request::connect(to).header(HOST, to);
    if let Some(authorization) = proxy.basic_auth() {
        request = request.header(PROXY_AUTHORIZATION, authorization);
    }
    let request = request.body(String::new()).map_err(|error| error.to_string())?;
    let answer = proxied.send_request(request).await.map_err(|error| error.to_string())?;
    if !answer.status().is_success() {
        connection.abort();
        return Ok(Err(answer.status()));
    }
    let through = hyper::upgrade::on(answer).await.map_err(|error| error.to_string())?;
    Ok(Ok(Box::new(TokioIo::new(through))))
}

fn unnamed(name: &str, found: &str, began: Instant, steps: &mut Vec<Step>) -> End {
    let remedy = "check the host in `endpoints` or `proxy`, and this machine's DNS (/etc/resolv.conf)";
    steps.push(Step::fails("name", format!("{name}: {found}"), remedy).since(began));
    End
}
