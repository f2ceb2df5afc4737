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

    /// Returns the token if it is valid.
    fn valid(&self, now: Instant) -> Option<HeaderValue> {
        self.last()?.result.ok().filter(|token| now < token.expires_at).map(|token| token.header)
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
