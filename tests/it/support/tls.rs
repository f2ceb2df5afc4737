//! A server behind TLS that has one answer for everybody.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, Stream};

use super::listener::Listener;

/// The server. Dropping it ends it.
pub struct TlsServer {
    listener: Listener,
    /// The certificate that vouches for it.
    pub pem: String,
}

impl TlsServer {
    /// Answers each connection's request with these bytes.
    pub fn start(answer: String) -> Self {
        Self::knowing(&[], answer)
    }

    /// The same, and agrees on one of these protocols with who offers any; then it has no answer.
    pub fn knowing(protocols: &[&str], answer: String) -> Self {
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
