//! Authentication at a registry: Basic, a token of its token service, or a registry token from the configuration.
//!
//! Nothing is sent before a challenge, except what answered an earlier challenge for the same repository. Secrets appear
//! in no log, error or `Debug`.
//!
//! A new source of credentials is a variant in [`credentials`]; a new scheme is a variant in [`challenge`] and of
//! [`Method`].

pub(crate) mod authorization;
pub(crate) mod challenge;
mod credentials;
mod credhelper;
#[cfg(test)]
mod fuzz;
mod refusals;
mod token_service;
mod token_trust;
mod tokens;

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use quick_cache::sync::Cache;
use tokio::time::Instant;
use url::Url;

use super::settings::{RegistryLogin, ServerLogins};
use super::status::RefusalReason;
use super::transport::client::HttpClient;
use crate::config::docker::Credential;
use crate::oci::Name;
use crate::source::{Denial, SourceError};
use authorization::{CredentialId, basic, bearer};
use challenge::Challenge;
use credentials::Credentials;
use refusals::Refusals;
use token_service::TokenKey;
use token_trust::TokenTrust;
use tokens::Tokens;

/// Number of repositories whose method is remembered. For others, each request costs one challenge more.
const METHODS_MAX: usize = 1024;

/// Authentication at one endpoint.
pub(crate) struct Auth {
    http: Arc<HttpClient>,
    endpoint: Url,
    token_trust: TokenTrust,
    credentials: Credentials,
    /// Method that answered the last challenge for a repository.
    methods: Cache<Name, Method>,
    tokens: Tokens,
    pub(crate) refusals: Refusals,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("credentials", &self.credentials).finish_non_exhaustive()
    }
}

/// Way to answer a challenge.
#[derive(Clone)]
enum Method {
    /// User name and password.
    Basic(Option<CredentialId>),
    /// Registry token of the configuration, sent unchanged.
    RegistryToken(Option<CredentialId>),
    /// Token of the token service.
    Bearer(TokenKey),
}

/// A challenge, and the request that it answers.
struct ChallengedRequest<'r> {
    /// URL of the response.
    url: &'r Url,
    name: &'r Name,
    /// Authorization that was sent and refused.
    refused: Option<&'r HeaderValue>,
    deadline: Instant,
}

impl ChallengedRequest<'_> {
    /// Returns the header, unless it is the one that was refused.
    fn unless_refused(&self, header: Option<HeaderValue>) -> Option<HeaderValue> {
        header.filter(|header| Some(header) != self.refused)
    }
}

fn registry_token(credential: &Credential) -> Option<HeaderValue> {
    bearer(credential.registry_token.as_deref()?)
}

fn denied() -> SourceError {
    SourceError::Denied(Denial::Unauthenticated)
}

impl Auth {
    /// Creates the authentication at `endpoint`. `login` is `None` for a mirror.
    pub(crate) fn new(
        http: Arc<HttpClient>,
        endpoint: Url,
        servers: &ServerLogins,
        login: Option<&RegistryLogin>,
    ) -> Self {
        Self {
            token_trust: TokenTrust::new(endpoint.clone(), &servers.realm_hosts),
            credentials: Credentials::new(&http, &endpoint, servers, login),
            methods: Cache::new(METHODS_MAX),
            tokens: Tokens::new(Arc::clone(&http)),
            refusals: Refusals::new(http.upstream.clone(), Arc::clone(&http.metrics), http.clock.clone()),
            http,
            endpoint,
        }
    }

    /// Returns the identifier of the credential that requests for a repository are sent with.
    pub(crate) fn known_credential(&self, name: &Name) -> Option<CredentialId> {
        match self.methods.get(name)? {
            Method::Basic(credential) | Method::RegistryToken(credential) => credential,
            Method::Bearer(key) => key.credential,
        }
    }

