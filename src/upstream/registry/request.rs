//! One request to a registry, until it is answered: authentication, redirects, retries and metrics.

use std::time::Duration;

use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, LOCATION, RANGE, VIA};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::{Request, Response};
use tokio::time::Instant;
use url::Url;

use crate::oci::Name;
use crate::source::{ByteRange, Denial, SourceError};
use crate::upstream::auth::Auth;
use crate::upstream::quota::{QuotaClass, RequestKind};
use crate::upstream::request_origin::RequestOrigin;
use crate::upstream::status::RefusalReason;
use crate::upstream::transport::client::HttpClient;
use crate::upstream::transport::retry;
use crate::upstream::transport::status::check_answer;

/// Largest number of redirects of one request.
const REDIRECTS_MAX: usize = 10;
/// Largest number of origins that may challenge one request: the endpoint, and one that it redirects to.
const CHALLENGES_MAX: usize = 2;

/// Longest wait for a host that the registry redirects the referrers API to. A registry that redirects the API has none in most
/// cases, and the client waits for the list.
const REFERRERS_ELSEWHERE_TIMEOUT: Duration = Duration::from_secs(2);

/// Statuses with which registries refuse an authorization that has expired: ECR answers 400 and 403.
const REFUSALS: [StatusCode; 3] = [StatusCode::BAD_REQUEST, StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN];

/// Request for a manifest, blob or list of a repository.
#[derive(Debug)]
pub(crate) struct RegistryRequest<'r> {
    pub(crate) method: Method,
    pub(crate) url: Url,
    /// Repository that a token must be valid for.
    pub(crate) name: &'r Name,
    pub(crate) class: QuotaClass,
    pub(crate) accept: Option<&'r str>,
    pub(crate) range: Option<ByteRange>,
    /// Statuses other than success that the caller reads itself.
    pub(crate) accepted_statuses: &'static [StatusCode],
    /// True for the referrers API. A registry that redirects it to another host, which fails, has no such API.
    pub(crate) is_referrers: bool,
}

