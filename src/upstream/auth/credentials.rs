//! Where an upstream's credentials come from: a password file, or docker's `config.json`. Both are read each time that
//! they are needed, so that they can be changed under a running larder.

use std::path::{Path, PathBuf};

use tokio::time::{Instant, timeout_at};
use url::Url;

use super::authorization::Identity;
use super::credhelper::CredHelpers;
use crate::config::docker::{Credential, CredentialLocation, DockerConfig, RegistryHost, read_secret};
use crate::config::schema;
use crate::oci::{Name, UpstreamName};
use crate::source::SourceError;
use crate::upstream::transport::client::HttpClient;

/// The credentials for one endpoint of an upstream.
#[derive(Debug)]
pub(crate) struct Credentials {
    upstream: UpstreamName,
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// larder is nobody there.
    Nobody,
    Password {
        username: String,
        file: PathBuf,
    },
    Docker {
        file: PathBuf,
        /// The registry's names in the file, the best one first.
        servers: Vec<RegistryHost>,
        helpers: CredHelpers,
    },
}

impl Credentials {
    /// As the upstream's settings say for one of its endpoints.
    pub(crate) fn new(http: &HttpClient, endpoint: &Url, settings: &schema::Upstream) -> Self {
        let source = match settings {
            schema::Upstream { docker_config: Some(file), .. } => {
                let helpers = CredHelpers::new(http.upstream.clone(), http.timeouts.head, http.clock.clone());
                let servers = servers(&http.upstream, endpoint, settings);
                Source::Docker { file: file.clone(), servers, helpers }
            }
            schema::Upstream { username: Some(username), password_file: Some(file), .. } => {
                Source::Password { username: username.clone(), file: file.clone() }
            }
            _ => Source::Nobody,
        };
        Self { upstream: http.upstream.clone(), source }
    }

    /// The credential for a repository, as it is now. With what was `refused` named, a credential helper's last answer
    /// is not believed if it is that one; what is returned may still be the same.
    pub(crate) async fn current(
        &self,
        repository: &Name,
        refused: Option<Identity>,
        deadline: Instant,
    ) -> Result<Option<Credential>, SourceError> {
        match &self.source {
            Source::Nobody => Ok(None),
            Source::Password { username, file } => {
                let mut password = self.read("password_file", file, deadline, read_secret).await?;
                for end in [b'\n', b'\r'] {
                    password.pop_if(|last| *last == end);
                }
                Ok(Some(Credential { username: username.clone(), password, ..Credential::default() }))
            }
            Source::Docker { file, servers, helpers } => {
                let config = self.read("docker_config", file, deadline, DockerConfig::load).await?;
                let (name, logins) = match config.find(servers, repository) {
                    Some(CredentialLocation::Helper { name, logins }) => (name, logins),
                    Some(CredentialLocation::Credential(credential)) => return Ok(Some(credential)),
                    None => return Ok(None),
                };
                for login in logins {
                    let known = helpers.ask(&name, &login, refused, deadline).await?;
                    if known.is_some() {
                        return Ok(known);
                    }
                }
                Ok(None)
            }
        }
    }

    /// Reads a file away from the async threads. Its path is for the log alone.
    async fn read<T, E>(
        &self,
        key: &str,
        path: &Path,
        deadline: Instant,
        how: impl FnOnce(&Path) -> Result<T, E> + Send + 'static,
    ) -> Result<T, SourceError>
    where
        T: Send + 'static,
        E: std::fmt::Display + Send + 'static,
    {
        let file = path.to_owned();
        let reading = tokio::task::spawn_blocking(move || how(&file).map_err(|error| error.to_string()));
        let read = timeout_at(deadline, reading)
            .await
            .map_err(|_| "it could not be read in time".to_owned())
            .and_then(|done| done.map_err(|error| error.to_string()))
            .and_then(|result| result);
        read.map_err(|error| {
            tracing::warn!(upstream = %self.upstream, key, path = %path.display(), error, "credentials cannot be read");
            SourceError::Local(format!("its {key} cannot be used; the log says why"))
        })
    }
}

/// What the registry at an endpoint may be called in `config.json`, the best name first.
fn servers(upstream: &UpstreamName, endpoint: &Url, settings: &schema::Upstream) -> Vec<RegistryHost> {
    let mut servers: Vec<RegistryHost> = RegistryHost::at(endpoint).into_iter().collect();
    let mut authoritative = settings.endpoints.iter().filter(|endpoint| endpoint.authoritative);
    // The only endpoint that speaks for the registry is the registry, wherever it is. Of several, some may be
    // mirrors of somebody else's, which the registry's login is not for.
    if let (Some(only), None) = (authoritative.next(), authoritative.next())
        && Url::parse(&only.url).as_ref() == Ok(endpoint)
    {
        servers.push(RegistryHost::named(upstream));
    }
    servers.dedup();
    servers
}
