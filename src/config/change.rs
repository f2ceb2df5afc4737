//! Differences between the running configuration and a new one, and the changes that need a restart.

use std::fmt;

use toml::{Table, Value};

use super::keys::dotted;
use super::load::LoadError;
use super::schema::{Admin, Cache, Config, Log, Prefetch, Scrub, Server, Store, Trace};

/// Maximum length of a value in the log, in characters. Longer values are truncated.
const SHOWN_MAX: usize = 120;

/// Time when a changed key takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyEffect {
    /// At once: the server applies the change while it runs.
    Live,
    /// After a restart: the key is read once, at the start.
    Restart,
}

/// Declares the effect of each key. A key of a section that is missing here is a compile error.
macro_rules! key_effects {
    ($($section:ident: $type:ident { $($key:ident: $effect:ident),+ $(,)? })+) => {
        const EFFECTS: &[(&str, &[(&str, KeyEffect)])] =
            &[$((stringify!($section), &[$((stringify!($key), KeyEffect::$effect)),+])),+];

        $(const _: fn(&$type) = |section| { let $type { $($key: _),+ } = section; };)+
        // Changes of `builtin_upstreams` and of the upstreams are always applied at once.
        const _: fn(&Config) = |config| {
            let Config { builtin_upstreams: _, upstream: _, $($section: _),+ } = config;
        };
    };
}

key_effects! {
    server: Server {
        listen: Restart,
        tls_listen: Restart,
        tls_cert: Restart,
        tls_key: Restart,
        mode: Live,
        grace: Live,
        max_connections: Live,
        max_connections_per_client: Live,
        header_timeout: Live,
    }
    admin: Admin {
        listen: Restart,
        tls_listen: Restart,
        tls_cert: Restart,
        tls_key: Restart,
        token_file: Restart,
        require_token: Restart,
    }
    store: Store {
        path: Restart,
        blobs: Restart,
        on_corruption: Restart,
        max_size: Live,
        min_free: Live,
        cache_memory: Restart,
    }
    scrub: Scrub { every: Live, rate: Live }
    cache: Cache {
        tag_ttl: Live,
        negative_ttl: Live,
        stale_if_error: Live,
        stale_if_denied: Live,
        stale_while_revalidate: Live,
        revalidate_timeout: Live,
        tags_list: Live,
        on_upstream_404: Live,
    }
    prefetch: Prefetch {
        children: Live,
        attestations: Live,
        referrers: Live,
        platforms: Live,
        quota_floor: Live,
        quota_check: Live,
    }
    log: Log { level: Live, format: Restart, requests: Live }
    trace: Trace { endpoint: Restart, sample: Restart, service: Restart }
}

/// Returns the effect of a key, given as its path.
fn effect(path: &[String]) -> KeyEffect {
    let [section, key, ..] = path else { return KeyEffect::Live };
    let keys = EFFECTS.iter().find(|(name, _)| name == section).map_or(&[][..], |(_, keys)| keys);
    keys.iter().find(|(name, _)| name == key).map_or(KeyEffect::Live, |(_, effect)| *effect)
}

/// Changed key.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyChange {
    path: Vec<String>,
    from: Option<Value>,
    to: Option<Value>,
}

impl KeyChange {
    /// Returns true if the change takes effect after a restart only.
    pub fn needs_restart(&self) -> bool {
        effect(&self.path) == KeyEffect::Restart
    }

    /// Returns the dotted path of the key, as in TOML.
    pub fn key(&self) -> String {
        dotted(&self.path.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

impl fmt::Display for KeyChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.key();
        match (&self.from, &self.to) {
            (Some(from), Some(to)) => write!(f, "{key}: {} -> {}", Shortened(from), Shortened(to)),
            (None, Some(to)) => write!(f, "{key}: added, {}", Shortened(to)),
            (Some(from), None) => write!(f, "{key}: removed, was {}", Shortened(from)),
            (None, None) => f.write_str(&key),
        }
    }
}

/// Value as TOML on one line, truncated. The configuration contains no secrets, only names of files with secrets.
struct Shortened<'a>(&'a Value);

impl fmt::Display for Shortened<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_table() {
            return f.write_str("a table");
        }
        let text = self.0.to_string();
        let shown: String =
            text.chars().take(SHOWN_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
        f.write_str(&shown)?;
        if shown.chars().count() < text.chars().count() { f.write_str("...") } else { Ok(()) }
    }
}

/// Result of comparing two configurations.
#[derive(Clone, Debug)]
pub struct ConfigDiff {
    /// Changed keys.
    pub changes: Vec<KeyChange>,
    /// The new configuration, with the running values of keys that need a restart.
    pub next: Config,
}

