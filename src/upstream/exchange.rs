//! One request to a registry and what it takes to have it answered: challenges, redirects, repetitions, counting.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, DATE, LOCATION, RANGE, RETRY_AFTER};
use http::{HeaderValue, Method, StatusCode};
use reqwest::{RequestBuilder, Response};
use tokio::time::Instant;
use tracing::Instrument as _;
use url::Url;

use super::Timeouts;
use super::address::{Policy, PrivateAddress};
use super::auth::Auth;
use super::error::UpstreamError;
use super::proxy::Proxies;
use super::quota::Quota;
use super::retry;
use crate::clock::Clock;
use crate::oci::{Name, UpstreamName};
use crate::telemetry::{Metrics, trace};

/// Redirects followed for one request.
const HOPS_MAX: usize = 10;
/// Places that may challenge one request: the endpoint, and one that it redirects to.
const CHALLENGES_MAX: usize = 2;

/// The way out to one upstream.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) upstream: UpstreamName,
    pub(super) client: reqwest::Client,
    pub(super) proxies: Proxies,
    pub(super) policy: Arc<Policy>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) timeouts: Timeouts,
    pub(super) clock: Clock,
    pub(super) quota: Arc<Quota>,
}

impl Link {
    /// Sends one request and waits for the head of its answer, no longer than `deadline`.
    pub(super) async fn send(
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

/// A request for something of a repository.
#[derive(Debug)]
pub(super) struct Call<'c> {
    pub(super) method: Method,
    pub(super) url: Url,
    /// Whose it is: what a token has to be good for.
    pub(super) name: &'c Name,
    pub(super) accept: Option<&'c str>,
    pub(super) range: Option<String>,
    /// Statuses beside success that whoever asks reads for itself.
    pub(super) read_too: &'static [StatusCode],
}

impl Call<'_> {
    /// Sends it until there is an answer of success, or one of those in `read_too`; every other answer is an error by
    /// its meaning.
    pub(super) async fn send(
        &self,
        link: &Link,
        auth: &Auth,
        deadline: Instant,
    ) -> Result<Response, UpstreamError> {
        retry::run(deadline, || self.follow(link, auth, deadline)).await
    }

    async fn follow(&self, link: &Link, auth: &Auth, deadline: Instant) -> Result<Response, UpstreamError> {
        let mut url = self.url.clone();
        let mut authorization = auth.ahead(self.name, deadline).await?;
        let mut challenged = Vec::with_capacity(CHALLENGES_MAX);
        let (mut hops, mut renewed) = (0, false);
        loop {
            link.policy.check(&url)?;
            let response = self.once(link, &url, authorization.as_ref(), deadline).await?;
            if response.status() == StatusCode::UNAUTHORIZED {
                let origin = url.origin();
                if challenged.contains(&origin) || challenged.len() == CHALLENGES_MAX {
                    return Err(UpstreamError::Denied { status: 401 });
                }
                challenged.push(origin);
                let headers = response.headers();
                let answer = auth.answer(headers, &url, self.name, authorization.as_ref(), deadline).await?;
                authorization = Some(answer);
            } else if response.status() == StatusCode::FORBIDDEN
                && challenged.is_empty()
                && let Some(sent) = &authorization
                && !renewed
                && auth.outdated(self.name, sent, deadline).await?
            {
                // What was kept is for a credential that has been replaced since; the next answer is a challenge.
                (renewed, authorization) = (true, None);
            } else if let Some(next) = redirect(&url, &response)? {
                hops += 1;
                if hops > HOPS_MAX {
                    return Err(UpstreamError::Invalid(format!("it redirects more than {HOPS_MAX} times")));
                }
                if next.origin() != url.origin() {
                    authorization = None;
                }
                url = next;
            } else {
                if !self.read_too.contains(&response.status()) {
                    judge(&response)?;
                }
                return Ok(response);
            }
        }
    }

    async fn once(
        &self,
        link: &Link,
        url: &Url,
        authorization: Option<&HeaderValue>,
        deadline: Instant,
    ) -> Result<Response, UpstreamError> {
        let mut request = link
            .client
            .request(self.method.clone(), url.clone())
            .header(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(accept) = self.accept {
            request = request.header(ACCEPT, accept);
        }
        if let Some(range) = &self.range {
            request = request.header(RANGE, range);
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let started = Instant::now();
        let result = link.send(request, url, self.method.as_str(), deadline).await;
        let status = result.as_ref().ok().map(|response| response.status().as_u16());
        let took = started.elapsed();
        // A place that the registry redirects to counts something else, if anything.
        if let Ok(response) = &result
            && url.origin() == self.url.origin()
        {
            link.quota.note(response.headers());
        }
        link.metrics.upstream_request(link.upstream.as_str(), self.method.as_str(), status, took);
        result
    }
}

/// Where an answer sends us; `None` if it is no redirect.
fn redirect(from: &Url, response: &Response) -> Result<Option<Url>, UpstreamError> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
    let invalid = |reason: &str| UpstreamError::Invalid(reason.to_owned());
    let location = location.ok_or_else(|| invalid("it redirects without a usable Location"))?;
    let mut next = from.join(location).map_err(|_| invalid("it redirects to something that is no URL"))?;
    next.set_fragment(None);
    if from.scheme() == "https" && next.scheme() != "https" {
        return Err(invalid("it redirects from https to another scheme"));
    }
    Ok(Some(next))
}

/// What an answer's status means.
pub(super) fn judge(response: &Response) -> Result<(), UpstreamError> {
    match response.status().as_u16() {
        200..=299 => Ok(()),
        404 => Err(UpstreamError::NotFound),
        // A word of a proxy's alone (RFC 9110, section 15.5.8).
        407 => Err(UpstreamError::Unreachable("its proxy asks for credentials".to_owned())),
        status @ (401 | 403) => Err(UpstreamError::Denied { status }),
        416 => Err(UpstreamError::RangeNotSatisfiable),
        429 => Err(UpstreamError::RateLimited { retry_after: retry_after(response) }),
        status => match retry_after(response) {
            Some(retry_after) if status == 503 => Err(UpstreamError::Overloaded { retry_after }),
            _ => Err(UpstreamError::Status(status)),
        },
    }
}

/// How long an answer asks to be left alone.
fn retry_after(response: &Response) -> Option<Duration> {
    let text = |name| response.headers().get(name)?.to_str().ok();
    // The upstream's date counts from the upstream's clock; ours may stand elsewhere.
    let now =
        text(DATE).and_then(|date| httpdate::parse_http_date(date).ok()).unwrap_or_else(SystemTime::now);
    retry::retry_after(text(RETRY_AFTER)?, now)
}

/// The meaning of the HTTP client's error before an answer's head. Clients are told of what kind it is; what names
/// addresses and hosts is for the log, and its URL, which may be a signed one, for nobody.
pub(super) fn translate(upstream: &UpstreamName, error: reqwest::Error) -> UpstreamError {
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
pub(super) fn causes(error: &reqwest::Error) -> String {
    let mut texts: Vec<String> = Vec::new();
    for cause in chain(error) {
        let text = cause.to_string();
        if texts.last().is_none_or(|last| !last.contains(&text)) {
            texts.push(text);
        }
    }
    if texts.is_empty() { error.to_string() } else { texts.join(": ") }
}
