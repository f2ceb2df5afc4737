//! A listening port with a thread for each connection.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// The listener. Dropping it closes the port.
pub struct Listener {
    addr: SocketAddr,
    stopped: Arc<AtomicBool>,
    listening: Option<JoinHandle<()>>,
}

impl Listener {
    /// Calls `serve` with each connection. Its flag is set when the listener is dropped.
    pub fn start(serve: impl Fn(TcpStream, &AtomicBool) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (addr, stopped, serve) =
            (listener.local_addr().unwrap(), Arc::<AtomicBool>::default(), Arc::new(serve));
        let flag = Arc::clone(&stopped);
        let listening = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if flag.load(Ordering::SeqCst) {
                    return;
                }
                let (serve, stopped) = (Arc::clone(&serve), Arc::clone(&flag));
                std::thread::spawn(move || stream.map(|stream| serve(stream, &stopped)));
            }
        });
        Self { addr, stopped, listening: Some(listening) }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // The thread blocks in accept. This connection wakes it.
        let _ = TcpStream::connect(self.addr);
        if let Some(listening) = self.listening.take() {
            let _ = listening.join();
        }
    }
}
