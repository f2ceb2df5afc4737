//! Connections to servers: direct or through a proxy, with TLS for the scheme https. A connection can be cut off from inside
//! the HTTP client.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, Uri, header};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{self, Connected, HttpConnector};
use hyper_util::client::proxy::matcher::Intercept;
use rustls::ClientConfig;
use tokio::time::timeout;
use tower_service::Service;

use super::address::Resolver;
use super::proxy::Proxies;

/// Idle time of a TCP connection before the system checks that the peer is there, and the time between checks.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Number of such checks without an answer after which the connection is closed.
const KEEPALIVE_RETRIES: u32 = 3;
/// Longest time for which sent bytes may stay unacknowledged.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(30);

/// Error of a step that has no type of its own.
pub(super) type BoxError = Box<dyn Error + Send + Sync>;

/// Error for a connection that was not established in time.
#[derive(Debug, thiserror::Error)]
#[error("no connection was established in time")]
pub(super) struct ConnectTimedOut;

/// Switch that cuts a connection off: the next read fails.
#[derive(Clone, Debug, Default)]
pub(super) struct CutOff(Arc<AtomicBool>);

impl CutOff {
    /// Cuts the connection off.
    pub(super) fn trip(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn check(&self) -> io::Result<()> {
        if self.0.load(Ordering::Relaxed) { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

/// Connector for the requests of one endpoint.
#[derive(Clone)]
pub(super) struct Connector {
    tcp: HttpConnector<Resolver>,
    proxies: Arc<Proxies>,
    tls: Arc<ClientConfig>,
    /// TLS with a proxy, which speaks HTTP/1.1 only.
    proxy_tls: Arc<ClientConfig>,
    user_agent: HeaderValue,
    timeout: Duration,
}

impl Connector {
    /// Creates a connector. A connection must be established within `timeout`.
    pub(super) fn new(
        resolver: Resolver,
        proxies: Arc<Proxies>,
        tls: ClientConfig,
        user_agent: HeaderValue,
        timeout: Duration,
    ) -> Self {
        let mut tcp = HttpConnector::new_with_resolver(resolver);
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(KEEPALIVE));
        tcp.set_keepalive_interval(Some(KEEPALIVE));
        tcp.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
        #[cfg(target_os = "linux")]
        tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX));
        let mut proxy_tls = tls.clone();
        proxy_tls.alpn_protocols.clear();
        Self { tcp, proxies, tls: Arc::new(tls), proxy_tls: Arc::new(proxy_tls), user_agent, timeout }
    }

    async fn connect(self, target: Uri) -> Result<Connection, BoxError> {
        let Some(proxy) = self.proxies.intercept(&target) else {
            let stream = HttpsConnector::from((self.tcp, self.tls)).call(target).await?;
            return Ok(Connection::new(stream, false));
        };
        let mut to_proxy = HttpsConnector::from((self.tcp, self.proxy_tls));
        if target.scheme() == Some(&Scheme::HTTPS) {
            let tunnel = tunnel(&proxy, to_proxy, self.user_agent);
            let stream = HttpsConnector::from((tunnel, self.tls)).call(target).await?;
            return Ok(Connection::new(stream, false));
        }
        let stream = to_proxy.call(proxy.uri().clone()).await?;
        Ok(Connection::new(stream, true))
    }
}

/// Returns a connector for tunnels through a proxy.
fn tunnel<C>(proxy: &Intercept, to_proxy: C, user_agent: HeaderValue) -> Tunnel<C> {
    let headers = HeaderMap::from_iter([(header::USER_AGENT, user_agent)]);
    let tunnel = Tunnel::new(proxy.uri().clone(), to_proxy).with_headers(headers);
    match proxy.basic_auth() {
        Some(authorization) => tunnel.with_auth(authorization.clone()),
        None => tunnel,
    }
}

impl Service<Uri> for Connector {
    type Response = Connection;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Connection, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            timeout(connector.timeout, connector.connect(target)).await.map_err(|_| ConnectTimedOut)?
        })
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("proxies", &self.proxies).finish_non_exhaustive()
    }
}

/// Stream of a connection.
trait Stream: Read + Write + connect::Connection + Send + Unpin {}

impl<T: Read + Write + connect::Connection + Send + Unpin> Stream for T {}

/// Connection to a server.
pub(super) struct Connection {
    stream: Box<dyn Stream>,
    /// True if a proxy reads the requests.
    is_proxied: bool,
    cut_off: CutOff,
}

impl Connection {
    fn new(stream: impl Stream + 'static, is_proxied: bool) -> Self {
        Self { stream: Box::new(stream), is_proxied, cut_off: CutOff::default() }
    }
}

impl connect::Connection for Connection {
    fn connected(&self) -> Connected {
        self.stream.connected().proxy(self.is_proxied).extra(self.cut_off.clone())
    }
}

impl Read for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.cut_off.check()?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl Write for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
