//! Options of the two ports, as the configuration sets them.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::api::RegistryOptions;
use crate::config::Config;
use crate::config::schema::ServerMode;
use crate::server::ConnectionLimits;

/// Time for which a client may read nothing of a response before its connection is closed.
const WRITE_TIMEOUT: Duration = Duration::from_mins(1);
/// Maximum number of open connections of the admin port.
const ADMIN_CONNECTIONS: usize = 64;
/// Grace period of the admin port. Shutdown need not wait for its responses.
const ADMIN_GRACE: Duration = Duration::from_secs(1);

/// Open files besides connections to clients and the blobs that they read: the store, the admin port, upstreams, logs.
const OWN_FILES: u64 = 384;
/// Open files per connection of a client: its socket, and the blob that it reads.
const FILES_PER_CONNECTION: u64 = 2;
/// Fewest connections of clients, however few files may be open.
const CONNECTIONS_MIN: u64 = 16;

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
    permitted_connections(config.server.max_connections, getrlimit(Resource::Nofile).current)
}

/// Returns at most `wanted` connections; `files` is the limit on open files, `None` if there is none.
fn permitted_connections(wanted: usize, files: Option<u64>) -> usize {
    let Some(files) = files else { return wanted };
    let permitted = (files.saturating_sub(OWN_FILES) / FILES_PER_CONNECTION).max(CONNECTIONS_MIN);
    wanted.min(usize::try_from(permitted).unwrap_or(usize::MAX))
}

/// Returns the options of the registry API.
pub(super) fn registry_options(config: &Config) -> RegistryOptions {
    RegistryOptions { gateway: config.server.mode == ServerMode::Gateway, log_requests: config.log.requests }
}

/// Returns the connection limits of the client port.
pub(super) fn client_limits(config: &Config) -> ConnectionLimits {
    ConnectionLimits {
        connections: connections(config),
        head: config.server.header_timeout,
        write: WRITE_TIMEOUT,
        grace: config.server.grace,
    }
}

/// Returns the connection limits of the admin port.
pub(super) fn admin_limits(config: &Config) -> ConnectionLimits {
    ConnectionLimits { connections: ADMIN_CONNECTIONS, grace: ADMIN_GRACE, ..client_limits(config) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permitted_connections_leave_files_for_everything_else() {
        assert_eq!(permitted_connections(10_000, None), 10_000);
        assert_eq!(permitted_connections(10_000, Some(1 << 20)), 10_000);
        assert_eq!(permitted_connections(10_000, Some(1024)), 320);
        assert_eq!(permitted_connections(100, Some(1024)), 100);
        assert_eq!(permitted_connections(10_000, Some(0)), 16);
        assert!(permitted_connections(usize::MAX, Some(u64::MAX)) > 1 << 32);
    }
}
