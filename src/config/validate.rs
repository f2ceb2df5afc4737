//! What is wrong with a configuration whose every key and type is right, and what to do about it.

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
use crate::oci::{NamePattern, UpstreamName};

/// Beyond this a deadline may not be computable on every clock.
const LONGEST: Duration = Duration::from_hours(100 * 365 * 24);
/// More connections than one process has file descriptors for anywhere.
const MOST_CONNECTIONS: usize = 1 << 20;
/// A smaller page cache would be none.
const LEAST_MEMORY: u64 = 1 << 20;
/// In less of sled's file there is hardly room for content.
const LEAST_SLED: u64 = 256 << 20;
/// At less than this the largest layers would take days.
const LEAST_RATE: u64 = 64 << 10;
/// The largest size that is still a plausible disk.
const LARGEST: u64 = 1 << 60;

/// One thing that is wrong: the key and the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    /// The key with its tables, as it would be written in TOML.
    pub key: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.key, self.message)
    }
}

/// All problems found, in the order of the sections.
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
        self.require(may_be_zero || !value.is_zero(), path, "it must be longer than 0; try \"1m\"");
        self.require(value <= LONGEST, path, "it must not be longer than 100 years");
    }

    fn connections(&mut self, value: usize, path: &[&str]) {
        let message = format!("it must be between 1 and {MOST_CONNECTIONS}");
        self.require((1..=MOST_CONNECTIONS).contains(&value), path, &message);
    }

    fn readable(&mut self, file: Option<&Path>, path: &[&str]) {
        let Some(file) = file else { return };
        let opened = File::open(file).and_then(|open| open.metadata());
        match opened {
            Ok(found) if !found.is_dir() => {}
            Ok(_) => self.add(path, format!("{} is a folder; name a file", file.display())),
            Err(error) => self.add(path, format!("{} cannot be read: {error}", file.display())),
        }
    }
}

/// A configuration that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the configuration cannot be used: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct InvalidConfig(pub Vec<ConfigProblem>);

/// Checks everything that can be known without contacting anybody. Only whether named files are readable, and a
/// `config.json` is one, is asked of the world.
pub fn validate(config: &Config) -> Result<(), InvalidConfig> {
    let mut problems = ProblemList::default();
    sections(config, &mut problems);
    for (name, upstream) in &config.upstream {
        one_upstream(name, upstream, &mut problems);
    }
    across_upstreams(config, &mut problems);
    if problems.0.is_empty() { Ok(()) } else { Err(InvalidConfig(problems.0)) }
}

fn sections(config: &Config, problems: &mut ProblemList) {
    let Config { server, store, scrub, cache, log, .. } = config;
    ports(config, problems);
    problems.connections(server.max_connections, &["server", "max_connections"]);
    problems.duration(server.header_timeout, false, &["server", "header_timeout"]);
    problems.duration(server.grace, true, &["server", "grace"]);
    problems.require(
        !store.path.as_os_str().is_empty(),
        &["store", "path"],
        "it must name a folder, such as \"larder-data\"",
    );
    for (key, size, least) in [
        ("max_size", store.max_size, if store.blobs == BlobStoreKind::Sled { LEAST_SLED } else { 1 }),
        ("min_free", store.min_free, 0),
        ("cache_memory", store.cache_memory, LEAST_MEMORY),
    ] {
        let fine = (least..=LARGEST).contains(&size.as_u64());
        let hint = if least == LEAST_SLED { "; with `blobs = \"files\"` it may be less" } else { "" };
        problems.require(fine, &["store", key], &format!("it must be between {least} B and 1 EiB{hint}"));
    }
    problems.duration(scrub.every, true, &["scrub", "every"]);
    let fine = scrub.rate.as_u64() == 0 || (LEAST_RATE..=LARGEST).contains(&scrub.rate.as_u64());
    let message = "it must be at least 64KiB a second, or 0 for as much as there is";
    problems.require(fine, &["scrub", "rate"], message);
    freshness(cache, &["cache"], problems);
    trace(&config.trace, problems);
    if let Err(message) = level(&log.level) {
        problems.add(&["log", "level"], message);
    }
    problems.require(
        (0.0..=1.0).contains(&config.prefetch.quota_floor),
        &["prefetch", "quota_floor"],
        "it is a share of the quota, between 0.0 and 1.0",
    );
    problems.duration(config.prefetch.quota_check, false, &["prefetch", "quota_check"]);
    for platform in &config.prefetch.platforms {
        let parts: Vec<&str> = platform.split('/').collect();
        let shaped = matches!(parts.len(), 2 | 3) && parts.iter().all(|part| !part.is_empty());
        let message =
            format!("`{platform}` is no platform; write os/arch or os/arch/variant, such as \"linux/arm64\"");
        problems.require(shaped, &["prefetch", "platforms"], &message);
    }
}

