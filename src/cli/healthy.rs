//! `larder healthy`: asks the larder that runs with this configuration whether it serves, for images without a shell.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::config::Config;
use crate::config::address::ListenAddress;

/// For each step. A healthy larder answers within milliseconds, and whoever asks gives up soon.
const PATIENCE: Duration = Duration::from_secs(2);
/// More than the head of the answer takes.
const ENOUGH: u64 = 4096;

/// Ends well if `/readyz` on the admin port says so.
pub(super) fn run(config: &Config) -> anyhow::Result<()> {
    let place = config.admin.listen.reachable();
    let place = place.context(
        "admin.listen has no place that can be asked without TLS; add IP:PORT or unix:/PATH to it",
    )?;
    let answer = match &place {
        ListenAddress::Tcp(address) => over_tcp(*address),
        ListenAddress::Unix(path) => UnixStream::connect(path).and_then(|stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            ask(stream)
        }),
        ListenAddress::Named(_) | ListenAddress::Descriptor(_) => bail!("{place} cannot be asked"),
    };
    let answer = answer.with_context(|| format!("nobody answers at {place}"))?;
    match status(&answer) {
        Some("200") => super::print("ready\n"),
        Some(other) => bail!("{place} answers /readyz with {other}"),
        None => bail!("what answers at {place} is no larder"),
    }
}

fn over_tcp(address: SocketAddr) -> std::io::Result<Vec<u8>> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    ask(stream)
}

fn ask(mut stream: impl Read + Write) -> std::io::Result<Vec<u8>> {
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ENOUGH).read_to_end(&mut answer)?;
    Ok(answer)
}

/// The status code of an answer in HTTP/1 (RFC 9112 section 4).
fn status(answer: &[u8]) -> Option<&str> {
    let line = answer.split(|byte| *byte == b'\r').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    words.next()?.strip_prefix("HTTP/1.")?;
    words.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read() {
        assert_eq!(status(b"HTTP/1.1 200 OK\r\n\r\n"), Some("200"));
        assert_eq!(status(b"HTTP/1.0 503\r\n"), Some("503"));
        for other in [&b""[..], b"SSH-2.0-x\r\n", b"HTTP/1.1", b"\xff\xfe 200\r\n"] {
            assert_eq!(status(other), None, "{other:?}");
        }
    }
}
