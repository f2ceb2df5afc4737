//! A server that is killed and restarted, its clients, and the measurements of both.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use crate::origin::Origin;
use crate::support::content::{OCI_INDEX, OCI_MANIFEST};
use crate::support::folder::on_disk;
use crate::support::larder::sum_of;
use crate::support::{Client, Larder, Random, Setup};
use crate::world::{Image, World};

/// Time after a failure mode in which the circuit breaker may be open or a fill may still fail.
const RECOVERY: Duration = Duration::from_secs(40);

const EVICTED: &str = "larder_evicted_bytes_total";

/// Counters of the clients.
#[derive(Default)]
pub struct Counts {
    pub pulls: AtomicU64,
    pub requests: AtomicU64,
    pub bytes: AtomicU64,
    /// Requests that the client aborted on purpose.
    pub aborted: AtomicU64,
    /// Failed requests with a known reason, by error.
    pub excused: Mutex<BTreeMap<String, u64>>,
    /// Unexpected failures.
    pub faults: Mutex<Vec<String>>,
}

/// Measured memory and disk usage in bytes.
#[derive(Default)]
pub struct Usage {
    pub disk: Vec<u64>,
    pub rss: Vec<u64>,
}

/// A server with its store, clients and measurements.
pub struct Instance {
    pub kind: &'static str,
    pub max_size: u64,
    larder: Mutex<Larder>,
    /// Address, and the number of restarts. No address while the server is down.
    address: RwLock<(Option<SocketAddr>, u64)>,
    pub counts: Counts,
    pub usage: Mutex<Usage>,
    /// Requests and hits, including those of killed processes.
    pub hits: Mutex<(f64, f64)>,
    /// Evicted bytes, including those of killed processes.
    pub evicted: Mutex<f64>,
}

impl Instance {
    pub fn new(kind: &'static str, max_size: u64, origin: &Origin) -> Self {
        let larder = Setup::empty()
            .upstream_set("docker.io", "endpoints", vec![format!("http://{}", origin.addr)])
            .upstream_set("docker.io", "default", true)
            .set("store.blobs", kind)
            .set("store.max_size", format!("{max_size}B"))
            .set("store.min_free", "1GiB")
            .set("cache.tag_ttl", "10s")
            .set("log.requests", false)
            .start();
        let address = RwLock::new((Some(larder.api_addr()), 0));
        Self {
            kind,
            max_size,
            larder: larder.into(),
            address,
            counts: Counts::default(),
            usage: Mutex::default(),
            hits: Mutex::default(),
            evicted: Mutex::default(),
        }
    }

    fn address(&self) -> (Option<SocketAddr>, u64) {
        *self.address.read().unwrap()
    }

    /// Kills the server with SIGKILL and starts it again on the same store. Returns the time until it listens.
    pub fn kill(&self) -> Duration {
        self.count();
        let mut larder = self.larder.lock().unwrap();
        self.address.write().unwrap().0 = None;
        larder.kill9();
        let begin = Instant::now();
        larder.restart();
        let mut address = self.address.write().unwrap();
        *address = (Some(larder.api_addr()), address.1 + 1);
        begin.elapsed()
    }

    /// Returns the evicted bytes of the running server.
    pub fn evicted_bytes(&self) -> u64 {
        self.larder.lock().unwrap().counter(EVICTED, &[])
    }

    /// Adds the counters of the running server.
    pub fn count(&self) {
        let metrics = self.larder.lock().unwrap().metrics_text();
        let requests = |labels: &[(&str, &str)]| sum_of(&metrics, "larder_requests_total", labels);
        let mut hits = self.hits.lock().unwrap();
        hits.0 += requests(&[("status", "2xx")]);
        hits.1 += requests(&[("status", "2xx"), ("outcome", "hit")]);
        *self.evicted.lock().unwrap() += sum_of(&metrics, EVICTED, &[]);
    }

    /// Measures memory and disk usage.
    pub fn measure(&self) {
        let larder = self.larder.lock().unwrap();
        let mut usage = self.usage.lock().unwrap();
        usage.disk.push(on_disk(&larder.setup().data()));
        usage.rss.push(larder.rss());
    }

    /// Pulls images until `stop` is set.
    pub fn pull(
        &self,
        world: &World,
        origin: &Origin,
        seed: u64,
        draw: impl Fn(&mut Random) -> Option<usize>,
        stop: &AtomicBool,
        disruptive: bool,
    ) {
        let mut random = Random::new(seed);
        while !stop.load(Ordering::Relaxed) {
            let Some(n) = draw(&mut random) else { return };
            self.counts.pulls.fetch_add(1, Ordering::Relaxed);
            self.pull_one(world, origin, &world.images[n], &mut random, disruptive);
        }
    }

