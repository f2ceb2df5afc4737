//! Requests to token services: the protocol of distribution (`token.md`), and of OAuth 2.0 for identity tokens (`oauth.md`).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, StatusCode};
use quick_cache::sync::Cache;
use reqwest::{Request, Response};
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};
use url::{Url, form_urlencoded};

use super::authorization::{CredentialId, basic, bearer};
use crate::config::docker::Credential;
use crate::source::{Denial, SourceError};
use crate::upstream::transport::client::{HttpClient, to_body_error};
use crate::upstream::transport::status::check_status;

/// Number of sessions that are remembered.
const SESSIONS_MAX: usize = 1024;
/// Client name in OAuth 2.0.
const CLIENT_ID: &str = "larder";
/// Largest response of a token service in bytes.
const RESPONSE_MAX: usize = 64 * 1024;
/// Shortest lifetime of a token in seconds, also if the response has none (`token.md`).
const LIFETIME_MIN: u64 = 60;
/// Longest lifetime of a token in seconds, whatever the response says.
const LIFETIME_MAX: u64 = 24 * 60 * 60;

/// Request for a token, and key under which the token is kept. A different credential gets a different token.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct TokenKey {
    /// URL of the token service.
    pub(crate) realm: Url,
    pub(crate) service: Option<String>,
    /// Empty for a login.
    pub(crate) scope: String,
    /// `None` for an anonymous token.
    pub(crate) credential: Option<CredentialId>,
}

/// Token from a token service. No `Debug`: it is secret.
pub(crate) struct IssuedToken {
    /// Value of the header `Authorization`.
    pub(crate) header: HeaderValue,
    pub(crate) lifetime: Duration,
    /// Identity token that replaces the one that was sent.
    identity_token: Option<String>,
}

/// Client of the token services for one endpoint. No `Debug`: sessions contain secrets.
pub(crate) struct TokenService {
    http: Arc<HttpClient>,
    /// Sessions by key without scope: an identity token is for all scopes.
    sessions: Cache<TokenKey, Arc<Mutex<Session>>>,
}

/// State of an identity token at a token service.
#[derive(Default)]
struct Session {
    /// Identity token that the service issued instead of the configured one.
    renewed: Option<String>,
    /// True if the service supports GET only.
    get_only: bool,
}

impl TokenService {
    /// Creates a client without sessions.
    pub(crate) fn new(http: Arc<HttpClient>) -> Self {
        Self { http, sessions: Cache::new(SESSIONS_MAX) }
    }

    /// Requests a token. `credential` is the one whose identifier is in the key.
    pub(crate) async fn issue(
        &self,
        key: &TokenKey,
        credential: Option<&Credential>,
        deadline: Instant,
    ) -> Result<IssuedToken, SourceError> {
        match credential {
            Some(credential @ Credential { identity_token: Some(token), .. }) => {
                self.exchange(key, credential, token, deadline).await
            }
            _ => self.get(key, credential.and_then(basic), deadline).await,
        }
    }

    /// Exchanges an identity token for a token: by POST, or, if the service does not support that, by GET with the identity
    /// token as password.
    async fn exchange(
        &self,
        key: &TokenKey,
        credential: &Credential,
        configured: &str,
        deadline: Instant,
    ) -> Result<IssuedToken, SourceError> {
        let session = get_or_default(&self.sessions, &TokenKey { scope: String::new(), ..key.clone() });
        let current = || lock(&session).renewed.clone().unwrap_or_else(|| configured.to_owned());
        let mut refusal = None;
        if !lock(&session).get_only {
            for _ in 0..2 {
                let sent = current();
                match self.post(key, &sent, deadline).await {
                    Err(error) if may_lack_post(&error) => refusal = Some(error),
                    result => return result.inspect(|token| renew(&session, token)),
                }
                let mut session = lock(&session);
                match &session.renewed {
                    None => break,
                    // The renewed token has expired; the configured one may still be valid.
                    Some(renewed) if *renewed == sent => session.renewed = None,
                    // Another request has renewed it meanwhile.
                    Some(_) => {}
                }
            }
        }
        let login = match credential.password.as_slice() {
            [] => Credential { identity_token: Some(current()), ..credential.clone() },
            _ => credential.clone(),
        };
        let result = self.get(key, basic(&login), deadline).await;
        let mut session = lock(&session);
        session.get_only = result.is_ok();
        result.map_err(|error| match refusal {
            // If GET is not supported either, the error of POST counts.
            Some(denied @ SourceError::Denied(_)) if matches!(error, SourceError::Invalid(_)) => denied,
            _ => error,
        })
    }

    /// Requests a token by POST (`oauth.md`).
    async fn post(&self, key: &TokenKey, token: &str, deadline: Instant) -> Result<IssuedToken, SourceError> {
        let mut request = Request::new(Method::POST, key.realm.clone());
        let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
        request.headers_mut().insert(CONTENT_TYPE, form_type);
        *request.body_mut() = Some(form(key, token).into());
        self.send(request, deadline).await
    }

    /// Requests a token by GET (`token.md`).
    async fn get(
        &self,
        key: &TokenKey,
        basic: Option<HeaderValue>,
        deadline: Instant,
    ) -> Result<IssuedToken, SourceError> {
        let mut url = key.realm.clone();
        {
            // The query of the realm is kept.
            let mut query = url.query_pairs_mut();
            if let Some(service) = &key.service {
                query.append_pair("service", service);
            }
            // A login has no scope.
            if !key.scope.is_empty() {
                query.append_pair("scope", &key.scope);
            }
        }
        let mut request = Request::new(Method::GET, url);
        if let Some(basic) = basic {
            request.headers_mut().insert(AUTHORIZATION, basic);
        }
        self.send(request, deadline).await
    }

