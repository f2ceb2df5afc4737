//! One connection, from its first byte to its last: TLS where it is spoken, then HTTP/1.1 or, where TLS agreed on it,
//! HTTP/2.

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::ConnectionLimits;
use super::h2_keepalive::{Keepalive, KeepaliveBody, Verdict};
use super::lingering_close::LingeringClose;
use super::write_timeout::WriteTimeout;

/// The largest request head, and about as much of an answer is gathered for one write: hyper has one number for both,
/// and with a smaller one large blobs would go out in more and smaller writes.
const BUFFER: usize = 400 << 10;

/// The largest request head on HTTP/2: more than any client sends.
const HEAD: u32 = 64 << 10;

/// Requests on one HTTP/2 connection at once. Clients fetch a handful of layers at a time; more would wait here anyway.
const STREAMS: u32 = 128;

/// What each connection of a port is served with.
#[derive(Clone, Debug)]
pub(super) struct ConnectionService<S> {
    pub(super) limits: watch::Receiver<ConnectionLimits>,
    pub(super) stop: watch::Receiver<bool>,
    pub(super) answer: S,
}

impl<S, F, B> ConnectionService<S>
where
    S: Fn(Request<Incoming>, Option<SocketAddr>) -> F + Clone + Send + 'static,
    F: Future<Output = Result<Response<B>, Infallible>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    /// Serves a connection until it ends. `peer` is where the client is, unless it came by a socket's file.
    pub(super) async fn serve<T>(
        mut self,
        stream: T,
        peer: Option<SocketAddr>,
        tls: Option<Arc<ServerConfig>>,
    ) where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let limits = *self.limits.borrow();
        let stream = LingeringClose::new(WriteTimeout::new(stream, limits.write));
        let Some(tls) = tls else { return self.http1(stream, peer, limits).await };
        let shaking = tokio::time::timeout(limits.head, TlsAcceptor::from(tls).accept(stream));
        let shaken = tokio::select! {
            // Nothing was asked yet, so nothing is lost.
            _ = self.stop.wait_for(|stop| *stop) => return,
            shaken = shaking => shaken,
        };
        match shaken {
            Ok(Ok(stream)) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                self.http2(stream, peer, limits).await;
            }
            Ok(Ok(stream)) => self.http1(stream, peer, limits).await,
            Ok(Err(error)) => tracing::debug!(%error, ?peer, "a TLS handshake failed"),
            Err(_) => tracing::debug!(?peer, "a TLS handshake took too long"),
        }
    }

    async fn http1<T>(self, stream: T, peer: Option<SocketAddr>, limits: ConnectionLimits)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self { stop, answer, .. } = self;
        let service = service_fn(move |request| answer(request, peer));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_buf_size(BUFFER)
            .serve_connection(TokioIo::new(stream), service);
        attend(connection, stop, None).await;
    }

    async fn http2<T>(self, stream: T, peer: Option<SocketAddr>, limits: ConnectionLimits)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self { stop, answer, .. } = self;
        let pulse = Keepalive::new(Instant::now());
        let felt = pulse.clone();
        let service = service_fn(move |request| {
            let beat = felt.begin();
            let answered = answer(request, peer);
            async move {
                let Ok(answer) = answered.await;
                Ok::<_, Infallible>(answer.map(|body| KeepaliveBody::new(body, beat)))
            }
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(HEAD)
            .max_send_buf_size(BUFFER)
            .serve_connection(TokioIo::new(stream), service);
        attend(connection, stop, Some((pulse, limits))).await;
    }
}

/// Drives a connection to its end, which comes after the answers that run when the port stops.
async fn attend<C>(
    connection: C,
    mut stop: watch::Receiver<bool>,
    pulse: Option<(Keepalive, ConnectionLimits)>,
) where
    C: GracefulConnection<Error = hyper::Error>,
{
    let mut connection = pin!(connection);
    let mut leaving = false;
    loop {
        let stopped = tokio::select! {
            ended = connection.as_mut() => {
                // Clients that leave, time out or talk nonsense are everyday life.
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection ended early");
                }
                return;
            }
            // Only the sender's end, or true, can end this wait; both mean stop.
            _ = stop.wait_for(|stop| *stop), if !leaving => true,
            verdict = given_up(pulse.as_ref()) => verdict == Verdict::Idle && !leaving,
        };
        if !stopped {
            tracing::debug!("a connection was cut: its client takes nothing, or does not leave");
            return;
        }
        leaving = true;
        connection.as_mut().graceful_shutdown();
        if let Some((pulse, _)) = &pulse {
            pulse.told();
        }
    }
}

/// Ends when a connection has stood still for too long.
async fn given_up(pulse: Option<&(Keepalive, ConnectionLimits)>) -> Verdict {
    let Some((pulse, limits)) = pulse else { return std::future::pending().await };
    loop {
        let now = Instant::now();
        match pulse.verdict(now, limits) {
            // What is waited for may change meanwhile, from a request to the client.
            Verdict::KeepUntil(then) => tokio::time::sleep_until(then.min(now + limits.write)).await,
            verdict => return verdict,
        }
    }
}
