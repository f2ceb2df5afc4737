//! Pool of connections for the requests of one endpoint. It has requests and responses of reqwest, and a connector of its
//! own: reqwest gives no access to informational responses, so that a server could send them without end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::header::{ACCEPT, PROXY_AUTHORIZATION, USER_AGENT};
use http::uri::Scheme;
use http::{Extensions, HeaderMap, HeaderValue, Request, response};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::{CaptureConnection, capture_connection};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use reqwest::{Body, Response, ResponseBuilderExt as _};
use rustls::ClientConfig;
use url::Url;

use super::address::Resolver;
use super::connector::{Connector, CutOff};
use super::proxy::Proxies;

/// Time for which an unused connection is kept.
const IDLE_MAX: Duration = Duration::from_secs(90);
/// Largest number of informational responses (1xx) to one request. Servers send one or two.
const INFORMATIONAL_MAX: usize = 32;
/// Largest size of the headers of all informational responses to one request, in bytes.
const INFORMATIONAL_BYTES_MAX: usize = 64 * 1024;

/// Failure of a request before its response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// The request cannot be built.
    #[error("the request cannot be built")]
    Malformed(#[source] reqwest::Error),
    /// The server sends informational responses instead of a response. The connection is closed.
    #[error("informational responses without end")]
    Flood,
    /// No connection, or no response.
    #[error(transparent)]
    Failed(#[from] legacy::Error),
}

/// Pool of connections.
#[derive(Debug)]
pub(crate) struct Pool {
    client: Client<Connector, Body>,
    proxies: Arc<Proxies>,
    user_agent: HeaderValue,
}

impl Pool {
    /// Creates a pool without connections. Each connection must be established within `timeout`.
    pub(crate) fn new(
        resolver: Resolver,
        proxies: Arc<Proxies>,
        tls: ClientConfig,
        user_agent: &'static str,
        timeout: Duration,
    ) -> Self {
        let user_agent = HeaderValue::from_static(user_agent);
        let connector = Connector::new(resolver, Arc::clone(&proxies), tls, user_agent.clone(), timeout);
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .build(connector);
        Self { client, proxies, user_agent }
    }

    /// Sends a request and waits for the head of its response.
    pub(crate) async fn send(&self, request: reqwest::Request) -> Result<Response, RequestError> {
        let url = request.url().clone();
        let mut request = Request::<Body>::try_from(request).map_err(RequestError::Malformed)?;
        self.add_headers(&mut request);
        let is_flood = limit_informational(&mut request);
        let response = self.client.request(request).await.map_err(|error| {
            if is_flood.load(Ordering::Relaxed) { RequestError::Flood } else { RequestError::Failed(error) }
        })?;
        Ok(to_response(response, url))
    }

    fn add_headers(&self, request: &mut Request<Body>) {
        let proxy = self.proxies.intercept(request.uri()).filter(|_| {
            // The authorization for a tunnel is sent when it is opened.
            request.uri().scheme() == Some(&Scheme::HTTP)
        });
        let headers = request.headers_mut();
        headers.entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
        headers.entry(USER_AGENT).or_insert_with(|| self.user_agent.clone());
        if let Some(authorization) = proxy.as_ref().and_then(|proxy| proxy.basic_auth()) {
            headers.insert(PROXY_AUTHORIZATION, authorization.clone());
        }
    }
}

/// Converts a response, which then has the URL of its request.
fn to_response(response: http::Response<Incoming>, url: Url) -> Response {
    let (response::Parts { status, version, headers, .. }, body) = response.into_parts();
    let built = http::Response::builder().status(status).version(version).url(url).body(Body::wrap(body));
    let mut built = built.unwrap_or_default();
    *built.headers_mut() = headers;
    built.into()
}

/// Cuts the connection of a request off if the server sends too many informational responses. Returns a flag that is then
/// set.
///
/// The HTTP client skips informational responses for as long as bytes arrive, without giving other tasks their turn. Only
/// an error of the connection ends this.
fn limit_informational(request: &mut Request<Body>) -> Arc<AtomicBool> {
    let is_flood = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&is_flood);
    let connection = capture_connection(request);
    let (count, bytes) = (AtomicUsize::new(0), AtomicUsize::new(0));
    hyper::ext::on_informational(request, move |response| {
        let count = count.fetch_add(1, Ordering::Relaxed) + 1;
        let size = size(response.headers());
        let bytes = bytes.fetch_add(size, Ordering::Relaxed) + size;
        if (count > INFORMATIONAL_MAX || bytes > INFORMATIONAL_BYTES_MAX)
            && !flag.swap(true, Ordering::Relaxed)
        {
            cut_off(&connection);
        }
    });
    is_flood
}

fn size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

fn cut_off(connection: &CaptureConnection) {
    let mut extras = Extensions::new();
    if let Some(connected) = connection.connection_metadata().as_ref() {
        connected.get_extras(&mut extras);
    }
    if let Some(cut_off) = extras.get::<CutOff>() {
        cut_off.trip();
    }
}
