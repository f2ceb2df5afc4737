//! Sources of credentials: a password file, or docker's `config.json`. Both are read each time that a credential is
//! needed, so that changes take effect without a restart.

use std::path::{Path, PathBuf};

use tokio::time::{Instant, timeout_at};
use url::Url;

use super::authorization::CredentialId;
use super::credhelper::CredHelpers;
use crate::config::docker::{Credential, CredentialLocation, DockerConfig, RegistryHost, read_secret};
use crate::oci::{Name, UpstreamName};
use crate::source::SourceError;
use crate::upstream::settings::{RegistryLogin, ServerLogins};
use crate::upstream::transport::client::HttpClient;

/// Credentials for one endpoint.
#[derive(Debug)]
pub(crate) struct Credentials {
    upstream: UpstreamName,
    source: CredentialSource,
}

/// Source of the credentials.
#[derive(Debug)]
enum CredentialSource {
    Anonymous,
    PasswordFile {
        username: String,
        file: PathBuf,
    },
    DockerConfig {
        file: PathBuf,
        /// Names of the endpoint in the file, the best one first.
        hosts: Vec<RegistryHost>,
        helpers: CredHelpers,
    },
}

impl Credentials {
    /// Creates the credentials for an endpoint from the settings of its upstream.
    pub(crate) fn new(
        http: &HttpClient,
        endpoint: &Url,
        servers: &ServerLogins,
        login: Option<&RegistryLogin>,
    ) -> Self {
        let source = match (&servers.docker_config, login) {
            (Some(file), _) => CredentialSource::DockerConfig {
                file: file.clone(),
                hosts: hosts(&http.upstream, endpoint, servers),
                helpers: CredHelpers::new(http.upstream.clone(), http.timeouts.head, http.clock.clone()),
            },
            (None, Some(RegistryLogin { username: Some(username), password_file: Some(file) })) => {
                CredentialSource::PasswordFile { username: username.clone(), file: file.clone() }
            }
            _ => CredentialSource::Anonymous,
        };
        Self { upstream: http.upstream.clone(), source }
    }

    /// Returns the current credential for a repository. If the last answer of a credential helper is the `refused` one,
    /// the helper is asked again; it may return the same one.
    pub(crate) async fn current(
        &self,
        repository: &Name,
        refused: Option<CredentialId>,
        deadline: Instant,
    ) -> Result<Option<Credential>, SourceError> {
        match &self.source {
            CredentialSource::Anonymous => Ok(None),
            CredentialSource::PasswordFile { username, file } => {
                let mut password = self.read("password_file", file, deadline, read_secret).await?;
                for end in [b'\n', b'\r'] {
                    password.pop_if(|last| *last == end);
                }
                Ok(Some(Credential { username: username.clone(), password, ..Credential::default() }))
            }
            CredentialSource::DockerConfig { file, hosts, helpers } => {
                let config = self.read("docker_config", file, deadline, DockerConfig::load).await?;
                let (name, logins) = match config.find(hosts, repository) {
                    Some(CredentialLocation::Helper { name, logins }) => (name, logins),
                    Some(CredentialLocation::Credential(credential)) => return Ok(Some(credential)),
                    None => return Ok(None),
                };
                for login in logins {
                    let credential = helpers.ask(&name, &login, refused, deadline).await?;
                    if credential.is_some() {
                        return Ok(credential);
                    }
                }
                Ok(None)
            }
        }
    }

    /// Reads a file off the async threads. Its path appears in the log only.
    async fn read<T, E>(
        &self,
        key: &str,
        path: &Path,
        deadline: Instant,
        read: impl FnOnce(&Path) -> Result<T, E> + Send + 'static,
    ) -> Result<T, SourceError>
    where
        T: Send + 'static,
        E: std::fmt::Display + Send + 'static,
    {
        let file = path.to_owned();
        let reading = tokio::task::spawn_blocking(move || read(&file).map_err(|error| error.to_string()));
        let result = timeout_at(deadline, reading)
            .await
            .map_err(|_| "reading it took too long".to_owned())
            .and_then(|done| done.map_err(|error| error.to_string()))
            .and_then(|result| result);
        result.map_err(|error| {
            tracing::warn!(upstream = %self.upstream, key, path = %path.display(), error, "credentials cannot be read");
            SourceError::Local(format!("its {key} cannot be used; see the log"))
        })
    }
}

/// Returns the names of an endpoint in `config.json`, the best one first.
fn hosts(upstream: &UpstreamName, endpoint: &Url, servers: &ServerLogins) -> Vec<RegistryHost> {
    let mut hosts: Vec<RegistryHost> = RegistryHost::at(endpoint).into_iter().collect();
    // The only authoritative endpoint is the registry, wherever it is, so the registry's name applies too.
    if let Some(only) = &servers.registry_url
        && Url::parse(only).as_ref() == Ok(endpoint)
    {
        hosts.push(RegistryHost::named(upstream));
    }
    hosts.dedup();
    hosts
}