impl RegistryRequest<'_> {
    /// Sends the request until it succeeds, has an accepted status, fails with an error that a retry does not cure, or
    /// the deadline has passed.
    pub(crate) async fn send(
        &self,
        http: &HttpClient,
        auth: &Auth,
        deadline: Instant,
    ) -> Result<Response, SourceError> {
        let kind = RequestKind {
            class: self.class,
            credential: auth.known_credential(self.name),
            repository: Some(self.name.clone()),
        };
        http.quota.check(&kind)?;
        let result = retry::until(deadline, || self.follow(http, auth, deadline)).await;
        if result.is_ok() {
            http.quota.granted(&kind);
            if auth.known_credential(self.name).is_some() {
                auth.refusals.accepted(self.name);
            }
        }
        result.map_err(|error| match error {
            // The registry did not say how long it refuses requests. The pause is the wait that helps.
            SourceError::RateLimited { retry_after: None } => {
                http.quota.check(&kind).err().unwrap_or(SourceError::RateLimited { retry_after: None })
            }
            error => {
                // The registry still refuses the request after all short waits.
                if error.short_wait().is_some() {
                    http.quota.refused(&kind, None);
                }
                error
            }
        })
    }

    /// Records that the registry itself refused the credentials that were sent. HEAD and lists do not count: some registries
    /// refuse them and serve images.
    fn observe_refusal(&self, auth: &Auth, url: &Url, error: &SourceError) {
        let SourceError::Denied(denial) = error else { return };
        let counts = matches!(self.class, QuotaClass::Manifest | QuotaClass::Blob);
        if counts && url.origin() == self.url.origin() && auth.known_credential(self.name).is_some() {
            let reason = match denial {
                Denial::Unauthenticated => RefusalReason::Login,
                Denial::Forbidden => RefusalReason::Repository,
            };
            auth.refusals.refused(self.name, reason);
        }
    }

    /// Begins a pause if the registry itself limits requests of this kind or is overloaded. A host that the registry
    /// redirects to has limits of its own, which do not concern other requests. A short wait needs no pause.
    fn observe_limit(&self, http: &HttpClient, auth: &Auth, url: &Url, error: &SourceError) {
        if url.origin() != self.url.origin() || error.short_wait().is_some() {
            return;
        }
        let kind = RequestKind {
            class: self.class,
            credential: auth.known_credential(self.name),
            repository: Some(self.name.clone()),
        };
        match error {
            SourceError::RateLimited { retry_after } => http.quota.refused(&kind, *retry_after),
            SourceError::Overloaded { retry_after } => http.quota.overloaded(&kind, *retry_after),
            _ => {}
        }
    }

    /// Sends the request once, through challenges and redirects.
    async fn follow(
        &self,
        http: &HttpClient,
        auth: &Auth,
        deadline: Instant,
    ) -> Result<Response, SourceError> {
        let mut url = self.url.clone();
        let result = self.follow_from(&mut url, http, auth, deadline).await;
        let is_elsewhere = url.origin() != self.url.origin();
        match result {
            Ok(response) if is_elsewhere && self.is_referrers && response.status() != StatusCode::OK => {
                Err(SourceError::ReferrersElsewhere)
            }
            Err(error) if is_elsewhere && self.is_referrers => {
                tracing::debug!(upstream = %http.upstream, %error, "the referrers API redirects to a host that fails");
                Err(SourceError::ReferrersElsewhere)
            }
            Err(error) if is_elsewhere => Err(of_target(error)),
            result => result,
        }
    }

    async fn follow_from(
        &self,
        url: &mut Url,
        http: &HttpClient,
        auth: &Auth,
        deadline: Instant,
    ) -> Result<Response, SourceError> {
        let since = Instant::now();
        let mut authorization = auth.known_authorization(self.name, deadline).await?;
        let mut challenged = Vec::with_capacity(CHALLENGES_MAX);
        let (mut redirects, mut renewed, mut repeated) = (0, false, false);
        loop {
            http.policy.check(url)?;
            let response = self.send_once(http, url, authorization.as_ref(), deadline).await;
            let mut response = response.map_err(|error| self.blame(url, error))?;
            let (status, origin) = (response.status(), url.origin());
            let is_challenge = status == StatusCode::UNAUTHORIZED;
            if status == StatusCode::REQUEST_TIMEOUT && !repeated {
                // The server was closing an idle connection when the request arrived (RFC 9110, section 15.5.9).
                repeated = true;
            } else if is_challenge && challenged.len() < CHALLENGES_MAX && !challenged.contains(&origin) {
                challenged.push(origin);
                let headers = response.headers();
                let answer =
                    auth.answer_challenge(headers, url, self.name, authorization.as_ref(), deadline).await;
                authorization = Some(answer.map_err(|error| elsewhere("its token service", error))?);
            } else if REFUSALS.contains(&status)
                && origin == self.url.origin()
                && let Some(sent) = &authorization
                && !renewed
                && auth.renew(self.name, sent, since, deadline).await?
            {
                // The next response is a challenge, which is answered with the new authorization.
                (renewed, authorization) = (true, None);
                challenged.clear();
            } else if is_challenge {
                let error = SourceError::Denied(Denial::Unauthenticated);
                self.observe_refusal(auth, url, &error);
                return Err(error);
            } else if let Some(next) = redirect_target(url, &response)? {
                redirects += 1;
                if redirects > REDIRECTS_MAX {
                    return Err(SourceError::Invalid(format!(
                        "it redirects more than {REDIRECTS_MAX} times"
                    )));
                }
                if next.origin() != url.origin() {
                    authorization = None;
                }
                *url = next;
                http.policy.check_redirect(url)?;
            } else {
                self.check(&mut response, http, auth, url, authorization.as_ref(), deadline).await?;
                return Ok(response);
            }
        }
    }

    /// Returns an error for a status that the caller does not read itself, and records what it says about other requests.
    async fn check(
        &self,
        response: &mut Response,
        http: &HttpClient,
        auth: &Auth,
        url: &Url,
        authorization: Option<&HeaderValue>,
        deadline: Instant,
    ) -> Result<(), SourceError> {
        if self.accepted_statuses.contains(&response.status()) {
            return Ok(());
        }
        let mut checked = check_answer(response).await;
        if let Err(SourceError::RateLimited { retry_after: retry_after @ None }) = &mut checked {
            *retry_after = self.ask_for_wait(http, url, authorization, deadline).await;
        }
        checked.inspect_err(|error| {
            self.observe_limit(http, auth, url, error);
            self.observe_refusal(auth, url, error);
        })
    }

    /// Returns the wait that a rate limit of `HEAD` asks for. An answer to `HEAD` has no body, where ghcr.io has the wait, so the
    /// manifest itself is requested. If it comes, the limit has ended.
    async fn ask_for_wait(
        &self,
        http: &HttpClient,
        url: &Url,
        authorization: Option<&HeaderValue>,
        deadline: Instant,
    ) -> Option<Duration> {
        // Blobs are requested without `Accept`, and may be large.
        if self.method != Method::HEAD || self.accept.is_none() || url.origin() != self.url.origin() {
            return None;
        }
        let request = Self { method: Method::GET, url: url.clone(), accepted_statuses: &[], ..*self };
        let mut response = request.send_once(http, url, authorization, deadline).await.ok()?;
        match check_answer(&mut response).await {
            Ok(()) => Some(Duration::ZERO),
            Err(error) => error.retry_after(),
        }
    }

    /// Returns an error of a request to `url`. A failure of another host that the registry redirects to says nothing about
    /// other requests to the registry.
    fn blame(&self, url: &Url, error: SourceError) -> SourceError {
        if url.origin() == self.url.origin() {
            error
        } else {
            elsewhere("a host that it redirects to", error)
        }
    }

    async fn send_once(
        &self,
        http: &HttpClient,
        url: &Url,
        authorization: Option<&HeaderValue>,
        deadline: Instant,
    ) -> Result<Response, SourceError> {
        let mut request = Request::new(self.method.clone(), url.clone());
        let is_own = url.origin() == self.url.origin();
        self.add_headers(http, is_own, authorization, request.headers_mut())?;
        let started = Instant::now();
        let timeout = match self.class {
            QuotaClass::Blob => http.timeouts.blob_head,
            _ if self.is_referrers && !is_own => http.timeouts.head.min(REFERRERS_ELSEWHERE_TIMEOUT),
            _ => http.timeouts.head,
        };
        let result = http.send(request, timeout, deadline).await;
        let status = result.as_ref().ok().map(|response| response.status().as_u16());
        let took = started.elapsed();
        // A host that the registry redirects to has a quota of its own, if any.
        if let Ok(response) = &result
            && is_own
        {
            http.observe_peer(response.headers());
            http.quota.observe(response.headers());
        }
        http.metrics.upstream_request(http.upstream.as_str(), self.method.as_str(), status, took);
        result
    }

    /// Adds the headers of this request. `is_own` is false for another host that the registry redirects to.
    fn add_headers(
        &self,
        http: &HttpClient,
        is_own: bool,
        authorization: Option<&HeaderValue>,
        headers: &mut HeaderMap,
    ) -> Result<(), SourceError> {
        let value = |text: &str| {
            HeaderValue::from_str(text)
                .map_err(|_| SourceError::Local("the request cannot be built".to_owned()))
        };
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(accept) = self.accept {
            headers.insert(ACCEPT, value(accept)?);
        }
        if let Some(range) = self.range {
            headers.insert(RANGE, value(&range_header(range))?);
        }
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        if is_own {
            let via = RequestOrigin::current().hops.followed_by(http.identity);
            headers.insert(VIA, value(&via)?);
        }
        Ok(())
    }
}