    fn pull_one(&self, world: &World, origin: &Origin, image: &Image, random: &mut Random, disruptive: bool) {
        let accept = format!("{OCI_INDEX}, {OCI_MANIFEST}");
        let base = format!("/v2/{}", image.repository);
        let mut paths = vec![(format!("{base}/manifests/{}", image.tag), image.documents[0].as_str())];
        paths.extend(
            image.documents[1..].iter().map(|digest| (format!("{base}/manifests/{digest}"), digest.as_str())),
        );
        paths.extend(image.blobs.iter().map(|digest| (format!("{base}/blobs/{digest}"), digest.as_str())));
        for (path, digest) in paths {
            let expected =
                world.blob_bytes(digest).or_else(|| world.find(&image.repository, digest).map(|it| it.2));
            let expected = expected.unwrap_or_default();
            let (Some(addr), start) = self.address() else {
                std::thread::sleep(Duration::from_millis(50));
                return;
            };
            let begin = Instant::now();
            self.counts.requests.fetch_add(1, Ordering::Relaxed);
            let abort = disruptive && random.below(30) == 0;
            let from = if disruptive && path.contains("/blobs/") && random.below(40) == 0 {
                expected.len() / 3
            } else {
                0
            };
            match request(addr, &path, &accept, expected, from, abort) {
                Ok(None) => drop(self.counts.aborted.fetch_add(1, Ordering::Relaxed)),
                Ok(Some(bytes)) => drop(self.counts.bytes.fetch_add(bytes as u64, Ordering::Relaxed)),
                Err(fault) => {
                    let killed = self.address() != (Some(addr), start);
                    let failing = !origin.was_normal_since(begin, RECOVERY);
                    if fault.wrong || !(killed || failing) {
                        let line =
                            format!("{} {path}: {} (after {:?})", self.kind, fault.text, begin.elapsed());
                        self.counts.faults.lock().unwrap().push(line);
                    } else {
                        let why = if killed { "killed" } else { fault.text.as_str() };
                        *self.counts.excused.lock().unwrap().entry(why.to_owned()).or_default() += 1;
                        // A pause as of a real client, because the server answers at once while the circuit breaker is open.
                        std::thread::sleep(Duration::from_millis(200));
                    }
                    // After a failure, a client does not request the rest of the image.
                    return;
                }
            }
        }
    }
}

/// Wrong or failed answer.
struct Fault {
    text: String,
    /// True for wrong bytes, which have no known reason.
    wrong: bool,
}

/// Sends one request and checks every byte. Returns `None` if the client aborted it on purpose.
fn request(
    addr: SocketAddr,
    path: &str,
    accept: &str,
    expected: &[u8],
    from: usize,
    abort: bool,
) -> Result<Option<usize>, Fault> {
    let excusable = |text: String| Fault { text, wrong: false };
    let range = format!("bytes={from}-");
    let mut headers = vec![("Accept", accept)];
    if from > 0 {
        headers.push(("Range", &range));
    }
    let mut transfer = Client::new(addr).open("GET", path, &headers).map_err(|broken| excusable(broken.0))?;
    let status = transfer.head.status;
    match status {
        200 | 206 => {}
        502..=504 => return Err(excusable(format!("status {status}"))),
        _ => return Err(Fault { text: format!("status {status}"), wrong: true }),
    }
    let expected = if status == 206 { &expected[from..] } else { expected };
    if abort {
        let _ = transfer.read(expected.len() / 2);
        transfer.hang_up();
        return Ok(None);
    }
    if transfer.head.content_length().is_some_and(|length| length != expected.len()) {
        return Err(Fault { text: "another length".to_owned(), wrong: true });
    }
    let (mut at, mut right) = (0, true);
    loop {
        let part = transfer.read(usize::MAX).map_err(|broken| excusable(broken.0))?;
        if part.is_empty() {
            break;
        }
        // Unverified bytes may be wrong. Then the body must be incomplete.
        right &= expected.get(at..at + part.len()) == Some(&part[..]);
        at += part.len();
    }
    if right && at == expected.len() {
        return Ok(Some(at));
    }
    let text = if right { format!("ended after {at}") } else { "wrong bytes, to their end".to_owned() };
    Err(Fault { text, wrong: true })
}
