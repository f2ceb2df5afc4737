//! The registry of all images, with failure modes.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::Random;
use crate::world::World;

/// Behaviour of the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Normal,
    /// Every request is answered with 503.
    Down,
    /// Every third body is interrupted in the middle.
    Interrupting,
    /// Every tenth body has a wrong byte.
    Corrupting,
    /// Every answer is delayed by three seconds.
    Hanging,
}

/// A registry that serves all images of a [`World`].
pub struct Origin {
    pub addr: SocketAddr,
    pub bytes: Arc<AtomicU64>,
    state: Arc<State>,
}

/// Mode of the registry, and the end of the last failure mode.
struct State {
    now: Mutex<(Mode, Option<Instant>)>,
    answers: AtomicUsize,
}

impl Origin {
    pub fn start(world: &Arc<World>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let state = Arc::new(State { now: Mutex::new((Mode::Normal, None)), answers: AtomicUsize::new(0) });
        let bytes = Arc::new(AtomicU64::new(0));
        let (world, shared, counted) = (Arc::clone(world), Arc::clone(&state), Arc::clone(&bytes));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (world, state, bytes) = (Arc::clone(&world), Arc::clone(&shared), Arc::clone(&counted));
                // The client may close the connection at any time.
                std::thread::spawn(move || drop(serve(&stream, &world, &state, &bytes)));
            }
        });
        Self { addr, bytes, state }
    }

    pub fn set(&self, mode: Mode) {
        let mut now = self.state.now.lock().unwrap();
        if mode == Mode::Normal && now.0 != Mode::Normal {
            now.1 = Some(Instant::now());
        }
        now.0 = mode;
    }

    /// Returns true if the mode has been normal since `before` earlier than `begin`.
    pub fn was_normal_since(&self, begin: Instant, before: Duration) -> bool {
        let (mode, since) = *self.state.now.lock().unwrap();
        mode == Mode::Normal && since.is_none_or(|since| since + before < begin)
    }
}

fn serve(stream: &TcpStream, world: &World, state: &State, count: &AtomicU64) -> std::io::Result<()> {
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
        let mode = state.now.lock().unwrap().0;
        let turn = state.answers.fetch_add(1, Ordering::Relaxed);
        if mode == Mode::Hanging {
            std::thread::sleep(Duration::from_secs(3));
        }
        if mode == Mode::Down {
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
        match mode {
            Mode::Interrupting if turn.is_multiple_of(3) => {
                (&*stream).write_all(&part[..part.len() / 2])?;
                return Ok(());
            }
            Mode::Corrupting if turn.is_multiple_of(10) && !part.is_empty() => {
                let mut wrong = part.to_vec();
                let at = usize::try_from(random.below(part.len() as u64)).unwrap();
                wrong[at] ^= 1;
                (&*stream).write_all(&wrong)?;
            }
            _ => (&*stream).write_all(part)?,
        }
    }
}

/// Returns headers and body for a path.
fn find<'a>(world: &'a World, path: &str) -> Option<(String, &'a [u8])> {
    let rest = path.strip_prefix("/v2/")?;
    if let Some((_, digest)) = rest.split_once("/blobs/") {
        return Some(("Content-Type: application/octet-stream\r\n".to_owned(), world.blob_bytes(digest)?));
    }
    let (repository, reference) = rest.split_once("/manifests/")?;
    let (digest, media_type, body) = world.find(repository, reference)?;
    Some((format!("Content-Type: {media_type}\r\nDocker-Content-Digest: {digest}\r\n"), body))
}
