//! Sockets: accepts connections, speaks HTTP/1.1 on them, bounds them, and lets them finish. Knows no registry.

mod stalled;

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

use stalled::Stalled;

/// Bounds of one port.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections served at once.
    pub connections: usize,
    /// How long a client may take over a request's head, and sit idle between requests.
    pub head: Duration,
    /// How long a client may take none of an answer's bytes.
    pub write: Duration,
    /// How long running answers may go on once the port closes.
    pub grace: Duration,
}

/// The largest request head, and about as much of an answer is gathered for one write: hyper has one number for both,
/// and with a smaller one large blobs would go out in more and smaller writes.
const BUFFER: usize = 400 << 10;

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
    builder.timer(TokioTimer::new()).header_read_timeout(limits.head).max_buf_size(BUFFER);
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
        let connection = graceful
            .watch(builder.serve_connection(TokioIo::new(Stalled::new(stream, limits.write)), service));
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

#[cfg(test)]
mod tests {
    use super::*;
    use http_body::Frame;
    use std::pin::Pin;
    use std::sync::Mutex;
    use std::task::{Context, Poll};
    use tokio::io::AsyncWriteExt as _;
    use tokio::sync::oneshot;

    /// A body without an end that tells when it is dropped.
    struct Endless(#[expect(dead_code, reason = "its drop is the message")] oneshot::Sender<()>);

    impl http_body::Body for Endless {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[0; 16 * 1024])))))
        }
    }

    #[tokio::test]
    async fn a_client_that_stops_reading_loses_its_place() {
        let patient = Duration::from_mins(10);
        let limits =
            Limits { connections: 1, head: patient, write: Duration::from_millis(50), grace: patient };
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (stop, stopped) = watch::channel(false);
        let (held, dropped) = oneshot::channel();
        let held = Arc::new(Mutex::new(Some(held)));
        let server = tokio::spawn(serve(listener, limits, None, stopped, move |_| {
            let held = held.lock().expect("no panic").take().expect("one request");
            async move { Response::new(Endless(held)) }
        }));
        let mut client = TcpStream::connect(address).await.expect("a connection");
        client.write_all(b"GET / HTTP/1.1\r\nHost: larder\r\n\r\n").await.expect("sent");
        let given_up = tokio::time::timeout(Duration::from_secs(30), dropped).await;
        assert!(given_up.expect("the answer is given up").is_err());
        stop.send_replace(true);
        assert!(server.await.expect("no panic"), "nothing is left that the end would have to wait for");
        drop(client);
    }
}
