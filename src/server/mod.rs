//! Sockets: accepts connections, speaks TLS, HTTP/1.1 and HTTP/2 on them, bounds them, and lets them finish. Knows no
//! registry.

mod connection;
mod h2_keepalive;
mod lingering_close;
mod listen;
mod tls;
mod write_timeout;

use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use prometheus::IntGauge;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

pub use listen::{InheritedSockets, ListenError};
pub use tls::{Certificate, CertificateError, CertificateFiles};

use crate::config::address::ListenAddresses;
use connection::ConnectionService;
use listen::Socket;

/// Bounds of one port.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Connections served at once, on all its sockets together.
    pub connections: usize,
    /// How long a client may take over a TLS handshake and over a request's head, and sit idle between requests.
    pub head: Duration,
    /// How long a client may take none of an answer's bytes.
    pub write: Duration,
    /// How long running answers may go on once the port closes.
    pub grace: Duration,
}

/// A socket that is listened at, and what is spoken on it.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    tls: Option<Certificate>,
}

impl Listener {
    /// Listens at all of these slots; with TLS if there is a certificate. `key` is what named them, for errors.
    pub async fn open(
        addresses: &ListenAddresses,
        key: &'static str,
        tls: Option<&Certificate>,
        passed: &mut InheritedSockets,
    ) -> Result<Vec<Self>, ListenError> {
        let sockets = listen::open(addresses, key, passed).await?;
        Ok(sockets.into_iter().map(|socket| Self { socket, tls: tls.cloned() }).collect())
    }

    /// Its address, if it has one on the network; the real port where the configuration said 0.
    pub fn local(&self) -> Option<SocketAddr> {
        self.socket.local()
    }

    /// Whether TLS is spoken.
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket.fmt(f)
    }
}

/// Serves connections until `stop` turns true, then lets running answers finish within the grace period.
///
/// `answer` is told where the client is, unless it came by a socket in the file system. Limits that change count for
/// connections that begin after that, and for the end. Returns whether all answers came to their end.
pub async fn serve<S, F, B>(
    listeners: Vec<Listener>,
    limits: watch::Receiver<ConnectionLimits>,
    open: Option<IntGauge>,
    stop: watch::Receiver<bool>,
    answer: S,
) -> bool
where
    S: Fn(Request<Incoming>, Option<SocketAddr>) -> F + Clone + Send + 'static,
    F: Future<Output = Result<Response<B>, Infallible>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    // Never sent on: that nobody holds a sender any more is the message.
    let (working, mut done) = mpsc::channel::<Infallible>(1);
    let slots = Arc::new(Semaphore::new(limits.borrow().connections));
    let resizing = tokio::spawn(resize(Arc::clone(&slots), limits.clone()));
    let accepting = listeners.into_iter().map(|listener| {
        let port = Port { listener, slots: Arc::clone(&slots), open: open.clone(), working: working.clone() };
        tokio::spawn(port.accept_all(ConnectionService {
            limits: limits.clone(),
            stop: stop.clone(),
            answer: answer.clone(),
        }))
    });
    let accepting: Vec<_> = accepting.collect();
    drop(working);
    for accepting in accepting {
        // One that panicked accepts nothing more; the others must still be waited for.
        if let Err(error) = accepting.await {
            tracing::error!(%error, "a port has failed");
        }
    }
    resizing.abort();
    let grace = limits.borrow().grace;
    tokio::time::timeout(grace, done.recv()).await.is_ok()
}

/// Makes as many slots as the limits allow, whenever these change. Places that are to go and are taken go once they
/// are given back.
async fn resize(slots: Arc<Semaphore>, mut limits: watch::Receiver<ConnectionLimits>) {
    let mut now = limits.borrow_and_update().connections;
    while limits.changed().await.is_ok() {
        let wanted = limits.borrow_and_update().connections;
        slots.add_permits(wanted.saturating_sub(now));
        for _ in wanted..now {
            if let Ok(slot) = slots.acquire().await {
                slot.forget();
            }
        }
        now = wanted;
    }
}

/// One socket at work.
struct Port {
    listener: Listener,
    slots: Arc<Semaphore>,
    open: Option<IntGauge>,
    working: mpsc::Sender<Infallible>,
}

/// A client's end of a connection.
enum Stream {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

/// A slot among the connections of a port, given back when it is dropped.
struct ConnectionSlot {
    _permit: OwnedSemaphorePermit,
    _working: mpsc::Sender<Infallible>,
    open: Option<IntGauge>,
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        if let Some(open) = &self.open {
            open.dec();
        }
    }
}