/// Compares the running configuration with a new one.
pub fn compare(running: &Config, other: &Config) -> Result<ConfigDiff, LoadError> {
    let table = |config| Table::try_from(config).map_err(|error| LoadError::Whole(error.to_string()));
    let (running, mut other) = (table(running)?, table(other)?);
    let mut changes = Vec::new();
    differences(&running, &other, &[], &mut changes);
    for change in changes.iter().filter(|change| change.needs_restart()) {
        put(&mut other, &change.path, change.from.clone());
    }
    // Both tables are valid configurations, and keys are independent, so the mixed table is valid too.
    let whole = |error: toml::de::Error| LoadError::Whole(error.message().to_owned());
    let next = other.try_into().map_err(whole)?;
    Ok(ConfigDiff { changes, next })
}

fn differences(running: &Table, other: &Table, at: &[String], found: &mut Vec<KeyChange>) {
    let mut keys: Vec<&String> = running.keys().chain(other.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    for key in keys {
        let path = [at, std::slice::from_ref(key)].concat();
        match (running.get(key), other.get(key)) {
            (Some(Value::Table(from)), Some(Value::Table(to))) => differences(from, to, &path, found),
            (from, to) if from == to => {}
            (from, to) => found.push(KeyChange { path, from: from.cloned(), to: to.cloned() }),
        }
    }
}

/// Sets or removes a value. All parent tables exist, because both configurations have all sections.
fn put(table: &mut Table, path: &[String], value: Option<Value>) {
    match (path, value) {
        ([], _) => {}
        ([key], Some(value)) => drop(table.insert(key.clone(), value)),
        ([key], None) => drop(table.remove(key)),
        ([key, rest @ ..], value) => {
            if let Some(Value::Table(inner)) = table.get_mut(key) {
                put(inner, rest, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::schema::{LogFormat, Upstream};
    use std::time::Duration;

    fn shown(diff: &ConfigDiff, restart: bool) -> Vec<String> {
        let fitting = diff.changes.iter().filter(|change| change.needs_restart() == restart);
        fitting.map(ToString::to_string).collect()
    }

    #[test]
    fn compare_finds_no_change_in_an_equal_configuration() {
        let config = Config::default();
        let diff = compare(&config, &config).expect("a table");
        assert_eq!((diff.changes, diff.next), (vec![], config));
    }

    #[test]
    fn compare_keeps_running_values_of_keys_that_need_a_restart() {
        let running = Config::default();
        let mut other = running.clone();
        other.cache.tag_ttl = Duration::from_secs(7);
        other.log.format = LogFormat::Json;
        other.store.path = "elsewhere".into();
        other.server.tls_cert = Some("cert".into());
        other.server.max_connections = 3;
        other.store.max_size = bytesize::ByteSize::gib(30);
        other.upstream.remove("gcr.io");
        other.upstream.insert("x.test".to_owned(), Upstream::default());
        if let Some(hub) = other.upstream.get_mut("docker.io") {
            hub.deny = vec!["library/**".to_owned()];
        }
        let diff = compare(&running, &other).expect("a table");
        let now = [
            "cache.tag_ttl: \"1m\" -> \"7s\"",
            "server.max_connections: 10000 -> 3",
            "store.max_size: \"20GiB\" -> \"30GiB\"",
            "upstream.\"docker.io\".deny: [] -> [\"library/**\"]",
            "upstream.\"gcr.io\": removed, was a table",
            "upstream.\"x.test\": added, a table",
        ];
        assert_eq!(shown(&diff, false), now);
        let later = [
            "log.format: \"text\" -> \"json\"",
            "server.tls_cert: added, \"cert\"",
            "store.path: \"larder-data\" -> \"elsewhere\"",
        ];
        assert_eq!(shown(&diff, true), later);
        let mut next = other.clone();
        next.log.format = running.log.format;
        next.store.path.clone_from(&running.store.path);
        next.server.tls_cert = None;
        assert_eq!(diff.next, next);
        // A change that needs a restart is found again by the next comparison.
        assert_eq!(shown(&compare(&diff.next, &other).expect("a table"), true), later);
    }

    #[test]
    fn long_values_are_truncated() {
        let running = Config::default();
        let mut other = running.clone();
        other.prefetch.platforms = vec!["linux/arm64\n".repeat(100)];
        let diff = compare(&running, &other).expect("a table");
        let shown = diff.changes[0].to_string();
        assert!(shown.len() < 200 && shown.ends_with("...") && !shown.contains('\n'), "{shown}");
    }
}
