//! Keys of the schema: names, suggestions for misspelt names, and type checks of single values.
//!
//! All of this is derived from the deserializers of `schema`, so each key is declared only once.

use std::fmt;

use serde::Deserializer;
use serde::de::value::Error as Refusal;
use serde::de::{DeserializeOwned, Error as _, Visitor};

use super::endpoint::EndpointTable;
use super::schema::{
    Admin, Cache, Config, Log, Prefetch, Scrub, Server, Store, Trace, Upstream, builtin_upstreams,
};

/// The table that holds one table per upstream.
pub(super) const UPSTREAM: &str = "upstream";

/// Sections with their structs. A test compares the list with the fields of `Config`.
const SECTIONS: [(&str, Shape); 8] = [
    ("server", Shape::of::<Server>()),
    ("admin", Shape::of::<Admin>()),
    ("store", Shape::of::<Store>()),
    ("scrub", Shape::of::<Scrub>()),
    ("cache", Shape::of::<Cache>()),
    ("prefetch", Shape::of::<Prefetch>()),
    ("log", Shape::of::<Log>()),
    ("trace", Shape::of::<Trace>()),
];

/// Keys and type check of a section, derived from its struct.
#[derive(Clone, Copy)]
struct Shape {
    keys: fn() -> &'static [&'static str],
    fits: fn(toml::Table) -> Result<(), toml::de::Error>,
}

impl Shape {
    const fn of<T: DeserializeOwned>() -> Self {
        Self { keys: fields::<T>, fits: |table| table.try_into::<T>().map(drop) }
    }
}

/// Table of the configuration that contains a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ConfigTable {
    /// The root of the file.
    Root,
    /// A section. Created by `ConfigTable::section` only, so the name exists.
    Section(&'static str),
    /// `[upstream."name"]`.
    Upstream(String),
}

impl ConfigTable {
    /// Returns the section with this name.
    pub(super) fn section(name: &str) -> Option<Self> {
        SECTIONS.iter().find(|(section, _)| *section == name).map(|(section, _)| Self::Section(section))
    }

    fn shape(&self) -> Shape {
        match self {
            Self::Upstream(_) => Shape::of::<Upstream>(),
            Self::Root => Shape::of::<Config>(),
            Self::Section(name) => SECTIONS
                .iter()
                .find(|(section, _)| section == name)
                .map_or(Shape::of::<Config>(), |(_, shape)| *shape),
        }
    }

    /// Returns the keys of the table. Those of the root include the sections.
    pub(super) fn keys(&self) -> &'static [&'static str] {
        (self.shape().keys)()
    }

    /// Checks that `value` has the type of `key`. A single key can be checked alone, because each struct of the schema has
    /// defaults for the other keys.
    pub(super) fn fits(&self, key: &str, value: &toml::Value) -> Result<(), String> {
        let alone = toml::Table::from_iter([(key.to_owned(), value.clone())]);
        (self.shape().fits)(alone).map_err(|error| match self.example(key) {
            Some(example) => format!("{}; for example {key} = {example}", error.message()),
            None => error.message().to_owned(),
        })
    }

    /// Returns the default of a key as an example; `None` if there is no default, or if it is an empty list.
    fn example(&self, key: &str) -> Option<toml::Value> {
        let default = toml::Table::try_from(Config::default()).ok()?;
        let found = match self {
            Self::Root => default.get(key),
            Self::Section(section) => default.get(*section)?.get(key),
            // The freshness keys of an upstream have their defaults in `[cache]`.
            Self::Upstream(_) => {
                let builtin = default.get(UPSTREAM)?.as_table()?.values().next();
                builtin.and_then(|table| table.get(key)).or_else(|| default.get("cache")?.get(key))
            }
        };
        let is_example = |value: &&toml::Value| value.as_array().is_none_or(|array| !array.is_empty());
        found.filter(is_example).cloned()
    }

    /// Returns the dotted path of a key, as in TOML.
    pub(super) fn path(&self, key: &str) -> String {
        match self {
            Self::Root => dotted(&[key]),
            Self::Section(section) => dotted(&[section, key]),
            Self::Upstream(name) => dotted(&[UPSTREAM, name, key]),
        }
    }

    /// Returns the hint for an unknown key: the nearest name, the section with this key, or the list of keys.
    pub(super) fn hint(&self, unknown: &str) -> Hint {
        if let Some(near) = nearest(unknown, self.keys().iter().copied()) {
            return Hint(format!("; did you mean `{near}`?"));
        }
        let elsewhere = SECTIONS.iter().find(|(_, shape)| (shape.keys)().contains(&unknown));
        Hint(match elsewhere {
            Some((section, _)) => format!("; did you mean `{section}.{unknown}`?"),
            None => format!("; known keys: {}", self.keys().join(", ")),
        })
    }
}

