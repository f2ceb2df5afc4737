//! HTTP client of one endpoint: sends single requests within time-outs and turns transport failures into errors.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use reqwest::{Request, Response};
use tokio::time::Instant;
use tracing::Instrument as _;
use url::Url;

use super::address::{Policy, PrivateAddress};
use super::connector::ConnectTimedOut;
use super::peer::Peer;
use super::pool::{Pool, RequestError};
use super::proxy::Proxies;
use crate::clock::{self, Clock};
use crate::oci::UpstreamName;
use crate::source::SourceError;
use crate::telemetry::{Metrics, trace};
use crate::upstream::context::Timeouts;
use crate::upstream::quota::Quota;
use crate::upstream::via::ServerId;

/// HTTP client of one endpoint, with the rules and limits of its upstream.
#[derive(Debug)]
pub(crate) struct HttpClient {
    pub(crate) upstream: UpstreamName,
    pub(crate) pool: Pool,
    pub(crate) proxies: Arc<Proxies>,
    pub(crate) policy: Arc<Policy>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) timeouts: Timeouts,
    pub(crate) clock: Clock,
    pub(crate) quota: Arc<Quota>,
    pub(crate) identity: ServerId,
    pub(crate) peer: Mutex<Peer>,
}

impl HttpClient {
    /// Returns the server at the endpoint.
    pub(crate) fn peer(&self) -> Peer {
        *self.peer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the server that sent a response.
    pub(crate) fn observe_peer(&self, headers: &HeaderMap) {
        *self.peer.lock().unwrap_or_else(PoisonError::into_inner) = Peer::of(headers);
    }

    /// Sends one request and waits for the head of its response, at most for `timeout` and until `deadline`.
    pub(crate) async fn send(
        &self,
        request: Request,
        timeout: Duration,
        deadline: Instant,
    ) -> Result<Response, SourceError> {
        let started = Instant::now();
        let limit = deadline.min(started + timeout);
        let (url, method) = (&request.url().clone(), request.method().clone());
        let method = method.as_str();
        let (host, path) = (url.host_str(), self.shown_path(url));
        let span = trace::call(self.upstream.as_str(), method, host, path);
        let sent = self.pool.send(request);
        let response = tokio::time::timeout_at(limit, sent).instrument(span.clone()).await;
        let result = response.map_or_else(
            |_| {
                // Clients must not see where a redirect leads.
                tracing::warn!(upstream = %self.upstream, method, host, path, "the upstream did not answer in time");
                Err(SourceError::Timeout(format!("no response to {method}")))
            },
            |result| result.map_err(|error| self.name_proxy(url, to_source_error(&self.upstream, error))),
        );
        let took = started.elapsed();
        trace::called(&span, result.as_ref().ok().map(|response| response.status().as_u16()));
        tracing::debug!(
            upstream = %self.upstream,
            method,
            host,
            path,
            status = result.as_ref().ok().map(|response| response.status().as_u16()),
            error = result.as_ref().err().map(tracing::field::display),
            ms = clock::millis(took),
            "request sent"
        );
        result
    }

    /// Returns the path of a URL for logs and traces, unless it may contain a signature. Some content delivery networks have
    /// the signature of a redirect in the path instead of the query.
    fn shown_path<'u>(&self, url: &'u Url) -> Option<&'u str> {
        let path = url.path();
        (self.policy.is_endpoint(url) && path.contains("/v2/")).then_some(path)
    }

    /// Adds to an error that the request goes through a proxy, which may be the cause.
    fn name_proxy(&self, url: &Url, error: SourceError) -> SourceError {
        match error {
            SourceError::Unreachable(reason) if self.proxies.towards(url).is_some() => {
                SourceError::Unreachable(format!("through its proxy, {reason}"))
            }
            SourceError::NoResponse(reason) if self.proxies.towards(url).is_some() => {
                SourceError::NoResponse(format!("through its proxy, {reason}"))
            }
            other => other,
        }
    }
}

/// Converts an error before a response. Clients see the kind of failure only. The log has addresses and hosts, but never the
/// URL, which may be a signed one.
pub(crate) fn to_source_error(upstream: &UpstreamName, error: RequestError) -> SourceError {
    let error = match error {
        RequestError::Malformed(error) => {
            tracing::warn!(%upstream, error = causes(&error.without_url()), "request cannot be built");
            return SourceError::Local("the request cannot be built; see the log".to_owned());
        }
        RequestError::Flood => {
            tracing::warn!(%upstream, "the upstream sends informational responses without end");
            return SourceError::Invalid("it sends informational responses without end".to_owned());
        }
        RequestError::Failed(error) => error,
    };
    tracing::warn!(%upstream, error = text_of(&error), "request to the upstream failed");
    if let Some(private) = chain(&error).find_map(|cause| cause.downcast_ref::<PrivateAddress>()) {
        SourceError::Invalid(private.to_string())
    } else if chain(&error).any(<dyn Error>::is::<ConnectTimedOut>) {
        SourceError::ConnectTimeout
    } else if error.is_connect() {
        SourceError::Unreachable(
            failure_reason(&error).unwrap_or("no connection was established; see the log").to_owned(),
        )
    } else {
        broken(&error)
    }
}

/// Converts an error of the body of a response that is read as a whole.
pub(crate) fn to_body_error(upstream: &UpstreamName, error: reqwest::Error) -> SourceError {
    let error = error.without_url();
    tracing::warn!(%upstream, error = causes(&error), "response of the upstream was interrupted");
    broken(&error)
}

fn broken(error: &(dyn Error + 'static)) -> SourceError {
    let reason = failure_reason(error).unwrap_or("the connection broke before the response");
    SourceError::NoResponse(reason.to_owned())
}

/// Returns the reason of a failure without names and addresses.
fn failure_reason(error: &(dyn Error + 'static)) -> Option<&'static str> {
    chain(error).find_map(|cause| match tls_error(cause) {
        Some(rustls::Error::InvalidCertificate(_)) => {
            Some("its certificate is not trusted; if it should be, name its authority in ca_file")
        }
        Some(_) => Some("the TLS handshake failed"),
        None => match cause.downcast_ref::<io::Error>()?.kind() {
            ErrorKind::ConnectionRefused => Some("the connection was refused"),
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Some("there is no route to it"),
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof => {
                Some("the connection broke before the response")
            }
            _ => None,
        },
    })
}

/// Iterates over an error and its causes, the direct one first.
fn chain<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(error), |cause| (*cause).source())
}

/// Returns the TLS error in a cause, also from inside an I/O error, which hides it from the chain.
fn tls_error<'e>(cause: &'e (dyn Error + 'static)) -> Option<&'e rustls::Error> {
    cause.downcast_ref().or_else(|| tls_error(cause.downcast_ref::<io::Error>()?.get_ref()?))
}

/// Formats the causes of an error on one line, without the HTTP client's own text if there is a cause below it.
pub(crate) fn causes(error: &reqwest::Error) -> String {
    error.source().map_or_else(|| error.to_string(), text_of)
}

/// Formats an error and its causes on one line.
pub(crate) fn text_of(error: &(dyn Error + 'static)) -> String {
    let mut texts: Vec<String> = Vec::new();
    for cause in chain(error) {
        let text = cause.to_string();
        if texts.last().is_none_or(|last| !last.contains(&text)) {
            texts.push(text);
        }
    }
    texts.join(": ")
}
