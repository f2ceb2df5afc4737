//! Environment variables of all keys: each key has one with the same type, and a misspelt one is rejected.

use std::time::Duration;

use larder::config::schema::{OnUpstream404, StaleLimit};
use larder::config::{self, Config, Flags};
use toml::{Table, Value};

use crate::config::{Env, load, load_text};

/// Returns every value of a document with its path.
fn leaves(table: &Table, at: &[String], found: &mut Vec<(Vec<String>, Value)>) {
    for (key, value) in table {
        let path = [at, std::slice::from_ref(key)].concat();
        match value {
            Value::Table(inner) => leaves(inner, &path, found),
            other => found.push((path, other.clone())),
        }
    }
}

fn leaves_of(config: &Config) -> Vec<(Vec<String>, Value)> {
    let mut found = Vec::new();
    leaves(&Table::try_from(config).expect("a table"), &[], &mut found);
    found
}

fn twin(path: &[String]) -> String {
    format!("LARDER_{}", path.join("__").to_ascii_uppercase().replace(['.', '-', ':'], "_"))
}

/// Values of all types of keys. For each key, some are valid and different from the default.
const VALUES: [&str; 19] = [
    "true",
    "false",
    "7",
    "7s",
    "7GiB",
    "127.0.0.1:7",
    "gateway",
    "stale",
    "files",
    "refuse",
    "pass",
    "upstream",
    "json",
    "debug",
    "x",
    "x,y",
    "miss",
    "cached",
    "forever",
];

#[test]
fn environment_variable_exists_for_every_key() {
    let default = leaves_of(&Config::default());
    let mut twins = config::variables([]);
    // All keys of the default configuration have a variable. Optional keys have one too.
    for (path, _) in &default {
        assert!(twins.contains(&twin(path)), "{}", twin(path));
    }
    assert!(twins.len() > default.len());
    twins.sort();
    for name in twins {
        let reached = VALUES.iter().any(|value| {
            let Ok(config) = load(None, &[(&name, value)], Flags::default()) else { return false };
            let changed: Vec<_> =
                leaves_of(&config).into_iter().filter(|leaf| !default.contains(leaf)).collect();
            // docker.io stops being the default when another upstream becomes the default.
            let elected = name.ends_with("__DEFAULT");
            assert!(changed.len() <= 1 + usize::from(elected), "{name}={value}: {changed:?}");
            let dropped = name == "LARDER_BUILTIN_UPSTREAMS" && config.upstream.is_empty();
            dropped || changed.iter().any(|(path, _)| twin(path) == name)
        });
        assert!(reached, "{name} changes nothing");
    }
}

#[test]
fn variables_are_parsed_by_the_type_of_their_key() {
    let env: Env<'_> = &[
        ("LARDER_STORE__MAX_SIZE", "5GiB"),
        ("LARDER_BUILTIN_UPSTREAMS", "false"),
        ("LARDER_SERVER__MAX_CONNECTIONS", "12"),
        ("LARDER_PREFETCH__PLATFORMS", "linux/amd64, linux/arm64"),
        ("LARDER_UPSTREAM__DOCKER_IO__USERNAME", "123"),
        ("LARDER_UPSTREAM__REG_EXAMPLE_TEST_5000__STALE_IF_ERROR", "1h"),
        ("LARDER_UPSTREAM__reg_example_test_5000__ON_UPSTREAM_404", "stale"),
    ];
    let config = load_text("[upstream.\"reg.example-test:5000\"]\n", env).expect("loads");
    assert_eq!(config.store.max_size.as_u64(), 5 << 30);
    assert_eq!(config.server.max_connections, 12);
    assert_eq!(config.prefetch.platforms, ["linux/amd64", "linux/arm64"]);
    assert_eq!(config.upstream.keys().collect::<Vec<_>>(), ["docker.io", "reg.example-test:5000"]);
    assert_eq!(config.upstream["docker.io"].username.as_deref(), Some("123"));
    let named = &config.upstream["reg.example-test:5000"];
    assert_eq!(named.stale_if_error, Some(StaleLimit::For(Duration::from_hours(1))));
    assert_eq!(named.on_upstream_404, Some(OnUpstream404::Stale));
}

#[test]
fn unknown_variables_are_rejected() {
    let cases = [
        ("LARDER_STORE__MAX_SIZ", "1", "LARDER_STORE__MAX_SIZ; did you mean LARDER_STORE__MAX_SIZE?"),
        ("LARDER_STORE_MAX_SIZE", "1", "did you mean LARDER_STORE__MAX_SIZE?"),
        ("LARDER_BUILTIN_UPSTREAM", "1", "did you mean LARDER_BUILTIN_UPSTREAMS?"),
        ("LARDER_UPSTREAM__DOCKER_OI__TAG_TTL", "1s", "did you mean LARDER_UPSTREAM__DOCKER_IO__TAG_TTL?"),
        ("LARDER_UPSTREAM__NOWHERE__TAG_TTL", "1s", "no upstream has this name"),
        ("LARDER_WHATEVER_ELSE", "1", "variables have the form LARDER_SECTION__KEY"),
        ("LARDER_SERVER", "1", "LARDER_SERVER"),
        ("LARDER_STORE__MAX_SIZE", "lots", "environment variable LARDER_STORE__MAX_SIZE: "),
        ("LARDER_SERVER__MAX_CONNECTIONS", "many", "environment variable LARDER_SERVER__MAX_CONNECTIONS: "),
    ];
    for (name, value, wanted) in cases {
        let error = load(None, &[(name, value)], Flags::default()).expect_err(name).to_string();
        assert!(error.contains(wanted), "{error}");
    }
    let ambiguous =
        load_text("[upstream.a-b]\n[upstream.\"a.b\"]\n", &[("LARDER_UPSTREAM__A_B__TAG_TTL", "1s")]);
    assert!(ambiguous.expect_err("ambiguous").contains("`a-b` and `a.b`"));
}

#[test]
fn kubernetes_service_variables_are_ignored() {
    let env: Env<'_> = &[
        ("LARDER_SERVICE_HOST", "10.0.0.1"),
        ("LARDER_SERVICE_PORT", "5000"),
        ("LARDER_SERVICE_PORT_REGISTRY", "5000"),
        ("LARDER_PORT", "tcp://10.0.0.1:5000"),
        ("LARDER_PORT_5000_TCP", "tcp://10.0.0.1:5000"),
        ("LARDER_PORT_5000_TCP_ADDR", "10.0.0.1"),
        ("LARDER_ADMIN_SERVICE_HOST", "10.0.0.1"),
        ("LARDER_ADMIN_PORT_5001_TCP_PROTO", "tcp"),
    ];
    assert_eq!(load(None, env, Flags::default()).expect("loads"), Config::default());
    for mistaken in ["LARDER_PORTS", "LARDER_PORT", "LARDER_PORT_NUMBER"] {
        assert!(load(None, &[(mistaken, "5000")], Flags::default()).is_err(), "{mistaken}");
    }
}
