//! The upstream layer against small registries on loopback: tokens, redirects, ranges, trouble, layout folders.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use larder::config::Config;
use larder::config::schema::{Endpoint, Upstream as Settings};
use larder::oci::content::media::CANONICAL_ACCEPT;
use larder::oci::{Algorithm, Digest, Name, Reference};
use larder::telemetry::Metrics;
use larder::upstream::{Fault, MANIFEST_MAX, Timeouts, Upstream, UpstreamError, Upstreams};
use tokio::net::TcpListener;

/// Short enough for a test to wait for, long enough for a busy machine.
const SHORT: Timeouts = Timeouts {
    connect: Duration::from_secs(2),
    head: Duration::from_millis(400),
    total: Duration::from_secs(5),
    idle: Duration::from_millis(400),
};

/// What the registry saw.
#[derive(Clone, Debug)]
struct Seen {
    method: String,
    /// Path and query.
    target: String,
    headers: HeaderMap,
}

impl Seen {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("text"))
    }
}

/// What the registry does with a request.
enum Reply {
    Answer { status: u16, headers: Vec<(&'static str, String)>, pieces: Vec<Piece> },
    Hang,
    Reset,
}

enum Piece {
    Data(Vec<u8>),
    /// Nothing for the moment, which lets the server send what it has gathered.
    Flush,
    Cut,
    Stall,
}

fn answer(status: u16, headers: &[(&'static str, &str)], body: &[u8]) -> Reply {
    let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    Reply::Answer { status, headers, pieces: vec![Piece::Data(body.to_vec())] }
}

/// A body that is sent, cut or stalled as told.
struct Script(VecDeque<Piece>);

impl http_body::Body for Script {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.0.front_mut() {
            None => Poll::Ready(None),
            // Nobody wakes this task again; the connection's end does away with it.
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
        // Popping from the front never wraps a deque that was made from a vector.
        match self.0.as_slices().0 {
            [] => SizeHint::with_exact(0),
            [Piece::Data(data)] => SizeHint::with_exact(data.len() as u64),
            _ => SizeHint::default(),
        }
    }
}

type Behaviour = dyn Fn(&Seen, usize) -> Reply + Send + Sync;

/// A registry on loopback that behaves as told and remembers what it was asked.
struct Registry {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Registry {
    /// The behaviour gets each request and how many came before it.
    async fn start(behaviour: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (record, behaviour): (_, Arc<Behaviour>) = (Arc::clone(&seen), Arc::new(behaviour));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (record, behaviour) = (Arc::clone(&record), Arc::clone(&behaviour));
                let service = service_fn(move |request| {
                    let (record, behaviour) = (Arc::clone(&record), Arc::clone(&behaviour));
                    async move { serve(&request, &record, behaviour.as_ref()).await }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { address, seen }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no panic").clone()
    }
}

async fn serve(
    request: &Request<hyper::body::Incoming>,
    record: &Mutex<Vec<Seen>>,
    behaviour: &Behaviour,
) -> Result<Response<Script>, io::Error> {
    let target = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    let seen = Seen { method: request.method().to_string(), target, headers: request.headers().clone() };
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

/// One upstream named `reg.test`, and the metrics it counts into.
fn upstream(settings: Settings, timeouts: Timeouts) -> (Arc<Upstream>, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new());
    let config =
        Config { upstream: BTreeMap::from([("reg.test".to_owned(), settings)]), ..Config::default() };
    let upstreams = Upstreams::build_with(&config, &metrics, timeouts).expect("a configuration");
    let upstream = upstreams.get(&"reg.test".parse().expect("a name")).expect("the upstream");
    (Arc::clone(upstream), metrics)
}

fn at(url: &str) -> Settings {
    Settings { endpoints: vec![Endpoint::new(url)], ..Settings::default() }
}

fn open(registry: &Registry) -> Arc<Upstream> {
    upstream(at(&registry.url()), SHORT).0
}

fn name() -> Name {
    "org/app".parse().expect("a name")
}

fn tag() -> Reference {
    "latest".parse().expect("a tag")
}

fn digest() -> Digest {
    Digest::of(Algorithm::Sha256, b"content")
}

fn counted(metrics: &Metrics, series: &str) -> Option<String> {
    let text = String::from_utf8(metrics.render()).expect("text");
    let prefix = format!("{series} ");
    text.lines().find_map(|line| line.strip_prefix(&prefix)).map(str::to_owned)
}

async fn read(body: &mut larder::upstream::BlobBody) -> Result<Vec<u8>, (Vec<u8>, UpstreamError)> {
    let mut bytes = Vec::new();
    loop {
        match body.chunk().await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            Ok(None) => return Ok(bytes),
            Err(error) => return Err((bytes, error)),
        }
    }
}

// What is asked, and how the answer is read

#[tokio::test]
async fn a_manifest_is_fetched_as_it_is() {
    let registry = Registry::start(|_, _| {
        let digest = digest().to_string();
        let headers = [("content-type", "text/odd; charset=x"), ("docker-content-digest", &digest)];
        answer(200, &headers, b"{}")
    })
    .await;
    let (upstream, metrics) = upstream(at(&registry.url()), SHORT);
    let document = upstream.get_manifest(&name(), &tag(), CANONICAL_ACCEPT).await.expect("a document");
    assert_eq!(document.body, "{}");
    assert_eq!(document.content_type.as_deref(), Some("text/odd; charset=x"));
    assert_eq!(document.digest, Some(digest()));

    let head = upstream.head_manifest(&name(), &tag(), CANONICAL_ACCEPT).await.expect("a head");
    assert_eq!(head.digest, Some(digest()));
    assert_eq!(head.size, Some(2));

    let seen = registry.seen();
    assert_eq!(seen[0].target, "/v2/org/app/manifests/latest");
    assert_eq!(seen[0].header("accept"), Some(CANONICAL_ACCEPT));
    assert_eq!(seen[0].header("accept-encoding"), Some("identity"));
    assert!(seen[0].header("user-agent").is_some_and(|agent| agent.starts_with("larder/")));
    assert_eq!(seen[0].header("authorization"), None);
    assert_eq!(seen[1].method, "HEAD");

    let get = r#"larder_upstream_requests_total{method="GET",status="200",upstream="reg.test"}"#;
    assert_eq!(counted(&metrics, get).as_deref(), Some("1"));
    let fetched = r#"larder_fetched_bytes_total{kind="manifest",upstream="reg.test"}"#;
    assert_eq!(counted(&metrics, fetched).as_deref(), Some("2"));
}

#[tokio::test]
async fn a_path_in_the_endpoint_is_kept() {
    let registry = Registry::start(|_, _| answer(200, &[], b"{}")).await;
    let (upstream, _) = upstream(at(&format!("{}/proxy/hub/", registry.url())), SHORT);
    upstream.head_blob(&name(), &digest()).await.expect("a blob");
    assert_eq!(registry.seen()[0].target, format!("/proxy/hub/v2/org/app/blobs/{}", digest()));
}

#[tokio::test]
async fn an_oversized_manifest_is_refused_with_and_without_its_length() {
    let registry = Registry::start(|_, before| {
        let body = vec![b' '; MANIFEST_MAX + 1];
        if before == 0 {
            return answer(200, &[], &body);
        }
        let (first, second) = body.split_at(MANIFEST_MAX);
        let pieces = vec![Piece::Data(first.to_vec()), Piece::Data(second.to_vec())];
        Reply::Answer { status: 200, headers: Vec::new(), pieces }
    })
    .await;
    let upstream = open(&registry);
    for _ in 0..2 {
        let error = upstream.get_manifest(&name(), &tag(), CANONICAL_ACCEPT).await.expect_err("refused");
        assert!(matches!(&error, UpstreamError::Invalid(text) if text.contains("larger")), "{error}");
    }
    assert_eq!(registry.seen().len(), 2, "it is not asked for again");
}

#[tokio::test]
async fn an_encoded_body_is_refused_by_name() {
    let registry = Registry::start(|_, _| answer(200, &[("content-encoding", "gzip")], b"x")).await;
    let upstream = open(&registry);
    let error = upstream.get_manifest(&name(), &tag(), CANONICAL_ACCEPT).await.expect_err("refused");
    assert!(matches!(&error, UpstreamError::Invalid(text) if text.contains("gzip")), "{error}");
    let error = upstream.get_blob(&name(), &digest(), 0, None).await.expect_err("refused");
    assert!(matches!(error, UpstreamError::Invalid(_)), "{error}");
}

#[tokio::test]
async fn a_registry_without_head_leaves_the_digest_open() {
    let registry = Registry::start(|_, before| match before {
        0 => answer(405, &[], b""),
        1 => answer(501, &[], b""),
        _ => answer(200, &[("docker-content-digest", "sha256:nonsense")], b""),
    })
    .await;
    let upstream = open(&registry);
    for _ in 0..3 {
        let head = upstream.head_manifest(&name(), &tag(), CANONICAL_ACCEPT).await.expect("a head");
        assert_eq!(head.digest, None);
    }
}

#[tokio::test]
async fn statuses_keep_their_meaning() {
    for (status, expected) in [
        (404, UpstreamError::NotFound),
        (403, UpstreamError::Denied { status: 403 }),
        (401, UpstreamError::Denied { status: 401 }),
        (410, UpstreamError::Status(410)),
        (416, UpstreamError::RangeNotSatisfiable),
        (304, UpstreamError::Status(304)),
    ] {
        let registry = Registry::start(move |_, _| answer(status, &[], b"")).await;
        let error = open(&registry).head_blob(&name(), &digest()).await.expect_err("an error");
        assert_eq!(error, expected);
        assert_eq!(registry.seen().len(), 1, "{status} is final");
    }
}

#[tokio::test]
async fn a_quota_says_when_to_come_back() {
    let registry = Registry::start(|_, before| match before {
        0 => answer(429, &[("retry-after", "30")], b"slow down"),
        1 => {
            let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_mins(10));
            answer(429, &[("retry-after", &date)], b"")
        }
        _ => answer(429, &[], b""),
    })
    .await;
    let upstream = open(&registry);
    let ask = async || upstream.head_blob(&name(), &digest()).await.expect_err("refused");
    let error = ask().await;
    assert_eq!(error.retry_after(), Some(Duration::from_secs(30)));
    assert!(error.is_trouble() && error.fault() == Fault::Upstream);
    let dated = ask().await.retry_after().expect("a date");
    assert!(dated > Duration::from_mins(9) && dated <= Duration::from_mins(10), "{dated:?}");
    assert_eq!(ask().await, UpstreamError::RateLimited { retry_after: None });
    assert_eq!(registry.seen().len(), 3, "a quota is never hammered");
}

// Trouble

#[tokio::test]
async fn what_may_pass_is_asked_again() {
    let registry = Registry::start(|_, before| match before {
        0 => answer(503, &[], b""),
        1 => Reply::Reset,
        _ => answer(200, &[], b"content"),
    })
    .await;
    let (upstream, metrics) = upstream(at(&registry.url()), SHORT);
    assert_eq!(upstream.head_blob(&name(), &digest()).await, Ok(Some(7)));
    assert_eq!(registry.seen().len(), 3);
    let broken = r#"larder_upstream_requests_total{method="HEAD",status="error",upstream="reg.test"}"#;
    assert_eq!(counted(&metrics, broken).as_deref(), Some("1"));
}

#[tokio::test]
async fn but_no_more_than_twice() {
    let registry = Registry::start(|_, _| answer(502, &[], b"")).await;
    let error = open(&registry).head_blob(&name(), &digest()).await.expect_err("an error");
    assert_eq!(error, UpstreamError::Status(502));
    assert_eq!(registry.seen().len(), 3);
}

#[tokio::test]
async fn a_silent_registry_is_not_asked_twice() {
    let registry = Registry::start(|_, _| Reply::Hang).await;
    let error = open(&registry).head_blob(&name(), &digest()).await.expect_err("an error");
    assert!(matches!(error, UpstreamError::Timeout(_)), "{error}");
    assert!(error.is_trouble() && error.retryable());
    assert_eq!(registry.seen().len(), 1);
}

#[tokio::test]
async fn nobody_listening_is_unreachable() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    drop(listener);
    let (upstream, _) = upstream(at(&url), SHORT);
    let error = upstream.head_blob(&name(), &digest()).await.expect_err("an error");
    assert!(matches!(error, UpstreamError::Unreachable(_)), "{error}");
}

#[tokio::test]
async fn a_cut_body_is_no_end() {
    let registry = Registry::start(|_, _| Reply::Answer {
        status: 200,
        headers: vec![("content-length", "10".to_owned())],
        pieces: vec![Piece::Data(b"01234".to_vec()), Piece::Flush, Piece::Cut],
    })
    .await;
    let upstream = open(&registry);
    let mut body = upstream.get_blob(&name(), &digest(), 0, None).await.expect("a body");
    assert_eq!(body.total, Some(10));
    let (got, error) = read(&mut body).await.expect_err("cut");
    assert_eq!(got, b"01234");
    assert!(matches!(error, UpstreamError::Interrupted(_)) && error.retryable(), "{error}");

    let error = upstream.get_manifest(&name(), &tag(), CANONICAL_ACCEPT).await.expect_err("cut");
    assert!(matches!(error, UpstreamError::Interrupted(_)), "{error}");
}

#[tokio::test]
async fn a_body_that_stops_coming_is_given_up() {
    let registry = Registry::start(|_, _| Reply::Answer {
        status: 200,
        headers: vec![("content-length", "10".to_owned())],
        pieces: vec![Piece::Data(b"01234".to_vec()), Piece::Stall],
    })
    .await;
    let upstream = open(&registry);
    let mut body = upstream.get_blob(&name(), &digest(), 0, None).await.expect("a body");
    let (got, error) = read(&mut body).await.expect_err("stalled");
    assert_eq!(got, b"01234");
    assert!(matches!(error, UpstreamError::Interrupted(_)), "{error}");
}

#[tokio::test]
async fn running_blobs_leave_room_for_manifests() {
    let registry = Registry::start(|seen, _| {
        if seen.target.contains("/blobs/") {
            let pieces = vec![Piece::Data(b"0".to_vec()), Piece::Stall];
            Reply::Answer { status: 200, headers: Vec::new(), pieces }
        } else {
            answer(200, &[], b"{}")
        }
    })
    .await;
    let settings = Settings { max_connections: 2, ..at(&registry.url()) };
    let (upstream, _) = upstream(settings, SHORT);
    let body = upstream.get_blob(&name(), &digest(), 0, None).await.expect("a body");
    let error = upstream.get_blob(&name(), &digest(), 0, None).await.expect_err("no room");
    assert!(matches!(&error, UpstreamError::Timeout(text) if text.contains("max_connections")), "{error}");
    upstream.get_manifest(&name(), &tag(), CANONICAL_ACCEPT).await.expect("room for a manifest");
    drop(body);
    upstream.get_blob(&name(), &digest(), 0, None).await.expect("room again");
}

// Ranges

#[tokio::test]
async fn a_blob_goes_on_where_it_was_left() {
    let registry = Registry::start(|seen, _| match seen.header("range") {
        Some("bytes=4-") => answer(206, &[("content-range", "bytes 4-9/10")], b"456789"),
        Some("bytes=4-5") => answer(206, &[("content-range", "bytes 4-5/10")], b"45"),
        Some("bytes=10-") => answer(416, &[("content-range", "bytes */10")], b""),
        Some(_) => answer(400, &[], b""),
        None => answer(200, &[], b"0123456789"),
    })
    .await;
    let (upstream, metrics) = upstream(at(&registry.url()), SHORT);
    for (from, to, bytes) in
        [(4, None, &b"456789"[..]), (4, Some(5), &b"45"[..]), (0, None, &b"0123456789"[..])]
    {
        let mut body = upstream.get_blob(&name(), &digest(), from, to).await.expect("a body");
        assert_eq!((body.offset, body.total), (from, Some(10)));
        assert_eq!(read(&mut body).await.expect("the range"), bytes);
        assert_eq!(body.chunk().await, Ok(None), "an end stays an end");
    }
    let error = upstream.get_blob(&name(), &digest(), 10, None).await.expect_err("beyond");
    assert_eq!(error, UpstreamError::RangeNotSatisfiable);
    let fetched = r#"larder_fetched_bytes_total{kind="blob",upstream="reg.test"}"#;
    assert_eq!(counted(&metrics, fetched).as_deref(), Some("18"));
}

#[tokio::test]
async fn an_ignored_range_starts_at_zero() {
    let registry = Registry::start(|_, _| answer(200, &[], b"0123456789")).await;
    let mut body = open(&registry).get_blob(&name(), &digest(), 4, None).await.expect("a body");
    assert_eq!((body.offset, body.total), (0, Some(10)));
    assert_eq!(read(&mut body).await.expect("all of it"), b"0123456789");
}

#[tokio::test]
async fn a_wrong_range_is_refused() {
    for (range, body) in [
        (Some("bytes 5-9/10"), &b"56789"[..]),
        (Some("bytes 4-9/9"), b"456789"),
        (Some("bytes 4-9/10"), b"45678"),
        (Some("nonsense"), b"456789"),
        (None, b"456789"),
    ] {
        let registry = Registry::start(move |_, _| {
            let headers: Vec<_> = range.into_iter().map(|range| ("content-range", range)).collect();
            answer(206, &headers, body)
        })
        .await;
        let error = open(&registry).get_blob(&name(), &digest(), 4, None).await.expect_err("refused");
        assert!(matches!(error, UpstreamError::Invalid(_)), "{range:?}: {error}");
    }
    let registry =
        Registry::start(|_, _| answer(206, &[("content-range", "bytes 0-9/10")], b"0123456789")).await;
    let error =
        open(&registry).get_blob(&name(), &digest(), 0, None).await.expect_err("nobody asked for a part");
    assert!(matches!(error, UpstreamError::Invalid(_)), "{error}");
}

// Redirects

#[tokio::test]
async fn a_redirect_elsewhere_takes_no_credentials_along() {
    let storage = Registry::start(|_, _| answer(206, &[("content-range", "bytes 4-9/10")], b"456789")).await;
    let location = format!("{}/signed?X-Signature=hush", storage.url());
    let registry = Registry::start(move |seen, _| {
        if seen.header("authorization").is_none() {
            return answer(401, &[("www-authenticate", r#"Basic realm="reg""#)], b"");
        }
        if seen.target.starts_with("/moved") {
            return answer(302, &[("location", &location)], b"");
        }
        answer(307, &[("location", "/moved")], b"")
    })
    .await;
    let folder = tempfile::tempdir().expect("a folder");
    let (upstream, _) = upstream(with_password(&registry.url(), folder.path(), "pw\n"), SHORT);
    let mut body = upstream.get_blob(&name(), &digest(), 4, None).await.expect("a body");
    assert_eq!(read(&mut body).await.expect("the bytes"), b"456789");

    let basic = "Basic dXNlcjpwdw==";
    let sent: Vec<_> =
        registry.seen().iter().map(|seen| seen.header("authorization").map(str::to_owned)).collect();
    assert_eq!(sent, [None, Some(basic.to_owned()), Some(basic.to_owned())], "the same host keeps it");
    let seen = storage.seen();
    assert_eq!(seen[0].header("authorization"), None);
    assert_eq!(seen[0].header("range"), Some("bytes=4-"));
    assert_eq!(seen[0].target, "/signed?X-Signature=hush");
}

#[tokio::test]
async fn redirects_end() {
    let registry = Registry::start(|seen, _| answer(302, &[("location", &seen.target)], b"")).await;
    let error = open(&registry).head_blob(&name(), &digest()).await.expect_err("a loop");
    assert!(matches!(&error, UpstreamError::Invalid(text) if text.contains("10 times")), "{error}");
    assert_eq!(registry.seen().len(), 11);
}

#[tokio::test]
async fn a_redirect_may_not_lead_inside() {
    for target in [
        "http://169.254.169.254/latest/meta-data?key=hush",
        "http://127.0.0.2/?key=hush",
        "http://localhost:1/?key=hush",
        "http://user:hush@127.0.0.1:1/",
        "ftp://example.test/?key=hush",
        "http://[::1]:1/?key=hush",
    ] {
        let registry = Registry::start(move |_, _| answer(302, &[("location", target)], b"")).await;
        let error = open(&registry).head_blob(&name(), &digest()).await.expect_err("refused");
        assert!(matches!(error, UpstreamError::Invalid(_)), "{target}: {error}");
        assert!(!error.to_string().contains("hush"), "{error}");
    }
    let storage = Registry::start(|_, _| answer(200, &[], b"content")).await;
    let target = format!("http://localhost:{}/", storage.address.port());
    let registry = Registry::start(move |_, _| answer(302, &[("location", &target)], b"")).await;
    let settings = Settings { allow_private: true, ..at(&registry.url()) };
    let (upstream, _) = upstream(settings, SHORT);
    assert_eq!(upstream.head_blob(&name(), &digest()).await, Ok(Some(7)), "unless that is permitted");
}

#[tokio::test]
async fn a_dead_signed_url_is_not_quoted() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let target = format!("http://{}/x?signature=hush", listener.local_addr().expect("an address"));
    drop(listener);
    let registry = Registry::start(move |_, _| answer(302, &[("location", &target)], b"")).await;
    let error = open(&registry).head_blob(&name(), &digest()).await.expect_err("nobody there");
    assert!(matches!(error, UpstreamError::Unreachable(_)), "{error}");
    assert!(!format!("{error} {error:?}").contains("hush"), "{error:?}");
}

// Who we are

fn with_password(url: &str, folder: &Path, password: &str) -> Settings {
    let file = folder.join("password");
    std::fs::write(&file, password).expect("written");
    Settings { username: Some("user".to_owned()), password_file: Some(file), ..at(url) }
}

/// A registry that wants the token that its token service, found at `/token`, gives.
async fn token_registry(realm: Option<String>) -> Registry {
    Registry::start(move |seen, before| {
        if seen.target.starts_with("/token") {
            let token = format!(r#"{{"token":"t{before}","expires_in":300}}"#);
            return answer(200, &[], token.as_bytes());
        }
        if seen.header("authorization").is_some_and(|value| value.starts_with("Bearer t")) {
            return answer(200, &[], b"content");
        }
        let realm = realm.clone().unwrap_or_else(|| "/token?account=larder".to_owned());
        let challenge = format!(r#"Bearer realm="{realm}",service="reg.test""#);
        answer(401, &[("www-authenticate", &challenge)], b"")
    })
    .await
}

#[tokio::test]
async fn a_token_is_asked_for_once_and_kept() {
    let registry = token_registry(None).await;
    let (upstream, metrics) = upstream(at(&registry.url()), SHORT);
    for _ in 0..3 {
        assert_eq!(upstream.head_blob(&name(), &digest()).await, Ok(Some(7)));
    }
    let targets: Vec<_> = registry.seen().into_iter().map(|seen| seen.target).collect();
    let blob = format!("/v2/org/app/blobs/{}", digest());
    let token = "/token?account=larder&service=reg.test&scope=repository%3Aorg%2Fapp%3Apull";
    assert_eq!(targets, [&blob, token, &blob, &blob, &blob]);
    let ok = r#"larder_upstream_token_requests_total{result="ok",upstream="reg.test"}"#;
    assert_eq!(counted(&metrics, ok).as_deref(), Some("1"));

    let other: Name = "org/other".parse().expect("a name");
    upstream.head_blob(&other, &digest()).await.expect("a blob");
    let seen = registry.seen();
    assert_eq!(seen[5].header("authorization"), None, "a token is for its repository only");
    assert!(seen[6].target.contains("scope=repository%3Aorg%2Fother%3Apull"));
}

#[tokio::test]
async fn many_at_once_ask_for_one_token() {
    let registry = token_registry(None).await;
    let upstream = open(&registry);
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let upstream = Arc::clone(&upstream);
            tokio::spawn(async move { upstream.head_blob(&name(), &digest()).await })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.expect("no panic"), Ok(Some(7)));
    }
    let tokens = registry.seen().iter().filter(|seen| seen.target.starts_with("/token")).count();
    assert_eq!(tokens, 1);
}

#[tokio::test]
async fn credentials_go_to_the_own_token_service() {
    let registry = token_registry(None).await;
    let folder = tempfile::tempdir().expect("a folder");
    let (upstream, _) = upstream(with_password(&registry.url(), folder.path(), "pw\n"), SHORT);
    upstream.head_blob(&name(), &digest()).await.expect("a blob");
    assert_eq!(registry.seen()[1].header("authorization"), Some("Basic dXNlcjpwdw=="));
    let shown = format!("{upstream:?}");
    assert!(!shown.contains("Basic") && !shown.contains("t1"), "{shown}");
}

#[tokio::test]
async fn a_foreign_realm_sees_no_credentials() {
    let service = Registry::start(|_, _| answer(200, &[], br#"{"access_token":"t"}"#)).await;
    let realm = format!("http://localhost:{}/token", service.address.port());
    let registry = token_registry(Some(realm)).await;
    let folder = tempfile::tempdir().expect("a folder");
    let settings = Settings { allow_private: true, ..with_password(&registry.url(), folder.path(), "pw") };
    let (upstream, _) = upstream(settings, SHORT);
    upstream.head_blob(&name(), &digest()).await.expect("a blob");
    assert_eq!(service.seen()[0].header("authorization"), None);
}

#[tokio::test]
async fn a_realm_may_not_lead_inside() {
    let registry = token_registry(Some("http://169.254.169.254/token".to_owned())).await;
    let error = open(&registry).head_blob(&name(), &digest()).await.expect_err("refused");
    assert!(matches!(&error, UpstreamError::Invalid(text) if text.contains("allow_private")), "{error}");
}

#[tokio::test]
async fn a_refused_token_is_renewed_once() {
    let registry = Registry::start(|seen, _| {
        if seen.target.starts_with("/token") {
            return answer(200, &[], br#"{"token":"hush"}"#);
        }
        answer(401, &[("www-authenticate", r#"Bearer realm="/token""#)], b"")
    })
    .await;
    let upstream = open(&registry);
    let error = upstream.head_blob(&name(), &digest()).await.expect_err("refused");
    assert_eq!(error, UpstreamError::Denied { status: 401 });
    let count = |kind: &str| registry.seen().iter().filter(|seen| seen.target.starts_with(kind)).count();
    assert_eq!((count("/v2"), count("/token")), (2, 1));
    // The kept token is tried, found useless and replaced.
    upstream.head_blob(&name(), &digest()).await.expect_err("refused");
    assert_eq!((count("/v2"), count("/token")), (4, 2));
}

#[tokio::test]
async fn a_token_service_may_refuse_fail_and_babble() {
    for (status, body, expected) in [
        (401, "", "denied"),
        (403, "", "denied"),
        (429, "", "error"),
        (200, "hush, no JSON", "error"),
        (302, "", "error"),
    ] {
        let registry = Registry::start(move |seen, _| {
            if seen.target.starts_with("/token") {
                return answer(status, &[("location", "/elsewhere")], body.as_bytes());
            }
            answer(401, &[("www-authenticate", r#"Bearer realm="/token""#)], b"")
        })
        .await;
        let (upstream, metrics) = upstream(at(&registry.url()), SHORT);
        let error = upstream.head_blob(&name(), &digest()).await.expect_err("no token");
        assert_eq!(matches!(error, UpstreamError::Denied { .. }), expected == "denied", "{error}");
        assert!(error.is_trouble() && !error.to_string().contains("hush"), "{error}");
        let series =
            format!(r#"larder_upstream_token_requests_total{{result="{expected}",upstream="reg.test"}}"#);
        assert_eq!(counted(&metrics, &series).as_deref(), Some("1"));
        assert_eq!(registry.seen().len(), 2);
    }
    let registry = Registry::start(|seen, _| {
        if seen.target.starts_with("/token") {
            return answer(200, &[], &vec![b' '; 65 * 1024]);
        }
        answer(401, &[("www-authenticate", r#"Bearer realm="/token""#)], b"")
    })
    .await;
    let error = open(&registry).head_blob(&name(), &digest()).await.expect_err("no token");
    assert!(matches!(error, UpstreamError::Invalid(_)), "{error}");
}

#[tokio::test]
async fn basic_needs_credentials_and_is_remembered() {
    let registry = Registry::start(|seen, _| match seen.header("authorization") {
        Some("Basic dXNlcjpwdw==") => answer(200, &[], b"content"),
        _ => answer(401, &[("www-authenticate", r#"Basic realm="reg""#)], b""),
    })
    .await;
    let error = open(&registry).head_blob(&name(), &digest()).await.expect_err("no credentials");
    assert_eq!(error, UpstreamError::Denied { status: 401 });
    assert_eq!(registry.seen().len(), 1);

    let folder = tempfile::tempdir().expect("a folder");
    let (upstream, _) = upstream(with_password(&registry.url(), folder.path(), "wrong"), SHORT);
    let error = upstream.head_blob(&name(), &digest()).await.expect_err("wrong password");
    assert_eq!(error, UpstreamError::Denied { status: 401 });
    assert_eq!(registry.seen().len(), 3);
    // The password is changed under the running larder.
    std::fs::write(folder.path().join("password"), "pw\n").expect("written");
    assert_eq!(upstream.head_blob(&name(), &digest()).await, Ok(Some(7)));
    assert_eq!(registry.seen().len(), 4, "sent along without waiting for the challenge");

    std::fs::remove_file(folder.path().join("password")).expect("removed");
    let error = upstream.head_blob(&name(), &digest()).await.expect_err("no password");
    assert_eq!(error.fault(), Fault::Larder);
    assert!(error.to_string().contains("password_file"), "{error}");
}

// Layout folders

fn write_layout(folder: &Path, blobs: &[&[u8]], named: &[(&str, &str, &[u8])]) {
    let place = folder.join("blobs/sha256");
    std::fs::create_dir_all(&place).expect("a folder");
    for blob in blobs {
        std::fs::write(place.join(Digest::of(Algorithm::Sha256, blob).hex()), blob).expect("written");
    }
    let manifests: Vec<_> = named
        .iter()
        .map(|(key, value, blob)| {
            format!(
                r#"{{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"{}","size":{},"annotations":{{"{key}":"{value}"}}}}"#,
                Digest::of(Algorithm::Sha256, blob),
                blob.len()
            )
        })
        .collect();
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, manifests.join(","));
    std::fs::write(folder.join("index.json"), index).expect("written");
}

fn layout(root: &Path) -> (Arc<Upstream>, Arc<Metrics>) {
    upstream(at(&format!("oci://{}", root.display())), SHORT)
}

fn reference(text: &str) -> Reference {
    text.parse().expect("a reference")
}

const REF_NAME: &str = "org.opencontainers.image.ref.name";

#[tokio::test]
async fn a_layout_folder_answers_like_a_registry() {
    let root = tempfile::tempdir().expect("a folder");
    let big = vec![7_u8; 700_000];
    write_layout(
        root.path(),
        &[b"{}", b"bare", b"short", b"full", b"containerd", &big],
        &[
            (REF_NAME, "bare", b"bare"),
            (REF_NAME, "org/app:short", b"short"),
            (REF_NAME, "reg.test/org/app:full", b"full"),
            ("io.containerd.image.name", "reg.test/org/app:containerd", b"containerd"),
            ("io.containerd.image.name", "org/app:other", b"bare"),
            (REF_NAME, "gone", b"gone"),
        ],
    );
    let (upstream, metrics) = layout(root.path());
    for tag in ["bare", "short", "full", "containerd"] {
        let document = upstream.get_manifest(&name(), &reference(tag), "").await.expect("a manifest");
        assert_eq!(document.body, tag);
        assert_eq!(document.content_type.as_deref(), Some("application/vnd.oci.image.index.v1+json"));
        let digest = Digest::of(Algorithm::Sha256, tag.as_bytes());
        let head = upstream.head_manifest(&name(), &Reference::Digest(digest), "").await.expect("a head");
        assert_eq!((head.digest, head.size), (Some(digest), Some(tag.len() as u64)));
        assert!(head.content_type.is_some());
    }
    for tag in ["other", "gone", "absent"] {
        let error = upstream.get_manifest(&name(), &reference(tag), "").await.expect_err("not there");
        assert_eq!(error, UpstreamError::NotFound, "{tag}");
    }
    let unlisted = Reference::Digest(Digest::of(Algorithm::Sha256, b"{}"));
    let document = upstream.get_manifest(&name(), &unlisted, "").await.expect("a manifest");
    assert_eq!(document.content_type, None);

    let digest = Digest::of(Algorithm::Sha256, &big);
    assert_eq!(upstream.head_blob(&name(), &digest).await, Ok(Some(700_000)));
    let mut body = upstream.get_blob(&name(), &digest, 0, None).await.expect("a body");
    assert_eq!(body.chunk().await.expect("a piece").expect("a piece").len(), 256 * 1024);
    assert_eq!(read(&mut body).await.expect("the rest").len(), 700_000 - 256 * 1024);
    let mut body = upstream.get_blob(&name(), &digest, 699_998, Some(999_999)).await.expect("a body");
    assert_eq!((body.offset, body.total), (699_998, Some(700_000)));
    assert_eq!(read(&mut body).await.expect("the range"), [7, 7]);
    let error = upstream.get_blob(&name(), &digest, 700_000, None).await.expect_err("beyond");
    assert_eq!(error, UpstreamError::RangeNotSatisfiable);
    let missing = Digest::of(Algorithm::Sha512, b"missing");
    assert_eq!(upstream.head_blob(&name(), &missing).await, Err(UpstreamError::NotFound));

    let series = |status: &str| {
        let name = "larder_upstream_requests_total";
        counted(&metrics, &format!(r#"{name}{{method="HEAD",status="{status}",upstream="reg.test"}}"#))
    };
    assert_eq!((series("200").as_deref(), series("404").as_deref()), (Some("5"), Some("1")));
}

#[tokio::test]
async fn a_repository_may_have_its_own_layout() {
    let root = tempfile::tempdir().expect("a folder");
    write_layout(root.path(), &[b"root"], &[(REF_NAME, "latest", b"root")]);
    let own = root.path().join("org/app");
    std::fs::create_dir_all(&own).expect("a folder");
    write_layout(&own, &[b"own"], &[(REF_NAME, "latest", b"own")]);
    let (upstream, _) = layout(root.path());
    assert_eq!(upstream.get_manifest(&name(), &tag(), "").await.expect("a manifest").body, "own");
    let other: Name = "other".parse().expect("a name");
    assert_eq!(upstream.get_manifest(&other, &tag(), "").await.expect("a manifest").body, "root");
}

#[tokio::test]
async fn a_layout_that_is_away_is_no_absence() {
    let root = tempfile::tempdir().expect("a folder");
    let (upstream, _) = layout(&root.path().join("later"));
    let error = upstream.head_manifest(&name(), &tag(), "").await.expect_err("away");
    assert!(matches!(error, UpstreamError::Unreachable(_)) && error.is_trouble(), "{error}");
    let error = upstream.get_blob(&name(), &digest(), 0, None).await.expect_err("away");
    assert!(matches!(error, UpstreamError::Unreachable(_)), "{error}");

    std::fs::create_dir(root.path().join("later")).expect("a folder");
    let error = upstream.head_manifest(&name(), &tag(), "").await.expect_err("empty");
    assert_eq!(error, UpstreamError::NotFound);
    std::fs::write(root.path().join("later/index.json"), "{").expect("written");
    let error = upstream.head_manifest(&name(), &tag(), "").await.expect_err("broken");
    assert!(matches!(error, UpstreamError::Invalid(_)), "{error}");
}

// Configuration

#[test]
fn wrong_endpoints_are_named() {
    let build = |endpoints: &[&str]| {
        let endpoints = endpoints.iter().map(|url| Endpoint::new(*url)).collect();
        let settings = Settings { endpoints, ..Settings::default() };
        let config =
            Config { upstream: BTreeMap::from([("reg.test".to_owned(), settings)]), ..Config::default() };
        Upstreams::build(&config, Arc::new(Metrics::new())).map(|_| ())
    };
    for wrong in [
        "",
        "reg.test",
        "ftp://reg.test",
        "http://user:hush@reg.test",
        "https://reg.test/?x=hush",
        "oci://relative/x",
    ] {
        let error = build(&[wrong]).expect_err(wrong).to_string();
        assert!(error.contains("reg.test") && !error.contains("hush"), "{error}");
    }
    assert!(build(&[]).is_err());
    assert!(build(&["https://a.test", "https://b.test"]).is_err());
    for right in ["https://reg.test", "http://127.0.0.1:5000/path", "oci:///srv/some%20folder"] {
        assert!(build(&[right]).is_ok(), "{right}");
    }
    Upstreams::build(&Config::default(), Arc::new(Metrics::new())).expect("the built-in upstreams");
}
