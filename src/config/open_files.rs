//! Number of open files that a configuration needs, and the number of client connections that a limit on open files permits.

use super::schema::Config;

/// Open files besides those for clients and upstreams: the store, drafts that are hashed or committed, the admin port, logs.
const OWN_FILES: u64 = 320;
/// Open files per connection to an upstream: its socket, and the draft that it fills. A complete draft that waits for its
/// commit has no open file, unless a client reads it.
const FILES_PER_UPSTREAM_CONNECTION: u64 = 2;
/// Open files per connection of a client: its socket, and the blob that it reads.
const FILES_PER_CLIENT: u64 = 2;
/// Fewest connections of clients, however few files may be open.
const CLIENTS_MIN: u64 = 16;

/// Returns the number of open files that the configured connections may need.
pub fn needed(config: &Config) -> u64 {
    let clients = FILES_PER_CLIENT.saturating_mul(config.server.max_connections as u64);
    clients.saturating_add(OWN_FILES).saturating_add(for_upstreams(config))
}

/// Returns the number of client connections that are possible, so that everything else can always open files. `limit` is the
/// limit on open files; `None` if there is none.
pub fn client_connections(config: &Config, limit: Option<u64>) -> usize {
    let wanted = config.server.max_connections;
    let Some(limit) = limit else { return wanted };
    // Many upstreams never use all their connections at the same time.
    let reserve = OWN_FILES.saturating_add(for_upstreams(config).min(limit / 2));
    let permitted = (limit.saturating_sub(reserve) / FILES_PER_CLIENT).max(CLIENTS_MIN);
    wanted.min(usize::try_from(permitted).unwrap_or(usize::MAX))
}

/// Returns the number of open files for connections to upstreams.
fn for_upstreams(config: &Config) -> u64 {
    let connections = config.upstream.values().map(|upstream| upstream.max_connections as u64);
    connections.fold(0, u64::saturating_add).saturating_mul(FILES_PER_UPSTREAM_CONNECTION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permitted_connections_leave_files_for_everything_else() {
        let mut config = Config::default();
        config.upstream.retain(|name, _| name == "docker.io");
        assert_eq!(client_connections(&config, None), 10_000);
        assert_eq!(client_connections(&config, Some(1 << 20)), 10_000);
        assert_eq!(client_connections(&config, Some(1024)), 288);
        assert_eq!(client_connections(&config, Some(0)), 16);
        let docker = config.upstream["docker.io"].clone();
        config.upstream.extend((0..1000).map(|n| (format!("r{n}.test"), docker.clone())));
        assert_eq!(
            client_connections(&config, Some(20_000)),
            4_840,
            "upstreams take half of the files at most"
        );
        config.server.max_connections = 100;
        assert_eq!(client_connections(&config, Some(1 << 20)), 100);
        config.server.max_connections = usize::MAX;
        assert!(client_connections(&config, Some(u64::MAX)) > 1 << 32);
        assert_eq!(needed(&config), u64::MAX);
    }

    #[test]
    fn needed_files_permit_all_configured_connections() {
        let config = Config::default();
        let needed = needed(&config);
        assert_eq!(client_connections(&config, Some(needed)), 10_000);
        assert_eq!(client_connections(&config, Some(needed - 2)), 9_999);
    }
}
