//! Tokens of token services: requested once for all concurrent requests, and kept while they are valid.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::HeaderValue;
use quick_cache::sync::Cache;
use tokio::time::{Instant, timeout_at};

use super::token_service::{TokenKey, TokenService, get_or_default, late, lock};
use crate::config::docker::Credential;
use crate::source::SourceError;
use crate::upstream::transport::client::HttpClient;

/// Number of tokens that are kept.
const TOKENS_MAX: usize = 1024;
/// Time before its end at which a token is no longer used.
const EXPIRES_EARLY: Duration = Duration::from_secs(5);

/// Time after a renewal in which another refusal does not cause another renewal. The repository may be forbidden.
const INVALIDATED_KEPT: Duration = Duration::from_mins(1);

/// Longest pause after a rate limit of the token service, whatever `Retry-After` says.
const LIMITED_MAX: Duration = Duration::from_hours(1);

/// Tokens for one endpoint. No `Debug`: they are secret.
pub(crate) struct Tokens {
    http: Arc<HttpClient>,
    service: TokenService,
    slots: Cache<TokenKey, Arc<TokenSlot>>,
}

/// Slot for one token, which one task at a time requests.
#[derive(Default)]
struct TokenSlot {
    gate: tokio::sync::Mutex<()>,
    last: Mutex<Option<LastResult>>,
    /// Time at which a valid token was last dropped because it was refused.
    invalidated_at: Mutex<Option<Instant>>,
}

/// Last result of a request for a token.
#[derive(Clone)]
struct LastResult {
    at: Instant,
    result: Result<Token, SourceError>,
}

/// Token with the end of its validity.
#[derive(Clone)]
struct Token {
    header: HeaderValue,
    expires_at: Instant,
}

impl TokenSlot {
    fn last(&self) -> Option<LastResult> {
        lock(&self.last).clone()
    }

    /// Returns the rate limit of the token service while it lasts.
    fn limited(&self, now: Instant) -> Option<SourceError> {
        let LastResult { at, result: Err(SourceError::RateLimited { retry_after: Some(pause) }) } =
            self.last()?
        else {
            return None;
        };
        let left =
            (at + pause.min(LIMITED_MAX)).checked_duration_since(now).filter(|left| !left.is_zero())?;
        Some(SourceError::RateLimited { retry_after: Some(left) })
    }

    /// Returns the token if it is valid.
    fn valid(&self, now: Instant) -> Option<HeaderValue> {
        self.last()?.result.ok().filter(|token| now < token.expires_at).map(|token| token.header)
    }

    /// Drops the token `sent`, which was refused. Returns true if the next token will be another one. A token that was
    /// issued `since` the request began is refused for another reason than its age. So is a token that replaced a refused
    /// one lately.
    fn invalidate(&self, sent: &HeaderValue, since: Instant, now: Instant) -> bool {
        let mut last = lock(&self.last);
        match &*last {
            Some(LastResult { result: Ok(token), .. }) if token.header != *sent => return true,
            Some(LastResult { at, result: Ok(_) }) if *at >= since => return false,
            _ => {}
        }
        let mut invalidated_at = lock(&self.invalidated_at);
        if invalidated_at.is_some_and(|at| now.saturating_duration_since(at) < INVALIDATED_KEPT) {
            return false;
        }
        *invalidated_at = Some(now);
        *last = None;
        true
    }

    fn put(&self, at: Instant, result: Result<Token, SourceError>) {
        *lock(&self.last) = Some(LastResult { at, result });
    }
}

impl Tokens {
    /// Creates an empty set of tokens.
    pub(crate) fn new(http: Arc<HttpClient>) -> Self {
        Self { service: TokenService::new(Arc::clone(&http)), http, slots: Cache::new(TOKENS_MAX) }
    }

    /// Returns the time that tokens expire by.
    fn now(&self) -> Instant {
        self.http.clock.instant().into()
    }

