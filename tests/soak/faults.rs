//! A million transfers with faults: every answer to a first request is broken, and a third of all others.
//!
//! The registry chooses the fault by the name of the upstream, so that upstreams without usable answers leave the others.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use crate::support::client::TransferError;
use crate::support::content::{OCI_MANIFEST, sha256};
use crate::support::folder::on_disk;
use crate::support::script::gzip;
use crate::support::{Client, Larder, Random, Setup};

/// Size of the store. The transferred content is many times larger.
const MAX_SIZE: u64 = 256 << 20;
/// Free space that the server must leave.
const MIN_FREE: u64 = 64 << 20;
/// Longest wait of a client.
const PATIENCE: Duration = Duration::from_secs(20);
/// Largest blob.
const BLOB_MAX: u64 = 24 * 1024;

/// A fault of one answer with a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Break {
    Cut,
    FlipBit,
    OneByteShort,
    OneByteLong,
    HugeLength,
    NegativeLength,
    TwoLengths,
    ChunkedWithoutEnd,
    ChunkedWithMore,
    ChunkedAndLength,
    ChunkTooLarge,
    UnaskedRange,
    WrongRange,
    RangeRefused,
    ServerError,
    ClientError,
    RedirectLoop,
    RedirectNowhere,
    RedirectWithoutTarget,
    Garbage,
    Close,
    Html,
    GzipLabel,
    BrokenGzip,
    OtherBytes,
    Informational,
    LargeHead,
    WrongDigest,
    Empty,
    NoContent,
    Slow,
}

impl Break {
    const ALL: [Self; 31] = [
        Self::Cut,
        Self::FlipBit,
        Self::OneByteShort,
        Self::OneByteLong,
        Self::HugeLength,
        Self::NegativeLength,
        Self::TwoLengths,
        Self::ChunkedWithoutEnd,
        Self::ChunkedWithMore,
        Self::ChunkedAndLength,
        Self::ChunkTooLarge,
        Self::UnaskedRange,
        Self::WrongRange,
        Self::RangeRefused,
        Self::ServerError,
        Self::ClientError,
        Self::RedirectLoop,
        Self::RedirectNowhere,
        Self::RedirectWithoutTarget,
        Self::Garbage,
        Self::Close,
        Self::Html,
        Self::GzipLabel,
        Self::BrokenGzip,
        Self::OtherBytes,
        Self::Informational,
        Self::LargeHead,
        Self::WrongDigest,
        Self::Empty,
        Self::NoContent,
        Self::Slow,
    ];

    /// Returns the name of the upstream with this fault.
    fn upstream(self) -> String {
        format!("{self:?}.example").to_ascii_lowercase()
    }
}

/// A registry with one port for each fault.
struct FaultyRegistry {
    shared: Arc<Shared>,
    ports: Vec<SocketAddr>,
}

#[derive(Default)]
struct Shared {
    /// Content by digest, and the number of its answers.
    content: RwLock<HashMap<String, Arc<Content>>>,
    /// Documents by tag.
    tags: RwLock<HashMap<String, Arc<Content>>>,
    faults: AtomicU64,
}

struct Content {
    media_type: &'static str,
    bytes: Vec<u8>,
    digest: String,
    answers: AtomicU64,
}

impl Content {
    fn new(media_type: &'static str, bytes: Vec<u8>) -> Self {
        Self { media_type, digest: sha256(&bytes), bytes, answers: AtomicU64::new(0) }
    }
}