/// Where to listen, and with which certificates.
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
                let message =
                    format!("{address} is taken by `{}` already; choose another port", dotted(other));
                problems.add(&[section, key], message);
            }
            places.push(([section, key], address));
        }
        let either = places.iter().any(|(place, _)| place[0] == section);
        let message = "there is no address at all; name one here or in `tls_listen`";
        problems.require(either || key == "listen", &[section, "listen"], message);
    }
    for (section, cert, key) in [
        ("server", server.tls_cert.as_deref(), server.tls_key.as_deref()),
        ("admin", admin.tls_cert.as_deref(), admin.tls_key.as_deref()),
    ] {
        match (cert, key) {
            (Some(_), None) => problems.add(&[section, "tls_cert"], "it needs `tls_key` beside it"),
            (None, Some(_)) => problems.add(&[section, "tls_key"], "it needs `tls_cert` beside it"),
            _ => {}
        }
        problems.readable(cert, &[section, "tls_cert"]);
        problems.readable(key, &[section, "tls_key"]);
    }
    problems.readable(admin.token_file.as_deref(), &["admin", "token_file"]);
    let wanting = "it needs a certificate; set `tls_cert` and `tls_key`";
    let idle = "nothing would use it; name the addresses that speak TLS in `tls_listen`";
    let speaks = |addresses: &ListenAddresses| !addresses.0.is_empty();
    let (own, other) = (server.tls_cert.is_some(), admin.tls_cert.is_some());
    problems.require(own || !speaks(&server.tls_listen), &["server", "tls_listen"], wanting);
    problems.require(own || other || !speaks(&admin.tls_listen), &["admin", "tls_listen"], wanting);
    let used = speaks(&server.tls_listen) || speaks(&admin.tls_listen) && !other;
    problems.require(used || !own, &["server", "tls_cert"], idle);
    problems.require(speaks(&admin.tls_listen) || !other, &["admin", "tls_cert"], idle);
}

/// Where traces go.
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
        let message = "it must be a collector's http:// or https:// URL, such as \"http://127.0.0.1:4318\"";
        problems.require(fine, &["trace", "endpoint"], message);
    }
    let message = "it is a share of the requests, between 0.0 and 1.0";
    problems.require((0.0..=1.0).contains(&trace.sample), &["trace", "sample"], message);
    problems.require(
        !trace.service.is_empty(),
        &["trace", "service"],
        "it must be a name, such as \"larder\"",
    );
}

fn freshness(cache: &Cache, table: &[&str], problems: &mut ProblemList) {
    let under = |key| [table, &[key]].concat();
    problems.duration(cache.tag_ttl, true, &under("tag_ttl"));
    problems.duration(cache.negative_ttl, true, &under("negative_ttl"));
    problems.duration(cache.stale_while_revalidate, true, &under("stale_while_revalidate"));
    if let StaleLimit::For(time) = cache.stale_if_error {
        problems.duration(time, true, &under("stale_if_error"));
    }
    problems.duration(cache.revalidate_timeout, false, &under("revalidate_timeout"));
}

/// `EnvFilter` takes any word for the name of a module, so a misspelt level would silence the log unnoticed.
fn level(text: &str) -> Result<(), String> {
    let word = text.split(',').map(str::trim).find(|part| {
        let targeted = part.contains(['=', '[', ':']);
        !targeted && part.parse::<LevelFilter>().is_err()
    });
    if let Some(word) = word {
        return Err(format!("`{word}` is no level; use off, error, warn, info, debug or trace"));
    }
    EnvFilter::try_new(text)
        .map(drop)
        .map_err(|error| format!("{error}; use a level, or a filter such as \"info,larder::upstream=debug\""))
}

