//! An HTTP proxy that forwards plain requests, tunnels CONNECT requests, and records all of them.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

use super::listener::Listener;

#[derive(Default)]
struct State {
    /// Request lines.
    requests: Mutex<Vec<String>>,
    /// The only accepted value of `Proxy-Authorization`. `None` accepts all requests.
    login: Mutex<Option<String>>,
    /// Status for all requests, if set.
    refusal: Mutex<Option<u16>>,
    /// Addresses of host names that only this proxy resolves.
    names: Vec<(String, SocketAddr)>,
}

/// The proxy. Dropping it stops it.
pub struct Proxy {
    listener: Listener,
    state: Arc<State>,
}

impl Proxy {
    pub fn start() -> Self {
        Self::with(State::default())
    }

    /// Starts a proxy that resolves a host name which has no address elsewhere.
    pub fn resolving(name: &str, addr: SocketAddr) -> Self {
        Self::with(State { names: vec![(name.to_owned(), addr)], ..State::default() })
    }

    fn with(state: State) -> Self {
        let state = Arc::new(state);
        let shared = Arc::clone(&state);
        let listener = Listener::start(move |stream, _| {
            let _ = serve(&stream, &shared);
        });
        Self { listener, state }
    }

    pub fn addr(&self) -> SocketAddr {
        self.listener.addr()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr())
    }

    /// From now on requires this value of `Proxy-Authorization`.
    pub fn require_login(&self, login: &str) {
        *self.state.login.lock().unwrap() = Some(login.to_owned());
    }

    /// From now on answers all requests with this status.
    pub fn refuse(&self, status: u16) {
        *self.state.refusal.lock().unwrap() = Some(status);
    }

    /// Returns the request lines of all requests.
    pub fn requests(&self) -> Vec<String> {
        self.state.requests.lock().unwrap().clone()
    }
}

/// Serves one request. A plain request ends the connection.
fn serve(mut client: &TcpStream, state: &State) -> Option<()> {
    let mut reader = BufReader::new(client);
    let (mut first, mut login, mut headers) = (String::new(), None, String::new());
    reader.read_line(&mut first).ok().filter(|n| *n > 0)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        if line.trim_end().is_empty() {
            break;
        }
        match line.split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("proxy-authorization") => {
                login = Some(value.trim_end().to_owned());
            }
            _ => headers.push_str(&line),
        }
    }
    state.requests.lock().unwrap().push(first.trim_end().to_owned());
    let refusal = *state.refusal.lock().unwrap();
    let wanted = state.login.lock().unwrap().clone();
    if let Some(status) = refusal.or((wanted.is_some() && wanted != login).then_some(407)) {
        let _ = write!(client, "HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        return None;
    }
    let mut words = first.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    let (authority, path) = match target.strip_prefix("http://") {
        Some(rest) => rest.split_at(rest.find('/')?),
        None => (target, ""),
    };
    let known = state.names.iter().find(|(name, _)| name == authority).map(|(_, addr)| *addr);
    let Some(mut server) =
        known.or_else(|| authority.parse().ok()).and_then(|addr| TcpStream::connect(addr).ok())
    else {
        let _ = client.write_all(b"HTTP/1.1 502 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        return None;
    };
    if method == "CONNECT" {
        client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").ok()?;
        let (mut up, mut up_from) = (server.try_clone().ok()?, client.try_clone().ok()?);
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut up_from, &mut up);
            let _ = up.shutdown(Shutdown::Write);
        });
    } else {
        write!(server, "{method} {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n").ok()?;
    }
    let _ = std::io::copy(&mut server, &mut client);
    client.shutdown(Shutdown::Both).ok()
}
