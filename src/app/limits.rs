//! Options of the two ports, as the configuration sets them.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::api::RegistryOptions;
use crate::config::schema::ServerMode;
use crate::config::{Config, open_files};
use crate::server::ConnectionLimits;

/// Time for which a client may read nothing of a response before its connection is closed.
const WRITE_TIMEOUT: Duration = Duration::from_mins(1);
/// Maximum number of open connections of the admin port.
const ADMIN_CONNECTIONS: usize = 64;
/// Grace period of the admin port. Shutdown need not wait for its responses.
const ADMIN_GRACE: Duration = Duration::from_secs(1);

/// Raises the limit on open files (`RLIMIT_NOFILE`) to the hard limit, and logs if `server.max_connections` needs more.
///
/// The soft limit is often 1,024 for the sake of programs that use `select`.
pub(super) fn raise_open_files(config: &Config) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
    {
        tracing::warn!(%error, "the limit on open files cannot be raised to the hard limit");
    }
    let (wanted, allowed) = (config.server.max_connections, connections(config));
    if allowed < wanted {
        tracing::info!(
            max_connections = wanted,
            allowed,
            "the limit on open files permits fewer connections than server.max_connections; raise it (systemd: \
             LimitNOFILE=, a shell: ulimit -n) or lower server.max_connections"
        );
    }
}

/// Returns the number of connections that clients may have, so that the admin port and the store can always open files.
fn connections(config: &Config) -> usize {
    open_files::client_connections(config, getrlimit(Resource::Nofile).current)
}

/// Returns the number of connections that one client address may have among `connections`. By default some connections are
/// always left for other clients.
fn connections_per_client(config: &Config, connections: usize) -> usize {
    let default = (connections - connections / 4).min(connections - 1).max(1);
    config.server.max_connections_per_client.unwrap_or(default)
}

/// Returns the options of the registry API.
pub(super) fn registry_options(config: &Config) -> RegistryOptions {
    RegistryOptions { gateway: config.server.mode == ServerMode::Gateway, log_requests: config.log.requests }
}

/// Returns the connection limits of the client port.
pub(super) fn client_limits(config: &Config) -> ConnectionLimits {
    let connections = connections(config);
    ConnectionLimits {
        connections,
        per_client: connections_per_client(config, connections),
        head: config.server.header_timeout,
        write: WRITE_TIMEOUT,
        grace: config.server.grace,
    }
}

/// Returns the connection limits of the admin port.
pub(super) fn admin_limits(config: &Config) -> ConnectionLimits {
    ConnectionLimits {
        connections: ADMIN_CONNECTIONS,
        per_client: ADMIN_CONNECTIONS,
        grace: ADMIN_GRACE,
        ..client_limits(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_leaves_connections_for_others() {
        let mut config = Config::default();
        let shares = [1, 2, 3, 4, 10_000].map(|connections| connections_per_client(&config, connections));
        assert_eq!(shares, [1, 1, 2, 3, 7_500]);
        config.server.max_connections_per_client = Some(7);
        assert_eq!(connections_per_client(&config, 100), 7);
    }
}
