//! The tokens of token services: fetched once for all who want them, and kept while they last.
//!
//! Kept by realm, service, scope and the credential's identity: whoever has another credential gets another token.
//! The protocol is the Distribution specification's (`token.md`, and `oauth.md` for identity tokens).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use quick_cache::sync::Cache;
use reqwest::{RequestBuilder, Response};
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};
use url::{Url, form_urlencoded};

use super::authorization::{Identity, basic, bearer};
use crate::config::docker::Credential;
use crate::source::{Denial, SourceError};
use crate::upstream::transport::client::{HttpClient, to_source_error};
use crate::upstream::transport::status::check_status;

/// Tokens remembered at once; further ones push out the least used and cost a question more.
const REMEMBERED: usize = 1024;
/// What larder calls itself towards OAuth 2.0.
const CLIENT_ID: &str = "larder";
/// A token service's answer is no larger.
const ANSWER_MAX: usize = 64 * 1024;
/// How long a token lasts at least, whatever the token service says or leaves out.
const LIFETIME_MIN: u64 = 60;
/// How long it is believed to last at most.
const LIFETIME_MAX: u64 = 24 * 60 * 60;
/// How long before its end a token is no longer used.
const EARLY: Duration = Duration::from_secs(5);

/// What a token is good for, and on whose word.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) realm: Url,
    pub(crate) service: Option<String>,
    pub(crate) scope: String,
    /// `None` for a token that anybody gets.
    pub(crate) credential: Option<Identity>,
}

/// All tokens for one endpoint. No `Debug`: they are secrets.
pub(crate) struct Tokens {
    http: Arc<HttpClient>,
    slots: Cache<Key, Arc<Slot>>,
    /// By the key without its scope: an identity token is for all scopes.
    sessions: Cache<Key, Arc<Mutex<Session>>>,
}

/// A place for one token, in which one task at a time asks for it.
#[derive(Default)]
struct Slot {
    gate: tokio::sync::Mutex<()>,
    last: Mutex<Option<Fetched>>,
}

/// What the token service said last.
#[derive(Clone)]
struct Fetched {
    at: Instant,
    result: Result<Token, SourceError>,
}

#[derive(Clone)]
struct Token {
    header: HeaderValue,
    until: Instant,
}

/// What is known of an identity token at a token service.
#[derive(Default)]
struct Session {
    /// The identity token that the service gave in place of the one from the configuration.
    renewed: Option<String>,
    /// Whether the service does not do POST, as GET has shown.
    get_only: bool,
}

impl Slot {
    fn last(&self) -> Option<Fetched> {
        locked(&self.last).clone()
    }

    fn valid(&self, now: Instant) -> Option<HeaderValue> {
        self.last()?.result.ok().filter(|token| now < token.until).map(|token| token.header)
    }

    fn put(&self, at: Instant, result: Result<Token, SourceError>) {
        *locked(&self.last) = Some(Fetched { at, result });
    }
}

impl Tokens {
    pub(crate) fn new(http: Arc<HttpClient>) -> Self {
        Self { http, slots: Cache::new(REMEMBERED), sessions: Cache::new(REMEMBERED) }
    }

    /// The time by which tokens age.
    fn now(&self) -> Instant {
        self.http.clock.instant().into()
    }

    /// A token that can be used without asking anybody.
    pub(crate) fn kept(&self, key: &Key) -> Option<HeaderValue> {
        self.slots.get(key)?.valid(self.now())
    }

    /// A valid token that is not the refused one: kept, or fetched once for all who want it now. `credential` is the
    /// one whose identity is in the key.
    pub(crate) async fn get(
        &self,
        key: &Key,
        credential: Option<&Credential>,
        refused: Option<&HeaderValue>,
        deadline: Instant,
    ) -> Result<HeaderValue, SourceError> {
        let usable = |slot: &Slot| slot.valid(self.now()).filter(|header| Some(header) != refused);
        let slot = shared(&self.slots, key);
        if let Some(header) = usable(&slot) {
            return Ok(header);
        }
        let since = Instant::now();
        let _turn = timeout_at(deadline, slot.gate.lock()).await.map_err(|_| late())?;
        if let Some(header) = usable(&slot) {
            return Ok(header);
        }
        // Whoever waited while another failed shares that failure instead of repeating it.
        if let Some(Fetched { at, result: Err(error) }) = slot.last()
            && at >= since
        {
            return Err(error);
        }
        let result = self.fetch(key, credential, deadline).await;
        self.http.metrics.token_request(
            self.http.upstream.as_str(),
            match &result {
                Ok(_) => "ok",
                Err(SourceError::Denied(_)) => "denied",
                Err(_) => "error",
            },
        );
        let now = self.now();
        let result = result.map(|answer| Token {
            header: answer.header,
            until: now + answer.lifetime.saturating_sub(EARLY),
        });
        slot.put(Instant::now(), result.clone());
        result.map(|token| token.header)
    }

