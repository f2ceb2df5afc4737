//! A plain HTTP/1.1 client: sends exactly the lines it is given, reads at the pace it is told, hides nothing.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

use super::PATIENCE;

/// Why a body did not come to its proper end.
#[derive(Debug)]
pub struct Broken(pub String);

/// Talks to one address, one connection per request.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    addr: SocketAddr,
    patience: Duration,
    narrow: bool,
}

/// An answer's status line and headers.
#[derive(Clone, Debug)]
pub struct Head {
    pub status: u16,
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// The header's only value; more than one line of it is an error.
    #[track_caller]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(k, _)| k.eq_ignore_ascii_case(name));
        let value = found.next().map(|(_, v)| v.as_str());
        assert!(found.next().is_none(), "{name} comes twice: {:?}", self.headers);
        value
    }

    pub fn content_length(&self) -> Option<usize> {
        self.header("content-length").map(|value| value.parse().unwrap())
    }

    /// What `Cache-Status` says.
    pub fn outcome(&self) -> &str {
        self.header("cache-status").unwrap_or("(no Cache-Status)")
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub head: Head,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn status(&self) -> u16 {
        self.head.status
    }

    #[track_caller]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e} in {:?}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Checks the status and that the body is an error document with this code, typed as JSON.
    #[track_caller]
    pub fn is_error(&self, status: u16, code: &str) {
        assert_eq!(self.status(), status, "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        let document = self.json();
        assert_eq!(document["errors"][0]["code"], code, "{document}");
        assert!(document["errors"][0]["message"].as_str().is_some_and(|m| !m.is_empty()), "{document}");
    }

    /// Checks that this is a 200 with exactly this body.
    #[track_caller]
    pub fn is_ok_with(&self, body: &[u8]) {
        assert_eq!(self.status(), 200, "{:?} {}", self.head, self.text());
        assert!(self.body == body, "another body: {} bytes, not {}", self.body.len(), body.len());
    }

    /// The outcome's place in `Cache-Status`.
    #[track_caller]
    pub fn is_outcome(&self, cache_status: &str) {
        assert_eq!(self.head.outcome(), cache_status, "{:?}", self.head);
    }
}

/// An answer whose body is still being read. Dropping it hangs up.
#[derive(Debug)]
pub struct Transfer {
    pub head: Head,
    stream: TcpStream,
    buffer: Vec<u8>,
    /// How much of the body there is still to come; `None` until the connection ends.
    left: Option<usize>,
    chunked: bool,
    bare: bool,
}

impl Client {
    pub fn new(addr: SocketAddr) -> Self {
        Self { addr, patience: PATIENCE, narrow: false }
    }

    /// The same client, with little room for bytes that have come and are not read.
    #[must_use]
    pub fn narrow(mut self) -> Self {
        self.narrow = true;
        self
    }

    /// The same client, which waits no longer than this for the next bytes.
    #[must_use]
    pub fn patient_for(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[])
    }

    #[track_caller]
    pub fn head(&self, path: &str) -> Answer {
        self.send("HEAD", path, &[])
    }

    /// A whole answer; it is an error if it does not come to its end.
    #[track_caller]
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.try_send(method, path, headers).unwrap_or_else(|error| panic!("{method} {path}: {error:?}"))
    }

    pub fn try_send(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Result<Answer, Broken> {
        self.open(method, path, headers)?.finish()
    }

    /// Sends the request and reads the head.
    pub fn open(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Result<Transfer, Broken> {
        let stream = self.connect().map_err(|e| Broken(format!("connect: {e}")))?;
        let mut lines = format!("{method} {path} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            lines.push_str(&format!("Host: {}\r\n", self.addr));
        }
        for (name, value) in headers {
            lines.push_str(&format!("{name}: {value}\r\n"));
        }
        lines.push_str("Connection: close\r\n\r\n");
        (&stream).write_all(lines.as_bytes()).map_err(|e| Broken(format!("send: {e}")))?;
        Transfer::begin(stream, method == "HEAD")
    }

    pub fn connect(&self) -> std::io::Result<TcpStream> {
        let stream = if self.narrow { self.connect_narrow()? } else { TcpStream::connect(self.addr)? };
        stream.set_read_timeout(Some(self.patience))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// The size of a socket's buffer can only be set before it connects, which the standard library does in one.
    fn connect_narrow(&self) -> std::io::Result<TcpStream> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let stream = runtime.block_on(async {
            let socket = tokio::net::TcpSocket::new_v4()?;
            socket.set_recv_buffer_size(128 * 1024)?;
            socket.connect(self.addr).await
        })?;
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        Ok(stream)
    }

    /// Sends these bytes and returns whatever comes back until the other side ends, or stays silent for `silence`.
    pub fn raw(&self, bytes: &[u8], silence: Duration) -> Vec<u8> {
        let mut stream = self.connect().unwrap();
        // The server may answer and hang up before it has read everything.
        let _ = stream.write_all(bytes);
        stream.set_read_timeout(Some(silence)).unwrap();
        let mut out = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            out.extend_from_slice(&buffer[..n]);
        }
        out
    }
}

