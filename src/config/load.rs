//! Loading of the configuration: defaults, file, environment, command-line flags. Each source overrides the previous one.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::address::{ListenAddress, ListenAddresses};
use super::keys::{self, ConfigTable, Hint, UPSTREAM};
use super::schema::{Config, Upstream, builtin_upstreams};

/// Environment variable with the path of the configuration file.
const VARIABLE: &str = "LARDER_CONFIG";

/// Configuration given by command-line flags.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--listen`: addresses for clients, without TLS.
    pub listen: Vec<ListenAddress>,
    /// `--data`: directory of the store.
    pub data: Option<PathBuf>,
    /// `--upstream NAME=URL`, in order: endpoints of upstreams.
    pub upstreams: Vec<(String, String)>,
}

/// Location in a file: the path, and the line if it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileLocation {
    path: PathBuf,
    line: Option<usize>,
}

impl fmt::Display for FileLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        self.line.map_or(Ok(()), |line| write!(f, ":{line}"))
    }
}

/// Error of loading the configuration.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file does not exist, cannot be read, or is not UTF-8.
    #[error("configuration file {path} cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },
    /// The file is not valid TOML.
    #[error("{at}: {message}")]
    Syntax {
        /// Location in the file.
        at: FileLocation,
        /// Message of the parser.
        message: String,
    },
    /// The file contains an unknown key.
    #[error("{at}: unknown key `{key}`{hint}")]
    UnknownKey {
        /// Location in the file.
        at: FileLocation,
        /// Dotted path of the key.
        key: String,
        /// Suggestion.
        hint: Hint,
    },
    /// The file contains a value of the wrong type.
    #[error("{at}: `{key}`: {message}")]
    Value {
        /// Location in the file.
        at: FileLocation,
        /// Dotted path of the key.
        key: String,
        /// Fault of the value.
        message: String,
    },
    /// The environment contains a variable that matches no key.
    #[error("unknown environment variable {name}{hint}")]
    UnknownVariable {
        /// The variable.
        name: String,
        /// Suggestion.
        hint: Hint,
    },
    /// The environment contains a value of the wrong type.
    #[error("environment variable {name}: {message}")]
    Variable {
        /// The variable.
        name: String,
        /// Fault of the value.
        message: String,
    },
    /// The configuration as a whole is inconsistent.
    #[error("configuration is inconsistent: {0}")]
    Whole(String),
}

/// Loads the configuration. `file` overrides the variable `LARDER_CONFIG`; without both there is no file.
pub fn load(
    file: Option<&Path>,
    env: impl Iterator<Item = (String, String)>,
    flags: Flags,
) -> Result<Config, LoadError> {
    let (config, errors) = load_valid_keys(file, env, flags);
    errors.into_iter().next().map_or(Ok(config), Err)
}

/// Loads the configuration from all keys that are valid, and returns the errors of the others.
///
/// With errors, the result is only good for finding the server that runs with an older version of the file.
pub fn load_valid_keys(
    file: Option<&Path>,
    env: impl Iterator<Item = (String, String)>,
    flags: Flags,
) -> (Config, Vec<LoadError>) {
    let mut variables: BTreeMap<String, String> =
        env.filter(|(name, value)| name.starts_with("LARDER_") && !is_service_link(name, value)).collect();
    let named = variables.remove(VARIABLE).map(|path| (VARIABLE.to_owned(), path));
    let mut layers = Layers::default();
    if let Some(path) = self::file(file, named) {
        match std::fs::read_to_string(&path) {
            Ok(text) => layers.file(&path, &text),
            Err(source) => layers.errors.push(LoadError::Read { path, source }),
        }
    }
    let flagged = flags.upstreams.iter().map(|(name, _)| name.clone());
    layers.environment(variables, flagged.collect());
    layers.endpoints(flags.upstreams);
    let mut errors = std::mem::take(&mut layers.errors);
    let mut config = layers.finish().unwrap_or_else(|error| {
        errors.push(error);
        Config::default()
    });
    if !flags.listen.is_empty() {
        config.server.listen = ListenAddresses(flags.listen);
    }
    if let Some(data) = flags.data {
        config.store.path = data;
    }
    (config, errors)
}

