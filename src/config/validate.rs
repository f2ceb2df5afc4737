//! Validation of a configuration that has the right keys and types. Each problem names the key and the remedy.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::Path;
use std::time::Duration;

use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use url::Url;

use super::address::{ListenAddress, ListenAddresses};
use super::docker::DockerConfig;
use super::keys::{UPSTREAM, dotted};
use super::schema::{BlobStoreKind, Cache, Config, Endpoint, StaleLimit, Trace, Upstream};
use crate::oci::{NamePattern, UpstreamName, manifest};

/// Maximum duration. A longer one may overflow the clock.
const DURATION_MAX: Duration = Duration::from_hours(100 * 365 * 24);
/// Maximum number of connections: more than the file descriptors of a process.
const CONNECTIONS_MAX: usize = 1 << 20;
/// Minimum size of the page cache.
const CACHE_MEMORY_MIN: u64 = 1 << 20;
/// Minimum size of a store with blobs in sled. A smaller file has no space for content.
const SLED_SIZE_MIN: u64 = 256 << 20;
/// Minimum rate of the scrub. At a lower rate, a large layer takes days.
const SCRUB_RATE_MIN: u64 = 64 << 10;
/// Maximum size of a plausible disk.
const SIZE_MAX: u64 = 1 << 60;

/// One problem of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    /// Dotted path of the key, as in TOML.
    pub key: String,
    /// Problem and remedy.
    pub message: String,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.key, self.message)
    }
}

/// Problems found, in the order of the sections.
#[derive(Default)]
struct ProblemList(Vec<ConfigProblem>);

impl ProblemList {
    fn add(&mut self, path: &[&str], message: impl Into<String>) {
        self.0.push(ConfigProblem { key: dotted(path), message: message.into() });
    }

    fn require(&mut self, fine: bool, path: &[&str], message: &str) {
        if !fine {
            self.add(path, message);
        }
    }

    fn duration(&mut self, value: Duration, may_be_zero: bool, path: &[&str]) {
        self.require(may_be_zero || !value.is_zero(), path, "must be longer than 0, for example \"1m\"");
        self.require(value <= DURATION_MAX, path, "must not be longer than 100 years");
    }

    fn connections(&mut self, value: usize, path: &[&str]) {
        let message = format!("must be between 1 and {CONNECTIONS_MAX}");
        self.require((1..=CONNECTIONS_MAX).contains(&value), path, &message);
    }

    fn readable(&mut self, file: Option<&Path>, path: &[&str]) {
        let Some(file) = file else { return };
        let opened = File::open(file).and_then(|open| open.metadata());
        match opened {
            Ok(found) if !found.is_dir() => {}
            Ok(_) => self.add(path, format!("{} is a directory; configure a file", file.display())),
            Err(error) => self.add(path, format!("{} cannot be read: {error}", file.display())),
        }
    }
}

/// Error of validation: the problems of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the configuration cannot be used: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct InvalidConfig(pub Vec<ConfigProblem>);

/// Checks the configuration without network access. Reads the named files to check that they are readable, and parses a
/// `config.json`.
pub fn validate(config: &Config) -> Result<(), InvalidConfig> {
    let mut problems = ProblemList::default();
    sections(config, &mut problems);
    for (name, upstream) in &config.upstream {
        one_upstream(name, upstream, &mut problems);
    }
    across_upstreams(config, &mut problems);
    if problems.0.is_empty() { Ok(()) } else { Err(InvalidConfig(problems.0)) }
}

