//! One request to a registry, until it is answered: authentication, redirects, retries and metrics.

use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, LOCATION, RANGE};
use http::{HeaderValue, Method, StatusCode};
use reqwest::Response;
use tokio::time::Instant;
use url::Url;

use crate::oci::Name;
use crate::upstream::auth::Auth;
use crate::upstream::error::UpstreamError;
use crate::upstream::transport::client::HttpClient;
use crate::upstream::transport::retry;
use crate::upstream::transport::status::check_status;

/// Redirects followed for one request.
const HOPS_MAX: usize = 10;
/// Places that may challenge one request: the endpoint, and one that it redirects to.
const CHALLENGES_MAX: usize = 2;

/// A request for something of a repository.
#[derive(Debug)]
pub(crate) struct RegistryRequest<'c> {
    pub(crate) method: Method,
    pub(crate) url: Url,
    /// Whose it is: what a token has to be good for.
    pub(crate) name: &'c Name,
    pub(crate) accept: Option<&'c str>,
    pub(crate) range: Option<String>,
    /// Statuses beside success that whoever asks reads for itself.
    pub(crate) read_too: &'static [StatusCode],
}

impl RegistryRequest<'_> {
    /// Sends it until there is an answer of success, or one of those in `read_too`; every other answer is an error by
    /// its meaning.
    pub(crate) async fn send(
        &self,
        http: &HttpClient,
        auth: &Auth,
        deadline: Instant,
    ) -> Result<Response, UpstreamError> {
        retry::run(deadline, || self.follow(http, auth, deadline)).await
    }

    async fn follow(
        &self,
        http: &HttpClient,
        auth: &Auth,
        deadline: Instant,
    ) -> Result<Response, UpstreamError> {
        let mut url = self.url.clone();
        let mut authorization = auth.ahead(self.name, deadline).await?;
        let mut challenged = Vec::with_capacity(CHALLENGES_MAX);
        let (mut hops, mut renewed) = (0, false);
        loop {
            http.policy.check(&url)?;
            let response = self.once(http, &url, authorization.as_ref(), deadline).await?;
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
                    check_status(&response)?;
                }
                return Ok(response);
            }
        }
    }

    async fn once(
        &self,
        http: &HttpClient,
        url: &Url,
        authorization: Option<&HeaderValue>,
        deadline: Instant,
    ) -> Result<Response, UpstreamError> {
        let mut request = http
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
        let result = http.send(request, url, self.method.as_str(), deadline).await;
        let status = result.as_ref().ok().map(|response| response.status().as_u16());
        let took = started.elapsed();
        // A place that the registry redirects to counts something else, if anything.
        if let Ok(response) = &result
            && url.origin() == self.url.origin()
        {
            http.quota.note(response.headers());
        }
        http.metrics.upstream_request(http.upstream.as_str(), self.method.as_str(), status, took);
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