impl Transfer {
    fn begin(mut stream: TcpStream, bare: bool) -> Result<Self, Broken> {
        let mut buffer = Vec::new();
        let mut block = [0; 16 * 1024];
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at;
            }
            match stream.read(&mut block) {
                Ok(0) => {
                    return Err(Broken(format!("ended in the head: {:?}", String::from_utf8_lossy(&buffer))));
                }
                Ok(n) => buffer.extend_from_slice(&block[..n]),
                Err(error) => return Err(Broken(format!("head: {error}"))),
            }
        };
        let text = String::from_utf8(buffer[..end].to_vec()).map_err(|e| Broken(e.to_string()))?;
        let mut lines = text.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        let head = Head { status: status.ok_or_else(|| Broken(text.clone()))?, headers };
        let chunked = head.header("transfer-encoding").is_some_and(|value| value == "chunked");
        let bare = bare || matches!(head.status, 204 | 304);
        let left = if bare { Some(0) } else { head.content_length() };
        Ok(Self { head, stream, buffer: buffer.split_off(end + 4), left, chunked, bare })
    }

    /// Up to `most` bytes of the body as they come; empty at its proper end.
    pub fn read(&mut self, most: usize) -> Result<Vec<u8>, Broken> {
        assert!(!self.chunked, "a chunked body is read by finish()");
        if self.left == Some(0) {
            return Ok(Vec::new());
        }
        let most = self.left.map_or(most, |left| left.min(most));
        let bytes = self.fill(most)?;
        match &mut self.left {
            Some(left) if bytes.is_empty() => Err(Broken(format!("the body ended {left} bytes early"))),
            Some(left) => {
                *left -= bytes.len();
                Ok(bytes)
            }
            None => Ok(bytes),
        }
    }

    /// Exactly `n` bytes of the body.
    pub fn read_exactly(&mut self, n: usize) -> Result<Vec<u8>, Broken> {
        let mut out = Vec::with_capacity(n);
        while out.len() < n {
            let part = self.read(n - out.len())?;
            if part.is_empty() {
                return Err(Broken(format!("the body ended after {} of {n} bytes", out.len())));
            }
            out.extend_from_slice(&part);
        }
        Ok(out)
    }

    fn fill(&mut self, most: usize) -> Result<Vec<u8>, Broken> {
        if self.buffer.is_empty() {
            let mut block = vec![0; most.min(256 * 1024)];
            let n = loop {
                match self.stream.read(&mut block) {
                    Ok(n) => break n,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(Broken(format!("body: {error}"))),
                }
            };
            block.truncate(n);
            return Ok(block);
        }
        let rest = self.buffer.split_off(self.buffer.len().min(most));
        Ok(std::mem::replace(&mut self.buffer, rest))
    }

    /// The rest of the body, and nothing after it.
    pub fn finish(self) -> Result<Answer, Broken> {
        self.finish_at_pace(|_| ())
    }

    /// As `finish`; `pace` is told how many bytes have come, and may take its time.
    pub fn finish_at_pace(mut self, mut pace: impl FnMut(usize)) -> Result<Answer, Broken> {
        let mut body = Vec::with_capacity(self.left.unwrap_or(0).min(1 << 30));
        if self.chunked && !self.bare {
            body = self.chunks(pace)?;
        } else {
            loop {
                let part = self.read(usize::MAX)?;
                if part.is_empty() {
                    break;
                }
                body.extend_from_slice(&part);
                pace(body.len());
            }
        }
        let more = self.fill(1024)?;
        if !more.is_empty() {
            return Err(Broken(format!("bytes after the end: {:?}", String::from_utf8_lossy(&more))));
        }
        Ok(Answer { head: self.head, body })
    }

    /// Reads to the end and holds every byte against `expected`, keeping none. Returns how many there were.
    pub fn compare(mut self, expected: &[u8]) -> Result<usize, Broken> {
        let mut at = 0;
        loop {
            let part = self.read(usize::MAX)?;
            if part.is_empty() {
                return Ok(at);
            }
            if expected.get(at..at + part.len()) != Some(&part[..]) {
                return Err(Broken(format!("wrong bytes between {at} and {}", at + part.len())));
            }
            at += part.len();
        }
    }

    fn line(&mut self) -> Result<String, Broken> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            match self.fill(1)?.first() {
                Some(byte) => line.push(*byte),
                None => return Err(Broken("ended inside a chunked body".to_owned())),
            }
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    fn chunks(&mut self, mut pace: impl FnMut(usize)) -> Result<Vec<u8>, Broken> {
        let mut body = Vec::new();
        loop {
            let size = usize::from_str_radix(&self.line()?, 16).map_err(|e| Broken(e.to_string()))?;
            let end = body.len() + size;
            while body.len() < end {
                let part = self.fill(end - body.len())?;
                if part.is_empty() {
                    return Err(Broken("ended inside a chunk".to_owned()));
                }
                body.extend_from_slice(&part);
                pace(body.len());
            }
            self.line()?;
            if size == 0 {
                return Ok(body);
            }
        }
    }

    /// Cuts the connection now, without reading what is left.
    pub fn hang_up(self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
