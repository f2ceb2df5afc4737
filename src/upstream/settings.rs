//! Settings of an upstream, divided by purpose, so that an endpoint gets only those that it may use.
//!
//! The division lists every key of the table. A new key does not compile until it is put into a group here, so it can
//! neither leak to a mirror nor be forgotten when a reload decides whether an endpoint stays.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::schema::{self, Endpoint, Proxy};
use crate::tls::ClientTls;

/// Settings that the endpoints of an upstream are built from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EndpointSettings {
    pub(crate) connection: ConnectionSettings,
    pub(crate) servers: ServerLogins,
    /// Login at the registry itself. Mirrors must not see it.
    pub(crate) login: RegistryLogin,
}

/// Settings of connections, the same for the registry and its mirrors. No secrets that an endpoint gets to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionSettings {
    /// Trust and client certificate. A client certificate proves the possession of its key without showing the key.
    pub(crate) tls: ClientTls,
    pub(crate) allow_private: bool,
    pub(crate) proxy: Option<Proxy>,
    pub(crate) max_connections: usize,
    pub(crate) manifest_max_size: u64,
    pub(crate) head_timeout: Option<Duration>,
    pub(crate) idle_timeout: Option<Duration>,
}

/// Login for authoritative endpoints only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RegistryLogin {
    pub(crate) username: Option<String>,
    pub(crate) password_file: Option<PathBuf>,
}

/// Logins that are filed by server name, so that each endpoint sees its own only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServerLogins {
    pub(crate) docker_config: Option<PathBuf>,
    /// Hosts of token services elsewhere that may see the credentials.
    pub(crate) realm_hosts: Vec<String>,
    /// URL of the only authoritative endpoint, which is used for the registry's name in `docker_config`. `None` if there
    /// are several, some of which may be mirrors of a third party, or if there is no `docker_config`.
    pub(crate) registry_url: Option<String>,
}

impl EndpointSettings {
    /// Divides the settings of an upstream.
    pub(crate) fn of(upstream: &schema::Upstream) -> Self {
        let schema::Upstream {
            // Each endpoint is compared by itself at a reload.
            endpoints,
            // For the router.
            default: _,
            hostnames: _,
            dotted_names: _,
            allow: _,
            deny: _,
            // Login.
            username,
            password_file,
            docker_config,
            realm_hosts,
            // Connections.
            ca_file,
            client_cert,
            client_key,
            insecure_skip_verify,
            allow_private,
            proxy,
            max_connections,
            manifest_max_size,
            head_timeout,
            idle_timeout,
            // For the cache.
            min_rate: _,
            min_rate_time: _,
            unverifiable: _,
            tag_ttl: _,
            negative_ttl: _,
            stale_if_error: _,
            stale_if_denied: _,
            stale_while_revalidate: _,
            revalidate_timeout: _,
            tags_list: _,
            on_upstream_404: _,
        } = upstream;
        let tls = ClientTls {
            ca_file: ca_file.clone(),
            client_cert: client_cert.clone(),
            client_key: client_key.clone(),
            insecure_skip_verify: *insecure_skip_verify,
        };
        Self {
            connection: ConnectionSettings {
                tls,
                allow_private: *allow_private,
                proxy: proxy.clone(),
                max_connections: *max_connections,
                manifest_max_size: manifest_max_size.as_u64(),
                head_timeout: *head_timeout,
                idle_timeout: *idle_timeout,
            },
            servers: ServerLogins {
                docker_config: docker_config.clone(),
                realm_hosts: realm_hosts.clone(),
                registry_url: docker_config.as_ref().and_then(|_| only_authoritative(endpoints)),
            },
            login: RegistryLogin { username: username.clone(), password_file: password_file.clone() },
        }
    }
}

/// Returns the URL of the only authoritative endpoint.
fn only_authoritative(endpoints: &[Endpoint]) -> Option<String> {
    let mut authoritative = endpoints.iter().filter(|endpoint| endpoint.authoritative);
    let only = authoritative.next()?;
    authoritative.next().is_none().then(|| only.url.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(urls: &[(&str, bool)]) -> Vec<Endpoint> {
        urls.iter().map(|&(url, authoritative)| Endpoint { url: url.to_owned(), authoritative }).collect()
    }

    #[test]
    fn registry_url_is_the_only_authoritative_endpoint_with_a_docker_config() {
        let url = |urls: &[(&str, bool)], docker_config: Option<&str>| {
            let docker_config = docker_config.map(PathBuf::from);
            let upstream =
                schema::Upstream { endpoints: endpoints(urls), docker_config, ..schema::Upstream::default() };
            EndpointSettings::of(&upstream).servers.registry_url
        };
        let (one, mirror, two) = (("https://a", true), ("https://m", false), ("https://b", true));
        assert_eq!(url(&[mirror, one], Some("f")).as_deref(), Some("https://a"));
        assert_eq!(url(&[one, two], Some("f")), None);
        assert_eq!(url(&[one], None), None);
    }
}