    async fn fetch(
        &self,
        key: &Key,
        credential: Option<&Credential>,
        deadline: Instant,
    ) -> Result<Answer, SourceError> {
        match credential {
            Some(credential @ Credential { identity_token: Some(token), .. }) => {
                self.exchange(key, credential, token, deadline).await
            }
            _ => self.ask(key, credential.and_then(basic), deadline).await,
        }
    }

    /// Exchanges an identity token for a token: by POST, and where a service does not do that, by GET with the
    /// identity token in place of a password.
    async fn exchange(
        &self,
        key: &Key,
        credential: &Credential,
        configured: &str,
        deadline: Instant,
    ) -> Result<Answer, SourceError> {
        let session = shared(&self.sessions, &Key { scope: String::new(), ..key.clone() });
        let current = || locked(&session).renewed.clone().unwrap_or_else(|| configured.to_owned());
        let mut refusal = None;
        if !locked(&session).get_only {
            for _ in 0..2 {
                let sent = current();
                match self.post(key, &sent, deadline).await {
                    Err(error) if no_word_on_post(&error) => refusal = Some(error),
                    answer => return answer.inspect(|answer| renew(&session, answer)),
                }
                let mut session = locked(&session);
                match &session.renewed {
                    None => break,
                    // It is worn out; the configured one may still be good.
                    Some(renewed) if *renewed == sent => session.renewed = None,
                    // Another request had it renewed meanwhile.
                    Some(_) => {}
                }
            }
        }
        let login = match credential.password.as_slice() {
            [] => Credential { identity_token: Some(current()), ..credential.clone() },
            _ => credential.clone(),
        };
        let answer = self.ask(key, basic(&login), deadline).await;
        let mut session = locked(&session);
        session.get_only = answer.is_ok();
        answer.map_err(|error| match refusal {
            // Where GET is unknown, what POST said is what counts.
            Some(denied @ SourceError::Denied(_)) if matches!(error, SourceError::Invalid(_)) => denied,
            _ => error,
        })
    }