fn one_upstream(name: &str, upstream: &Upstream, problems: &mut ProblemList) {
    let at = |key| [UPSTREAM, name, key];
    if name.parse::<UpstreamName>().is_err() {
        problems.add(&[UPSTREAM, name], "its name must be a lower-case host name, such as \"ghcr.io\"");
    }
    problems.require(
        !upstream.endpoints.is_empty(),
        &at("endpoints"),
        "it must name at least one endpoint, such as [\"https://registry.example.com\"]",
    );
    problems.require(
        upstream.endpoints.is_empty() || upstream.endpoints.iter().any(|endpoint| endpoint.authoritative),
        &at("endpoints"),
        "none is authoritative, so none could say what a tag stands for; leave `authoritative = false` out of one",
    );
    for endpoint in &upstream.endpoints {
        if let Err(message) = endpoint_url(endpoint) {
            problems.add(&at("endpoints"), message);
        }
    }
    for hostname in &upstream.hostnames {
        if hostname.to_ascii_lowercase().parse::<UpstreamName>().is_err() {
            problems
                .add(&at("hostnames"), "each must be a host name, with a port if need be, and nothing else");
        }
    }
    for (key, patterns) in [("allow", &upstream.allow), ("deny", &upstream.deny)] {
        for pattern in patterns {
            if let Err(message) = repository_pattern(name, pattern) {
                problems.add(&at(key), message);
            }
        }
    }
    match (&upstream.username, &upstream.password_file) {
        (Some(_), None) => problems.add(&at("username"), "it needs `password_file` beside it"),
        (None, Some(_)) => problems.add(&at("password_file"), "it needs `username` beside it"),
        _ => {}
    }
    problems.readable(upstream.password_file.as_deref(), &at("password_file"));
    docker_config(name, upstream, problems);
    for host in &upstream.realm_hosts {
        if host.to_ascii_lowercase().parse::<UpstreamName>().is_err() {
            let message =
                "each must be a token service's host name, with a port if need be, and nothing else";
            problems.add(&at("realm_hosts"), message);
        }
    }
    match (&upstream.client_cert, &upstream.client_key) {
        (Some(_), None) => problems.add(&at("client_cert"), "it needs `client_key` beside it"),
        (None, Some(_)) => problems.add(&at("client_key"), "it needs `client_cert` beside it"),
        _ => {}
    }
    problems.readable(upstream.ca_file.as_deref(), &at("ca_file"));
    problems.readable(upstream.client_cert.as_deref(), &at("client_cert"));
    problems.readable(upstream.client_key.as_deref(), &at("client_key"));
    problems.connections(upstream.max_connections, &at("max_connections"));
    if let Some(time) = upstream.idle_timeout {
        problems.duration(time, false, &at("idle_timeout"));
    }
    // Keys that are not set here are the common ones, which have had their turn.
    freshness(&upstream.cache(&Cache::default()), &[UPSTREAM, name], problems);
}

/// What is wrong with the `config.json` that credentials are taken from.
fn docker_config(name: &str, upstream: &Upstream, problems: &mut ProblemList) {
    let Some(path) = &upstream.docker_config else { return };
    let at = [UPSTREAM, name, "docker_config"];
    if upstream.username.is_some() || upstream.password_file.is_some() {
        problems.add(&at, "credentials come from one place; leave it or `username` and `password_file` out");
    }
    if let Err(error) = DockerConfig::load(path) {
        let message =
            format!("{}: {error}; it must be a config.json as `docker login` writes it", path.display());
        problems.add(&at, message);
    }
}

/// What is wrong with a pattern over an upstream's repositories: also that it can match none of them.
fn repository_pattern(upstream: &str, text: &str) -> Result<(), String> {
    text.parse::<NamePattern>().map_err(|error| error.to_string())?;
    if let Some(rest) = text.strip_prefix(upstream).and_then(|rest| rest.strip_prefix('/')) {
        return Err(format!("`{text}` begins with the upstream's own name; write \"{rest}\""));
    }
    if upstream == "docker.io" && !text.contains('/') && text != "**" {
        return Err(format!(
            "`{text}` matches no repository of docker.io: its names have two parts; write \"library/{text}\", \
             or \"**\" for all"
        ));
    }
    Ok(())
}

/// What is wrong with an endpoint. The URL is repeated only where it cannot hold a secret.
fn endpoint_url(endpoint: &Endpoint) -> Result<(), String> {
    let example = "\"https://registry.example.com\" or \"oci:///srv/layout\"";
    let url = Url::parse(&endpoint.url)
        .map_err(|error| format!("an endpoint is no URL ({error}); write {example}"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("an endpoint holds credentials; move them to `username` and `password_file`".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("an endpoint has a query or a fragment; write {example}"));
    }
    match url.scheme() {
        "http" | "https" if url.host().is_some() => Ok(()),
        "oci" if endpoint.url.starts_with("oci:///") && url.path().len() > 1 => Ok(()),
        "oci" => Err("an oci:// endpoint needs an absolute path, as in \"oci:///srv/layout\"".to_owned()),
        scheme => Err(format!("an endpoint's scheme is `{scheme}`; write {example}")),
    }
}

fn across_upstreams(config: &Config, problems: &mut ProblemList) {
    let defaults: Vec<_> = config.upstream.iter().filter(|(_, upstream)| upstream.default).collect();
    match defaults.as_slice() {
        [] if config.upstream.is_empty() => {
            problems
                .add(&[UPSTREAM], "there is no upstream at all; name one, or set `builtin_upstreams = true`");
        }
        [] => problems.add(&[UPSTREAM], "no upstream is the default; set `default = true` in one of them"),
        [_] => {}
        [first, others @ ..] => {
            for (name, _) in others {
                let message = format!("`{}` is the default already; only one upstream can be", first.0);
                problems.add(&[UPSTREAM, name, "default"], message);
            }
        }
    }
    let mut owners: BTreeMap<String, &str> = BTreeMap::new();
    for (name, upstream) in &config.upstream {
        for hostname in &upstream.hostnames {
            let owner = *owners.entry(hostname.to_ascii_lowercase()).or_insert(name);
            if owner != name {
                let message =
                    format!("upstream `{owner}` has the same host name; a host name selects one upstream");
                problems.add(&[UPSTREAM, name, "hostnames"], message);
            }
        }
    }
}
