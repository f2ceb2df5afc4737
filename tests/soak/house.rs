//! A larder that is killed and started again, the clients that pull through it, and what is seen of both.

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

/// For so long after bad weather an upstream may still be left alone, or an interrupted fill be in trouble.
const AFTERMATH: Duration = Duration::from_secs(40);

const EVICTED: &str = "larder_evicted_bytes_total";

/// What has been counted.
#[derive(Default)]
pub struct Tally {
    pub pulls: AtomicU64,
    pub requests: AtomicU64,
    pub bytes: AtomicU64,
    /// Clients that hung up in the middle of a body.
    pub left: AtomicU64,
    /// Requests without a proper end, for a reason that is known, by what came of them.
    pub excused: Mutex<BTreeMap<String, u64>>,
    /// Everything that should not be.
    pub faults: Mutex<Vec<String>>,
}

/// What was seen of memory and disk, in bytes.
#[derive(Default)]
pub struct Seen {
    pub disk: Vec<u64>,
    pub rss: Vec<u64>,
}

pub struct House {
    pub kind: &'static str,
    pub max_size: u64,
    larder: Mutex<Larder>,
    /// Where it listens, and how often it was started. None while it is not there.
    place: RwLock<(Option<SocketAddr>, u64)>,
    pub tally: Tally,
    pub seen: Mutex<Seen>,
    /// Requests and hits of the larders that were killed.
    pub hits: Mutex<(f64, f64)>,
    /// What was kept and evicted, in bytes.
    pub evicted: Mutex<f64>,
}

impl House {
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
        let place = RwLock::new((Some(larder.api_addr()), 0));
        Self {
            kind,
            max_size,
            larder: larder.into(),
            place,
            tally: Tally::default(),
            seen: Mutex::default(),
            hits: Mutex::default(),
            evicted: Mutex::default(),
        }
    }

    fn place(&self) -> (Option<SocketAddr>, u64) {
        *self.place.read().unwrap()
    }

    /// kill -9 in the middle of whatever happens, and a new start on the same store. Returns how long it took to listen.
    pub fn kill(&self) -> Duration {
        self.count();
        let mut larder = self.larder.lock().unwrap();
        self.place.write().unwrap().0 = None;
        larder.kill9();
        let begin = Instant::now();
        larder.restart();
        let mut place = self.place.write().unwrap();
        *place = (Some(larder.api_addr()), place.1 + 1);
        begin.elapsed()
    }

    /// What the running larder has kept and evicted, in bytes.
    pub fn evicted_bytes(&self) -> u64 {
        self.larder.lock().unwrap().counter(EVICTED, &[])
    }

    /// Adds what the running larder has counted.
    pub fn count(&self) {
        let metrics = self.larder.lock().unwrap().metrics_text();
        let requests = |labels: &[(&str, &str)]| sum_of(&metrics, "larder_requests_total", labels);
        let mut hits = self.hits.lock().unwrap();
        hits.0 += requests(&[("status", "2xx")]);
        hits.1 += requests(&[("status", "2xx"), ("outcome", "hit")]);
        *self.evicted.lock().unwrap() += sum_of(&metrics, EVICTED, &[]);
    }

    /// Looks at memory and disk.
    pub fn look(&self) {
        let larder = self.larder.lock().unwrap();
        let mut seen = self.seen.lock().unwrap();
        seen.disk.push(on_disk(&larder.setup().data()));
        seen.rss.push(larder.rss());
    }

    /// Pulls images until it is told to stop.
    pub fn pull(
        &self,
        world: &World,
        origin: &Origin,
        seed: u64,
        draw: impl Fn(&mut Random) -> Option<usize>,
        stop: &AtomicBool,
        unruly: bool,
    ) {
        let mut random = Random::new(seed);
        while !stop.load(Ordering::Relaxed) {
            let Some(n) = draw(&mut random) else { return };
            self.tally.pulls.fetch_add(1, Ordering::Relaxed);
            self.pull_one(world, origin, &world.images[n], &mut random, unruly);
        }
    }

    fn pull_one(&self, world: &World, origin: &Origin, image: &Image, random: &mut Random, unruly: bool) {
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
            let (Some(addr), start) = self.place() else {
                std::thread::sleep(Duration::from_millis(50));
                return;
            };
            let begin = Instant::now();
            self.tally.requests.fetch_add(1, Ordering::Relaxed);
            let leave = unruly && random.below(30) == 0;
            let from = if unruly && path.contains("/blobs/") && random.below(40) == 0 {
                expected.len() / 3
            } else {
                0
            };
            match request(addr, &path, &accept, expected, from, leave) {
                Ok(None) => drop(self.tally.left.fetch_add(1, Ordering::Relaxed)),
                Ok(Some(bytes)) => drop(self.tally.bytes.fetch_add(bytes as u64, Ordering::Relaxed)),
                Err(fault) => {
                    let killed = self.place() != (Some(addr), start);
                    let weather = !origin.was_fine_since(begin, AFTERMATH);
                    if fault.wrong || !(killed || weather) {
                        let line =
                            format!("{} {path}: {} (after {:?})", self.kind, fault.text, begin.elapsed());
                        self.tally.faults.lock().unwrap().push(line);
                    } else {
                        let why = if killed { "killed" } else { fault.text.as_str() };
                        *self.tally.excused.lock().unwrap().entry(why.to_owned()).or_default() += 1;
                        // As a client would; larder itself answers at once while it leaves an upstream alone.
                        std::thread::sleep(Duration::from_millis(200));
                    }
                    // Who cannot have a part does not ask for the rest.
                    return;
                }
            }
        }
    }
}

/// What came instead of what was asked for.
struct Fault {
    text: String,
    /// Nothing excuses wrong bytes.
    wrong: bool,
}

/// One request, every byte of it checked. `None` if the client left as it meant to.
fn request(
    addr: SocketAddr,
    path: &str,
    accept: &str,
    expected: &[u8],
    from: usize,
    leave: bool,
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
    if leave {
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
        // Bytes that are not verified yet may be wrong; then no proper end may follow.
        right &= expected.get(at..at + part.len()) == Some(&part[..]);
        at += part.len();
    }
    if right && at == expected.len() {
        return Ok(Some(at));
    }
    let text = if right { format!("ended after {at}") } else { "wrong bytes, to their end".to_owned() };
    Err(Fault { text, wrong: true })
}
