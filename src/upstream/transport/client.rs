//! HTTP client of one endpoint: sends single requests within time-outs and turns transport failures into errors.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::sync::Arc;

use reqwest::{RequestBuilder, Response};
use tokio::time::Instant;
use tracing::Instrument as _;
use url::Url;

use super::address::{Policy, PrivateAddress};
use super::proxy::Proxies;
use crate::clock::Clock;
use crate::oci::UpstreamName;
use crate::telemetry::{Metrics, trace};
use crate::upstream::context::Timeouts;
use crate::upstream::error::UpstreamError;
use crate::upstream::quota::Quota;

/// HTTP client of one endpoint, with the rules and limits of its upstream.
#[derive(Debug)]
pub(crate) struct HttpClient {
    pub(crate) upstream: UpstreamName,
    pub(crate) client: reqwest::Client,
    pub(crate) proxies: Proxies,
    pub(crate) policy: Arc<Policy>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) timeouts: Timeouts,
    pub(crate) clock: Clock,
    pub(crate) quota: Arc<Quota>,
}

impl HttpClient {
    /// Sends one request and waits for the head of its answer, no longer than `deadline`.
    pub(crate) async fn send(
        &self,
        request: RequestBuilder,
        url: &Url,
        method: &str,
        deadline: Instant,
    ) -> Result<Response, UpstreamError> {
        let started = Instant::now();
        let limit = deadline.min(started + self.timeouts.head);
        let span = trace::call(self.upstream.as_str(), method, url.host_str(), url.path());
        let answered = tokio::time::timeout_at(limit, request.send()).instrument(span.clone()).await;
        let result = answered.map_or_else(
            |_| {
                // The place that a redirect led to is nothing for clients.
                let (host, path) = (url.host_str(), url.path());
                tracing::warn!(upstream = %self.upstream, method, host, path, "no answer in time");
                Err(UpstreamError::Timeout(format!("nothing came back for {method}")))
            },
            |answer| answer.map_err(|error| self.by_way(url, translate(&self.upstream, error))),
        );
        let took = started.elapsed();
        trace::called(&span, result.as_ref().ok().map(|response| response.status().as_u16()));
        tracing::debug!(
            upstream = %self.upstream,
            method,
            host = url.host_str(),
            path = url.path(),
            status = result.as_ref().ok().map(|response| response.status().as_u16()),
            error = result.as_ref().err().map(tracing::field::display),
            ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            "asked"
        );
        result
    }

    /// What kept a request to `url` from being answered may be its proxy's doing.
    fn by_way(&self, url: &Url, error: UpstreamError) -> UpstreamError {
        match error {
            UpstreamError::Unreachable(reason) if self.proxies.towards(url).is_some() => {
                UpstreamError::Unreachable(format!("by way of its proxy, {reason}"))
            }
            other => other,
        }
    }
}

/// The meaning of the HTTP client's error before an answer's head. Clients are told of what kind it is; what names
/// addresses and hosts is for the log, and its URL, which may be a signed one, for nobody.
pub(crate) fn translate(upstream: &UpstreamName, error: reqwest::Error) -> UpstreamError {
    let error = error.without_url();
    tracing::warn!(%upstream, error = causes(&error), "the upstream could not be asked");
    if let Some(private) = chain(&error).find_map(|cause| cause.downcast_ref::<PrivateAddress>()) {
        UpstreamError::Invalid(private.to_string())
    } else if error.is_builder() {
        UpstreamError::Local("the request cannot be made; the log says why".to_owned())
    } else if error.is_timeout() {
        UpstreamError::Timeout("no connection came about".to_owned())
    } else {
        UpstreamError::Unreachable(kind(&error).to_owned())
    }
}

/// What kept a request from being answered, without a word of where.
fn kind(error: &reqwest::Error) -> &'static str {
    let by_cause = chain(error).find_map(|cause| match tls(cause) {
        Some(rustls::Error::InvalidCertificate(_)) => {
            Some("its certificate is not trusted; if it should be, name its authority in ca_file")
        }
        Some(_) => Some("TLS could not be agreed on"),
        None => match cause.downcast_ref::<io::Error>()?.kind() {
            ErrorKind::ConnectionRefused => Some("the connection was refused"),
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Some("there is no route to it"),
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof => {
                Some("the connection broke before there was an answer")
            }
            _ => None,
        },
    });
    by_cause.unwrap_or(if error.is_connect() {
        "no connection came about; the log says why"
    } else {
        "the connection broke before there was an answer"
    })
}

/// An error's causes, the nearest one first.
fn chain<'e>(error: &'e reqwest::Error) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(error.source(), |cause| (*cause).source())
}

/// What TLS says, also from inside an I/O error, which keeps it from the chain.
fn tls<'e>(cause: &'e (dyn Error + 'static)) -> Option<&'e rustls::Error> {
    cause.downcast_ref().or_else(|| tls(cause.downcast_ref::<io::Error>()?.get_ref()?))
}

/// An error's causes on one line, without the HTTP client's own framing where there is anything below it.
pub(crate) fn causes(error: &reqwest::Error) -> String {
    let mut texts: Vec<String> = Vec::new();
    for cause in chain(error) {
        let text = cause.to_string();
        if texts.last().is_none_or(|last| !last.contains(&text)) {
            texts.push(text);
        }
    }
    if texts.is_empty() { error.to_string() } else { texts.join(": ") }
}