    /// Returns the authorization for a repository that needs no request, if there is one.
    pub(crate) async fn known_authorization(
        &self,
        name: &Name,
        deadline: Instant,
    ) -> Result<Option<HeaderValue>, SourceError> {
        let make = match self.methods.get(name) {
            Some(Method::Bearer(key)) => return Ok(self.tokens.cached(&key)),
            Some(Method::Basic(_)) => basic,
            Some(Method::RegistryToken(_)) => registry_token,
            None => return Ok(None),
        };
        Ok(self.credentials.current(name, None, deadline).await?.as_ref().and_then(make))
    }

    /// Answers the challenge in the headers of a 401 response from `url`, to a request with the authorization `refused`.
    ///
    /// Credentials are for the endpoint only. A host that it redirects to gets an anonymous token at most.
    pub(crate) async fn answer_challenge(
        &self,
        headers: &HeaderMap,
        url: &Url,
        name: &Name,
        refused: Option<&HeaderValue>,
        deadline: Instant,
    ) -> Result<HeaderValue, SourceError> {
        let request = ChallengedRequest { url, name, refused, deadline };
        self.answer(headers, &request, &format!("repository:{name}:pull")).await
    }

    /// Answers a challenge of the endpoint as a login, that is, for no repository. `name` selects the credentials.
    pub(crate) async fn login(
        &self,
        headers: &HeaderMap,
        url: &Url,
        name: &Name,
        deadline: Instant,
    ) -> Result<HeaderValue, SourceError> {
        self.answer(headers, &ChallengedRequest { url, name, refused: None, deadline }, "").await
    }

    /// Returns true if there is a credential for a repository.
    pub(crate) async fn has_credential(&self, name: &Name, deadline: Instant) -> Result<bool, SourceError> {
        Ok(self.credentials.current(name, None, deadline).await?.is_some())
    }

    /// Returns true if a token service may see the credentials.
    pub(crate) fn trusts(&self, realm: &Url) -> bool {
        self.token_trust.trusts(realm)
    }

    /// Answers a challenge. `scope` is requested from the token service if the challenge names none.
    async fn answer(
        &self,
        headers: &HeaderMap,
        request: &ChallengedRequest<'_>,
        scope: &str,
    ) -> Result<HeaderValue, SourceError> {
        let challenge = challenge::choose(headers).ok_or_else(denied)?;
        let is_endpoint = request.url.origin() == self.endpoint.origin();
        let credential = if is_endpoint {
            self.credentials.current(request.name, None, request.deadline).await?
        } else {
            None
        };
        let has_registry_token = credential.as_ref().and_then(registry_token).is_some();
        let id = credential.as_ref().map(CredentialId::of);
        let (method, header) = match challenge {
            Challenge::Basic => (Method::Basic(id), self.offer(credential, basic, request).await?),
            Challenge::Bearer { .. } if has_registry_token => {
                (Method::RegistryToken(id), self.offer(credential, registry_token, request).await?)
            }
            Challenge::Bearer { realm, service, scope: wanted } => {
                let realm = self.realm(&realm, request)?;
                let credential = credential.filter(|_| self.may_see_credentials(&realm));
                let scope = wanted.unwrap_or_else(|| scope.to_owned());
                let id = credential.as_ref().map(CredentialId::of);
                let key = TokenKey { realm, service, scope, credential: id };
                let (key, header) = self.token(key, credential.as_ref(), request).await?;
                (Method::Bearer(key), Some(header))
            }
        };
        let Some(header) = header else {
            if is_endpoint && request.refused.is_some() {
                self.refusals.refused(request.name, RefusalReason::Login);
            }
            return Err(denied());
        };
        if is_endpoint {
            self.methods.insert(request.name.clone(), method);
        }
        Ok(header)
    }

