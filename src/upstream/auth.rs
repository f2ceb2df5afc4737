//! Proving who we are to a registry: Basic, or tokens from its token service, fetched once and kept while they last.
//!
//! Nothing is sent ahead of a challenge but what an earlier challenge for the same repository led to. Tokens are
//! kept by realm, service, scope and user; they are in no log, no error and no `Debug`.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderValue};
use quick_cache::sync::Cache;
use serde::Deserialize;
use tokio::time::Instant;
use url::Url;

use super::challenge::{self, Challenge};
use super::error::UpstreamError;
use super::exchange::{Link, judge, translate};
use super::realm::may_see_credentials;
use crate::oci::Name;

/// Repositories and tokens remembered at once; further ones push out the least used and cost a challenge more.
const REMEMBERED: usize = 1024;
/// A token service's answer is no larger.
const ANSWER_MAX: usize = 64 * 1024;
/// How long a token lasts at least, whatever the token service says or leaves out.
const LIFETIME_MIN: u64 = 60;
/// How long it is believed to last at most.
const LIFETIME_MAX: u64 = 24 * 60 * 60;
/// How long before its end a token is no longer used.
const EARLY: Duration = Duration::from_secs(5);

/// What larder knows of itself at one upstream.
pub(super) struct Auth {
    link: Arc<Link>,
    endpoint: Url,
    username: Option<String>,
    password_file: Option<PathBuf>,
    /// How each repository wanted to be asked the last time it challenged.
    known: Cache<Name, Known>,
    tokens: Cache<Key, Arc<Slot>>,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("username", &self.username).finish_non_exhaustive()
    }
}

#[derive(Clone)]
enum Known {
    Basic,
    Bearer(Key),
}

/// What a token is good for.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    realm: Url,
    service: Option<String>,
    scope: String,
    username: Option<String>,
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
    result: Result<Token, UpstreamError>,
}

#[derive(Clone)]
struct Token {
    header: HeaderValue,
    until: Instant,
}

impl Slot {
    fn last(&self) -> Option<Fetched> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn valid(&self, now: Instant) -> Option<HeaderValue> {
        self.last()?.result.ok().filter(|token| now < token.until).map(|token| token.header)
    }

    fn put(&self, result: Result<Token, UpstreamError>) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Fetched { at: Instant::now(), result });
    }
}

impl Auth {
    /// Nothing known yet about the registry at `endpoint`.
    pub(super) fn new(
        link: Arc<Link>,
        endpoint: Url,
        username: Option<String>,
        password_file: Option<PathBuf>,
    ) -> Self {
        let (known, tokens) = (Cache::new(REMEMBERED), Cache::new(REMEMBERED));
        Self { link, endpoint, username, password_file, known, tokens }
    }

    /// The time by which tokens age.
    fn now(&self) -> Instant {
        self.link.clock.instant().into()
    }

    /// What can be sent along for a repository without asking anybody.
    pub(super) async fn ahead(&self, name: &Name) -> Result<Option<HeaderValue>, UpstreamError> {
        match self.known.get(name) {
            Some(Known::Bearer(key)) => Ok(self.tokens.get(&key).and_then(|slot| slot.valid(self.now()))),
            Some(Known::Basic) => self.basic().await,
            None => Ok(None),
        }
    }

    /// Meets the challenge in the headers of a 401 that came from `at`, where `refused` was sent along.
    ///
    /// Credentials are for the endpoint alone: whoever it redirects to is asked as anybody would.
    pub(super) async fn answer(
        &self,
        headers: &HeaderMap,
        at: &Url,
        name: &Name,
        refused: Option<&HeaderValue>,
        deadline: Instant,
    ) -> Result<HeaderValue, UpstreamError> {
        let denied = UpstreamError::Denied { status: 401 };
        let home = at.origin() == self.endpoint.origin();
        match challenge::choose(headers).ok_or_else(|| denied.clone())? {
            Challenge::Basic => {
                let basic = if home { self.basic().await? } else { None };
                let basic = basic.filter(|basic| Some(basic) != refused).ok_or(denied)?;
                self.known.insert(name.clone(), Known::Basic);
                Ok(basic)
            }
            Challenge::Bearer { realm, service, scope } => {
                let realm = at
                    .join(&realm)
                    .map_err(|error| UpstreamError::Invalid(format!("its token realm is no URL: {error}")))?;
                self.link.policy.check(&realm)?;
                let trusted = home && may_see_credentials(&self.endpoint, &realm);
                let username = self.username.clone().filter(|_| trusted && self.password_file.is_some());
                let scope = scope.unwrap_or_else(|| format!("repository:{name}:pull"));
                let key = Key { realm, service, scope, username };
                let header = self.token(&key, refused, deadline).await?;
                if home {
                    self.known.insert(name.clone(), Known::Bearer(key));
                }
                Ok(header)
            }
        }
    }

