//! A TLS server with the same answer to every request.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, Stream};

use super::listener::Listener;

/// The server. Dropping it stops it.
pub struct TlsServer {
    listener: Listener,
    /// The self-signed certificate of the server.
    pub pem: String,
}

impl TlsServer {
    /// Starts a server that answers the request of each connection with these bytes.
    pub fn start(answer: String) -> Self {
        Self::with_alpn(&[], answer)
    }

    /// As `start`, with these protocols for ALPN. A client that negotiates one of them gets no answer.
    pub fn with_alpn(protocols: &[&str], answer: String) -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let config = Arc::new(config);
        let listener = Listener::start(move |stream, _| {
            if let Ok(connection) = ServerConnection::new(Arc::clone(&config)) {
                let _ = serve(stream, connection, &answer);
            }
        });
        Self { listener, pem: made.cert.pem() }
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.listener.addr())
    }
}

fn serve(mut stream: TcpStream, mut connection: ServerConnection, answer: &str) -> std::io::Result<()> {
    let mut tls = Stream::new(&mut connection, &mut stream);
    let mut head = Vec::new();
    let mut block = [0; 1024];
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        match tls.read(&mut block)? {
            0 => return Ok(()),
            n => head.extend_from_slice(&block[..n]),
        }
    }
    if tls.conn.alpn_protocol().is_none() {
        tls.write_all(answer.as_bytes())?;
    }
    tls.conn.send_close_notify();
    tls.flush()
}