impl FaultyRegistry {
    fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let ports = Break::ALL.into_iter().map(|fault| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let addr = listener.local_addr().unwrap();
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let shared = Arc::clone(&shared);
                    // The server may close the connection at any time.
                    std::thread::spawn(move || {
                        drop(Connection { stream: &stream, fault, shared: &shared }.serve());
                    });
                }
            });
            addr
        });
        let ports = ports.collect();
        Self { shared, ports }
    }

    /// Returns a new image with one manifest and two blobs, known to the registry by `tag`.
    fn image(&self, random: &mut Random, tag: &str) -> [Arc<Content>; 3] {
        let blobs = [(); 2].map(|()| {
            let length = 1 + usize::try_from(random.below(BLOB_MAX)).unwrap();
            Arc::new(Content::new("application/octet-stream", random.bytes(length)))
        });
        let [config, layer] = blobs.each_ref().map(|blob| {
            serde_json::json!({
                "mediaType": "application/vnd.example", "digest": blob.digest, "size": blob.bytes.len(),
            })
        });
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer],
        });
        let manifest = Arc::new(Content::new(OCI_MANIFEST, manifest.to_string().into_bytes()));
        let [config, layer] = blobs;
        let all = [manifest, config, layer];
        self.shared.tags.write().unwrap().insert(tag.to_owned(), Arc::clone(&all[0]));
        let mut content = self.shared.content.write().unwrap();
        content.extend(all.iter().map(|one| (one.digest.clone(), Arc::clone(one))));
        drop(content);
        all
    }

    fn forget(&self, tag: &str, image: &[Arc<Content>; 3]) {
        self.shared.tags.write().unwrap().remove(tag);
        let mut content = self.shared.content.write().unwrap();
        for one in image {
            content.remove(&one.digest);
        }
    }

    fn faults(&self) -> u64 {
        self.shared.faults.load(Ordering::Relaxed)
    }
}

