//! The reference in `config/README.md`: it has all keys of the schema and no others, with the correct default and
//! variable.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use larder::config::{self, Config, schema};
use toml::{Table, Value};

use crate::config::load_text;

/// Placeholder for the name of any upstream in the reference.
const NAME: &str = "NAME";

/// Entry of the reference.
struct Entry {
    default: Option<String>,
    variable: String,
    example: String,
}

/// Reads the entries by key: a heading, and the line of facts below it.
fn entries() -> BTreeMap<String, Entry> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/README.md");
    let text = fs::read_to_string(path).expect("the reference");
    let (_, reference) = text.split_once("\n## Reference\n").expect("the section");
    let mut lines = reference.lines().filter(|line| !line.is_empty());
    let mut found = BTreeMap::new();
    while let Some(line) = lines.next() {
        let Some(key) = line.strip_prefix("#### `").and_then(|rest| rest.strip_suffix('`')) else { continue };
        let facts: Vec<_> = lines.next().expect("a line of facts").split(" · ").collect();
        let [_, default, variable, example] = facts.as_slice() else { panic!("{key}: {facts:?}") };
        let code = |text: &str, before: &str| {
            text.strip_prefix(before)?.strip_prefix('`')?.strip_suffix('`').map(str::to_owned)
        };
        let entry = Entry {
            default: code(default, "default "),
            variable: code(variable, "").unwrap_or_else(|| panic!("{key}: {variable}")),
            example: code(example, "example: ").unwrap_or_else(|| panic!("{key}: {example}")),
        };
        assert!(entry.default.is_some() || *default == "not set by default", "{key}: {default}");
        assert!(found.insert(key.to_owned(), entry).is_none(), "{key} is there twice");
    }
    found
}

/// Returns section and name of a key.
fn split(key: &str) -> (&str, &str) {
    key.rsplit_once('.').unwrap_or(("", key))
}

#[test]
fn the_reference_has_every_key_and_no_other() {
    let written: BTreeSet<_> = entries().into_values().map(|entry| entry.variable).collect();
    let builtin = schema::builtin_upstreams();
    let others: Vec<String> = config::variables([]);
    let known: BTreeSet<_> =
        config::variables([NAME]).into_iter().filter(|name| !others.contains(name)).collect();
    let common = others.into_iter().filter(|name| !name.starts_with("LARDER_UPSTREAM__"));
    let known: BTreeSet<_> = known.into_iter().chain(common).collect();
    assert_eq!(written, known);
    assert!(!builtin.contains_key(NAME));
    for (key, entry) in entries() {
        let plain = key.replace("\"NAME\"", NAME).replace('.', "__").to_ascii_uppercase();
        assert_eq!(entry.variable, format!("LARDER_{plain}"));
    }
}

#[test]
fn the_reference_has_the_right_defaults() {
    let default = Table::try_from(Config::default()).expect("a table");
    let upstream = Table::try_from(schema::Upstream::default()).expect("a table");
    for (key, entry) in entries() {
        let (section, name) = split(&key);
        let right = match section {
            "" => default.get(name),
            "upstream.\"NAME\"" => upstream.get(name),
            _ => default[section].get(name),
        };
        let written = entry.default.map(|text| {
            let table: Table = format!("x = {text}").parse().expect("a value");
            table["x"].clone()
        });
        assert_eq!(written.as_ref().map(unified), right.map(unified), "{key}");
    }
}

/// Returns a duration or another text in the form of the schema.
fn unified(value: &Value) -> Value {
    match value.as_str().map(humantime::parse_duration) {
        Some(Ok(duration)) => Value::Float(duration.as_secs_f64()),
        _ => value.clone(),
    }
}

#[test]
fn the_examples_of_the_reference_load() {
    for (key, entry) in entries() {
        let (section, name) = split(&key);
        assert!(entry.example.starts_with(&format!("{name} = ")), "{key}: {}", entry.example);
        let table = match section {
            "" => entry.example,
            "upstream.\"NAME\"" if name == "endpoints" => {
                format!("[upstream.\"registry.test\"]\n{}", entry.example)
            }
            "upstream.\"NAME\"" => {
                format!(
                    "[upstream.\"registry.test\"]\nendpoints = [\"https://registry.test\"]\n{}",
                    entry.example
                )
            }
            _ => format!("[{section}]\n{}", entry.example),
        };
        let loaded = load_text(&table, &[]);
        assert!(loaded.is_ok(), "{key}: {loaded:?}");
        assert_ne!(loaded.expect("a configuration"), Config::default(), "{key}: the example changes nothing");
    }
}
