//! One connection: TLS handshake if the port speaks TLS, then HTTP/1.1, or HTTP/2 if ALPN selected it.

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_io_timeout::TimeoutWriter;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::activity::{ActiveBody, ConnectionActivity};
use super::h2_keepalive::{Verdict, idle_or_stalled};
use super::limits::ConnectionLimits;
use super::lingering_close::LingeringClose;

/// Maximum number of answer bytes collected for one write. With a smaller value, large blobs are sent in more and smaller
/// writes.
const BUFFER: usize = 400 << 10;

/// Maximum size of a request head. podman asks for up to 1,024 ranges, which need 24 KiB; no known client sends more. An
/// unfinished head needs up to 1.5 times this memory.
const HEAD_MAX: u16 = 32 << 10;

/// Time that a client has to close an idle HTTP/2 connection that was closed for a new one.
const RECLAIM_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum number of concurrent requests on one HTTP/2 connection. Clients fetch a few layers at a time.
const STREAMS_MAX: u32 = 128;

/// Settings and service shared by all connections of a port.
#[derive(Clone, Debug)]
pub(super) struct ConnectionService<S> {
    pub(super) limits: watch::Receiver<ConnectionLimits>,
    pub(super) stop: CancellationToken,
    pub(super) answer: S,
}

impl<S, F, B> ConnectionService<S>
where
    S: Fn(Request<Incoming>, Option<SocketAddr>) -> F + Clone + Send + 'static,
    F: Future<Output = Result<Response<B>, Infallible>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    /// Serves a connection until it ends. `peer` is the client's address, or `None` on a Unix socket.
    pub(super) async fn serve<T>(
        self,
        stream: T,
        peer: Option<SocketAddr>,
        tls: Option<Arc<ServerConfig>>,
        activity: &Arc<ConnectionActivity>,
    ) where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let limits = *self.limits.borrow();
        let mut stream = TimeoutWriter::new(stream);
        stream.set_timeout(Some(limits.write));
        let stream = LingeringClose::new(Box::pin(stream));
        let Some(tls) = tls else {
            return self.http1(Connection { stream, peer, limits, activity }).await;
        };
        let handshake = tokio::time::timeout(limits.head, TlsAcceptor::from(tls).accept(stream));
        let result = tokio::select! {
            // No request has arrived yet, so nothing is lost.
            () = self.stop.cancelled() => return,
            () = activity.reclaimed() => return,
            result = handshake => result,
        };
        match result {
            Ok(Ok(stream)) => {
                let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let connection = Connection { stream, peer, limits, activity };
                if is_h2 { self.http2(connection).await } else { self.http1(connection).await }
            }
            Ok(Err(error)) => tracing::debug!(%error, ?peer, "TLS handshake failed"),
            Err(_) => tracing::debug!(?peer, "TLS handshake timed out"),
        }
    }

    async fn http1<T>(self, connection: Connection<'_, T>)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Connection { stream, peer, limits, activity } = connection;
        let stop = self.stop.clone();
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_buf_size(BUFFER)
            .max_header_size(HEAD_MAX.into())
            .serve_connection(TokioIo::new(stream), self.service(peer, activity));
        drive(connection, stop, None, activity).await;
    }

    async fn http2<T>(self, connection: Connection<'_, T>)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Connection { stream, peer, limits, activity } = connection;
        let stop = self.stop.clone();
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEAD_MAX.into())
            .max_send_buf_size(BUFFER)
            .serve_connection(TokioIo::new(stream), self.service(peer, activity));
        drive(connection, stop, Some(limits), activity).await;
    }

    /// Returns the service of one connection, which records the activity of each request.
    fn service(
        self,
        peer: Option<SocketAddr>,
        activity: &Arc<ConnectionActivity>,
    ) -> impl Service<
        Request<Incoming>,
        Response = Response<ActiveBody<B>>,
        Error = Infallible,
        Future: Send + 'static,
    > + use<S, F, B> {
        let (answer, activity) = (self.answer, Arc::clone(activity));
        service_fn(move |request| {
            let activity = activity.begin();
            let answered = answer(request, peer);
            async move {
                let Ok(answer) = answered.await;
                Ok::<_, Infallible>(answer.map(|body| ActiveBody::new(body, activity)))
            }
        })
    }
}

/// Accepted connection, before or after its TLS handshake.
struct Connection<'a, T> {
    stream: T,
    /// Address of the client; `None` on a Unix socket.
    peer: Option<SocketAddr>,
    limits: ConnectionLimits,
    activity: &'a Arc<ConnectionActivity>,
}

/// Drives a connection to its end. When the port stops, running answers finish first.
async fn drive<C>(
    connection: C,
    stop: CancellationToken,
    supervised: Option<ConnectionLimits>,
    activity: &ConnectionActivity,
) where
    C: GracefulConnection<Error = hyper::Error>,
{
    let mut connection = pin!(connection);
    let mut closing = false;
    let mut reclaimed = false;
    loop {
        let close = tokio::select! {
            ended = connection.as_mut() => {
                // Disconnects, time-outs and malformed requests of clients are normal.
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection ended early");
                }
                return;
            }
            () = stop.cancelled(), if !closing => true,
            () = activity.reclaimed(), if !reclaimed => {
                reclaimed = true;
                // hyper would wait for the first request.
                !activity.is_unused()
            }
            () = tokio::time::sleep(RECLAIM_TIMEOUT),
                if reclaimed && supervised.is_some() && !activity.is_answering() => false,
            verdict = supervise(activity, supervised.as_ref()) => verdict == Verdict::Idle && !closing,
        };
        if !close {
            tracing::debug!("connection cut: the client reads nothing, sends nothing, or did not close it");
            return;
        }
        closing = true;
        connection.as_mut().graceful_shutdown();
        activity.restart();
    }
}

/// Returns when a supervised connection is idle or stalled. A connection without supervision never is.
async fn supervise(activity: &ConnectionActivity, limits: Option<&ConnectionLimits>) -> Verdict {
    match limits {
        Some(limits) => idle_or_stalled(activity, limits).await,
        None => std::future::pending().await,
    }
}
