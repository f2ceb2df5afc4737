//! Proving who we are to a registry: Basic, a token of its token service, or one that the operator gave.
//!
//! Nothing is sent ahead of a challenge but what an earlier challenge for the same repository led to. Nothing of it is
//! in any log, error or `Debug`.

mod authorization;
pub(crate) mod challenge;
mod credentials;
mod credhelper;
mod token_trust;
mod tokens;

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use quick_cache::sync::Cache;
use tokio::time::Instant;
use url::Url;

use super::transport::client::HttpClient;
use crate::config::docker::Credential;
use crate::config::schema;
use crate::oci::Name;
use crate::source::{Denial, SourceError};
use authorization::{Identity, basic, bearer};
use challenge::Challenge;
use credentials::Credentials;
use token_trust::TokenTrust;
use tokens::{Key, Tokens};

/// Repositories remembered at once; further ones push out the least used and cost a challenge more.
const REMEMBERED: usize = 1024;

/// What larder knows of itself at one endpoint.
pub(crate) struct Auth {
    http: Arc<HttpClient>,
    endpoint: Url,
    token_trust: TokenTrust,
    credentials: Credentials,
    /// How each repository wanted to be asked the last time it challenged.
    known: Cache<Name, Known>,
    tokens: Tokens,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("credentials", &self.credentials).finish_non_exhaustive()
    }
}

#[derive(Clone)]
enum Known {
    Basic,
    /// The registry token of the configuration, as it is.
    Registry,
    /// A token of the token service.
    Bearer(Key),
}

fn registry_token(credential: &Credential) -> Option<HeaderValue> {
    bearer(credential.registry_token.as_deref()?)
}

impl Auth {
    /// Nothing known yet about the registry at `endpoint`.
    pub(crate) fn new(http: Arc<HttpClient>, endpoint: Url, settings: &schema::Upstream) -> Self {
        Self {
            token_trust: TokenTrust::new(endpoint.clone(), &settings.realm_hosts),
            credentials: Credentials::new(&http, &endpoint, settings),
            known: Cache::new(REMEMBERED),
            tokens: Tokens::new(Arc::clone(&http)),
            http,
            endpoint,
        }
    }

    /// What can be sent along for a repository without asking anybody.
    pub(crate) async fn known_authorization(
        &self,
        name: &Name,
        deadline: Instant,
    ) -> Result<Option<HeaderValue>, SourceError> {
        let make = match self.known.get(name) {
            Some(Known::Bearer(key)) => return Ok(self.tokens.kept(&key)),
            Some(Known::Basic) => basic,
            Some(Known::Registry) => registry_token,
            None => return Ok(None),
        };
        Ok(self.credentials.current(name, None, deadline).await?.as_ref().and_then(make))
    }

    /// Meets the challenge in the headers of a 401 that came from `at`, where `refused` was sent along.
    ///
    /// Credentials are for the endpoint alone: whoever it redirects to is asked as anybody would.
    pub(crate) async fn answer_challenge(
        &self,
        headers: &HeaderMap,
        at: &Url,
        name: &Name,
        refused: Option<&HeaderValue>,
        deadline: Instant,
    ) -> Result<HeaderValue, SourceError> {
        self.meet(headers, at, name, &format!("repository:{name}:pull"), refused, deadline).await
    }

    /// Meets a challenge of the endpoint's own as a login does: for no repository. `name` is for whose sake credentials
    /// are looked up.
    pub(crate) async fn login(
        &self,
        headers: &HeaderMap,
        at: &Url,
        name: &Name,
        deadline: Instant,
    ) -> Result<HeaderValue, SourceError> {
        self.meet(headers, at, name, "", None, deadline).await
    }

    /// Whether there is a credential for a repository.
    pub(crate) async fn has_credential(&self, name: &Name, deadline: Instant) -> Result<bool, SourceError> {
        Ok(self.credentials.current(name, None, deadline).await?.is_some())
    }

    /// Whether a token service may see the credentials.
    pub(crate) fn trusts(&self, realm: &Url) -> bool {
        self.token_trust.trust(realm)
    }