    /// `POST` of OAuth 2.0 (`oauth.md`).
    async fn post(&self, key: &Key, token: &str, deadline: Instant) -> Result<Answer, SourceError> {
        let request = self.http.client.post(key.realm.clone());
        let request =
            request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form(key, token));
        self.send(request, &key.realm, "POST", deadline).await
    }

    /// `GET` (`token.md`).
    async fn ask(
        &self,
        key: &Key,
        basic: Option<HeaderValue>,
        deadline: Instant,
    ) -> Result<Answer, SourceError> {
        let mut url = key.realm.clone();
        {
            // A realm may come with a query of its own, which stays.
            let mut query = url.query_pairs_mut();
            if let Some(service) = &key.service {
                query.append_pair("service", service);
            }
            // A login asks for no repository.
            if !key.scope.is_empty() {
                query.append_pair("scope", &key.scope);
            }
        }
        let mut request = self.http.client.get(url.clone());
        if let Some(basic) = basic {
            request = request.header(AUTHORIZATION, basic);
        }
        self.send(request, &url, "GET", deadline).await
    }

    async fn send(
        &self,
        request: RequestBuilder,
        url: &Url,
        method: &str,
        deadline: Instant,
    ) -> Result<Answer, SourceError> {
        let mut response = self.http.send(request, url, method, deadline).await?;
        check_service_status(&response)?;
        let mut body = Vec::new();
        loop {
            let chunk = timeout_at(deadline, response.chunk()).await.map_err(|_| late())?;
            let Some(chunk) = chunk.map_err(|error| to_source_error(&self.http.upstream, error))? else {
                break;
            };
            if body.len() + chunk.len() > ANSWER_MAX {
                return Err(invalid(format!("sent more than {ANSWER_MAX} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        read(&body)
    }
}

/// The body of a POST for a token.
fn form(key: &Key, token: &str) -> String {
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

/// Keeps the identity token that a service gave for the next time.
fn renew(session: &Mutex<Session>, answer: &Answer) {
    if let Some(token) = &answer.identity_token {
        locked(session).renewed = Some(token.clone());
    }
}

/// Whether POST failed in a way in which services fail that do not know it, GCR with 404 and Artifactory with 401
/// among them.
fn no_word_on_post(error: &SourceError) -> bool {
    matches!(error, SourceError::Denied(Denial::Unauthenticated) | SourceError::Invalid(_))
}

/// What a token service's status means. Nothing that it says is a word on what was asked of the registry: its 404 is
/// no missing image, and its 501 no registry without HEAD.
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

fn late() -> SourceError {
    SourceError::Timeout("the token service".to_owned())
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The value for a key. Of several tasks that find none, all must end up with the same one.
fn shared<T: Default>(cache: &Cache<Key, Arc<T>>, key: &Key) -> Arc<T> {
    let made: Result<_, std::convert::Infallible> = cache.get_or_insert_with(key, || Ok(Arc::default()));
    match made {
        Ok(value) => value,
    }
}

/// What a token service gave.
struct Answer {
    header: HeaderValue,
    lifetime: Duration,
    /// To be used in place of the one that was sent.
    identity_token: Option<String>,
}

/// Reads a token service's answer.
fn read(body: &[u8]) -> Result<Answer, SourceError> {
    #[derive(Deserialize)]
    struct Document {
        token: Option<String>,
        access_token: Option<String>,
        expires_in: Option<serde_json::Value>,
        refresh_token: Option<String>,
    }
    // The parser's error would quote the body, and the body is a secret.
    let document: Document = serde_json::from_slice(body).map_err(|_| invalid("sent no JSON object"))?;
    let filled = |token: &String| !token.is_empty();
    let token = document.access_token.filter(filled).or(document.token.filter(filled));
    let token = token.ok_or_else(|| invalid("sent no token"))?;
    let header = bearer(&token).ok_or_else(|| invalid("sent an unusable token"))?;
    let lifetime = document.expires_in.as_ref().and_then(serde_json::Value::as_u64).unwrap_or(LIFETIME_MIN);
    let lifetime = Duration::from_secs(lifetime.clamp(LIFETIME_MIN, LIFETIME_MAX));
    Ok(Answer { header, lifetime, identity_token: document.refresh_token.filter(filled) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(body: &str) -> Result<(String, u64), SourceError> {
        read(body.as_bytes())
            .map(|answer| (answer.header.to_str().expect("text").to_owned(), answer.lifetime.as_secs()))
    }

    #[test]
    fn either_name_and_any_lifetime() {
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
    fn an_identity_token_may_come_along() {
        let of = |body: &str| read(body.as_bytes()).expect("a token").identity_token;
        assert_eq!(of(r#"{"token":"a","refresh_token":"r"}"#).as_deref(), Some("r"));
        assert_eq!(of(r#"{"token":"a","refresh_token":""}"#), None);
        assert_eq!(of(r#"{"token":"a"}"#), None);
    }

    #[test]
    fn an_unusable_answer_is_not_quoted() {
        for bad in ["", "[]", "{}", r#"{"token":""}"#, r#"{"token":"secret\n"}"#, r#"{"token":"secret"#] {
            let error = read(bad.as_bytes()).err().expect("refused").to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_token_is_used_until_it_ends() {
        let slot = Slot::default();
        let (now, minute) = (Instant::now(), Duration::from_mins(1));
        assert_eq!(slot.valid(now), None);
        let header = HeaderValue::from_static("Bearer a");
        slot.put(now, Ok(Token { header: header.clone(), until: now + minute }));
        assert_eq!(slot.valid(now), Some(header));
        assert_eq!(slot.valid(now + minute), None);
        slot.put(now, Err(SourceError::Denied(Denial::Unauthenticated)));
        assert_eq!(slot.valid(now), None);
    }
}
