//! A small scripted registry on loopback, and an upstream that uses it.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use larder::clock::Clock;
use larder::config::Config;
use larder::config::schema::{Endpoint, Upstream as Settings};
use larder::oci::{Algorithm, Digest, Name, Reference};
use larder::source::{BlobBody, SourceError};
use larder::telemetry::Metrics;
use larder::upstream::{Timeouts, Upstream, Upstreams};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

/// Time-outs of the server. Tests that wait for a time-out use a shorter one.
pub(crate) const TIMEOUTS: Timeouts = Timeouts {
    connect: Duration::from_secs(3),
    head: Duration::from_secs(8),
    blob_head: Duration::from_mins(2),
    total: Duration::from_secs(9),
    idle: Duration::from_secs(30),
};

/// A received request.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("text"))
    }
}

/// Answer of the registry to a request.
pub(crate) enum Reply {
    Answer { status: u16, headers: Vec<(&'static str, String)>, pieces: Vec<Piece> },
    Hang,
    Reset,
}

pub(crate) enum Piece {
    Data(Vec<u8>),
    /// A pause, in which the server sends its buffered data.
    Flush,
    Cut,
    Stall,
}

pub(crate) fn answer(status: u16, headers: &[(&'static str, &str)], body: &[u8]) -> Reply {
    let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    Reply::Answer { status, headers, pieces: vec![Piece::Data(body.to_vec())] }
}

/// A body that is sent, interrupted or stalled as scripted.
pub(crate) struct Script(VecDeque<Piece>);

impl http_body::Body for Script {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.0.front_mut() {
            None => Poll::Ready(None),
            // Nothing wakes this task again. It ends with the connection.
            Some(Piece::Stall) => Poll::Pending,
            Some(Piece::Flush) => {
                self.0.pop_front();
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Some(Piece::Cut) => Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into()))),
            Some(Piece::Data(data)) => {
                let data = std::mem::take(data);
                self.0.pop_front();
                Poll::Ready(Some(Ok(Frame::data(data.into()))))
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        // `pop_front` of a deque that was made from a vector never wraps.
        match self.0.as_slices().0 {
            [] => SizeHint::with_exact(0),
            [Piece::Data(data)] => SizeHint::with_exact(data.len() as u64),
            _ => SizeHint::default(),
        }
    }
}

pub(crate) type Behaviour = dyn Fn(&Seen, usize) -> Reply + Send + Sync;

/// A registry on loopback that records all requests.
pub(crate) struct Registry {
    pub(crate) address: SocketAddr,
    scheme: &'static str,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Registry {
    /// Starts the registry. The function gets each request and the number of earlier ones.
    pub(crate) async fn start(behaviour: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(None, behaviour).await
    }

    /// The same over TLS, with HTTP/2 if the client supports it.
    pub(crate) async fn start_tls(
        identity: &Identity,
        behaviour: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::listen(Some(identity.acceptor.clone()), behaviour).await
    }

    async fn listen(
        tls: Option<TlsAcceptor>,
        behaviour: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (record, behaviour): (_, Arc<Behaviour>) = (Arc::clone(&seen), Arc::new(behaviour));
        let scheme = if tls.is_some() { "https" } else { "http" };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (record, behaviour) = (Arc::clone(&record), Arc::clone(&behaviour));
                let service = service_fn(move |request| {
                    let (record, behaviour) = (Arc::clone(&record), Arc::clone(&behaviour));
                    async move { serve(request, &record, behaviour.as_ref()).await }
                });
                let Some(tls) = tls.clone() else {
                    tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
                    continue;
                };
                tokio::spawn(async move {
                    // A client that does not trust the certificate closes the connection here.
                    let Ok(stream) = tls.accept(stream).await else { return };
                    let http = http2::Builder::new(TokioExecutor::new());
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, scheme, seen }
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no panic").clone()
    }
}

async fn serve(
    request: Request<hyper::body::Incoming>,
    record: &Mutex<Vec<Seen>>,
    behaviour: &Behaviour,
) -> Result<Response<Script>, io::Error> {
    let target = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    let (head, mut incoming) = request.into_parts();
    let mut body = Vec::new();
    while let Some(frame) = std::future::poll_fn(|context| Pin::new(&mut incoming).poll_frame(context)).await
    {
        let data = frame.map_err(io::Error::other)?.into_data();
        body.extend_from_slice(&data.unwrap_or_default());
    }
    let body = String::from_utf8(body).map_err(io::Error::other)?;
    let seen = Seen { method: head.method.to_string(), target, headers: head.headers, body };
    let before = {
        let mut record = record.lock().expect("no panic");
        record.push(seen.clone());
        record.len() - 1
    };
    match behaviour(&seen, before) {
        Reply::Hang => std::future::pending().await,
        Reply::Reset => Err(io::ErrorKind::ConnectionReset.into()),
        Reply::Answer { status, headers, pieces } => {
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            Ok(response.body(Script(pieces.into())).expect("a response"))
        }
    }
}

/// Returns an upstream named `reg.test` and its metrics.
pub(crate) fn upstream(settings: Settings, timeouts: Timeouts) -> (Arc<Upstream>, Arc<Metrics>) {
    let (upstream, metrics, _) = timed("reg.test", settings, timeouts);
    (upstream, metrics)
}

/// Returns an upstream, its metrics, and its clock.
pub(crate) fn timed(
    name: &str,
    settings: Settings,
    timeouts: Timeouts,
) -> (Arc<Upstream>, Arc<Metrics>, Clock) {
    let (metrics, clock) = (Arc::new(Metrics::new()), Clock::default());
    let config = Config { upstream: BTreeMap::from([(name.to_owned(), settings)]), ..Config::default() };
    let upstreams = Upstreams::build_with(&config, Arc::clone(&metrics), clock.clone(), timeouts);
    let upstreams = upstreams.expect("a configuration");
    let upstream = upstreams.get(&name.parse().expect("a name")).expect("the upstream");
    (Arc::clone(upstream), metrics, clock)
}

pub(crate) fn at(url: &str) -> Settings {
    Settings { endpoints: vec![Endpoint::new(url)], ..Settings::default() }
}

pub(crate) fn open(registry: &Registry) -> Arc<Upstream> {
    upstream(at(&registry.url()), TIMEOUTS).0
}

pub(crate) fn name() -> Name {
    "org/app".parse().expect("a name")
}

pub(crate) fn tag() -> Reference {
    "latest".parse().expect("a tag")
}

pub(crate) fn digest() -> Digest {
    Digest::of(Algorithm::Sha256, b"content")
}

pub(crate) fn counted(metrics: &Metrics, series: &str) -> Option<String> {
    let text = String::from_utf8(metrics.render()).expect("text");
    let prefix = format!("{series} ");
    text.lines().find_map(|line| line.strip_prefix(&prefix)).map(str::to_owned)
}

pub(crate) async fn read(body: &mut BlobBody) -> Result<Vec<u8>, (Vec<u8>, SourceError)> {
    let mut bytes = Vec::new();
    loop {
        match body.chunk().await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            Ok(None) => return Ok(bytes),
            Err(error) => return Err((bytes, error)),
        }
    }
}

pub(crate) fn with_password(url: &str, folder: &Path, password: &str) -> Settings {
    let file = folder.join("password");
    std::fs::write(&file, password).expect("written");
    Settings { username: Some("user".to_owned()), password_file: Some(file), ..at(url) }
}

/// Returns the settings of an upstream at `url` with this `config.json`.
pub(crate) fn with_docker_config(url: &str, folder: &Path, content: &str) -> Settings {
    let file = folder.join("config.json");
    std::fs::write(&file, content).expect("written");
    Settings { docker_config: Some(file), ..at(url) }
}

/// Returns the header of Basic authentication for a user and a password.
pub(crate) fn basic(pair: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(pair))
}

/// A self-signed certificate.
pub(crate) struct Identity {
    pub(crate) pem: String,
    pub(crate) key: String,
    cert: CertificateDer<'static>,
    acceptor: TlsAcceptor,
}

impl Identity {
    pub(crate) fn new() -> Self {
        Self::requiring_client_certificate(None)
    }

    /// Starts a server with this certificate. It requires client certificates, and accepts this one only.
    pub(crate) fn requiring_client_certificate(client: Option<&Self>) -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let provider = Arc::new(ring::default_provider());
        let verifier = client.map_or_else(WebPkiClientVerifier::no_client_auth, |client| {
            let mut roots = RootCertStore::empty();
            roots.add(client.cert.clone()).expect("an authority");
            let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
            builder.build().expect("a verifier")
        });
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("protocol versions")
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("an identity");
        config.alpn_protocols = vec![b"h2".to_vec()];
        Self {
            pem: made.cert.pem(),
            key: made.signing_key.serialize_pem(),
            cert: made.cert.der().clone(),
            acceptor: TlsAcceptor::from(Arc::new(config)),
        }
    }
}