    /// A valid token that is not the refused one: kept, or fetched once for all who want it now.
    async fn token(
        &self,
        key: &Key,
        refused: Option<&HeaderValue>,
        deadline: Instant,
    ) -> Result<HeaderValue, UpstreamError> {
        let usable = |slot: &Slot| slot.valid(self.now()).filter(|header| Some(header) != refused);
        let slot = match self.tokens.get(key) {
            Some(slot) => slot,
            None => self.new_slot(key),
        };
        if let Some(header) = usable(&slot) {
            return Ok(header);
        }
        let since = Instant::now();
        let _turn = tokio::time::timeout_at(deadline, slot.gate.lock())
            .await
            .map_err(|_| UpstreamError::Timeout("the token service".to_owned()))?;
        if let Some(header) = usable(&slot) {
            return Ok(header);
        }
        // Whoever waited while another failed shares that failure instead of repeating it.
        if let Some(Fetched { at, result: Err(error) }) = slot.last()
            && at >= since
        {
            return Err(error);
        }
        let result = self.fetch(key, deadline).await;
        self.link.metrics.token_request(
            self.link.upstream.as_str(),
            match &result {
                Ok(_) => "ok",
                Err(UpstreamError::Denied { .. }) => "denied",
                Err(_) => "error",
            },
        );
        slot.put(result.clone());
        result.map(|token| token.header)
    }

    /// Of several tasks that find no slot, all must end up with the same one.
    fn new_slot(&self, key: &Key) -> Arc<Slot> {
        let made: Result<_, std::convert::Infallible> =
            self.tokens.get_or_insert_with(key, || Ok(Arc::new(Slot::default())));
        match made {
            Ok(slot) => slot,
        }
    }

    async fn fetch(&self, key: &Key, deadline: Instant) -> Result<Token, UpstreamError> {
        let mut url = key.realm.clone();
        {
            // A realm may come with a query of its own, which stays.
            let mut query = url.query_pairs_mut();
            if let Some(service) = &key.service {
                query.append_pair("service", service);
            }
            query.append_pair("scope", &key.scope);
        }
        let basic = if key.username.is_some() { self.basic().await? } else { None };
        let mut request = self.link.client.get(url.clone());
        if let Some(basic) = basic {
            request = request.header(http::header::AUTHORIZATION, basic);
        }
        let mut response = self.link.send(request, &url, "GET", deadline).await?;
        let status = response.status();
        if status.is_redirection() {
            return Err(UpstreamError::Invalid("its token service redirects".to_owned()));
        }
        judge(&response)?;
        let mut body = Vec::new();
        loop {
            let chunk = tokio::time::timeout_at(deadline, response.chunk())
                .await
                .map_err(|_| UpstreamError::Timeout("the token service".to_owned()))?
                .map_err(|error| translate(&self.link.upstream, error))?;
            let Some(chunk) = chunk else { break };
            if body.len() + chunk.len() > ANSWER_MAX {
                return Err(UpstreamError::Invalid(format!(
                    "its token service sent more than {ANSWER_MAX} bytes"
                )));
            }
            body.extend_from_slice(&chunk);
        }
        let (header, lifetime) = read_token(&body)?;
        let until = self.now() + lifetime.saturating_sub(EARLY);
        Ok(Token { header, until })
    }