impl Port {
    async fn accept_all<S, F, B>(self, service: ConnectionService<S>)
    where
        S: Fn(Request<Incoming>, Option<SocketAddr>) -> F + Clone + Send + 'static,
        F: Future<Output = Result<Response<B>, Infallible>> + Send + 'static,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let mut stop = service.stop.clone();
        loop {
            let accepted = tokio::select! {
                // Only the sender's end, or true, can end this wait; both mean stop.
                _ = stop.wait_for(|stop| *stop) => return,
                accepted = self.accept() => accepted,
            };
            let Some((stream, slot)) = accepted else { continue };
            let service = service.clone();
            let tls = self.listener.tls.as_ref().map(Certificate::newest);
            tokio::spawn(async move {
                match stream {
                    Stream::Tcp(stream, peer) => service.serve(stream, Some(peer), tls).await,
                    Stream::Unix(stream) => service.serve(stream, None, tls).await,
                }
                drop(slot);
            });
        }
    }

    /// The next connection, once there is a slot for it.
    ///
    /// It is taken in before there is: a socket that waits with a slot in its hand would keep it from the port's others.
    async fn accept(&self) -> Option<(Stream, ConnectionSlot)> {
        let accepted = match &self.listener.socket {
            Socket::Tcp(listener) => listener.accept().await.map(|(stream, peer)| {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "a connection went before it began");
                }
                Stream::Tcp(stream, peer)
            }),
            Socket::Unix(listener, _) => listener.accept().await.map(|(stream, _)| Stream::Unix(stream)),
        };
        match accepted {
            Ok(stream) => {
                let permit = Arc::clone(&self.slots).acquire_owned().await.ok()?;
                if let Some(open) = &self.open {
                    open.inc();
                }
                let open = self.open.clone();
                Some((stream, ConnectionSlot { _permit: permit, _working: self.working.clone(), open }))
            }
            Err(error) => {
                // Too many open files, mostly: others must close before it gets better.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body::Frame;
    use std::pin::Pin;
    use std::sync::Mutex;
    use std::task::{Context, Poll};
    use tokio::io::AsyncWriteExt as _;
    use tokio::sync::oneshot;

    /// A body without an end that tells when it is dropped.
    struct Endless(#[expect(dead_code, reason = "its drop is the message")] oneshot::Sender<()>);

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
    async fn a_client_that_stops_reading_loses_its_place() {
        let patient = Duration::from_mins(10);
        let limits = ConnectionLimits {
            connections: 1,
            head: patient,
            write: Duration::from_millis(50),
            grace: patient,
        };
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0)).into();
        let listeners = Listener::open(&loopback, "server.listen", None, &mut InheritedSockets::none()).await;
        let listeners = listeners.expect("a port");
        let address = listeners[0].local().expect("an address");
        let (stop, stopped) = watch::channel(false);
        let (held, dropped) = oneshot::channel();
        let held = Arc::new(Mutex::new(Some(held)));
        let server = tokio::spawn(serve(listeners, watch::channel(limits).1, None, stopped, move |_, _| {
            let held = held.lock().expect("no panic").take().expect("one request");
            async move { Ok(Response::new(Endless(held))) }
        }));
        let mut client = TcpStream::connect(address).await.expect("a connection");
        client.write_all(b"GET / HTTP/1.1\r\nHost: larder\r\n\r\n").await.expect("sent");
        let given_up = tokio::time::timeout(Duration::from_secs(30), dropped).await;
        assert!(given_up.expect("the answer is given up").is_err());
        stop.send_replace(true);
        assert!(server.await.expect("no panic"), "nothing is left that the end would have to wait for");
        drop(client);
    }

    /// A larder's port with TLS, a client of it that speaks this version, what ends the port, and what tells that the
    /// answer is given up.
    async fn tls_port(
        version: &str,
        limits: ConnectionLimits,
    ) -> (reqwest::Client, String, watch::Sender<bool>, oneshot::Receiver<()>) {
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
        let (stop, stopped) = watch::channel(false);
        let (held, dropped) = oneshot::channel();
        let held = Arc::new(Mutex::new(Some(held)));
        tokio::spawn(serve(listeners, watch::channel(limits).1, None, stopped, move |_, _| {
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
    async fn a_client_behind_tls_that_takes_nothing_loses_its_connection() {
        let patient = Duration::from_mins(10);
        let limits = ConnectionLimits {
            connections: 1,
            head: patient,
            write: Duration::from_millis(200),
            grace: patient,
        };
        for (name, version) in [("http/1.1", http::Version::HTTP_11), ("h2", http::Version::HTTP_2)] {
            let (client, url, _stop, dropped) = tls_port(name, limits).await;
            let mut answer = client.get(url).send().await.expect("an answer");
            assert_eq!(answer.version(), version);
            // On HTTP/2 the client's connection is alive and answers pings; it is this answer that nobody takes.
            let given_up = tokio::time::timeout(Duration::from_secs(30), dropped).await;
            assert!(given_up.expect("the answer is given up").is_err());
            while let Ok(Some(_)) = answer.chunk().await {}
        }
    }
}