/// Returns the path of the configuration file: `file`, or the value of `LARDER_CONFIG`.
pub fn file(file: Option<&Path>, env: impl IntoIterator<Item = (String, String)>) -> Option<PathBuf> {
    let named = env.into_iter().find(|(name, path)| name == VARIABLE && !path.is_empty());
    file.map(Path::to_owned).or(named.map(|(_, path)| path.into()))
}

/// Returns true for the variables that Kubernetes sets for a service called `larder`. They begin with `LARDER_` and must
/// be ignored. `LARDER_PORT=80` is a mistake, because the variable of a service contains a URL.
fn is_service_link(name: &str, value: &str) -> bool {
    let numbered =
        |at: usize| name[at..].trim_start_matches("_PORT_").starts_with(|c: char| c.is_ascii_digit());
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || (name.ends_with("_PORT") && value.contains("://"))
        || (!name.contains("__") && name.match_indices("_PORT_").any(|(at, _)| numbered(at)))
}

/// Keys set so far. A later source overrides an earlier one key by key.
#[derive(Default)]
struct Layers {
    keys: Table,
    upstreams: BTreeMap<String, Table>,
    /// Errors of the keys that are not set, in the order of the sources.
    errors: Vec<LoadError>,
}

impl Layers {
    fn set(&mut self, place: &ConfigTable, key: &str, value: Value) {
        let table = match place {
            ConfigTable::Root => &mut self.keys,
            ConfigTable::Upstream(name) => self.upstreams.entry(name.clone()).or_default(),
            ConfigTable::Section(section) => {
                let entry = self.keys.entry(*section).or_insert_with(|| Value::Table(Table::new()));
                match entry {
                    Value::Table(table) => table,
                    // Sections are written only here, always as tables.
                    _ => return,
                }
            }
        };
        table.insert(key.to_owned(), value);
    }

    /// Sets a key if it is valid.
    fn set_checked(&mut self, checked: Result<(), LoadError>, place: &ConfigTable, key: &str, value: Value) {
        match checked {
            Ok(()) => self.set(place, key, value),
            Err(error) => self.errors.push(error),
        }
    }

    fn file(&mut self, path: &Path, text: &str) {
        let source = SourceFile { path, text };
        let (spans, errors) = DeTable::parse_recoverable(text);
        self.errors.extend(errors.iter().map(|error| source.syntax(error)));
        let document = Table::deserialize(toml::Deserializer::from(spans.clone()));
        let document = document.unwrap_or_else(|error| {
            self.errors.push(source.syntax(&error));
            Table::new()
        });
        let spans = spans.get_ref();
        for (name, value) in document {
            if name == UPSTREAM {
                for (upstream, value) in self.table(source.table(spans, &[&name], value)) {
                    let Some(keys) = self.ok(source.table(spans, &[&name, &upstream], value)) else {
                        continue;
                    };
                    self.upstreams.entry(upstream.clone()).or_default();
                    let place = ConfigTable::Upstream(upstream.clone());
                    for (key, value) in keys {
                        let checked = source.check(spans, &[&name, &upstream, &key], &place, &value);
                        self.set_checked(checked, &place, &key, value);
                    }
                }
            } else if let Some(place) = ConfigTable::section(&name) {
                for (key, value) in self.table(source.table(spans, &[&name], value)) {
                    let checked = source.check(spans, &[&name, &key], &place, &value);
                    self.set_checked(checked, &place, &key, value);
                }
            } else {
                let checked = source.check(spans, &[&name], &ConfigTable::Root, &value);
                self.set_checked(checked, &ConfigTable::Root, &name, value);
            }
        }
    }

