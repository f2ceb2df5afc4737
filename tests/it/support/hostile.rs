//! A registry on loopback that misbehaves in the way that the repository's name states. All other repositories are healthy.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use serde_json::json;

use super::Client;
use super::client::TransferError;
use super::content::{Blob, Document, Image, OCI_INDEX, OCI_MANIFEST, sha256};

/// Time for which a hostile answer is held open. The server or its client gives up earlier.
const HELD: Duration = Duration::from_secs(20);
/// Entries of a wide document. A program without optimisation needs much time for each.
const WIDTH: u64 = if cfg!(debug_assertions) { 1000 } else { 20_000 };
/// Length of an answer that never ends as announced.
const ANNOUNCED: u64 = 5_000_000_000;

/// A way in which a registry misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hostility {
    /// Announces 2^63 - 1 bytes, sends one, and waits.
    HugeLength,
    /// Describes a small layer with a size of 2^62 bytes.
    HugeDescriptor,
    /// Announces 5 GB and sends one byte every 50 ms.
    Drip,
    /// Sends chunks without end, 20 MB per second.
    Endless,
    /// Answers every request with 500.
    ServerError,
    /// Never sends the head of a blob.
    NoHead,
    /// Interrupts each blob, and refuses the range for its rest with 403.
    RangeRefused,
    /// Answers HEAD of a blob with 404, and GET with the blob.
    WrongHead,
    /// Requires a token that the token service refuses with 400.
    TokenRefused,
    /// Answers 403.
    Denied,
    /// Sends a blob and a manifest with one wrong bit.
    WrongBytes,
    /// Describes a layer with a wrong size.
    WrongSize,
    /// Lists `null`, numbers and digests as tags, on pages without end.
    BadTags,
    /// Lists thousands of referrers.
    WideReferrers,
    /// Names hundreds or thousands of children that do not exist.
    WideIndex,
    /// Sends informational responses without end.
    Informational,
    /// Redirects to the same path.
    RedirectLoop,
    /// Redirects to a port where no server listens.
    RedirectNowhere,
    /// Closes the connection without an answer.
    Close,
    /// Answers with bytes that are not HTTP.
    Garbage,
    /// Sends a response head of 1 MB.
    HugeHead,
    /// Sends zeros, compressed with gzip a thousand times.
    GzipBomb,
}

impl Hostility {
    pub const ALL: [Self; 22] = [
        Self::HugeLength,
        Self::HugeDescriptor,
        Self::Drip,
        Self::Endless,
        Self::ServerError,
        Self::NoHead,
        Self::RangeRefused,
        Self::WrongHead,
        Self::TokenRefused,
        Self::Denied,
        Self::WrongBytes,
        Self::WrongSize,
        Self::BadTags,
        Self::WideReferrers,
        Self::WideIndex,
        Self::Informational,
        Self::RedirectLoop,
        Self::RedirectNowhere,
        Self::Close,
        Self::Garbage,
        Self::HugeHead,
        Self::GzipBomb,
    ];

    /// Returns the repository that misbehaves in this way.
    pub fn repository(self) -> String {
        format!("hostile/{self:?}").to_ascii_lowercase()
    }

    fn of(repository: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hostility| hostility.repository() == repository)
    }
}

/// The registry. Dropping it ends all its answers.
pub struct HostileRegistry {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    images: Mutex<HashMap<(String, u64), Arc<Image>>>,
    /// Hostile answers so far.
    hostile_answers: AtomicUsize,
    /// Most bytes of informational responses that one connection took.
    informational_bytes: AtomicUsize,
    is_down: AtomicBool,
}