    async fn send(&self, request: Request, deadline: Instant) -> Result<IssuedToken, SourceError> {
        let mut response = self.http.send(request, self.http.timeouts.head, deadline).await?;
        check_service_status(&response)?;
        let mut body = Vec::new();
        loop {
            let chunk = timeout_at(deadline, response.chunk()).await.map_err(|_| late())?;
            let Some(chunk) = chunk.map_err(|error| to_body_error(&self.http.upstream, error))? else {
                break;
            };
            if body.len() + chunk.len() > RESPONSE_MAX {
                return Err(invalid(format!("sent more than {RESPONSE_MAX} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        parse(&body)
    }
}

/// Returns the body of a POST for a token.
fn form(key: &TokenKey, token: &str) -> String {
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.append_pair("grant_type", "refresh_token");
    form.append_pair("service", key.service.as_deref().unwrap_or_default());
    form.append_pair("client_id", CLIENT_ID);
    if !key.scope.is_empty() {
        form.append_pair("scope", &key.scope);
    }
    form.append_pair("refresh_token", token);
    form.finish()
}

/// Keeps a renewed identity token.
fn renew(session: &Mutex<Session>, issued: &IssuedToken) {
    if let Some(token) = &issued.identity_token {
        lock(session).renewed = Some(token.clone());
    }
}

/// Returns true if POST failed like at a service that does not support it: GCR answers 404, Artifactory 401.
fn may_lack_post(error: &SourceError) -> bool {
    matches!(error, SourceError::Denied(Denial::Unauthenticated) | SourceError::Invalid(_))
}

/// Returns the error for the status of a token service. A 404 does not mean that the content is missing.
fn check_service_status(response: &Response) -> Result<(), SourceError> {
    match response.status() {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS => {
            check_status(response)
        }
        status if status.is_success() => Ok(()),
        status if status.is_redirection() => Err(invalid("redirects")),
        status if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED => check_status(response),
        status => Err(invalid(format!("answered with status {}", status.as_u16()))),
    }
}

fn invalid(what: impl std::fmt::Display) -> SourceError {
    SourceError::Invalid(format!("its token service {what}"))
}

/// Returns the error for a token service that did not answer in time.
pub(super) fn late() -> SourceError {
    SourceError::Timeout("the token service".to_owned())
}

/// Locks a mutex whose data stays valid if a thread panics.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the value for a key, the same for all tasks; inserts a default one if there is none.
pub(super) fn get_or_default<T: Default>(cache: &Cache<TokenKey, Arc<T>>, key: &TokenKey) -> Arc<T> {
    let Ok::<_, std::convert::Infallible>(value) = cache.get_or_insert_with(key, || Ok(Arc::default()));
    value
}

/// Parses the response of a token service.
pub(super) fn parse(body: &[u8]) -> Result<IssuedToken, SourceError> {
    #[derive(Deserialize)]
    struct TokenResponse {
        token: Option<String>,
        access_token: Option<String>,
        expires_in: Option<serde_json::Value>,
        refresh_token: Option<String>,
    }
    // The parser's error would quote the body, which is secret.
    let response: TokenResponse = serde_json::from_slice(body).map_err(|_| invalid("sent no JSON object"))?;
    let filled = |token: &String| !token.is_empty();
    let token = response.access_token.filter(filled).or(response.token.filter(filled));
    let token = token.ok_or_else(|| invalid("sent no token"))?;
    let header = bearer(&token).ok_or_else(|| invalid("sent an unusable token"))?;
    let lifetime = response.expires_in.as_ref().and_then(serde_json::Value::as_u64).unwrap_or(LIFETIME_MIN);
    let lifetime = Duration::from_secs(lifetime.clamp(LIFETIME_MIN, LIFETIME_MAX));
    Ok(IssuedToken { header, lifetime, identity_token: response.refresh_token.filter(filled) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(body: &str) -> Result<(String, u64), SourceError> {
        parse(body.as_bytes())
            .map(|token| (token.header.to_str().expect("text").to_owned(), token.lifetime.as_secs()))
    }

    #[test]
    fn parse_reads_both_names_of_the_token_and_limits_its_lifetime() {
        assert_eq!(of(r#"{"token":"a"}"#), Ok(("Bearer a".to_owned(), 60)));
        assert_eq!(of(r#"{"access_token":"b","token":"a"}"#), Ok(("Bearer b".to_owned(), 60)));
        assert_eq!(
            of(r#"{"access_token":"","token":"a","expires_in":300}"#),
            Ok(("Bearer a".to_owned(), 300))
        );
        assert_eq!(of(r#"{"token":"a","expires_in":1}"#), Ok(("Bearer a".to_owned(), 60)));
        assert_eq!(of(r#"{"token":"a","expires_in":"soon"}"#), Ok(("Bearer a".to_owned(), 60)));
        assert_eq!(of(r#"{"token":"a","expires_in":99999999999}"#), Ok(("Bearer a".to_owned(), 86_400)));
    }

    #[test]
    fn parse_reads_a_renewed_identity_token() {
        let of = |body: &str| parse(body.as_bytes()).expect("a token").identity_token;
        assert_eq!(of(r#"{"token":"a","refresh_token":"r"}"#).as_deref(), Some("r"));
        assert_eq!(of(r#"{"token":"a","refresh_token":""}"#), None);
        assert_eq!(of(r#"{"token":"a"}"#), None);
    }

    #[test]
    fn parse_error_does_not_quote_the_response() {
        for bad in ["", "[]", "{}", r#"{"token":""}"#, r#"{"token":"secret\n"}"#, r#"{"token":"secret"#] {
            let error = parse(bad.as_bytes()).err().expect("refused").to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
