//! What differs between the configuration that runs and another one, and which of it can be followed without a restart.

use std::fmt;

use toml::{Table, Value};

use super::keys::dotted;
use super::load::LoadError;
use super::schema::Config;

/// No value in the log is longer than this, in characters; what is longer is shown in part.
const SHOWN: usize = 120;

/// Keys that are read once: sockets are opened, the store is opened, the log is set up. A section alone means all of it.
const AT_START: [&[&str]; 11] = [
    &["server", "listen"],
    &["server", "tls_listen"],
    &["server", "tls_cert"],
    &["server", "tls_key"],
    &["admin"],
    &["store", "path"],
    &["store", "blobs"],
    &["store", "cache_memory"],
    &["store", "on_corruption"],
    &["log", "format"],
    &["trace"],
];

/// One key that differs.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyChange {
    path: Vec<String>,
    from: Option<Value>,
    to: Option<Value>,
}

impl KeyChange {
    /// Whether it takes a restart.
    pub fn needs_restart(&self) -> bool {
        AT_START
            .iter()
            .any(|path| self.path.iter().map(String::as_str).take(path.len()).eq(path.iter().copied()))
    }

    /// The key with its tables, as it would be written in TOML.
    pub fn key(&self) -> String {
        dotted(&self.path.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

impl fmt::Display for KeyChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.key();
        match (&self.from, &self.to) {
            (Some(from), Some(to)) => write!(f, "{key}: {} -> {}", Shortened(from), Shortened(to)),
            (None, Some(to)) => write!(f, "{key}: {} is new", Shortened(to)),
            (Some(from), None) => write!(f, "{key}: {} is gone", Shortened(from)),
            (None, None) => f.write_str(&key),
        }
    }
}

/// A value as TOML, on one line. The configuration names files with secrets and holds none.
struct Shortened<'a>(&'a Value);

impl fmt::Display for Shortened<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_table() {
            return f.write_str("a table");
        }
        let text = self.0.to_string();
        let shown: String = text.chars().take(SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
        f.write_str(&shown)?;
        if shown.chars().count() < text.chars().count() { f.write_str("...") } else { Ok(()) }
    }
}

/// Where a configuration goes from here.
#[derive(Clone, Debug)]
pub struct ConfigDiff {
    /// Every key that differs.
    pub changes: Vec<KeyChange>,
    /// The other configuration, except for what takes a restart: that is as it runs.
    pub next: Config,
}

/// Compares the configuration that runs with another one.
pub fn compare(running: &Config, other: &Config) -> Result<ConfigDiff, LoadError> {
    let table = |config| Table::try_from(config).map_err(|error| LoadError::Whole(error.to_string()));
    let (running, mut other) = (table(running)?, table(other)?);
    let mut changes = Vec::new();
    differences(&running, &other, &[], &mut changes);
    for change in changes.iter().filter(|change| change.needs_restart()) {
        put(&mut other, &change.path, change.from.clone());
    }
    // Both are configurations, and each key stands alone: so is what is put together from them.
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

/// Sets a value, or takes it away. All tables on the way are there, because both configurations have every section.
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

    fn shown(turn: &ConfigDiff, restart: bool) -> Vec<String> {
        let fitting = turn.changes.iter().filter(|change| change.needs_restart() == restart);
        fitting.map(ToString::to_string).collect()
    }

    #[test]
    fn nothing_differs_from_itself() {
        let config = Config::default();
        let turn = compare(&config, &config).expect("a table");
        assert_eq!((turn.changes, turn.next), (vec![], config));
    }

    #[test]
    fn what_takes_a_restart_stays_as_it_runs() {
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
        let turn = compare(&running, &other).expect("a table");
        let now = [
            "cache.tag_ttl: \"1m\" -> \"7s\"",
            "server.max_connections: 10000 -> 3",
            "store.max_size: \"20GiB\" -> \"30GiB\"",
            "upstream.\"docker.io\".deny: [] -> [\"library/**\"]",
            "upstream.\"gcr.io\": a table is gone",
            "upstream.\"x.test\": a table is new",
        ];
        assert_eq!(shown(&turn, false), now);
        let later = [
            "log.format: \"text\" -> \"json\"",
            "server.tls_cert: \"cert\" is new",
            "store.path: \"larder-data\" -> \"elsewhere\"",
        ];
        assert_eq!(shown(&turn, true), later);
        let mut next = other.clone();
        next.log.format = running.log.format;
        next.store.path.clone_from(&running.store.path);
        next.server.tls_cert = None;
        assert_eq!(turn.next, next);
        // What waits for a restart goes on waiting, and is found again.
        assert_eq!(shown(&compare(&turn.next, &other).expect("a table"), true), later);
    }

    #[test]
    fn long_values_are_shown_in_part() {
        let running = Config::default();
        let mut other = running.clone();
        other.prefetch.platforms = vec!["linux/arm64\n".repeat(100)];
        let turn = compare(&running, &other).expect("a table");
        let shown = turn.changes[0].to_string();
        assert!(shown.len() < 200 && shown.ends_with("...") && !shown.contains('\n'), "{shown}");
    }
}