impl HostileRegistry {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let served = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if served.is_down.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&served);
                // The server may close the connection at any time.
                std::thread::spawn(move || {
                    drop(Connection { stream: &stream, addr, shared: &shared }.serve());
                });
            }
        });
        Self { addr, shared }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Returns the image with the tag `v<n>` of a repository.
    pub fn image(&self, repository: &str, n: u64) -> Arc<Image> {
        self.shared.image(repository, n)
    }

    /// Returns the number of hostile answers so far.
    pub fn hostile_answers(&self) -> usize {
        self.shared.hostile_answers.load(Ordering::Relaxed)
    }

    /// Returns the largest number of bytes of informational responses that one connection took.
    pub fn informational_bytes(&self) -> usize {
        self.shared.informational_bytes.load(Ordering::Relaxed)
    }

    /// Pulls ever-new images of the hostile repository until `stop` is set. Its client gives up after a short time.
    pub fn attack(&self, client: Client, hostility: Hostility, images: Range<u64>, stop: &AtomicBool) {
        let client = client.read_timeout(Duration::from_millis(400));
        let repository = hostility.repository();
        for n in images {
            let image = self.image(&repository, n);
            let mut requests = vec![("GET", format!("manifests/v{n}")), ("GET", "tags/list".to_owned())];
            requests.push(("GET", format!("referrers/{}", image.manifest.digest)));
            for blob in image.blobs() {
                requests.extend(["HEAD", "GET"].map(|method| (method, format!("blobs/{}", blob.digest))));
            }
            for (method, path) in requests {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                // Errors are the purpose.
                let _ = client.try_send(method, &format!("/v2/{repository}/{path}"), &[]);
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// Pulls an image by its tag `v<n>` and checks every byte.
pub fn pull(client: Client, repository: &str, n: u64, image: &Image) -> Result<(), TransferError> {
    let get = |path: String, body: &[u8]| {
        let answer = client.try_send("GET", &format!("/v2/{repository}/{path}"), &[])?;
        let is_right = answer.status() == 200 && answer.body == body;
        let text = || TransferError(format!("{repository} {path}: {} {}", answer.status(), answer.text()));
        if is_right { Ok(()) } else { Err(text()) }
    };
    get(format!("manifests/v{n}"), &image.manifest.bytes)?;
    image.blobs().try_for_each(|blob| get(format!("blobs/{}", blob.digest), &blob.bytes))
}

impl Drop for HostileRegistry {
    fn drop(&mut self) {
        self.shared.is_down.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.addr);
    }
}

impl Shared {
    fn image(&self, repository: &str, n: u64) -> Arc<Image> {
        let mut images = self.images.lock().unwrap();
        let image = images.entry((repository.to_owned(), n)).or_insert_with(|| {
            let seed =
                repository.bytes().fold(n + 1, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
            let layers = (0..2).map(|k| Blob::random(seed.wrapping_add(k << 32), 24 * 1024)).collect();
            let mut image = Image::oci(seed, "linux/amd64", layers);
            if let Some(hostility) = Hostility::of(repository) {
                image.manifest = hostility.document(image.manifest);
            }
            Arc::new(image)
        });
        Arc::clone(image)
    }

    /// Returns the blob or document of a repository with this digest.
    fn find(&self, repository: &str, digest: &str) -> Option<(String, Arc<Vec<u8>>)> {
        let images = self.images.lock().unwrap();
        let of_repository = images.iter().filter(|((name, _), _)| name == repository);
        of_repository.map(|(_, image)| image).find_map(|image| {
            if image.manifest.digest == digest {
                return Some((image.manifest.media_type.clone(), Arc::clone(&image.manifest.bytes)));
            }
            let blob = image.blobs().find(|blob| blob.digest == digest)?;
            Some(("application/octet-stream".to_owned(), Arc::clone(&blob.bytes)))
        })
    }
}

impl Hostility {
    /// Returns the document of a hostile image instead of a healthy manifest.
    fn document(self, manifest: Document) -> Document {
        let mut value: serde_json::Value = serde_json::from_slice(&manifest.bytes).unwrap();
        match self {
            Self::HugeDescriptor => value["layers"][0]["size"] = json!(1_u64 << 62),
            Self::WrongSize => value["layers"][0]["size"] = json!(1),
            Self::WideIndex => {
                let child = |n: u64| {
                    json!({
                        "mediaType": OCI_MANIFEST, "digest": sha256(&n.to_be_bytes()), "size": 500,
                        "platform": { "os": "linux", "architecture": format!("a{n}") },
                    })
                };
                let children: Vec<_> = (0..WIDTH / 5).map(child).collect();
                let note = json!({ "of": manifest.digest });
                let index = json!({
                    "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children, "annotations": note,
                });
                return Document::new(OCI_INDEX, index.to_string());
            }
            _ => return manifest,
        }
        Document::new(OCI_MANIFEST, value.to_string())
    }
}

/// A request, as far as the registry reads it.
struct Request {
    method: String,
    repository: String,
    /// `manifests`, `blobs`, `tags` or `referrers`.
    resource: String,
    reference: String,
    from: usize,
}

impl Request {
    fn parse(line: &str, from: usize) -> Self {
        let mut words = line.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let path = path.split('?').next().unwrap_or_default();
        let mut parts = path.trim_start_matches("/v2/").rsplitn(3, '/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        let (reference, resource, repository) = (next(), next(), next());
        Self { method: method.to_owned(), repository, resource, reference, from }
    }

    fn path(&self) -> String {
        format!("/v2/{}/{}/{}", self.repository, self.resource, self.reference)
    }

    fn is_blob(&self) -> bool {
        self.resource == "blobs"
    }
}

/// A connection of the server under test.
struct Connection<'a> {
    stream: &'a TcpStream,
    addr: SocketAddr,
    shared: &'a Shared,
}

impl Connection<'_> {
    fn serve(&self) -> std::io::Result<()> {
        self.stream.set_nodelay(true)?;
        let mut lines = BufReader::new(self.stream);
        loop {
            let mut first = String::new();
            if lines.read_line(&mut first)? == 0 {
                return Ok(());
            }
            let (mut from, mut line) = (0, String::new());
            while lines.read_line(&mut line)? > 2 {
                if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                    from = range.split('-').next().and_then(|start| start.parse().ok()).unwrap_or(0);
                }
                line.clear();
            }
            let request = Request::parse(&first, from);
            match Hostility::of(&request.repository) {
                Some(hostility) => {
                    self.shared.hostile_answers.fetch_add(1, Ordering::Relaxed);
                    self.misbehave(hostility, &request)?;
                }
                None => self.answer(&request)?,
            }
        }
    }

    fn write(&self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        (&mut &*self.stream).write_all(bytes.as_ref())
    }

    fn status(&self, status: u16, headers: &str) -> std::io::Result<()> {
        self.write(format!("HTTP/1.1 {status} Status\r\n{headers}Content-Length: 0\r\n\r\n"))
    }

    /// Calls `step` until the registry goes down or the time of a hostile answer is over, and closes the connection.
    fn hold(&self, pause: Duration, step: impl Fn() -> std::io::Result<()>) -> std::io::Result<()> {
        let end = Instant::now() + HELD;
        while Instant::now() < end && !self.shared.is_down.load(Ordering::Relaxed) {
            step()?;
            std::thread::sleep(pause);
        }
        self.close()
    }

    fn close(&self) -> std::io::Result<()> {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        Err(std::io::ErrorKind::ConnectionAborted.into())
    }

    /// Sends the healthy answer.
    fn answer(&self, request: &Request) -> std::io::Result<()> {
        if request.resource == "tags" {
            let body = json!({ "name": request.repository, "tags": ["v0", "v1"] }).to_string();
            return self.content(request, "application/json", body.as_bytes(), None);
        }
        let Some((media_type, body)) = self.find(request) else {
            let is_ping = request.path() == "/v2///" || request.repository.is_empty();
            return self.status(if is_ping { 200 } else { 404 }, "");
        };
        self.content(request, &media_type, &body, None)
    }

    fn find(&self, request: &Request) -> Option<(String, Arc<Vec<u8>>)> {
        let tag = request.reference.strip_prefix('v').and_then(|number| number.parse().ok());
        match tag {
            Some(n) if request.resource == "manifests" => {
                let image = self.shared.image(&request.repository, n);
                Some((image.manifest.media_type.clone(), Arc::clone(&image.manifest.bytes)))
            }
            _ => self.shared.find(&request.repository, &request.reference),
        }
    }

    /// Sends content from the start of the range, at most `limit` bytes of it before the connection is closed.
    fn content(
        &self,
        request: &Request,
        media_type: &str,
        body: &[u8],
        limit: Option<usize>,
    ) -> std::io::Result<()> {
        let part = body.get(request.from..).unwrap_or_default();
        let mut head = format!("HTTP/1.1 {} Status\r\n", if request.from > 0 { 206 } else { 200 });
        if request.from > 0 {
            let _ =
                write!(head, "Content-Range: bytes {}-{}/{}\r\n", request.from, body.len() - 1, body.len());
        }
        let digest = sha256(body);
        let _ = write!(head, "Content-Type: {media_type}\r\nDocker-Content-Digest: {digest}\r\n");
        let _ = write!(head, "Content-Length: {}\r\n\r\n", part.len());
        self.write(head)?;
        if request.method == "HEAD" {
            return Ok(());
        }
        match limit {
            Some(limit) => {
                self.write(&part[..limit.min(part.len())])?;
                self.close()
            }
            None => self.write(part),
        }
    }

    /// Sends a hostile answer.
    fn misbehave(&self, hostility: Hostility, request: &Request) -> std::io::Result<()> {
        use Hostility as H;
        match hostility {
            H::ServerError => self.status(500, ""),
            H::Denied => self.status(403, ""),
            H::TokenRefused => {
                let realm = format!("http://{}/v2/{}/token/x", self.addr, hostility.repository());
                if request.resource == "token" {
                    return self.status(400, "");
                }
                self.status(401, &format!("WWW-Authenticate: Bearer realm=\"{realm}\",service=\"s\"\r\n"))
            }
            H::RedirectLoop => self.status(307, &format!("Location: {}\r\n", request.path())),
            H::RedirectNowhere => self.status(307, "Location: http://127.0.0.1:1/x\r\n"),
            H::Close => self.close(),
            H::Garbage => {
                self.write("220 mail ready\r\n\r\n")?;
                self.close()
            }
            H::HugeHead => {
                self.write("HTTP/1.1 200 OK\r\n")?;
                let line = format!("X-Filler: {}\r\n", "x".repeat(8000));
                (0..125).try_for_each(|_| self.write(&line))?;
                self.write("Content-Length: 0\r\n\r\n")
            }
            H::Informational => self.informational(),
            H::BadTags if request.resource == "tags" => self.bad_tags(request),
            H::WideReferrers if request.resource == "referrers" => self.wide_referrers(request),
            H::NoHead if request.is_blob() => self.hold(Duration::from_millis(50), || Ok(())),
            H::WrongHead if request.is_blob() && request.method == "HEAD" => self.status(404, ""),
            H::WrongBytes => self.wrong_bytes(request),
            _ if request.is_blob() && request.method == "GET" => self.misbehave_in_blob(hostility, request),
            _ => self.answer(request),
        }
    }

    fn misbehave_in_blob(&self, hostility: Hostility, request: &Request) -> std::io::Result<()> {
        use Hostility as H;
        let long = |length: u64| self.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\nx"));
        match hostility {
            H::HugeLength => {
                long(i64::MAX.unsigned_abs())?;
                self.hold(Duration::from_millis(50), || Ok(()))
            }
            H::Drip => {
                long(ANNOUNCED)?;
                self.hold(Duration::from_millis(50), || self.write("x"))
            }
            H::Endless => {
                self.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
                let chunk = format!("{:x}\r\n{}\r\n", 64 * 1024, "x".repeat(64 * 1024));
                self.hold(Duration::from_millis(3), || self.write(&chunk))
            }
            H::RangeRefused if request.from > 0 => self.status(403, ""),
            H::RangeRefused => {
                let Some((media_type, body)) = self.find(request) else { return self.status(404, "") };
                self.content(request, &media_type, &body, Some(body.len() / 2))
            }
            H::GzipBomb => {
                let zeros = vec![0; 4 << 20];
                let body = super::script::gzip(&zeros);
                let head = format!("Content-Encoding: gzip\r\nContent-Length: {}\r\n\r\n", body.len());
                self.write(format!("HTTP/1.1 200 OK\r\n{head}"))?;
                self.write(body)
            }
            _ => self.answer(request),
        }
    }

    /// Sends informational responses as fast as the connection takes them.
    fn informational(&self) -> std::io::Result<()> {
        let heads = "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".repeat(100);
        let mut written = 0;
        loop {
            self.write(&heads)?;
            written += heads.len();
            self.shared.informational_bytes.fetch_max(written, Ordering::Relaxed);
            if self.shared.is_down.load(Ordering::Relaxed) {
                return self.close();
            }
        }
    }

    fn wrong_bytes(&self, request: &Request) -> std::io::Result<()> {
        let Some((media_type, body)) = self.find(request) else { return self.answer(request) };
        let mut wrong = body.to_vec();
        let middle = wrong.len() / 2;
        wrong[middle] ^= 1;
        self.content(request, &media_type, &wrong, None)
    }

    fn bad_tags(&self, request: &Request) -> std::io::Result<()> {
        let tags = json!([null, 1, "sha256:00", "v0", { "a": [] }]);
        let body = json!({ "name": request.repository, "tags": tags }).to_string();
        let link = format!("Link: <{}?last=v0&n=5>; rel=\"next\"\r\n", request.path());
        self.write(format!("HTTP/1.1 200 OK\r\n{link}Content-Length: {}\r\n\r\n{body}", body.len()))
    }

    fn wide_referrers(&self, request: &Request) -> std::io::Result<()> {
        static LIST: OnceLock<String> = OnceLock::new();
        let list = LIST.get_or_init(|| {
            let referrer = |n: u64| {
                json!({
                    "mediaType": OCI_MANIFEST, "digest": sha256(&n.to_be_bytes()), "size": 500,
                    "artifactType": "application/vnd.example", "annotations": { "n": n.to_string() },
                })
            };
            let manifests: Vec<_> = (0..WIDTH).map(referrer).collect();
            json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests }).to_string()
        });
        self.content(request, OCI_INDEX, list.as_bytes(), None)
    }
}
