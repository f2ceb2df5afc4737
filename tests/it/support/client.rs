//! A plain HTTP/1.1 client. It sends exactly the given lines, and the test controls the speed of reading.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

use super::TIME_LIMIT;

/// Reason why an answer is incomplete or invalid.
#[derive(Debug)]
pub struct TransferError(pub String);

/// Client of one address, with one connection per request.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    addr: SocketAddr,
    read_timeout: Duration,
    small_buffer: bool,
    /// Address of the client, if it is not chosen by the system.
    source: Option<IpAddr>,
}

/// Status line and headers of an answer.
#[derive(Clone, Debug)]
pub struct Head {
    pub status: u16,
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// Returns the value of a header. Panics if there is more than one.
    #[track_caller]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(k, _)| k.eq_ignore_ascii_case(name));
        let value = found.next().map(|(_, v)| v.as_str());
        assert!(found.next().is_none(), "more than one {name}: {:?}", self.headers);
        value
    }

    pub fn content_length(&self) -> Option<usize> {
        self.header("content-length").map(|value| value.parse().unwrap())
    }

    /// Returns the value of `Cache-Status`.
    pub fn outcome(&self) -> &str {
        self.header("cache-status").unwrap_or("(no Cache-Status)")
    }
}

/// A complete answer.
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

    /// Asserts the status, and that the body is a JSON error document with this code.
    #[track_caller]
    pub fn assert_error(&self, status: u16, code: &str) {
        assert_eq!(self.status(), status, "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        let document = self.json();
        assert_eq!(document["errors"][0]["code"], code, "{document}");
        assert!(document["errors"][0]["message"].as_str().is_some_and(|m| !m.is_empty()), "{document}");
    }

    /// Asserts status 200 and exactly this body.
    #[track_caller]
    pub fn assert_body(&self, body: &[u8]) {
        assert_eq!(self.status(), 200, "{:?} {}", self.head, self.text());
        assert!(self.body == body, "different body: {} bytes instead of {}", self.body.len(), body.len());
    }

    /// Asserts the value of `Cache-Status`.
    #[track_caller]
    pub fn assert_outcome(&self, cache_status: &str) {
        assert_eq!(self.head.outcome(), cache_status, "{:?}", self.head);
    }
}

/// An answer whose body is being read. Dropping it closes the connection.
#[derive(Debug)]
pub struct Transfer {
    pub head: Head,
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Remaining bytes of the body. `None` if the body ends with the connection.
    left: Option<usize>,
    chunked: bool,
    no_body: bool,
}

impl Client {
    pub fn new(addr: SocketAddr) -> Self {
        Self { addr, read_timeout: TIME_LIMIT, small_buffer: false, source: None }
    }

    /// Reduces the receive buffer of the socket to 128 KiB.
    #[must_use]
    pub fn small_receive_buffer(mut self) -> Self {
        self.small_buffer = true;
        self
    }

    /// Connects from another address of the machine, so that the server sees another client.
    #[must_use]
    pub fn source(mut self, source: impl Into<IpAddr>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Sets the longest wait for the next bytes.
    #[must_use]
    pub fn read_timeout(mut self, read_timeout: Duration) -> Self {
        self.read_timeout = read_timeout;
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

    /// Returns the complete answer. Panics if it is incomplete.
    #[track_caller]
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.try_send(method, path, headers).unwrap_or_else(|error| panic!("{method} {path}: {error:?}"))
    }

    pub fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Answer, TransferError> {
        self.open(method, path, headers)?.finish()
    }

    /// Sends the request and reads the head of the answer.
    pub fn open(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Transfer, TransferError> {
        let stream = self.connect().map_err(|e| TransferError(format!("connect: {e}")))?;
        let mut lines = format!("{method} {path} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            lines.push_str(&format!("Host: {}\r\n", self.addr));
        }
        for (name, value) in headers {
            lines.push_str(&format!("{name}: {value}\r\n"));
        }
        lines.push_str("Connection: close\r\n\r\n");
        (&stream).write_all(lines.as_bytes()).map_err(|e| TransferError(format!("send: {e}")))?;
        Transfer::begin(stream, method == "HEAD")
    }

    pub fn connect(&self) -> std::io::Result<TcpStream> {
        let stream = if self.small_buffer || self.source.is_some() {
            self.connect_specially()?
        } else {
            TcpStream::connect(self.addr)?
        };
        stream.set_read_timeout(Some(self.read_timeout))?;
        stream.set_write_timeout(Some(TIME_LIMIT))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    // These properties must be set before the connection is made. The standard library has no function for this.
    fn connect_specially(&self) -> std::io::Result<TcpStream> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let stream = runtime.block_on(async {
            let socket = tokio::net::TcpSocket::new_v4()?;
            if self.small_buffer {
                socket.set_recv_buffer_size(128 * 1024)?;
            }
            if let Some(source) = self.source {
                socket.bind(SocketAddr::new(source, 0))?;
            }
            socket.connect(self.addr).await
        })?;
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        Ok(stream)
    }

    /// Sends `bytes`, and returns the received bytes when the server has closed the connection.
    #[track_caller]
    pub fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.connect().unwrap();
        // The server may answer and close the connection before it has read everything.
        let _ = stream.write_all(bytes);
        let mut out = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return out,
                Ok(n) => out.extend_from_slice(&buffer[..n]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    panic!(
                        "the server did not close the connection; received: {:?}",
                        String::from_utf8_lossy(&out)
                    )
                }
                // A reset also closes the connection.
                Err(_) => return out,
            }
        }
    }
}