    /// Returns the kept token, if it is valid.
    pub(crate) fn cached(&self, key: &TokenKey) -> Option<HeaderValue> {
        self.slots.get(key)?.valid(self.now())
    }

    /// Drops the token `sent`, which was refused. Returns true if the next token will be another one.
    pub(crate) fn invalidate(&self, key: &TokenKey, sent: &HeaderValue, since: Instant) -> bool {
        self.slots.get(key).is_none_or(|slot| slot.invalidate(sent, since, Instant::now()))
    }

    /// Returns a valid token other than the refused one: the kept one, or a new one that all concurrent requests share.
    /// `credential` is the one whose identifier is in the key.
    pub(crate) async fn get(
        &self,
        key: &TokenKey,
        credential: Option<&Credential>,
        refused: Option<&HeaderValue>,
        deadline: Instant,
    ) -> Result<HeaderValue, SourceError> {
        let usable = |slot: &TokenSlot| slot.valid(self.now()).filter(|header| Some(header) != refused);
        let slot = get_or_default(&self.slots, key);
        if let Some(header) = usable(&slot) {
            return Ok(header);
        }
        if let Some(error) = slot.limited(Instant::now()) {
            return Err(error);
        }
        let since = Instant::now();
        let _guard = timeout_at(deadline, slot.gate.lock()).await.map_err(|_| late())?;
        if let Some(header) = usable(&slot) {
            return Ok(header);
        }
        // A request that waited shares the failure of the one before it instead of repeating it.
        if let Some(LastResult { at, result: Err(error) }) = slot.last()
            && at >= since
        {
            return Err(error);
        }
        let result = self.service.issue(key, credential, deadline).await;
        self.http.metrics.token_request(
            self.http.upstream.as_str(),
            match &result {
                Ok(_) => "ok",
                Err(SourceError::Denied(_)) => "denied",
                Err(_) => "error",
            },
        );
        let now = self.now();
        let result = result.map(|issued| Token {
            header: issued.header,
            expires_at: now + issued.lifetime.saturating_sub(EXPIRES_EARLY),
        });
        slot.put(Instant::now(), result.clone());
        result.map(|token| token.header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Denial;

    #[tokio::test]
    async fn refused_token_is_invalidated_unless_it_is_new() {
        let slot = TokenSlot::default();
        let (issued, second) = (Instant::now(), Duration::from_secs(1));
        let header = HeaderValue::from_static("Bearer a");
        let put = |at| {
            slot.put(at, Ok(Token { header: header.clone(), expires_at: issued + INVALIDATED_KEPT * 9 }));
        };
        put(issued);
        assert!(!slot.invalidate(&header, issued, issued), "it was issued for this request");
        let other = HeaderValue::from_static("Bearer b");
        assert!(slot.invalidate(&other, issued + second, issued + second), "it has been replaced");
        assert!(slot.valid(issued).is_some());
        assert!(slot.invalidate(&header, issued + second, issued + second));
        assert_eq!(slot.valid(issued), None);
        put(issued + second);
        assert!(!slot.invalidate(&header, issued + second * 2, issued + second * 2), "in vain");
        let later = issued + second + INVALIDATED_KEPT;
        assert!(slot.invalidate(&header, later, later));
    }

    #[tokio::test]
    async fn token_slot_returns_the_token_until_it_expires() {
        let slot = TokenSlot::default();
        let (now, minute) = (Instant::now(), Duration::from_mins(1));
        assert_eq!(slot.valid(now), None);
        let header = HeaderValue::from_static("Bearer a");
        slot.put(now, Ok(Token { header: header.clone(), expires_at: now + minute }));
        assert_eq!(slot.valid(now), Some(header));
        assert_eq!(slot.valid(now + minute), None);
        slot.put(now, Err(SourceError::Denied(Denial::Unauthenticated)));
        assert_eq!(slot.valid(now), None);
    }
}