/// Returns the error for a failed connection to another host than the endpoint's.
fn elsewhere(host: &str, error: SourceError) -> SourceError {
    match error {
        SourceError::Unreachable(reason) => SourceError::NoResponse(format!("{host}: {reason}")),
        SourceError::ConnectTimeout => SourceError::Timeout(format!("no connection to {host}")),
        error => error,
    }
}

/// Returns the error for a status of a host that the registry redirects to.
fn of_target(error: SourceError) -> SourceError {
    match error {
        SourceError::Unavailable(status) => SourceError::TargetUnavailable(status),
        error => error,
    }
}

/// Formats a range for the header `Range` (RFC 9110, section 14.1.2).
fn range_header(range: ByteRange) -> String {
    let ByteRange { first, last } = range;
    last.map_or_else(|| format!("bytes={first}-"), |last| format!("bytes={first}-{last}"))
}

/// Returns the target of a redirect; `None` if the response is none.
fn redirect_target(from: &Url, response: &Response) -> Result<Option<Url>, SourceError> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
    let invalid = |reason: &str| SourceError::Invalid(reason.to_owned());
    let location = location.ok_or_else(|| invalid("it redirects without a usable Location"))?;
    let mut next = from.join(location).map_err(|_| invalid("it redirects to an invalid URL"))?;
    next.set_fragment(None);
    if from.scheme() == "https" && next.scheme() != "https" {
        return Err(invalid("it redirects from https to another scheme"));
    }
    Ok(Some(next))
}
