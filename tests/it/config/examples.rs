//! The files in `config/`: each loads, and a bogus key anywhere in them is refused.

use std::fs;
use std::path::{Path, PathBuf};

use larder::config::{Config, Flags, schema};
use toml::{Table, Value};

use crate::config::{load, problems, refusal};

fn examples() -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut found: Vec<_> = fs::read_dir(folder)
        .expect("the examples")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .map(|path| (path.clone(), fs::read_to_string(&path).expect("text")))
        .collect();
    found.sort();
    assert!(found.len() >= 6, "{found:?}");
    found
}

#[test]
fn reference_file_equals_the_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/larder.toml");
    assert_eq!(load(Some(&path), &[], Flags::default()).expect("loads"), Config::default());
    // The error also names all keys of the shown tables.
    let written: Table = fs::read_to_string(&path).expect("text").parse().expect("TOML");
    let default = Table::try_from(Config::default()).expect("a table");
    for (section, keys) in default.iter().filter(|(name, _)| *name != "upstream") {
        let keys: Vec<_> = keys.as_table().into_iter().flat_map(Table::keys).collect();
        let there = written.get(section).and_then(Value::as_table);
        assert!(written.contains_key(section), "{section}");
        assert_eq!(there.into_iter().flat_map(Table::keys).collect::<Vec<_>>(), keys, "{section}");
    }
    let keys = |table: &Table| {
        let hub = table["upstream"]["docker.io"].as_table().expect("a table");
        hub.keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(keys(&written), keys(&default));
}

#[test]
fn examples_are_valid() {
    for (path, text) in examples() {
        let mut config = load(Some(&path), &[], Flags::default()).expect("loads");
        // Secrets and certificates are not part of the examples, so placeholders are used.
        let folder = tempfile::tempdir().expect("a folder");
        let stand_in = folder.path().join("stand-in");
        fs::write(&stand_in, "{}").expect("a file");
        let mut missing = 0;
        for upstream in config.upstream.values_mut() {
            let schema::Upstream { password_file, docker_config, ca_file, client_cert, client_key, .. } =
                upstream;
            for file in [password_file, docker_config, ca_file, client_cert, client_key] {
                missing += usize::from(file.is_some());
                *file = file.take().map(|_| stand_in.clone());
            }
        }
        assert_eq!(problems(&config), Vec::<String>::new(), "{}", path.display());
        assert_eq!(missing > 0, text.contains("_file ="), "{}", path.display());
    }
}

/// Returns the path of each table in a document, outermost first.
fn tables(table: &Table, at: &[String], found: &mut Vec<Vec<String>>) {
    found.push(at.to_vec());
    for (key, value) in table {
        if let Value::Table(inner) = value {
            tables(inner, &[at, std::slice::from_ref(key)].concat(), found);
        }
    }
}

/// Returns the table at a path.
fn at<'t>(document: &'t mut Table, path: &[String]) -> &'t mut Table {
    path.iter().fold(document, |table, key| table[key].as_table_mut().expect("a table"))
}

#[test]
fn misspelt_key_in_any_table_of_any_example_is_corrected() {
    let mut tried = 0;
    for (path, text) in examples() {
        let document: Table = text.parse().expect("TOML");
        let mut all = Vec::new();
        tables(&document, &[], &mut all);
        // An upstream can have any name.
        for table in all.iter().filter(|table| table.as_slice() != ["upstream"]) {
            let keys: Vec<_> = at(&mut document.clone(), table).keys().cloned().collect();
            for key in keys {
                let mut misspelt = document.clone();
                let place = at(&mut misspelt, table);
                let value = place.remove(&key).expect("a value");
                place.insert(format!("{key}x"), value);
                let error = refusal(&toml::to_string(&misspelt).expect("TOML"));
                let wanted = format!("; did you mean `{key}`?");
                assert!(error.ends_with(&wanted), "{}, {table:?}: {error}", path.display());
                tried += 1;
            }
        }
    }
    assert!(tried > 100, "only {tried} keys were tried");
}

#[test]
fn bogus_key_in_any_endpoint_of_any_example_is_rejected() {
    for (path, text) in examples() {
        let document: Table = text.parse().expect("TOML");
        let upstreams = document.get("upstream").and_then(Value::as_table);
        for (name, upstream) in upstreams.into_iter().flatten() {
            let endpoints = upstream.get("endpoints").and_then(Value::as_array);
            for place in 0..endpoints.map_or(0, Vec::len) {
                for (bogus, hint) in
                    [("bogus_key", "; known keys: url, authoritative"), ("urll", "; did you mean `url`?")]
                {
                    let mut changed = document.clone();
                    let endpoint = &mut changed["upstream"][name]["endpoints"][place];
                    // In both forms of an endpoint.
                    let mut table = match &*endpoint {
                        Value::Table(table) => table.clone(),
                        url => Table::from_iter([("url".to_owned(), url.clone())]),
                    };
                    table.insert(bogus.to_owned(), Value::Boolean(true));
                    *endpoint = Value::Table(table);
                    let error = refusal(&toml::to_string(&changed).expect("TOML"));
                    let key = format!(".endpoints[{place}].{bogus}`{hint}");
                    assert!(error.ends_with(&key), "{}: {error}", path.display());
                }
            }
        }
    }
}

#[test]
fn bogus_key_in_any_table_of_any_example_is_rejected() {
    for (path, text) in examples() {
        let document: Table = text.parse().expect("TOML");
        let mut all = Vec::new();
        tables(&document, &[], &mut all);
        // The table of upstreams accepts any name, so the invalid entry is a value that is not a table.
        for at in all {
            let mut bogus = document.clone();
            let table = self::at(&mut bogus, &at);
            table.insert("bogus_key".to_owned(), Value::Boolean(true));
            let text = toml::to_string(&bogus).expect("TOML");
            let error = refusal(&text);
            let line = 1 + text.lines().position(|line| line.starts_with("bogus_key")).expect("the line");
            let dotted = error.replace('"', "").split('`').nth(1).unwrap_or_default().to_owned();
            let wanted = [at.as_slice(), &["bogus_key".to_owned()]].concat().join(".");
            assert_eq!(dotted, wanted, "{}: {error}", path.display());
            assert!(error.starts_with(&format!("larder.toml:{line}: ")), "{}: {error}", path.display());
        }
    }
}
