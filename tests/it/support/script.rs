//! How the scripted registry misbehaves: which requests a fault is for, and what it does to their answers.

use std::io::Write as _;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::registry::Seen;

/// A place where the registry stops until the test lets it go on.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<(Mutex<GateState>, Condvar)>);

#[derive(Debug, Default)]
struct GateState {
    open: bool,
    reached: usize,
}

impl Gate {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn open(&self) {
        self.0.0.lock().unwrap().open = true;
        self.0.1.notify_all();
    }

    /// Waits until `n` answers have come as far as the gate.
    #[track_caller]
    pub fn wait_reached(&self, n: usize) {
        let end = Instant::now() + PATIENCE;
        let mut state = self.0.0.lock().unwrap();
        while state.reached < n {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{} of {n} answers reached the gate", state.reached);
            state = self.0.1.wait_timeout(state, left).unwrap().0;
        }
    }

    /// Stops until the gate opens, or `gone` says that nobody waits for the answer any more.
    pub(super) fn pass(&self, gone: impl Fn() -> bool) -> bool {
        let mut state = self.0.0.lock().unwrap();
        state.reached += 1;
        self.0.1.notify_all();
        while !state.open {
            if gone() {
                return false;
            }
            state = self.0.1.wait_timeout(state, Duration::from_millis(20)).unwrap().0;
        }
        true
    }
}

/// Which requests.
#[derive(Clone, Debug, Default)]
pub struct When {
    method: Option<&'static str>,
    path_has: Vec<String>,
    times: Option<usize>,
    skip: usize,
}

impl When {
    pub fn any() -> Self {
        Self::default()
    }

    pub fn blobs() -> Self {
        Self::any().path("/blobs/")
    }

    pub fn manifests() -> Self {
        Self::any().path("/manifests/")
    }

    /// Requests whose path contains this too.
    #[must_use]
    pub fn path(mut self, part: &str) -> Self {
        self.path_has.push(part.to_owned());
        self
    }

    #[must_use]
    pub fn method(mut self, method: &'static str) -> Self {
        self.method = Some(method);
        self
    }

    /// Only the first `n` of them.
    #[must_use]
    pub fn times(mut self, n: usize) -> Self {
        self.times = Some(n);
        self
    }

    /// Not the first `n` of them.
    #[must_use]
    pub fn after(mut self, n: usize) -> Self {
        self.skip = n;
        self
    }