/// Checks the sections other than the upstreams.
fn sections(config: &Config, problems: &mut ProblemList) {
    let Config { server, store, scrub, cache, log, .. } = config;
    ports(config, problems);
    problems.connections(server.max_connections, &["server", "max_connections"]);
    if let Some(per_client) = server.max_connections_per_client {
        problems.connections(per_client, &["server", "max_connections_per_client"]);
    }
    problems.duration(server.header_timeout, false, &["server", "header_timeout"]);
    problems.duration(server.grace, true, &["server", "grace"]);
    problems.require(
        !store.path.as_os_str().is_empty(),
        &["store", "path"],
        "must be a directory, for example \"larder-data\"",
    );
    for (key, size, least) in [
        ("max_size", store.max_size, if store.blobs == BlobStoreKind::Sled { SLED_SIZE_MIN } else { 1 }),
        ("min_free", store.min_free, 0),
        ("cache_memory", store.cache_memory, CACHE_MEMORY_MIN),
    ] {
        let fine = (least..=SIZE_MAX).contains(&size.as_u64());
        let hint = if least == SLED_SIZE_MIN { "; `blobs = \"files\"` allows less" } else { "" };
        problems.require(fine, &["store", key], &format!("must be between {least} B and 1 EiB{hint}"));
    }
    problems.duration(scrub.every, true, &["scrub", "every"]);
    let fine = scrub.rate.as_u64() == 0 || (SCRUB_RATE_MIN..=SIZE_MAX).contains(&scrub.rate.as_u64());
    let message = "must be at least 64KiB (per second), or 0 for no limit";
    problems.require(fine, &["scrub", "rate"], message);
    freshness(cache, &["cache"], problems);
    trace(&config.trace, problems);
    if let Err(message) = level(&log.level) {
        problems.add(&["log", "level"], message);
    }
    problems.require(
        (0.0..=1.0).contains(&config.prefetch.quota_floor),
        &["prefetch", "quota_floor"],
        "must be a share of the quota, between 0.0 and 1.0",
    );
    problems.duration(config.prefetch.quota_check, false, &["prefetch", "quota_check"]);
    for platform in &config.prefetch.platforms {
        let parts: Vec<&str> = platform.split('/').collect();
        let shaped = matches!(parts.len(), 2 | 3) && parts.iter().all(|part| !part.is_empty());
        let message = format!(
            "`{platform}` is not a platform; write os/arch or os/arch/variant, for example \"linux/arm64\""
        );
        problems.require(shaped, &["prefetch", "platforms"], &message);
    }
}

/// Checks the addresses of both ports, and their certificates.
fn ports(config: &Config, problems: &mut ProblemList) {
    let Config { server, admin, .. } = config;
    let mut places: Vec<([&str; 2], &ListenAddress)> = Vec::new();
    for (section, key, addresses) in [
        ("server", "listen", &server.listen),
        ("server", "tls_listen", &server.tls_listen),
        ("admin", "listen", &admin.listen),
        ("admin", "tls_listen", &admin.tls_listen),
    ] {
        for address in &addresses.0 {
            if let Some((other, _)) = places.iter().find(|(_, other)| other.clashes(address)) {
                let message = format!("{address} conflicts with `{}`; choose another port", dotted(other));
                problems.add(&[section, key], message);
            }
            places.push(([section, key], address));
        }
        let either = places.iter().any(|(place, _)| place[0] == section);
        let message = "no address is configured; set one here or in `tls_listen`";
        problems.require(either || key == "listen", &[section, "listen"], message);
    }
    for (section, cert, key) in [
        ("server", server.tls_cert.as_deref(), server.tls_key.as_deref()),
        ("admin", admin.tls_cert.as_deref(), admin.tls_key.as_deref()),
    ] {
        match (cert, key) {
            (Some(_), None) => problems.add(&[section, "tls_cert"], "requires `tls_key`"),
            (None, Some(_)) => problems.add(&[section, "tls_key"], "requires `tls_cert`"),
            _ => {}
        }
        problems.readable(cert, &[section, "tls_cert"]);
        problems.readable(key, &[section, "tls_key"]);
    }
    problems.readable(admin.token_file.as_deref(), &["admin", "token_file"]);
    let unknown = "requires `token_file`, the file with the token";
    let known = admin.token_file.is_some() || !admin.require_token;
    problems.require(known, &["admin", "require_token"], unknown);
    let missing = "requires a certificate; set `tls_cert` and `tls_key`";
    let unused = "the certificate is not used; set addresses for TLS in `tls_listen`";
    let speaks = |addresses: &ListenAddresses| !addresses.0.is_empty();
    let (own, other) = (server.tls_cert.is_some(), admin.tls_cert.is_some());
    problems.require(own || !speaks(&server.tls_listen), &["server", "tls_listen"], missing);
    problems.require(own || other || !speaks(&admin.tls_listen), &["admin", "tls_listen"], missing);
    let used = speaks(&server.tls_listen) || speaks(&admin.tls_listen) && !other;
    problems.require(used || !own, &["server", "tls_cert"], unused);
    problems.require(speaks(&admin.tls_listen) || !other, &["admin", "tls_cert"], unused);
}

/// Checks the export of traces.
fn trace(trace: &Trace, problems: &mut ProblemList) {
    if let Some(endpoint) = &trace.endpoint {
        let fine = Url::parse(endpoint).is_ok_and(|url| {
            matches!(url.scheme(), "http" | "https")
                && url.host().is_some()
                && url.username().is_empty()
                && url.password().is_none()
                && url.query().is_none()
                && url.fragment().is_none()
        });
        let message =
            "must be the http:// or https:// URL of a collector, for example \"http://127.0.0.1:4318\"";
        problems.require(fine, &["trace", "endpoint"], message);
    }
    let message = "must be a share of the requests, between 0.0 and 1.0";
    problems.require((0.0..=1.0).contains(&trace.sample), &["trace", "sample"], message);
    problems.require(
        !trace.service.is_empty(),
        &["trace", "service"],
        "must be a name, for example \"larder\"",
    );
}

