//! A server behind TLS that has one answer for everybody.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, Stream};

/// The server. Dropping it ends it.
pub struct TlsServer {
    addr: SocketAddr,
    /// The certificate that vouches for it.
    pub pem: String,
    over: Arc<AtomicBool>,
    listening: Option<JoinHandle<()>>,
}

impl TlsServer {
    /// Answers each connection's request with these bytes.
    pub fn start(answer: String) -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let (config, over) = (Arc::new(config), Arc::new(AtomicBool::new(false)));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (addr, stop) = (listener.local_addr().unwrap(), Arc::clone(&over));
        let listening = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (config, answer) = (Arc::clone(&config), answer.clone());
                std::thread::spawn(move || {
                    if let (Ok(stream), Ok(connection)) = (stream, ServerConnection::new(config)) {
                        let _ = serve(stream, connection, &answer);
                    }
                });
            }
        });
        Self { addr, pem: made.cert.pem(), over, listening: Some(listening) }
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.addr)
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // A connection of our own wakes the thread that sits in accept.
        let _ = TcpStream::connect(self.addr);
        if let Some(listening) = self.listening.take() {
            let _ = listening.join();
        }
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
    tls.write_all(answer.as_bytes())?;
    tls.conn.send_close_notify();
    tls.flush()
}
