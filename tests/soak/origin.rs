//! The registry behind everything, and its weather.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::Random;
use crate::world::World;

/// How the registry is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    Fine,
    /// Every request is answered with 503.
    Down,
    /// Every third body is cut in the middle.
    Cutting,
    /// Every tenth body has a wrong byte.
    Lying,
    /// Nothing is answered for a while.
    Hanging,
}

/// A registry that serves a world.
pub struct Origin {
    pub addr: SocketAddr,
    pub bytes: Arc<AtomicU64>,
    sky: Arc<Sky>,
}

/// The weather, and since when it is not what it was.
struct Sky {
    now: Mutex<(Weather, Option<Instant>)>,
    answers: AtomicUsize,
}

impl Origin {
    pub fn start(world: &Arc<World>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let sky = Arc::new(Sky { now: Mutex::new((Weather::Fine, None)), answers: AtomicUsize::new(0) });
        let bytes = Arc::new(AtomicU64::new(0));
        let (world, shared, counted) = (Arc::clone(world), Arc::clone(&sky), Arc::clone(&bytes));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (world, sky, bytes) = (Arc::clone(&world), Arc::clone(&shared), Arc::clone(&counted));
                // Whoever talks to it may hang up at any time.
                std::thread::spawn(move || drop(serve(&stream, &world, &sky, &bytes)));
            }
        });
        Self { addr, bytes, sky }
    }

    pub fn set(&self, weather: Weather) {
        let mut now = self.sky.now.lock().unwrap();
        if weather == Weather::Fine && now.0 != Weather::Fine {
            now.1 = Some(Instant::now());
        }
        now.0 = weather;
    }

    /// Whether it has been fine since `begin`, and for a while before.
    pub fn was_fine_since(&self, begin: Instant, before: Duration) -> bool {
        let (weather, since) = *self.sky.now.lock().unwrap();
        weather == Weather::Fine && since.is_none_or(|since| since + before < begin)
    }
}

fn serve(stream: &TcpStream, world: &World, sky: &Sky, count: &AtomicU64) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut lines = BufReader::new(stream);
    let mut random = Random::new(3);
    loop {
        let mut first = String::new();
        if lines.read_line(&mut first)? == 0 {
            return Ok(());
        }
        let mut from = 0;
        let mut line = String::new();
        while lines.read_line(&mut line)? > 2 {
            if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                from = range.split('-').next().and_then(|start| start.parse().ok()).unwrap_or(0);
            }
            line.clear();
        }
        let mut words = first.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let path = path.split('?').next().unwrap_or_default();
        let weather = sky.now.lock().unwrap().0;
        let turn = sky.answers.fetch_add(1, Ordering::Relaxed);
        if weather == Weather::Hanging {
            std::thread::sleep(Duration::from_secs(3));
        }
        if weather == Weather::Down {
            write!(&*stream, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")?;
            continue;
        }
        let Some((head, body)) = find(world, path) else {
            write!(&*stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
            continue;
        };
        let part = body.get(from..).unwrap_or_default();
        let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
        let range = format!("Content-Range: bytes {from}-{}/{}\r\n", body.len() - 1, body.len());
        let range = if from > 0 { range.as_str() } else { "" };
        write!(&*stream, "HTTP/1.1 {status}\r\n{head}{range}Content-Length: {}\r\n\r\n", part.len())?;
        if method == "HEAD" {
            continue;
        }
        count.fetch_add(part.len() as u64, Ordering::Relaxed);
        match weather {
            Weather::Cutting if turn.is_multiple_of(3) => {
                (&*stream).write_all(&part[..part.len() / 2])?;
                return Ok(());
            }
            Weather::Lying if turn.is_multiple_of(10) && !part.is_empty() => {
                let mut wrong = part.to_vec();
                let at = usize::try_from(random.below(part.len() as u64)).unwrap();
                wrong[at] ^= 1;
                (&*stream).write_all(&wrong)?;
            }
            _ => (&*stream).write_all(part)?,
        }
    }
}

/// What a path stands for: its headers, and its body.
fn find<'a>(world: &'a World, path: &str) -> Option<(String, &'a [u8])> {
    let rest = path.strip_prefix("/v2/")?;
    if let Some((_, digest)) = rest.split_once("/blobs/") {
        return Some(("Content-Type: application/octet-stream\r\n".to_owned(), world.blob_bytes(digest)?));
    }
    let (repository, reference) = rest.split_once("/manifests/")?;
    let (digest, media_type, body) = world.find(repository, reference)?;
    Some((format!("Content-Type: {media_type}\r\nDocker-Content-Digest: {digest}\r\n"), body))
}