/// Checks the time-outs of `[cache]`, or of the same keys in an upstream.
fn freshness(cache: &Cache, table: &[&str], problems: &mut ProblemList) {
    let under = |key| [table, &[key]].concat();
    problems.duration(cache.tag_ttl, true, &under("tag_ttl"));
    problems.duration(cache.negative_ttl, true, &under("negative_ttl"));
    problems.duration(cache.stale_while_revalidate, true, &under("stale_while_revalidate"));
    for (key, limit) in [("stale_if_error", cache.stale_if_error), ("stale_if_denied", cache.stale_if_denied)]
    {
        if let StaleLimit::For(time) = limit {
            problems.duration(time, true, &under(key));
        }
    }
    problems.duration(cache.revalidate_timeout, false, &under("revalidate_timeout"));
}

/// Checks a log level or filter. `EnvFilter` accepts any word as the name of a module, so a misspelt level would disable
/// the log.
fn level(text: &str) -> Result<(), String> {
    let word = text.split(',').map(str::trim).find(|part| {
        let targeted = part.contains(['=', '[', ':']);
        !targeted && part.parse::<LevelFilter>().is_err()
    });
    if let Some(word) = word {
        return Err(format!("`{word}` is not a level; use off, error, warn, info, debug or trace"));
    }
    EnvFilter::try_new(text).map(drop).map_err(|error| {
        format!("{error}; use a level, or a filter, for example \"info,larder::upstream=debug\"")
    })
}

/// Smallest value of `manifest_max_size`. Indexes of images with many platforms have more than 10 KiB.
const MANIFEST_MAX_LEAST: u64 = 64 << 10;

/// Checks one upstream.
fn one_upstream(name: &str, upstream: &Upstream, problems: &mut ProblemList) {
    let at = |key| [UPSTREAM, name, key];
    if name.parse::<UpstreamName>().is_err() {
        problems.add(&[UPSTREAM, name], "the name must be a lower-case host name, for example \"ghcr.io\"");
    }
    endpoints(name, upstream, problems);
    for hostname in &upstream.hostnames {
        if hostname.to_ascii_lowercase().parse::<UpstreamName>().is_err() {
            problems.add(&at("hostnames"), "each must be a host name, optionally with a port");
        }
    }
    for (key, patterns) in [("allow", &upstream.allow), ("deny", &upstream.deny)] {
        for pattern in patterns {
            if let Err(message) = repository_pattern(name, pattern) {
                problems.add(&at(key), message);
            }
        }
    }
    credentials(name, upstream, problems);
    certificates(name, upstream, problems);
    problems.connections(upstream.max_connections, &at("max_connections"));
    for (key, time) in [("head_timeout", upstream.head_timeout), ("idle_timeout", upstream.idle_timeout)] {
        if let Some(time) = time {
            problems.duration(time, false, &at(key));
        }
    }
    problems.duration(upstream.min_rate_time, false, &at("min_rate_time"));
    problems.require(
        (MANIFEST_MAX_LEAST..=manifest::SIZE_LIMIT.into()).contains(&upstream.manifest_max_size.as_u64()),
        &at("manifest_max_size"),
        "must be between \"64KiB\" and \"16MiB\"",
    );
    // Keys that are not set here come from `[cache]`, which is checked separately.
    freshness(&upstream.cache(&Cache::default()), &[UPSTREAM, name], problems);
}

/// Checks the endpoints of an upstream.
fn endpoints(name: &str, upstream: &Upstream, problems: &mut ProblemList) {
    let at = [UPSTREAM, name, "endpoints"];
    problems.require(
        !upstream.endpoints.is_empty(),
        &at,
        "must contain at least one endpoint, for example [\"https://registry.example.com\"]",
    );
    problems.require(
        upstream.endpoints.is_empty() || upstream.endpoints.iter().any(|endpoint| endpoint.authoritative),
        &at,
        "no endpoint may resolve tags; remove `authoritative = false` from one",
    );
    for endpoint in &upstream.endpoints {
        if let Err(message) = endpoint_url(endpoint) {
            problems.add(&at, message);
        }
    }
}

