//! Scripted faults of the registry: a filter for requests, and changes of their answers.

use std::io::Write as _;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::TIME_LIMIT;
use super::registry::Seen;

/// Point at which the registry stops sending until the test opens the gate.
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

    /// Waits until `n` answers have reached the gate.
    #[track_caller]
    pub fn wait_reached(&self, n: usize) {
        let end = Instant::now() + TIME_LIMIT;
        let mut state = self.0.0.lock().unwrap();
        while state.reached < n {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{} of {n} answers reached the gate", state.reached);
            state = self.0.1.wait_timeout(state, left).unwrap().0;
        }
    }

    /// Blocks until the gate opens. Returns false if the registry goes down first.
    pub(super) fn pass(&self, is_down: impl Fn() -> bool) -> bool {
        let mut state = self.0.0.lock().unwrap();
        state.reached += 1;
        self.0.1.notify_all();
        while !state.open {
            if is_down() {
                return false;
            }
            state = self.0.1.wait_timeout(state, Duration::from_millis(20)).unwrap().0;
        }
        true
    }
}

/// Filter for requests.
#[derive(Clone, Debug, Default)]
pub struct When {
    method: Option<&'static str>,
    path_has: Vec<String>,
    times: Option<usize>,
    skip: usize,
    has_range: bool,
    query: Option<String>,
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

    /// Only requests whose path also contains `part`.
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

    /// Only requests with this query.
    #[must_use]
    pub fn query(mut self, query: &str) -> Self {
        self.query = Some(query.to_owned());
        self
    }

    /// Only requests for a range.
    #[must_use]
    pub fn with_range(mut self) -> Self {
        self.has_range = true;
        self
    }

    /// Only the first `n` matching requests.
    #[must_use]
    pub fn times(mut self, n: usize) -> Self {
        self.times = Some(n);
        self
    }

    /// Not the first `n` matching requests.
    #[must_use]
    pub fn after(mut self, n: usize) -> Self {
        self.skip = n;
        self
    }

    pub(super) fn fires(&mut self, seen: &Seen) -> bool {
        let fits = self.method.is_none_or(|method| method == seen.method)
            && self.path_has.iter().all(|part| seen.path.contains(part.as_str()))
            && self.query.as_ref().is_none_or(|query| *query == seen.query)
            && (!self.has_range || seen.header("range").is_some());
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

/// Change of an answer. Several faults for one request are applied in their order.
#[derive(Clone)]
pub enum Fault {
    /// Sends this status with an error document.
    Status(u16),
    /// Sends this status with these headers and this body.
    Answer(u16, Vec<(String, String)>, Vec<u8>),
    /// Delays the head.
    DelayHead(Duration),
    /// Holds the head until the gate opens.
    HoldHead(Gate),
    /// Holds the body before this byte of the content until the gate opens.
    HoldBody(usize, Gate),
    /// Sends the body with this number of bytes per second.
    Throttle(usize),
    /// Closes the connection after this number of bytes of the body.
    Cut(usize),
    /// Closes the connection without an answer.
    CloseConnection,
    /// Changes one bit of this byte of the content.
    FlipBit(usize),
    /// Removes the last byte. The Content-Length is that of the shorter body.
    RemoveLastByte,
    /// Closes the connection before the last byte. The Content-Length includes it.
    EndOneByteEarly,
    /// Appends one byte. The Content-Length includes it.
    AppendByte,
    /// Appends one byte, in a chunked body without Content-Length.
    AppendByteChunked,
    /// Sends other bytes than the content.
    ReplaceBody(Arc<Vec<u8>>),
    /// Ignores Range: status 200 and the complete content.
    IgnoreRange,
    /// Sends a Content-Range that starts one byte late, with the requested body.
    WrongContentRange,
    /// Redirects to the same path at another base URL.
    Redirect(u16, String),
    /// Removes a header.
    RemoveHeader(&'static str),
    /// Sets a header.
    SetHeader(&'static str, String),
    /// Sends a chunked body.
    Chunked,
    /// Sends neither Content-Length nor chunks: the body ends with the connection.
    NoLength,
    /// Sends gzip with Content-Encoding although it was not requested. A range counts encoded bytes.
    Gzip,
    /// Calls a function that changes the answer.
    Rewrite(Arc<Rewrite>),
}

impl Fault {
    pub fn rewrite(change: impl Fn(&Seen, &mut Plan) + Send + Sync + 'static) -> Self {
        Self::Rewrite(Arc::new(change))
    }
}

/// Compresses bytes with gzip.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An answer before it is sent.
#[derive(Clone, Debug)]
pub struct Plan {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub content: Arc<Vec<u8>>,
    /// First byte of the content that is sent.
    pub from: usize,
    /// End of the part of the content that is sent.
    pub to: usize,
    /// Content-Length, if it is not the length of the body.
    pub content_length: Option<usize>,
    pub chunked: bool,
    /// Sends no length: the connection ends with the body.
    pub until_close: bool,
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
            content_length: None,
            chunked: false,
            until_close: false,
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

    /// Replaces the content and keeps the start of the range.
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
            Fault::CloseConnection => self.close = true,
            Fault::FlipBit(at) => {
                let mut bytes = self.content.to_vec();
                // An error document may be shorter.
                bytes.get_mut(*at).into_iter().for_each(|byte| *byte ^= 1);
                self.content = Arc::new(bytes);
            }
            Fault::RemoveLastByte => self.replace(self.content[..self.content.len() - 1].to_vec()),
            Fault::EndOneByteEarly => self.cut = Some(self.to - self.from - 1),
            Fault::AppendByte => self.replace([self.content.as_slice(), b"!"].concat()),
            Fault::AppendByteChunked => {
                self.replace([self.content.as_slice(), b"!"].concat());
                self.chunked = true;
            }
            Fault::ReplaceBody(bytes) => self.replace(bytes.to_vec()),
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
            Fault::RemoveHeader(name) => self.remove(name),
            Fault::SetHeader(name, value) => self.set(name, value),
            Fault::Chunked => self.chunked = true,
            Fault::NoLength => self.until_close = true,
            Fault::Gzip => self.gzip(seen),
            Fault::Rewrite(change) => change(seen, self),
        }
    }
}