    /// The value of a Basic `Authorization`; `None` without credentials. The password is read anew each time, so
    /// that it can be changed under a running larder.
    async fn basic(&self) -> Result<Option<HeaderValue>, UpstreamError> {
        let (Some(username), Some(path)) = (&self.username, &self.password_file) else { return Ok(None) };
        let file = path.clone();
        let password = tokio::task::spawn_blocking(move || std::fs::read(file))
            .await
            .map_err(std::io::Error::other)
            .and_then(|read| read)
            .map_err(|error| {
                tracing::warn!(upstream = %self.link.upstream, path = %path.display(), %error, "password_file cannot be read");
                UpstreamError::Local("its password_file cannot be read; the log says why".to_owned())
            })?;
        let password = password.strip_suffix(b"\n").unwrap_or(&password);
        let password = password.strip_suffix(b"\r").unwrap_or(password);
        let pair = [username.as_bytes(), b":", password].concat();
        let value = format!("Basic {}", BASE64_STANDARD.encode(pair));
        // Base64 is always a legal header value.
        Ok(HeaderValue::try_from(value).ok().map(secret))
    }
}

/// Marks a header value as one that `Debug` must not show and HTTP/2 must not index.
fn secret(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

/// Reads a token service's answer: the header to send, and how long it may be sent.
fn read_token(body: &[u8]) -> Result<(HeaderValue, Duration), UpstreamError> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
        expires_in: Option<serde_json::Value>,
    }
    let invalid = |what: &str| UpstreamError::Invalid(format!("its token service {what}"));
    // The parser's error would quote the body, and the body is a secret.
    let answer: Answer = serde_json::from_slice(body).map_err(|_| invalid("sent no JSON object"))?;
    let filled = |token: &String| !token.is_empty();
    let token = answer.access_token.filter(filled).or(answer.token.filter(filled));
    let token = token.ok_or_else(|| invalid("sent no token"))?;
    let header =
        HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| invalid("sent an unusable token"))?;
    let lifetime = answer.expires_in.as_ref().and_then(serde_json::Value::as_u64).unwrap_or(LIFETIME_MIN);
    Ok((secret(header), Duration::from_secs(lifetime.clamp(LIFETIME_MIN, LIFETIME_MAX))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<(String, u64), UpstreamError> {
        read_token(body.as_bytes())
            .map(|(header, lifetime)| (header.to_str().expect("text").to_owned(), lifetime.as_secs()))
    }

    #[test]
    fn either_name_and_any_lifetime() {
        assert_eq!(read(r#"{"token":"a"}"#), Ok(("Bearer a".to_owned(), 60)));
        assert_eq!(read(r#"{"access_token":"b","token":"a"}"#), Ok(("Bearer b".to_owned(), 60)));
        assert_eq!(
            read(r#"{"access_token":"","token":"a","expires_in":300}"#),
            Ok(("Bearer a".to_owned(), 300))
        );
        assert_eq!(read(r#"{"token":"a","expires_in":1}"#), Ok(("Bearer a".to_owned(), 60)));
        assert_eq!(read(r#"{"token":"a","expires_in":"soon"}"#), Ok(("Bearer a".to_owned(), 60)));
        assert_eq!(read(r#"{"token":"a","expires_in":99999999999}"#), Ok(("Bearer a".to_owned(), 86_400)));
    }

    #[test]
    fn an_unusable_answer_is_not_quoted() {
        for bad in ["", "[]", "{}", r#"{"token":""}"#, r#"{"token":"secret\n"}"#, r#"{"token":"secret"#] {
            let error = read(bad).expect_err("refused").to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_token_is_used_until_it_ends() {
        let slot = Slot::default();
        let (now, minute) = (Instant::now(), Duration::from_mins(1));
        assert_eq!(slot.valid(now), None);
        let header = HeaderValue::from_static("Bearer a");
        slot.put(Ok(Token { header: header.clone(), until: now + minute }));
        assert_eq!(slot.valid(now), Some(header));
        assert_eq!(slot.valid(now + minute), None);
        slot.put(Err(UpstreamError::Denied { status: 401 }));
        assert_eq!(slot.valid(now), None);
    }

    #[test]
    fn a_token_is_not_shown() {
        let (header, _) = read_token(br#"{"token":"hush"}"#).expect("a token");
        assert!(!format!("{header:?}").contains("hush"));
    }
}