struct Connection<'a> {
    stream: &'a TcpStream,
    fault: Break,
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
            let mut words = first.split(' ');
            let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let reference =
                path.split('?').next().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
            let find = || {
                let content = self.shared.content.read().unwrap().get(reference).cloned();
                content.or_else(|| self.shared.tags.read().unwrap().get(reference).cloned())
            };
            let Some(content) = find() else {
                let status = if path == "/v2/" { "200 OK" } else { "404 Not Found" };
                self.write(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n"))?;
                continue;
            };
            let turn = content.answers.fetch_add(1, Ordering::Relaxed);
            if turn == 0 || turn.is_multiple_of(3) {
                self.shared.faults.fetch_add(1, Ordering::Relaxed);
                self.broken(&content, from, method == "HEAD", path)?;
            } else {
                self.right(&content, from, method == "HEAD")?;
            }
        }
    }

    fn write(&self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        (&mut &*self.stream).write_all(bytes.as_ref())
    }

    fn close(&self) -> std::io::Result<()> {
        let _ = self.stream.shutdown(Shutdown::Both);
        Err(std::io::ErrorKind::ConnectionAborted.into())
    }

    fn right(&self, content: &Content, from: usize, head: bool) -> std::io::Result<()> {
        let digest = format!("Docker-Content-Digest: {}\r\n", content.digest);
        self.body(content, from, head, &digest, content.bytes.get(from..).unwrap_or_default())
    }

    /// Sends `part` as the content after `from`, with its own length.
    fn body(
        &self,
        content: &Content,
        from: usize,
        head: bool,
        headers: &str,
        part: &[u8],
    ) -> std::io::Result<()> {
        // Without the digest, changed bytes of a tag would be another document.
        let digest = format!("Docker-Content-Digest: {}\r\n", content.digest);
        let digest = if headers.is_empty() { digest.as_str() } else { headers };
        let length = format!("Content-Length: {}\r\n", part.len());
        self.head(content, from, &format!("{digest}{length}"))?;
        if head { Ok(()) } else { self.write(part) }
    }

    fn head(&self, content: &Content, from: usize, headers: &str) -> std::io::Result<()> {
        let length = content.bytes.len();
        let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
        let range = format!("Content-Range: bytes {from}-{}/{length}\r\n", length - 1);
        let range = if from > 0 { range.as_str() } else { "" };
        self.write(format!(
            "HTTP/1.1 {status}\r\nContent-Type: {}\r\n{range}{headers}\r\n",
            content.media_type
        ))
    }

    fn status(&self, status: u16, headers: &str) -> std::io::Result<()> {
        self.write(format!("HTTP/1.1 {status} Status\r\n{headers}Content-Length: 0\r\n\r\n"))
    }

    fn broken(&self, content: &Content, from: usize, head: bool, path: &str) -> std::io::Result<()> {
        use Break as B;
        let part = content.bytes.get(from..).unwrap_or_default();
        let middle = part.len() / 2;
        match self.fault {
            B::ServerError => self.status([500, 502, 503, 504][part.len() % 4], ""),
            B::ClientError => self.status([400, 401, 403, 404, 410][part.len() % 5], ""),
            B::RedirectLoop => self.status(307, &format!("Location: {path}\r\n")),
            B::RedirectNowhere => self.status(302, "Location: http://127.0.0.1:1/x\r\n"),
            B::RedirectWithoutTarget => self.status(301, ""),
            B::Garbage => self.write("SSH-2.0-registry\r\n").and_then(|()| self.close()),
            B::Close => self.close(),
            B::NoContent => self.status(204, ""),
            B::RangeRefused if from > 0 => self.status([400, 403, 405, 416, 500, 501][part.len() % 6], ""),
            B::LargeHead => {
                self.body(content, from, head, &format!("X-Filler: {}\r\n", "x".repeat(90_000)), part)
            }
            B::Informational => {
                (0..5).try_for_each(|_| self.write("HTTP/1.1 103 Early Hints\r\n\r\n"))?;
                self.cut(content, from, head)
            }
            _ if head => self.right(content, from, head),
            B::Cut | B::RangeRefused => self.cut(content, from, head),
            B::FlipBit => {
                let mut wrong = part.to_vec();
                wrong.get_mut(middle).into_iter().for_each(|byte| *byte ^= 1);
                self.body(content, from, head, "", &wrong)
            }
            B::OneByteShort => self.body(content, from, head, "", &part[..part.len().saturating_sub(1)]),
            B::OneByteLong => self.body(content, from, head, "", &[part, b"!"].concat()),
            B::Empty => self.body(content, 0, head, "", b""),
            B::OtherBytes => self.body(content, from, head, "", &vec![b'x'; part.len()]),
            B::Html => self.body(content, 0, head, "", b"<html><body>Please log in</body></html>"),
            B::WrongDigest => {
                let digest = format!("Docker-Content-Digest: {}\r\n", sha256(b"other"));
                self.body(content, from, head, &digest, &[part, b"!"].concat())
            }
            B::GzipLabel => {
                self.body(content, from, head, "Content-Encoding: gzip\r\n", &vec![1; part.len()])
            }
            B::BrokenGzip => {
                let packed = gzip(&content.bytes);
                self.body(content, 0, head, "Content-Encoding: gzip\r\n", &packed[..packed.len() / 2])
            }
            _ => self.broken_length(content, from, part),
        }
    }

    /// Sends half of the body and closes the connection.
    fn cut(&self, content: &Content, from: usize, head: bool) -> std::io::Result<()> {
        let part = content.bytes.get(from..).unwrap_or_default();
        self.head(content, from, &format!("Content-Length: {}\r\n", part.len()))?;
        if !head {
            self.write(&part[..part.len() / 2])?;
        }
        self.close()
    }

    /// Sends a body whose length is wrong, contradictory or missing.
    fn broken_length(&self, content: &Content, from: usize, part: &[u8]) -> std::io::Result<()> {
        use Break as B;
        let (length, middle) = (part.len(), part.len() / 2);
        let chunk = |size: &str, bytes: &[u8]| {
            self.write(format!("{size}\r\n"))?;
            self.write(bytes)?;
            self.write("\r\n")
        };
        let chunked = "Transfer-Encoding: chunked\r\n";
        match self.fault {
            B::HugeLength => {
                self.head(content, from, &format!("Content-Length: {}\r\n", i64::MAX))?;
                self.write(part)?;
            }
            B::NegativeLength => {
                self.head(content, from, "Content-Length: -1\r\n")?;
                self.write(part)?;
            }
            B::TwoLengths => {
                self.head(
                    content,
                    from,
                    &format!("Content-Length: {length}\r\nContent-Length: {middle}\r\n"),
                )?;
                self.write(part)?;
            }
            B::ChunkedWithoutEnd => {
                self.head(content, from, chunked)?;
                chunk(&format!("{middle:x}"), &part[..middle])?;
            }
            B::ChunkedWithMore => {
                self.head(content, from, chunked)?;
                chunk(&format!("{length:x}"), part)?;
                chunk("1", b"!")?;
                self.write("0\r\n\r\n")?;
            }
            B::ChunkedAndLength => {
                self.head(content, from, &format!("{chunked}Content-Length: {middle}\r\n"))?;
                chunk(&format!("{middle:x}"), &part[..middle])?;
                self.write("0\r\n\r\n")?;
            }
            B::ChunkTooLarge => {
                self.head(content, from, chunked)?;
                chunk("fffffffffffffffff", part)?;
            }
            B::UnaskedRange => {
                let range = format!("Content-Range: bytes 1-{}/{length}\r\n", length.saturating_sub(1));
                let head = format!("HTTP/1.1 206 Partial Content\r\n{range}Content-Length: {middle}\r\n\r\n");
                self.write(head)?;
                self.write(&part[..middle])?;
            }
            B::WrongRange => {
                let range =
                    format!("Content-Range: bytes {}-{}/{}\r\n", from + 1, from + length, from + length + 1);
                let head = format!("HTTP/1.1 206 Partial Content\r\n{range}Content-Length: {length}\r\n\r\n");
                self.write(head)?;
                self.write(part)?;
            }
            _ => {
                self.head(content, from, &format!("Content-Length: {length}\r\n"))?;
                for piece in part.chunks(1 + length / 8) {
                    self.write(piece)?;
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
        self.close()
    }
}

/// A server with its clients' counters.
struct Instance {
    kind: &'static str,
    larder: Larder,
    requests: AtomicU64,
    complete: AtomicU64,
    /// Incomplete answers, by status or error.
    incomplete: Mutex<BTreeMap<String, u64>>,
    wrong: Mutex<Vec<String>>,
}

impl Instance {
    fn start(kind: &'static str, registry: &FaultyRegistry, folder: Option<&Path>) -> Self {
        let mut setup = Setup::empty()
            .set("store.blobs", kind)
            .set("store.max_size", format!("{MAX_SIZE}B"))
            .set("store.min_free", format!("{MIN_FREE}B"))
            .set("server.max_connections_per_client", 10_000)
            .set("log.requests", false)
            .set("log.level", "error,larder::app=info");
        if let Some(folder) = folder {
            setup = setup
                .set("store.path", folder.join(kind).display().to_string())
                .set("store.max_size", "100GiB");
        }
        for (fault, addr) in Break::ALL.into_iter().zip(&registry.ports) {
            setup = setup
                .upstream_set(&fault.upstream(), "endpoints", vec![format!("http://{addr}")])
                .upstream_set(&fault.upstream(), "default", fault == Break::Cut);
        }
        Self {
            kind,
            larder: setup.start(),
            requests: AtomicU64::new(0),
            complete: AtomicU64::new(0),
            incomplete: Mutex::default(),
            wrong: Mutex::default(),
        }
    }

    /// Pulls new images until `stop` is set.
    fn pull(&self, registry: &FaultyRegistry, client: u64, stop: &AtomicBool) {
        let mut random = Random::new(client);
        for n in 0_u64.. {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let fault = Break::ALL[usize::try_from((client + n) % Break::ALL.len() as u64).unwrap()];
            let tag = format!("t{client}-{n}");
            let image = registry.image(&mut random, &tag);
            let base = format!("/v2/{}/r/{}", fault.upstream(), random.below(200));
            let [manifest, config, layer] = &image;
            self.request(&format!("{base}/manifests/{tag}"), manifest, 0);
            self.request(&format!("{base}/manifests/{}", manifest.digest), manifest, 0);
            self.request(&format!("{base}/blobs/{}", config.digest), config, 0);
            self.request(&format!("{base}/blobs/{}", layer.digest), layer, layer.bytes.len() / 3);
            self.request(&format!("{base}/blobs/{}", layer.digest), layer, 0);
            registry.forget(&tag, &image);
        }
    }

    /// Sends one request. A complete body must be right, and an error must be one of the gateway's.
    fn request(&self, path: &str, content: &Content, from: usize) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let range = format!("bytes={from}-");
        let mut headers = vec![("Accept", OCI_MANIFEST)];
        if from > 0 {
            headers.push(("Range", &range));
        }
        let client = Client::new(self.larder.api_addr()).read_timeout(PATIENCE);
        let count = |why: String| *self.incomplete.lock().unwrap().entry(why).or_default() += 1;
        let wrong = |text: String| self.wrong.lock().unwrap().push(format!("{} {path}: {text}", self.kind));
        match client.try_send("GET", path, &headers) {
            Ok(answer) => match answer.status() {
                200 if answer.body == content.bytes => drop(self.complete.fetch_add(1, Ordering::Relaxed)),
                206 if Some(answer.body.as_slice()) == content.bytes.get(from..) => {
                    self.complete.fetch_add(1, Ordering::Relaxed);
                }
                status @ (404 | 416 | 502..=504) => count(format!("status {status}")),
                status => wrong(format!("status {status}, {} bytes", answer.body.len())),
            },
            Err(TransferError(text)) => {
                let reason = text.split(|c: char| c.is_ascii_digit()).next().unwrap_or_default();
                if text.contains("timed out") || text.contains("unavailable") {
                    wrong(format!("no answer within {PATIENCE:?}: {text}"));
                }
                count(reason.trim().to_owned());
            }
        }
    }
}

/// Returns the free bytes of the file system of a folder.
fn free_bytes(folder: &Path) -> u64 {
    let found = rustix::fs::statvfs(folder).unwrap();
    found.f_bavail * found.f_frsize
}

/// Runs both stores until the registry has sent `wanted` faults, with `clients` clients for each store. `folder` is a small
/// file system; without it the free space is not checked.
pub fn run(wanted: u64, clients: u64, folder: Option<&Path>) {
    let registry = FaultyRegistry::start();
    let instances = ["sled", "files"].map(|kind| Instance::start(kind, &registry, folder));
    let (stop, begin) = (AtomicBool::new(false), Instant::now());
    let (mut memory, mut disk, mut least_free) = ([0; 2], [0; 2], u64::MAX);
    std::thread::scope(|scope| {
        for (instance, first) in instances.iter().zip([1, 1_000_000]) {
            for client in first..first + clients {
                let (registry, stop) = (&registry, &stop);
                scope.spawn(move || instance.pull(registry, client, stop));
            }
        }
        let mut reported = 0;
        while registry.faults() < wanted && instances.iter().all(|one| one.wrong.lock().unwrap().is_empty()) {
            std::thread::sleep(Duration::from_millis(250));
            for (instance, (memory, disk)) in instances.iter().zip(memory.iter_mut().zip(&mut disk)) {
                *memory = instance.larder.rss().max(*memory);
                let data = folder
                    .map_or_else(|| instance.larder.setup().data(), |folder| folder.join(instance.kind));
                *disk = on_disk(&data).max(*disk);
            }
            least_free = folder.map_or(u64::MAX, |folder| free_bytes(folder).min(least_free));
            if registry.faults() / 50_000 > reported {
                reported = registry.faults() / 50_000;
                println!(
                    "{} faults after {:.0?}, resident {memory:?}, on disk {disk:?}",
                    registry.faults(),
                    begin.elapsed()
                );
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    println!("{} faults in {:.0?}; least free space {least_free}", registry.faults(), begin.elapsed());
    let mut wrong = Vec::new();
    for (instance, (memory, disk)) in instances.iter().zip(memory.into_iter().zip(disk)) {
        println!(
            "{}: {} requests, {} complete, incomplete {:?}; resident at most {} MiB, on disk at most {} MiB",
            instance.kind,
            instance.requests.load(Ordering::Relaxed),
            instance.complete.load(Ordering::Relaxed),
            instance.incomplete.lock().unwrap(),
            memory >> 20,
            disk >> 20,
        );
        wrong.extend(instance.wrong.lock().unwrap().iter().cloned());
        let log = instance.larder.log_text();
        if let Some(line) = log.lines().find(|line| line.contains("panicked")) {
            wrong.push(format!("{}: {line}", instance.kind));
        }
        if memory > 300 << 20 {
            wrong.push(format!("{}: {memory} bytes resident", instance.kind));
        }
    }
    if least_free < MIN_FREE {
        wrong.push(format!("{least_free} bytes free, {MIN_FREE} must be left"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
