//! A port that is listened at, with a thread for each connection, until it is dropped.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// The port. Dropping it ends it.
pub struct Listener {
    addr: SocketAddr,
    over: Arc<AtomicBool>,
    listening: Option<JoinHandle<()>>,
}

impl Listener {
    /// Has each connection served, by who is also told when it is over.
    pub fn start(serve: impl Fn(TcpStream, &AtomicBool) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (addr, over, serve) =
            (listener.local_addr().unwrap(), Arc::<AtomicBool>::default(), Arc::new(serve));
        let told = Arc::clone(&over);
        let listening = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if told.load(Ordering::SeqCst) {
                    return;
                }
                let (serve, over) = (Arc::clone(&serve), Arc::clone(&told));
                std::thread::spawn(move || stream.map(|stream| serve(stream, &over)));
            }
        });
        Self { addr, over, listening: Some(listening) }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // A connection of our own wakes the thread that sits in accept.
        let _ = TcpStream::connect(self.addr);
        if let Some(listening) = self.listening.take() {
            let _ = listening.join();
        }
    }
}
