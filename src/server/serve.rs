//! Listening sockets and the accept loop of a port, with its connection limit and its drain at shutdown.

use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::ConnectionService;
use super::limits::ConnectionLimits;
use super::listen::{self, InheritedSockets, ListenError, Socket};
use super::slots::{ClientAddress, ConnectionMetrics, ConnectionSlot, Slots};
use crate::config::address::ListenAddresses;
use crate::tls::Certificate;

/// Listening socket, with or without TLS.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    tls: Option<Certificate>,
}

impl Listener {
    /// Opens a listener for each address, with TLS if a certificate is given. `key` is the configuration key of the
    /// addresses, for error messages.
    pub async fn open(
        addresses: &ListenAddresses,
        key: &'static str,
        tls: Option<&Certificate>,
        inherited: &mut InheritedSockets,
    ) -> Result<Vec<Self>, ListenError> {
        let sockets = listen::open(addresses, key, inherited).await?;
        Ok(sockets.into_iter().map(|socket| Self { socket, tls: tls.cloned() }).collect())
    }

    /// Returns the TCP address, if the socket has one. If the configured port is 0, this is the port that the system
    /// has chosen.
    pub fn local(&self) -> Option<SocketAddr> {
        self.socket.local()
    }

    /// Returns true if the listener speaks TLS.
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket.fmt(f)
    }
}

/// Serves connections until `stop` is cancelled, then lets running answers finish within the grace period.
///
/// `answer` gets the client's address, or `None` on a Unix socket. Changed limits apply to new connections and to the
/// grace period. Returns true if all answers have finished.
pub async fn serve<S, F, B>(
    listeners: Vec<Listener>,
    limits: watch::Receiver<ConnectionLimits>,
    metrics: Option<ConnectionMetrics>,
    stop: CancellationToken,
    answer: S,
) -> bool
where
    S: Fn(Request<Incoming>, Option<SocketAddr>) -> F + Clone + Send + 'static,
    F: Future<Output = Result<Response<B>, Infallible>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let connections = TaskTracker::new();
    let slots = Slots::new(limits.clone(), metrics);
    let accepting = listeners.into_iter().map(|listener| {
        let port = Port { listener, slots: slots.clone(), connections: connections.clone() };
        tokio::spawn(port.accept_all(ConnectionService {
            limits: limits.clone(),
            stop: stop.clone(),
            answer: answer.clone(),
        }))
    });
    let accepting: Vec<_> = accepting.collect();
    for accepting in accepting {
        // After a panic of one accept loop, the other loops must still be awaited.
        if let Err(error) = accepting.await {
            tracing::error!(%error, "accept loop failed");
        }
    }
    let grace = limits.borrow().grace;
    connections.close();
    tokio::time::timeout(grace, connections.wait()).await.is_ok()
}

/// Accept loop of one socket.
struct Port {
    listener: Listener,
    slots: Slots,
    connections: TaskTracker,
}

/// Accepted connection.
enum Stream {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

impl Port {
    async fn accept_all<S, F, B>(self, service: ConnectionService<S>)
    where
        S: Fn(Request<Incoming>, Option<SocketAddr>) -> F + Clone + Send + 'static,
        F: Future<Output = Result<Response<B>, Infallible>> + Send + 'static,
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        loop {
            let accepted = tokio::select! {
                () = service.stop.cancelled() => return,
                accepted = self.accept() => accepted,
            };
            let Some((stream, slot)) = accepted else { continue };
            // The connection polls its token often. With a child token, connections do not contend for one lock.
            let service = ConnectionService { stop: service.stop.child_token(), ..service.clone() };
            let tls = self.listener.tls.as_ref().map(Certificate::newest);
            self.connections.spawn(async move {
                let activity = slot.activity();
                match stream {
                    Stream::Tcp(stream, peer) => service.serve(stream, Some(peer), tls, activity).await,
                    Stream::Unix(stream) => service.serve(stream, None, tls, activity).await,
                }
                drop(slot);
            });
        }
    }