    /// Returns the value, or records the error.
    fn ok<T>(&mut self, result: Result<T, LoadError>) -> Option<T> {
        result.map_err(|error| self.errors.push(error)).ok()
    }

    fn table(&mut self, table: Result<Table, LoadError>) -> Table {
        self.ok(table).unwrap_or_default()
    }

    fn environment(&mut self, variables: BTreeMap<String, String>, mut upstreams: Vec<String>) {
        upstreams.extend(self.upstreams.keys().cloned());
        upstreams.extend(builtin_upstreams().into_keys());
        upstreams.sort_unstable();
        upstreams.dedup();
        for (name, text) in variables {
            let found = resolve_variable(&name, &upstreams);
            let Some(found) = self.ok(found) else { continue };
            let Some((place, key)) = found else {
                let known = keys::variables(upstreams.iter().map(String::as_str));
                let hint = match keys::nearest(&name, known.iter().map(String::as_str)) {
                    Some(near) => format!("; did you mean {near}?"),
                    None => "; variables have the form LARDER_SECTION__KEY".to_owned(),
                };
                self.errors.push(LoadError::UnknownVariable { name, hint: Hint(hint) });
                continue;
            };
            match typed(&place, &key, &text) {
                Ok(value) => self.set(&place, &key, value),
                Err(message) => self.errors.push(LoadError::Variable { name, message }),
            }
        }
    }

    fn endpoints(&mut self, flags: Vec<(String, String)>) {
        let mut endpoints: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for (name, url) in flags {
            endpoints.entry(name).or_default().push(Value::String(url));
        }
        for (name, urls) in endpoints {
            self.set(&ConfigTable::Upstream(name), "endpoints", Value::Array(urls));
        }
    }

    /// Applies the keys to the defaults. A named upstream starts with its built-in settings, if there are any.
    fn finish(self) -> Result<Config, LoadError> {
        let whole = |error: toml::de::Error| LoadError::Whole(error.message().to_owned());
        let mut config: Config = self.keys.try_into().map_err(whole)?;
        let mut builtin = builtin_upstreams();
        let has_default =
            self.upstreams.values().any(|keys| keys.get("default").and_then(Value::as_bool) == Some(true));
        if has_default {
            // A configured default upstream replaces the built-in one.
            for upstream in builtin.values_mut() {
                upstream.default = false;
            }
        }
        if !config.builtin_upstreams {
            builtin.retain(|name, _| self.upstreams.contains_key(name));
        }
        for (name, keys) in self.upstreams {
            let base = builtin.remove(&name).unwrap_or_default();
            let mut table = Table::try_from(base).map_err(|error| LoadError::Whole(error.to_string()))?;
            table.extend(keys);
            builtin.insert(name, table.try_into::<Upstream>().map_err(whole)?);
        }
        config.upstream = builtin;
        Ok(config)
    }
}

/// Text of a file, for errors with a location.
struct SourceFile<'a> {
    path: &'a Path,
    text: &'a str,
}