/// Checks the keys for logging in to an upstream.
fn credentials(name: &str, upstream: &Upstream, problems: &mut ProblemList) {
    let at = |key| [UPSTREAM, name, key];
    match (&upstream.username, &upstream.password_file) {
        (Some(_), None) => problems.add(&at("username"), "requires `password_file`"),
        (None, Some(_)) => problems.add(&at("password_file"), "requires `username`"),
        _ => {}
    }
    problems.readable(upstream.password_file.as_deref(), &at("password_file"));
    docker_config(name, upstream, problems);
    for host in &upstream.realm_hosts {
        if host.to_ascii_lowercase().parse::<UpstreamName>().is_err() {
            let message = "each must be the host name of a token service, optionally with a port";
            problems.add(&at("realm_hosts"), message);
        }
    }
}

/// Checks the certificate files of an upstream.
fn certificates(name: &str, upstream: &Upstream, problems: &mut ProblemList) {
    let at = |key| [UPSTREAM, name, key];
    match (&upstream.client_cert, &upstream.client_key) {
        (Some(_), None) => problems.add(&at("client_cert"), "requires `client_key`"),
        (None, Some(_)) => problems.add(&at("client_key"), "requires `client_cert`"),
        _ => {}
    }
    problems.readable(upstream.ca_file.as_deref(), &at("ca_file"));
    problems.readable(upstream.client_cert.as_deref(), &at("client_cert"));
    problems.readable(upstream.client_key.as_deref(), &at("client_key"));
}

/// Checks the `config.json` with credentials.
fn docker_config(name: &str, upstream: &Upstream, problems: &mut ProblemList) {
    let Some(path) = &upstream.docker_config else { return };
    let at = [UPSTREAM, name, "docker_config"];
    if upstream.username.is_some() || upstream.password_file.is_some() {
        problems.add(&at, "conflicts with `username` and `password_file`; remove one of them");
    }
    if let Err(error) = DockerConfig::load(path) {
        let message = format!(
            "{}: {error}; the file must be a config.json as written by `docker login`",
            path.display()
        );
        problems.add(&at, message);
    }
}

/// Checks a pattern of repository names. A pattern that cannot match any repository is an error.
fn repository_pattern(upstream: &str, text: &str) -> Result<(), String> {
    text.parse::<NamePattern>().map_err(|error| error.to_string())?;
    if let Some(rest) = text.strip_prefix(upstream).and_then(|rest| rest.strip_prefix('/')) {
        return Err(format!("`{text}` begins with the name of the upstream; write \"{rest}\""));
    }
    if upstream == "docker.io" && !text.contains('/') && text != "**" {
        return Err(format!(
            "`{text}` matches no repository of docker.io, because its names have two parts; write \"library/{text}\", \
             or \"**\" for all"
        ));
    }
    Ok(())
}

/// Checks the URL of an endpoint. Errors do not show the URL, because it may contain a password.
fn endpoint_url(endpoint: &Endpoint) -> Result<(), String> {
    let example = "\"https://registry.example.com\" or \"oci:///srv/layout\"";
    let url = Url::parse(&endpoint.url)
        .map_err(|error| format!("an endpoint is not a URL ({error}); write {example}"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("an endpoint contains credentials; use `username` and `password_file` instead".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("an endpoint has a query or a fragment; write {example}"));
    }
    match url.scheme() {
        "http" | "https" if url.host().is_some() => Ok(()),
        "oci" if endpoint.url.starts_with("oci:///") && url.path().len() > 1 => Ok(()),
        "oci" => {
            Err("an oci:// endpoint requires an absolute path, for example \"oci:///srv/layout\"".to_owned())
        }
        scheme => Err(format!("an endpoint's scheme is `{scheme}`; write {example}")),
    }
}

/// Checks rules that concern several upstreams: the default upstream, and unique host names.
fn across_upstreams(config: &Config, problems: &mut ProblemList) {
    let defaults: Vec<_> = config.upstream.iter().filter(|(_, upstream)| upstream.default).collect();
    match defaults.as_slice() {
        [] if config.upstream.is_empty() => {
            problems
                .add(&[UPSTREAM], "no upstream is configured; add one, or set `builtin_upstreams = true`");
        }
        [] => problems.add(&[UPSTREAM], "no upstream is the default; set `default = true` for one"),
        [_] => {}
        [first, others @ ..] => {
            for (name, _) in others {
                let message =
                    format!("`{}` is the default too; only one upstream can be the default", first.0);
                problems.add(&[UPSTREAM, name, "default"], message);
            }
        }
    }
    let mut owners: BTreeMap<String, &str> = BTreeMap::new();
    for (name, upstream) in &config.upstream {
        for hostname in &upstream.hostnames {
            let owner = *owners.entry(hostname.to_ascii_lowercase()).or_insert(name);
            if owner != name {
                let message = format!(
                    "upstream `{owner}` has the same host name; each host name must select one upstream"
                );
                problems.add(&[UPSTREAM, name, "hostnames"], message);
            }
        }
    }
}