    /// Returns the next connection as soon as a slot is free. A connection of a client that has too many is closed.
    ///
    /// The connection is accepted before the slot is acquired. Otherwise a socket without clients would hold a slot
    /// that the other sockets of the port need.
    async fn accept(&self) -> Option<(Stream, ConnectionSlot)> {
        let accepted = match &self.listener.socket {
            Socket::Tcp(listener) => listener.accept().await.map(|(stream, peer)| {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "TCP_NODELAY cannot be set; the client has probably disconnected");
                }
                Stream::Tcp(stream, peer)
            }),
            Socket::Unix(listener, _) => listener.accept().await.map(|(stream, _)| Stream::Unix(stream)),
        };
        match accepted {
            Ok(stream) => {
                let client = match &stream {
                    Stream::Tcp(_, peer) => ClientAddress::new(*peer),
                    Stream::Unix(_) => ClientAddress::Unix,
                };
                Some((stream, self.slots.admit(client).await?))
            }
            Err(error) => {
                // Usually too many open files. Other connections must close first.
                tracing::warn!(%error, "connection cannot be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::CertificateFiles;
    use http_body::Frame;
    use std::pin::Pin;
    use std::sync::{Arc, Mutex};
    use std::task::{Context, Poll};
    use tokio::io::AsyncWriteExt as _;
    use tokio::sync::oneshot;

    /// Endless body. Dropping it closes the channel.
    struct Endless(#[expect(dead_code, reason = "only its drop matters")] oneshot::Sender<()>);

    impl http_body::Body for Endless {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[0; 16 * 1024])))))
        }
    }

    #[tokio::test]
    async fn client_that_stops_reading_is_disconnected() {
        let long = Duration::from_mins(10);
        let limits = ConnectionLimits {
            connections: 1,
            per_client: 1,
            head: long,
            write: Duration::from_millis(50),
            grace: long,
        };
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0)).into();
        let listeners = Listener::open(&loopback, "server.listen", None, &mut InheritedSockets::none()).await;
        let listeners = listeners.expect("a port");
        let address = listeners[0].local().expect("an address");
        let stop = CancellationToken::new();
        let (held, dropped) = oneshot::channel();
        let held = Arc::new(Mutex::new(Some(held)));
        let server =
            tokio::spawn(serve(listeners, watch::channel(limits).1, None, stop.clone(), move |_, _| {
                let held = held.lock().expect("no panic").take().expect("one request");
                async move { Ok(Response::new(Endless(held))) }
            }));
        let mut client = TcpStream::connect(address).await.expect("a connection");
        client.write_all(b"GET / HTTP/1.1\r\nHost: larder\r\n\r\n").await.expect("sent");
        let disconnected = tokio::time::timeout(Duration::from_secs(30), dropped).await;
        assert!(disconnected.expect("the answer is dropped").is_err());
        stop.cancel();
        assert!(server.await.expect("no panic"), "no connection is left");
        drop(client);
    }

    /// Serves an endless body with TLS. Returns a client for this HTTP version, the URL, the token that stops the port, and
    /// a channel that closes when the answer is dropped.
    async fn tls_port(
        version: &str,
        limits: ConnectionLimits,
    ) -> (reqwest::Client, String, CancellationToken, oneshot::Receiver<()>) {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
        let folder = tempfile::tempdir().expect("a folder");
        let files = CertificateFiles { cert: folder.path().join("cert"), key: folder.path().join("key") };
        std::fs::write(&files.cert, made.cert.pem()).expect("written");
        std::fs::write(&files.key, made.signing_key.serialize_pem()).expect("written");
        let certificate = Certificate::load(files).expect("a certificate");
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0)).into();
        let key = "server.tls_listen";
        let listeners =
            Listener::open(&loopback, key, Some(&certificate), &mut InheritedSockets::none()).await;
        let listeners = listeners.expect("a port");
        let address = listeners[0].local().expect("an address");
        let stop = CancellationToken::new();
        let (held, dropped) = oneshot::channel();
        let held = Arc::new(Mutex::new(Some(held)));
        tokio::spawn(serve(listeners, watch::channel(limits).1, None, stop.clone(), move |_, _| {
            let held = held.lock().expect("no panic").take().expect("one request");
            async move { Ok(Response::new(Endless(held))) }
        }));
        let mut roots = rustls::RootCertStore::empty();
        roots.add(made.cert.der().clone()).expect("a root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![version.as_bytes().to_vec()];
        let client = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy();
        (client.build().expect("a client"), format!("https://{address}/"), stop, dropped)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn client_that_stops_reading_is_disconnected_with_tls() {
        let long = Duration::from_mins(10);
        let limits = ConnectionLimits {
            connections: 1,
            per_client: 1,
            head: long,
            write: Duration::from_millis(200),
            grace: long,
        };
        for (name, version) in [("http/1.1", http::Version::HTTP_11), ("h2", http::Version::HTTP_2)] {
            let (client, url, stop, dropped) = tls_port(name, limits).await;
            let mut answer = client.get(url).send().await.expect("an answer");
            assert_eq!(answer.version(), version);
            // On HTTP/2 the client answers pings, but it does not read this body.
            let disconnected = tokio::time::timeout(Duration::from_secs(30), dropped).await;
            assert!(disconnected.expect("the answer is dropped").is_err());
            while let Ok(Some(_)) = answer.chunk().await {}
            stop.cancel();
        }
    }
}