    /// `scope` is what a token is asked for where the challenge does not say.
    async fn meet(
        &self,
        headers: &HeaderMap,
        at: &Url,
        name: &Name,
        scope: &str,
        refused: Option<&HeaderValue>,
        deadline: Instant,
    ) -> Result<HeaderValue, SourceError> {
        let denied = || SourceError::Denied(Denial::Unauthenticated);
        let usual = scope;
        let home = at.origin() == self.endpoint.origin();
        let challenge = challenge::choose(headers).ok_or_else(denied)?;
        let credential = if home { self.credentials.current(name, None, deadline).await? } else { None };
        let (realm, service, scope) = match challenge {
            Challenge::Basic => {
                let header = self.offer(credential, basic, name, refused, deadline).await?;
                let header = header.ok_or_else(denied)?;
                self.known.insert(name.clone(), Known::Basic);
                return Ok(header);
            }
            Challenge::Bearer { realm, service, scope } => (realm, service, scope),
        };
        if credential.as_ref().and_then(registry_token).is_some() {
            let header = self.offer(credential, registry_token, name, refused, deadline).await?;
            let header = header.ok_or_else(denied)?;
            self.known.insert(name.clone(), Known::Registry);
            return Ok(header);
        }
        let realm = at
            .join(&realm)
            .map_err(|error| SourceError::Invalid(format!("its token realm is no URL: {error}")))?;
        self.http.policy.check(&realm)?;
        let trusted = home && self.token_trust.trust(&realm);
        if credential.is_some() && !trusted {
            tracing::warn!(
                upstream = %self.http.upstream,
                realm = realm.host_str(),
                "the registry names a token service elsewhere, which is asked without credentials; if it may have \
                 them, name its host in realm_hosts"
            );
        }
        let credential = credential.filter(|_| trusted);
        let scope = scope.unwrap_or_else(|| usual.to_owned());
        let key = Key { realm, service, scope, credential: credential.as_ref().map(Identity::of) };
        let (key, header) = self.token(key, credential.as_ref(), name, refused, deadline).await?;
        if home {
            self.known.insert(name.clone(), Known::Bearer(key));
        }
        Ok(header)
    }

    /// Whether what was `sent` for a repository is out of date: another credential would be used now. If so, it is
    /// forgotten.
    pub(crate) async fn forget_outdated(
        &self,
        name: &Name,
        sent: &HeaderValue,
        deadline: Instant,
    ) -> Result<bool, SourceError> {
        let Some(known) = self.known.get(name) else { return Ok(false) };
        let credential = self.credentials.current(name, None, deadline).await?;
        let refused = credential.as_ref().map(Identity::of);
        let same = |credential: Option<&Credential>| match &known {
            Known::Basic => credential.and_then(basic).as_ref() == Some(sent),
            Known::Registry => credential.and_then(registry_token).as_ref() == Some(sent),
            Known::Bearer(key) => {
                !self.token_trust.trust(&key.realm) || credential.map(Identity::of) == key.credential
            }
        };
        let outdated = !same(credential.as_ref())
            || !same(self.credentials.current(name, refused, deadline).await?.as_ref());
        if outdated {
            self.known.remove(name);
        }
        Ok(outdated)
    }

    /// What `make` makes of the credential, unless that was refused and there is no newer one.
    async fn offer(
        &self,
        credential: Option<Credential>,
        make: fn(&Credential) -> Option<HeaderValue>,
        name: &Name,
        refused: Option<&HeaderValue>,
        deadline: Instant,
    ) -> Result<Option<HeaderValue>, SourceError> {
        let Some(credential) = credential else { return Ok(None) };
        let header = make(&credential);
        if header.is_none() || header.as_ref() != refused {
            return Ok(header);
        }
        let newer = self.credentials.current(name, Some(Identity::of(&credential)), deadline).await?;
        Ok(newer.as_ref().and_then(make).filter(|header| Some(header) != refused))
    }

    /// A token, with the key that it is kept under. If the token service refuses the credential and there is a newer
    /// one, that is tried.
    async fn token(
        &self,
        mut key: Key,
        credential: Option<&Credential>,
        name: &Name,
        refused: Option<&HeaderValue>,
        deadline: Instant,
    ) -> Result<(Key, HeaderValue), SourceError> {
        let denied = match self.tokens.get(&key, credential, refused, deadline).await {
            Ok(header) => return Ok((key, header)),
            Err(error @ SourceError::Denied(_)) if credential.is_some() => error,
            Err(error) => return Err(error),
        };
        let newer = self.credentials.current(name, key.credential, deadline).await?;
        let identity = newer.as_ref().map(Identity::of);
        if identity.is_none() || identity == key.credential {
            return Err(denied);
        }
        key.credential = identity;
        let header = self.tokens.get(&key, newer.as_ref(), refused, deadline).await?;
        Ok((key, header))
    }
}