    /// Returns the URL of the token service, if it may be dialled.
    fn realm(&self, realm: &str, request: &ChallengedRequest<'_>) -> Result<Url, SourceError> {
        let invalid = |error| SourceError::Invalid(format!("its token realm is no valid URL: {error}"));
        let realm = request.url.join(realm).map_err(invalid)?;
        self.http.policy.check(&realm)?;
        Ok(realm)
    }

    /// Returns true if a token service may see the credentials; logs a warning if not.
    fn may_see_credentials(&self, realm: &Url) -> bool {
        let trusted = self.token_trust.trusts(realm);
        if !trusted {
            tracing::warn!(
                upstream = %self.http.upstream,
                realm = realm.host_str(),
                "the token service is on an unknown host and gets no credentials; to send them, add the host to \
                 realm_hosts"
            );
        }
        trusted
    }

    /// Renews the authorization that was sent for a repository and refused. Returns true if the next challenge will be
    /// answered with another one: with a newer credential, or with a token that was not issued `since` the request began.
    pub(crate) async fn renew(
        &self,
        name: &Name,
        sent: &HeaderValue,
        since: Instant,
        deadline: Instant,
    ) -> Result<bool, SourceError> {
        let Some(method) = self.methods.get(name) else { return Ok(false) };
        let mut credential = self.credentials.current(name, None, deadline).await?;
        if let Some(refused) = credential.as_ref().map(CredentialId::of) {
            credential = self.credentials.current(name, Some(refused), deadline).await?;
        }
        let differs = |make: fn(&Credential) -> Option<HeaderValue>| {
            credential.as_ref().and_then(make).as_ref() != Some(sent)
        };
        let is_renewed = match &method {
            Method::Basic(_) => differs(basic),
            Method::RegistryToken(_) => differs(registry_token),
            Method::Bearer(key) => {
                let is_same = !self.token_trust.trusts(&key.realm)
                    || credential.as_ref().map(CredentialId::of) == key.credential;
                !is_same || self.tokens.invalidate(key, sent, since)
            }
        };
        if is_renewed {
            self.methods.remove(name);
        }
        Ok(is_renewed)
    }

    /// Returns the authorization that `make` creates from the credential. If that was refused, asks for a newer
    /// credential.
    async fn offer(
        &self,
        credential: Option<Credential>,
        make: fn(&Credential) -> Option<HeaderValue>,
        request: &ChallengedRequest<'_>,
    ) -> Result<Option<HeaderValue>, SourceError> {
        let Some(credential) = credential else { return Ok(None) };
        let header = make(&credential);
        if header.is_none() || header.as_ref() != request.refused {
            return Ok(header);
        }
        let refused = Some(CredentialId::of(&credential));
        let newer = self.credentials.current(request.name, refused, request.deadline).await?;
        Ok(request.unless_refused(newer.as_ref().and_then(make)))
    }

    /// Returns a token and its key. If the token service refuses the credential, tries a newer one.
    async fn token(
        &self,
        mut key: TokenKey,
        credential: Option<&Credential>,
        request: &ChallengedRequest<'_>,
    ) -> Result<(TokenKey, HeaderValue), SourceError> {
        let &ChallengedRequest { name, refused, deadline, .. } = request;
        let denied = match self.tokens.get(&key, credential, refused, deadline).await {
            Ok(header) => return Ok((key, header)),
            Err(error @ SourceError::Denied(_)) if credential.is_some() => error,
            Err(error) => return Err(error),
        };
        let newer = self.credentials.current(name, key.credential, deadline).await?;
        let id = newer.as_ref().map(CredentialId::of);
        if id.is_none() || id == key.credential {
            self.refusals.refused(name, RefusalReason::TokenService);
            return Err(denied);
        }
        key.credential = id;
        let header = self.tokens.get(&key, newer.as_ref(), refused, deadline).await.inspect_err(|error| {
            if matches!(error, SourceError::Denied(_)) {
                self.refusals.refused(name, RefusalReason::TokenService);
            }
        })?;
        Ok((key, header))
    }
}