    pub(super) fn fires(&mut self, seen: &Seen) -> bool {
        let fits = self.method.is_none_or(|method| method == seen.method)
            && self.path_has.iter().all(|part| seen.path.contains(part.as_str()));
        if !fits {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        match &mut self.times {
            None => true,
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }
}

type Rewrite = dyn Fn(&Seen, &mut Plan) + Send + Sync;

/// What happens to the answer. Several faults on one request add up.
#[derive(Clone)]
pub enum Fault {
    /// This status with an error document.
    Status(u16),
    /// This status with these headers and this body.
    Answer(u16, Vec<(String, String)>, Vec<u8>),
    /// The head waits this long.
    DelayHead(Duration),
    /// The head waits for the gate.
    HoldHead(Gate),
    /// The body stops before the content's byte of this number until the gate opens.
    HoldBody(usize, Gate),
    /// The body comes at this many bytes a second.
    Throttle(usize),
    /// The connection ends after this many bytes of this answer's body.
    Cut(usize),
    /// The connection ends before any answer.
    Close,
    /// The content's byte of this number has one bit changed.
    Flip(usize),
    /// The last byte is missing, and the Content-Length says so.
    OneLess,
    /// The last byte is missing although the Content-Length promises it; then the connection ends.
    OneLessThanPromised,
    /// There is one byte too many, and the Content-Length says so.
    OneMore,
    /// There is one byte too many, in a chunked body that tells no length.
    OneMoreUntold,
    /// Other bytes than the content's.
    Other(Arc<Vec<u8>>),
    /// Range is not understood: 200 and everything.
    IgnoreRange,
    /// 206 with a Content-Range that starts one byte late (the body is the one asked for).
    WrongContentRange,
    /// A redirect to the same path at another base URL.
    Redirect(u16, String),
    /// No such header.
    Without(&'static str),
    /// This header with another value.
    Header(&'static str, String),
    /// No Content-Length; chunked.
    Chunked,
    /// Neither a Content-Length nor chunks: the body ends with its connection.
    Untold,
    /// Encoded as gzip and labelled so, although nobody asked; a range is one of the encoded bytes.
    Gzip,
    /// Anything else.
    Rewrite(Arc<Rewrite>),
}

impl Fault {
    pub fn rewrite(change: impl Fn(&Seen, &mut Plan) + Send + Sync + 'static) -> Self {
        Self::Rewrite(Arc::new(change))
    }
}

/// A gzip file of these bytes.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An answer that has been decided and not sent.
#[derive(Clone, Debug)]
pub struct Plan {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    /// The content, and which part of it is sent.
    pub content: Arc<Vec<u8>>,
    pub from: usize,
    pub to: usize,
    /// The Content-Length as it is told; by default the truth.
    pub told_length: Option<usize>,
    pub chunked: bool,
    /// No length is told in any way, and the connection ends with the body.
    pub untold: bool,
    pub head_delay: Duration,
    pub head_gates: Vec<Gate>,
    pub holds: Vec<(usize, Gate)>,
    pub throttle: Option<usize>,
    pub cut: Option<usize>,
    pub close: bool,
}

impl Plan {
    pub fn new(status: u16, headers: &[(&str, &str)], content: Arc<Vec<u8>>) -> Self {
        Self {
            status,
            headers: headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            from: 0,
            to: content.len(),
            content,
            told_length: None,
            chunked: false,
            untold: false,
            head_delay: Duration::ZERO,
            head_gates: Vec::new(),
            holds: Vec::new(),
            throttle: None,
            cut: None,
            close: false,
        }
    }

    pub fn error(status: u16, code: &str) -> Self {
        let body = serde_json::json!({ "errors": [{ "code": code, "message": "scripted" }] }).to_string();
        Self::new(status, &[("Content-Type", "application/json")], Arc::new(body.into_bytes()))
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.remove(name);
        self.headers.push((name.to_owned(), value.to_owned()));
    }

    pub fn remove(&mut self, name: &str) {
        self.headers.retain(|(k, _)| !k.eq_ignore_ascii_case(name));
    }

    fn gzip(&mut self, seen: &Seen) {
        if !matches!(self.status, 200 | 206) {
            return;
        }
        self.content = Arc::new(gzip(&self.content));
        (self.status, self.from, self.to) = (200, 0, self.content.len());
        self.remove("Content-Range");
        if let Some(from) = seen.range_start().map(|from| usize::try_from(from).unwrap()) {
            let (from, all) = (from.min(self.to - 1), self.to);
            (self.status, self.from) = (206, from);
            self.set("Content-Range", &format!("bytes {from}-{}/{all}", all - 1));
        }
        self.set("Content-Encoding", "gzip");
    }

    /// Other content, sent whole or from where the range began.
    fn replace(&mut self, content: Vec<u8>) {
        let to_the_end = self.to == self.content.len();
        self.to = if to_the_end { content.len() } else { self.to.min(content.len()) };
        self.from = self.from.min(self.to);
        self.content = Arc::new(content);
    }

    pub(super) fn apply(&mut self, seen: &Seen, fault: &Fault) {
        match fault {
            Fault::Status(status) => {
                let code = match status {
                    401 => "UNAUTHORIZED",
                    403 => "DENIED",
                    404 => "MANIFEST_UNKNOWN",
                    429 => "TOOMANYREQUESTS",
                    _ => "UNKNOWN",
                };
                *self = Self::error(*status, code);
            }
            Fault::Answer(status, headers, body) => {
                *self = Self::new(*status, &[], Arc::new(body.clone()));
                self.headers.clone_from(headers);
            }
            Fault::DelayHead(delay) => self.head_delay += *delay,
            Fault::HoldHead(gate) => self.head_gates.push(gate.clone()),
            Fault::HoldBody(at, gate) => self.holds.push((*at, gate.clone())),
            Fault::Throttle(rate) => self.throttle = Some(*rate),
            Fault::Cut(after) => self.cut = Some(*after),
            Fault::Close => self.close = true,
            Fault::Flip(at) => {
                let mut bytes = self.content.to_vec();
                // An error document may be shorter.
                bytes.get_mut(*at).into_iter().for_each(|byte| *byte ^= 1);
                self.content = Arc::new(bytes);
            }
            Fault::OneLess => self.replace(self.content[..self.content.len() - 1].to_vec()),
            Fault::OneLessThanPromised => self.cut = Some(self.to - self.from - 1),
            Fault::OneMore => self.replace([self.content.as_slice(), b"!"].concat()),
            Fault::OneMoreUntold => {
                self.replace([self.content.as_slice(), b"!"].concat());
                self.chunked = true;
            }
            Fault::Other(bytes) => self.replace(bytes.to_vec()),
            Fault::IgnoreRange => {
                if self.status == 206 {
                    self.status = 200;
                    (self.from, self.to) = (0, self.content.len());
                    self.remove("Content-Range");
                }
            }
            Fault::WrongContentRange => {
                if self.status == 206 {
                    let (from, last, all) = (self.from + 1, self.to, self.content.len() + 1);
                    self.set("Content-Range", &format!("bytes {from}-{last}/{all}"));
                }
            }
            Fault::Redirect(status, base) => {
                let query = if seen.query.is_empty() { String::new() } else { format!("?{}", seen.query) };
                let to = format!("{base}{}{query}", seen.path);
                *self = Self::new(*status, &[("Location", &to)], Arc::default());
            }
            Fault::Without(name) => self.remove(name),
            Fault::Header(name, value) => self.set(name, value),
            Fault::Chunked => self.chunked = true,
            Fault::Untold => self.untold = true,
            Fault::Gzip => self.gzip(seen),
            Fault::Rewrite(change) => change(seen, self),
        }
    }
}