/// Hint at the end of an error about an unknown name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint(pub(super) String);

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Returns the keys of an endpoint that is written as a table.
pub(super) fn endpoint_keys() -> &'static [&'static str] {
    fields::<EndpointTable>()
}

/// Returns the environment variables of all keys, for the built-in upstreams and the given ones.
pub fn variables<'a>(upstreams: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut tables = vec![ConfigTable::Root];
    tables.extend(SECTIONS.iter().map(|(section, _)| ConfigTable::Section(section)));
    let mut names: Vec<_> = builtin_upstreams().into_keys().collect();
    names.extend(upstreams.into_iter().map(str::to_owned));
    names.sort_unstable();
    names.dedup();
    tables.extend(names.into_iter().map(ConfigTable::Upstream));
    tables
        .iter()
        .flat_map(|table| table.keys().iter().map(move |key| (table, *key)))
        .filter(|(table, key)| **table != ConfigTable::Root || !is_table(key))
        .map(|(table, key)| variable(table, key))
        .collect()
}

/// Returns true if a key of the root is a table.
pub(super) fn is_table(key: &str) -> bool {
    key == UPSTREAM || ConfigTable::section(key).is_some()
}

fn variable(table: &ConfigTable, key: &str) -> String {
    let name = match table {
        ConfigTable::Root => format!("LARDER_{key}"),
        ConfigTable::Section(section) => format!("LARDER_{section}__{key}"),
        ConfigTable::Upstream(name) => format!("LARDER_{UPSTREAM}__{}__{key}", plain(name)),
    };
    name.to_ascii_uppercase()
}

/// Returns an upstream's name as used in variables, in lower case. Shells allow only letters, digits and `_` there.
pub(super) fn plain(name: &str) -> String {
    name.to_ascii_lowercase().replace(['.', '-', ':'], "_")
}

/// Returns the known name nearest to a misspelt one, if any is similar enough.
pub(super) fn nearest<'a>(written: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let reach = (written.chars().count() / 3).clamp(1, 4);
    known
        .map(|name| (strsim::damerau_levenshtein(written, name), name))
        .filter(|(distance, _)| *distance <= reach)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Formats a path of keys as in TOML.
pub(super) fn dotted(path: &[&str]) -> String {
    path.iter().map(|key| quoted(key)).collect::<Vec<_>>().join(".")
}

/// Formats a key as in TOML: without quotes if possible.
fn quoted(key: &str) -> String {
    let bare = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    if !key.is_empty() && key.bytes().all(bare) { key.to_owned() } else { format!("{key:?}") }
}

/// Returns the field names of a struct, taken from its derived deserializer.
fn fields<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut found: &'static [&'static str] = &[];
    // The probe always returns an error, after it has recorded the names.
    let _ = T::deserialize(Probe(&mut found));
    found
}

/// Deserializer that records the requested field names and provides no value.
struct Probe<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Refusal;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Refusal> {
        Err(Refusal::custom("no value"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Refusal> {
        *self.0 = fields;
        Err(Refusal::custom("no value"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_match_the_schema() {
        let tables: Vec<_> = ConfigTable::Root.keys().iter().filter(|key| is_table(key)).collect();
        assert_eq!(tables.len(), SECTIONS.len() + 1);
        let default = toml::Table::try_from(Config::default()).expect("a table");
        for (key, value) in &default {
            assert_eq!(is_table(key), value.is_table(), "{key}");
            if let (Some(table), Some(section)) = (ConfigTable::section(key), value.as_table()) {
                assert!(section.keys().all(|key| table.keys().contains(&key.as_str())), "{key}");
            }
        }
        assert_eq!(endpoint_keys(), ["url", "authoritative"]);
    }

    #[test]
    fn nearest_and_hint_suggest_similar_names() {
        assert_eq!(nearest("tag_tll", ConfigTable::Section("cache").keys().iter().copied()), Some("tag_ttl"));
        assert_eq!(nearest("colour", ConfigTable::Section("cache").keys().iter().copied()), None);
        assert_eq!(nearest("x", ["y", "abc"].into_iter()), Some("y"));
        assert_eq!(
            ConfigTable::Section("server").hint("tag_ttl").to_string(),
            "; did you mean `cache.tag_ttl`?"
        );
        assert!(ConfigTable::Section("admin").hint("colour").to_string().contains("; known keys: listen, "));
    }

    #[test]
    fn path_is_formatted_as_toml() {
        assert_eq!(ConfigTable::Upstream("docker.io".into()).path("a b"), r#"upstream."docker.io"."a b""#);
        assert_eq!(ConfigTable::Root.path("builtin_upstreams"), "builtin_upstreams");
    }
}