impl SourceFile<'_> {
    fn at(&self, offset: Option<usize>) -> FileLocation {
        let line =
            offset.and_then(|offset| self.text.get(..offset)).map(|before| 1 + before.matches('\n').count());
        FileLocation { path: self.path.to_owned(), line }
    }

    fn syntax(&self, error: &toml::de::Error) -> LoadError {
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        LoadError::Syntax { at: self.at(error.span().map(|span| span.start)), message }
    }

    /// Returns the location of the last key of a path.
    fn find(&self, root: &DeTable<'_>, path: &[&str]) -> FileLocation {
        let mut table = Some(root);
        let mut offset = None;
        for name in path {
            let Some((key, value)) = table.and_then(|t| t.iter().find(|(key, _)| key.get_ref() == name))
            else {
                break;
            };
            offset = Some(key.span().start);
            table = match value.get_ref() {
                DeValue::Table(inner) => Some(inner),
                _ => None,
            };
        }
        self.at(offset)
    }

    fn table(&self, spans: &DeTable<'_>, path: &[&str], value: Value) -> Result<Table, LoadError> {
        match value {
            Value::Table(table) => Ok(table),
            other => {
                let key = keys::dotted(path);
                let message =
                    format!("expected a table, [{key}], and found a value of type {}", other.type_str());
                Err(LoadError::Value { at: self.find(spans, path), key, message })
            }
        }
    }

    fn check(
        &self,
        spans: &DeTable<'_>,
        path: &[&str],
        place: &ConfigTable,
        value: &Value,
    ) -> Result<(), LoadError> {
        let key = path.last().copied().unwrap_or_default();
        let at = || self.find(spans, path);
        if !place.keys().contains(&key) {
            return Err(LoadError::UnknownKey { at: at(), key: place.path(key), hint: place.hint(key) });
        }
        for (number, item) in value.as_array().into_iter().flatten().enumerate() {
            let known = keys::endpoint_keys();
            let unknown = item.as_table().and_then(|t| t.keys().find(|key| !known.contains(&key.as_str())));
            if let Some(unknown) = unknown {
                let hint = match keys::nearest(unknown, known.iter().copied()) {
                    Some(near) => format!("; did you mean `{near}`?"),
                    None => format!("; known keys: {}", known.join(", ")),
                };
                let key = format!("{}[{number}].{unknown}", place.path(key));
                return Err(LoadError::UnknownKey { at: at(), key, hint: Hint(hint) });
            }
        }
        place.fits(key, value).map_err(|message| LoadError::Value { at: at(), key: place.path(key), message })
    }
}

/// Returns the table and key of an environment variable; `None` if there is no such key.
fn resolve_variable(
    variable: &str,
    upstreams: &[String],
) -> Result<Option<(ConfigTable, String)>, LoadError> {
    let Some(rest) = variable.strip_prefix("LARDER_") else { return Ok(None) };
    let rest = rest.to_ascii_lowercase();
    let Some((table, key)) = rest.rsplit_once("__") else {
        let known = ConfigTable::Root.keys().contains(&rest.as_str()) && !keys::is_table(&rest);
        return Ok(known.then_some((ConfigTable::Root, rest)));
    };
    let place = match table.strip_prefix("upstream__") {
        None => ConfigTable::section(table),
        Some(name) => {
            let mut fitting = upstreams.iter().filter(|known| keys::plain(known) == keys::plain(name));
            let found = fitting.next();
            if let (Some(one), Some(other)) = (found, fitting.next()) {
                let message = format!("the name matches `{one}` and `{other}`; set this key in the file");
                return Err(LoadError::Variable { name: variable.to_owned(), message });
            }
            if found.is_none() && keys::nearest(name, upstreams.iter().map(String::as_str)).is_none() {
                let message = "no upstream has this name; add it to the file or with --upstream".to_owned();
                return Err(LoadError::Variable { name: variable.to_owned(), message });
            }
            found.map(|name| ConfigTable::Upstream(name.clone()))
        }
    };
    Ok(place.filter(|place| place.keys().contains(&key)).map(|place| (place, key.to_owned())))
}

/// Returns the value of a variable: the first interpretation that has the type of its key.
fn typed(place: &ConfigTable, key: &str, text: &str) -> Result<Value, String> {
    let string = Value::String(text.to_owned());
    let Err(message) = place.fits(key, &string) else { return Ok(string) };
    let number = text.parse().ok().map(Value::Integer);
    let fraction = text.parse().ok().map(Value::Float);
    let boolean = text.parse().ok().map(Value::Boolean);
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    let list = Value::Array(items.map(|item| Value::String(item.to_owned())).collect());
    let readings = [number, fraction, boolean, Some(list)].into_iter().flatten();
    readings.into_iter().find(|value| place.fits(key, value).is_ok()).ok_or(message)
}
