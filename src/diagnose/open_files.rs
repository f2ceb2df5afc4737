//! Check of the limit on open files (`RLIMIT_NOFILE`).

use rustix::process::{Resource, getrlimit};

use super::report::Step;
use crate::config::{Config, open_files};

/// Checks the hard limit of this process. A server that is started from here raises its limit to it.
pub fn check_here(config: &Config) -> Step {
    check(config, getrlimit(Resource::Nofile).maximum, "here")
}

/// Checks the limit that a running server reports.
pub fn check_server(config: &Config, allowed: u64) -> Step {
    check(config, Some(allowed), "to the running server")
}

fn check(config: &Config, allowed: Option<u64>, process: &str) -> Step {
    let (clients, wanted) = (config.server.max_connections, open_files::needed(config));
    match allowed {
        Some(allowed) if allowed < wanted => Step::warning(
            "open files",
            format!("{allowed} are allowed {process}; server.max_connections ({clients}) may need {wanted}"),
            "raise the limit (systemd: LimitNOFILE=, a shell: ulimit -n), or lower `server.max_connections`",
        ),
        Some(allowed) => Step::ok("open files", format!("{allowed} are allowed {process}")),
        None => Step::ok("open files", format!("any number is allowed {process}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Verdict;
    use super::*;

    #[test]
    fn limit_is_compared_with_the_configuration() {
        let config = Config::default();
        assert_eq!(check(&config, Some(1024), "here").verdict, Verdict::Warning);
        assert_eq!(check(&config, Some(1 << 20), "here").verdict, Verdict::Ok);
        assert_eq!(check(&config, None, "here").verdict, Verdict::Ok);
    }
}
