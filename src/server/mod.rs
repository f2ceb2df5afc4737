//! Sockets: accepts connections, speaks HTTP/1.1 on them, bounds them, and lets them finish. Knows no registry.

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use prometheus::IntGauge;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

/// Bounds of one port.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections served at once.
    pub connections: usize,
    /// How long a client may take over a request's head, and sit idle between requests.
    pub head: Duration,
    /// How long running answers may go on once the port closes.
    pub grace: Duration,
}

/// The largest request head: names and references are short, cookies and tokens are nobody's here.
const HEAD_MAX: usize = 64 << 10;

/// Serves connections until `stop` turns true, then lets running answers finish within the grace period.
///
/// Returns whether all of them did.
pub async fn serve<S, F, B>(
    listener: TcpListener,
    limits: Limits,
    open: Option<IntGauge>,
    mut stop: watch::Receiver<bool>,
    answer: S,
) -> bool
where
    S: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let places = Arc::new(Semaphore::new(limits.connections));
    let graceful = GracefulShutdown::new();
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.head).max_buf_size(HEAD_MAX.max(400 << 10));
    loop {
        let stream = tokio::select! {
            // Only the sender's end, or true, can end this wait; both mean stop.
            _ = stop.wait_for(|stop| *stop) => break,
            stream = accept(&listener, &places) => stream,
        };
        let Some((stream, place)) = stream else { continue };
        let answer = answer.clone();
        let service = service_fn(move |request| {
            let answered = answer(request);
            async move { Ok::<_, Infallible>(answered.await) }
        });
        let connection = graceful.watch(builder.serve_connection(TokioIo::new(stream), service));
        let open = open.clone();
        tokio::spawn(async move {
            if let Some(open) = &open {
                open.inc();
            }
            // Clients that leave, time out or talk nonsense are everyday life.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
            if let Some(open) = &open {
                open.dec();
            }
            drop(place);
        });
    }
    drop(listener);
    tokio::time::timeout(limits.grace, graceful.shutdown()).await.is_ok()
}

/// The next connection, once there is a place for it.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "a connection went before it began");
            }
            Some((stream, place))
        }
        Err(error) => {
            // Too many open files, mostly: others must close before it gets better.
            tracing::warn!(%error, "a connection could not be accepted");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}
