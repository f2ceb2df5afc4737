//! Options of the two ports, as the configuration sets them.

use std::time::Duration;

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

/// Returns the options of the registry API.
pub(super) fn registry_options(config: &Config) -> RegistryOptions {
    RegistryOptions { gateway: config.server.mode == ServerMode::Gateway, log_requests: config.log.requests }
}

/// Returns the connection limits of the client port.
pub(super) fn client_limits(config: &Config) -> ConnectionLimits {
    ConnectionLimits {
        connections: config.server.max_connections,
        head: config.server.header_timeout,
        write: WRITE_TIMEOUT,
        grace: config.server.grace,
    }
}

/// Returns the connection limits of the admin port.
pub(super) fn admin_limits(config: &Config) -> ConnectionLimits {
    ConnectionLimits { connections: ADMIN_CONNECTIONS, grace: ADMIN_GRACE, ..client_limits(config) }
}