impl Transfer {
    fn begin(mut stream: TcpStream, no_body: bool) -> Result<Self, TransferError> {
        let mut buffer = Vec::new();
        let mut block = [0; 16 * 1024];
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at;
            }
            match stream.read(&mut block) {
                Ok(0) => {
                    return Err(TransferError(format!(
                        "ended in the head: {:?}",
                        String::from_utf8_lossy(&buffer)
                    )));
                }
                Ok(n) => buffer.extend_from_slice(&block[..n]),
                Err(error) => return Err(TransferError(format!("head: {error}"))),
            }
        };
        let text = String::from_utf8(buffer[..end].to_vec()).map_err(|e| TransferError(e.to_string()))?;
        let mut lines = text.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        let head = Head { status: status.ok_or_else(|| TransferError(text.clone()))?, headers };
        let chunked = head.header("transfer-encoding").is_some_and(|value| value == "chunked");
        let no_body = no_body || matches!(head.status, 204 | 304);
        let left = if no_body { Some(0) } else { head.content_length() };
        Ok(Self { head, stream, buffer: buffer.split_off(end + 4), left, chunked, no_body })
    }

    /// Returns the next received bytes of the body, at most `most`. Empty at the end of a complete body.
    pub fn read(&mut self, most: usize) -> Result<Vec<u8>, TransferError> {
        assert!(!self.chunked, "a chunked body is read by finish()");
        if self.left == Some(0) {
            return Ok(Vec::new());
        }
        let most = self.left.map_or(most, |left| left.min(most));
        let bytes = self.fill(most)?;
        match &mut self.left {
            Some(left) if bytes.is_empty() => {
                Err(TransferError(format!("the body ended {left} bytes early")))
            }
            Some(left) => {
                *left -= bytes.len();
                Ok(bytes)
            }
            None => Ok(bytes),
        }
    }

    /// Returns exactly `n` bytes of the body.
    pub fn read_exactly(&mut self, n: usize) -> Result<Vec<u8>, TransferError> {
        let mut out = Vec::with_capacity(n);
        while out.len() < n {
            let part = self.read(n - out.len())?;
            if part.is_empty() {
                return Err(TransferError(format!("the body ended after {} of {n} bytes", out.len())));
            }
            out.extend_from_slice(&part);
        }
        Ok(out)
    }

    fn fill(&mut self, most: usize) -> Result<Vec<u8>, TransferError> {
        if self.buffer.is_empty() {
            let mut block = vec![0; most.min(256 * 1024)];
            let n = loop {
                match self.stream.read(&mut block) {
                    Ok(n) => break n,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(TransferError(format!("body: {error}"))),
                }
            };
            block.truncate(n);
            return Ok(block);
        }
        let rest = self.buffer.split_off(self.buffer.len().min(most));
        Ok(std::mem::replace(&mut self.buffer, rest))
    }

    /// Reads the rest of the body. Bytes after its end are an error.
    pub fn finish(self) -> Result<Answer, TransferError> {
        self.finish_at_pace(|_| ())
    }

    /// As `finish`; calls `pace` with the number of received bytes after each read. `pace` may block.
    pub fn finish_at_pace(mut self, mut pace: impl FnMut(usize)) -> Result<Answer, TransferError> {
        let mut body = Vec::with_capacity(self.left.unwrap_or(0).min(1 << 30));
        if self.chunked && !self.no_body {
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
            return Err(TransferError(format!("bytes after the end: {:?}", String::from_utf8_lossy(&more))));
        }
        Ok(Answer { head: self.head, body })
    }

    /// Compares the body with `expected` without keeping it in memory. Returns the length of the body.
    pub fn compare(mut self, expected: &[u8]) -> Result<usize, TransferError> {
        let mut at = 0;
        loop {
            let part = self.read(usize::MAX)?;
            if part.is_empty() {
                return Ok(at);
            }
            if expected.get(at..at + part.len()) != Some(&part[..]) {
                return Err(TransferError(format!("wrong bytes between {at} and {}", at + part.len())));
            }
            at += part.len();
        }
    }

    fn line(&mut self) -> Result<String, TransferError> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            match self.fill(1)?.first() {
                Some(byte) => line.push(*byte),
                None => return Err(TransferError("ended inside a chunked body".to_owned())),
            }
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    fn chunks(&mut self, mut pace: impl FnMut(usize)) -> Result<Vec<u8>, TransferError> {
        let mut body = Vec::new();
        loop {
            let size = usize::from_str_radix(&self.line()?, 16).map_err(|e| TransferError(e.to_string()))?;
            let end = body.len() + size;
            while body.len() < end {
                let part = self.fill(end - body.len())?;
                if part.is_empty() {
                    return Err(TransferError("ended inside a chunk".to_owned()));
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

    /// Closes the connection without reading the rest of the body.
    pub fn hang_up(self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
