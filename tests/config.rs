//! Configuration end to end: the examples that ship, layering, environment twins, suggestions, refusals.

// The lint spares test functions by itself, but not what they share.
#![allow(clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use larder::config::schema::{BlobStore, Endpoint, Limit, Mode, OnUpstream404, Upstream};
use larder::config::{self, Config, Flags, LoadError};
use toml::{Table, Value};

type Env<'a> = &'a [(&'a str, &'a str)];

fn load(file: Option<&Path>, env: Env<'_>, flags: Flags) -> Result<Config, LoadError> {
    config::load(file, env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())), flags)
}

/// Loads a file that holds `text`; errors name it `larder.toml`, without its folder.
fn load_text(text: &str, env: Env<'_>) -> Result<Config, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("larder.toml");
    fs::write(&path, text).expect("a file");
    let shown = format!("{}/", folder.path().display());
    load(Some(&path), env, Flags::default()).map_err(|error| error.to_string().replace(&shown, ""))
}

fn refusal(text: &str) -> String {
    load_text(text, &[]).expect_err(text)
}

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

fn problems(config: &Config) -> Vec<String> {
    config::validate(config)
        .err()
        .map(|invalid| invalid.0.iter().map(ToString::to_string).collect())
        .unwrap_or_default()
}

fn problem_keys(text: &str) -> Vec<String> {
    let config = load_text(text, &[]).expect(text);
    let found = config::validate(&config).err().map(|invalid| invalid.0).unwrap_or_default();
    found.into_iter().map(|problem| problem.key).collect()
}

#[test]
fn no_file_is_the_default() {
    let config = load(None, &[], Flags::default()).expect("a configuration");
    assert_eq!(config, Config::default());
    assert_eq!(problems(&config), Vec::<String>::new());
}

#[test]
fn the_reference_file_is_the_default() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/larder.toml");
    assert_eq!(load(Some(&path), &[], Flags::default()).expect("loads"), Config::default());
    // It also names every key that the default has, in the tables that show them.
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
fn every_example_can_be_used() {
    for (path, text) in examples() {
        let mut config = load(Some(&path), &[], Flags::default()).expect("loads");
        // Secrets and certificates are not shipped: give the example empty files in their place.
        let folder = tempfile::tempdir().expect("a folder");
        let stand_in = folder.path().join("stand-in");
        fs::write(&stand_in, "").expect("a file");
        let mut missing = 0;
        for upstream in config.upstream.values_mut() {
            for file in [&mut upstream.password_file, &mut upstream.ca_file] {
                missing += usize::from(file.is_some());
                *file = file.take().map(|_| stand_in.clone());
            }
        }
        assert_eq!(problems(&config), Vec::<String>::new(), "{}", path.display());
        assert_eq!(missing > 0, text.contains("_file ="), "{}", path.display());
    }
}

/// The path of each table in a document, outermost first.
fn tables(table: &Table, at: &[String], found: &mut Vec<Vec<String>>) {
    found.push(at.to_vec());
    for (key, value) in table {
        if let Value::Table(inner) = value {
            tables(inner, &[at, std::slice::from_ref(key)].concat(), found);
        }
    }
}

#[test]
fn a_bogus_key_in_any_table_of_any_example_is_refused() {
    for (path, text) in examples() {
        let document: Table = text.parse().expect("TOML");
        let mut all = Vec::new();
        tables(&document, &[], &mut all);
        // The table of upstreams takes any name; what is bogus there is a value that is no table.
        for at in all {
            let mut bogus = document.clone();
            let table = at.iter().fold(&mut bogus, |table, key| table[key].as_table_mut().expect("a table"));
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

#[test]
fn unknown_keys_get_the_nearest_name() {
    let cases = [
        (
            "\n\n[server]\nlisten = \"127.0.0.1:1\"\n\n[cache]\ntag_tll = \"1m\"\n",
            "larder.toml:7: unknown key `cache.tag_tll`; did you mean `tag_ttl`?",
        ),
        ("[sever]\nlisten = 1\n", "larder.toml:1: unknown key `sever`; did you mean `server`?"),
        (
            "[upstream.\"docker.io\"]\nendpoint = [\"https://a\"]",
            "larder.toml:2: unknown key `upstream.\"docker.io\".endpoint`; did you mean `endpoints`?",
        ),
        (
            "upstream.x.endpoints = [\"https://a\", { url = \"https://b\", autoritative = true }]",
            "larder.toml:1: unknown key `upstream.x.endpoints[1].autoritative`; did you mean `authoritative`?",
        ),
        (
            "[server]\ntag_ttl = \"1m\"",
            "larder.toml:2: unknown key `server.tag_ttl`; did you mean `cache.tag_ttl`?",
        ),
        ("[admin]\nzzz = 1", "larder.toml:2: unknown key `admin.zzz`; known here: listen"),
    ];
    for (text, wanted) in cases {
        assert_eq!(refusal(text), wanted);
    }
}

#[test]
fn wrong_values_name_the_key_and_the_line() {
    let cases = [
        ("[server]\nlisten = 5", "larder.toml:2: `server.listen`: "),
        ("[server]\nlisten = \"localhost\"", "larder.toml:2: `server.listen`: "),
        ("builtin_upstreams = \"no\"", "larder.toml:1: `builtin_upstreams`: "),
        ("[store]\n\nmax_size = \"many\"", "larder.toml:3: `store.max_size`: "),
        ("[cache]\nstale_if_error = \"sometimes\"", "larder.toml:2: `cache.stale_if_error`: "),
        ("[upstream.x]\nmax_connections = -1", "larder.toml:2: `upstream.x.max_connections`: "),
        ("[upstream.x]\nendpoints = [5]", "larder.toml:2: `upstream.x.endpoints`: "),
        ("server = 5", "larder.toml:1: `server`: expected a table, [server]"),
        ("upstream = []", "larder.toml:1: `upstream`: "),
        ("upstream.x = \"https://a\"", "larder.toml:1: `upstream.x`: "),
        ("\n[server\n", "larder.toml:2: "),
        ("[a]\n[a]\n", "larder.toml:2: "),
    ];
    for (text, wanted) in cases {
        let error = refusal(text);
        assert!(error.starts_with(wanted), "{error}");
        assert!(!error.contains('\n') && error.len() > wanted.len(), "{error}");
    }
    let missing = load(Some(Path::new("/nowhere/larder.toml")), &[], Flags::default());
    assert!(matches!(missing, Err(LoadError::Read { .. })));
}

#[test]
fn flags_win_over_environment_over_file_over_defaults() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("a.toml");
    let other = folder.path().join("b.toml");
    fs::write(&file, "[server]\nlisten = \"127.0.0.1:1\"\ngrace = \"1s\"\nmode = \"gateway\"")
        .expect("a file");
    fs::write(&other, "[server]\nlisten = \"127.0.0.1:9\"").expect("a file");
    let env: Env<'_> = &[
        ("LARDER_CONFIG", other.to_str().expect("text")),
        ("LARDER_SERVER__GRACE", "2s"),
        ("LARDER_SERVER__LISTEN", "127.0.0.1:2"),
        ("HOME", "/"),
    ];
    let flags =
        Flags { listen: Some(([127, 0, 0, 1], 3).into()), data: Some("d".into()), ..Flags::default() };
    let config = load(Some(&file), env, flags).expect("loads");
    assert_eq!(config.server.listen.port(), 3);
    assert_eq!(config.server.grace, Duration::from_secs(2));
    assert_eq!(config.server.mode, Mode::Gateway);
    assert_eq!(config.server.header_timeout, Config::default().server.header_timeout);
    assert_eq!(config.store.path, Path::new("d"));
    assert_eq!(load(Some(&file), env, Flags::default()).expect("loads").server.listen.port(), 2);
    assert_eq!(load(None, &env[..1], Flags::default()).expect("loads").server.listen.port(), 9);
}

#[test]
fn a_named_upstream_changes_only_what_it_says() {
    let config = load_text(
        "[upstream.\"docker.io\"]\ntag_ttl = \"5m\"\n[upstream.x]\nendpoints = [\"http://x\"]",
        &[],
    )
    .expect("loads");
    let mut wanted = Config::default();
    wanted.upstream.get_mut("docker.io").expect("docker.io").tag_ttl = Some(Duration::from_mins(5));
    let added = Upstream { endpoints: vec![Endpoint::new("http://x")], ..Upstream::default() };
    wanted.upstream.insert("x".to_owned(), added);
    assert_eq!(config, wanted);

    let alone = load_text("builtin_upstreams = false\n[upstream.\"docker.io\"]\n", &[]).expect("loads");
    assert_eq!(alone.upstream.keys().collect::<Vec<_>>(), ["docker.io"]);
    assert_eq!(alone.upstream["docker.io"], Config::default().upstream["docker.io"]);
}

#[test]
fn another_default_takes_the_place_of_docker_io() {
    let text = "[upstream.\"ghcr.io\"]\ndefault = true\n";
    let config = load_text(text, &[]).expect("loads");
    let defaults: Vec<_> = config.upstream.iter().filter(|(_, u)| u.default).map(|(name, _)| name).collect();
    assert_eq!(defaults, ["ghcr.io"]);
    assert_eq!(problems(&config), Vec::<String>::new());
    let both = format!("{text}[upstream.\"docker.io\"]\ndefault = true\n");
    assert_eq!(problem_keys(&both), ["upstream.\"ghcr.io\".default"]);
}

#[test]
fn upstream_flags_set_endpoints() {
    let pair = |name: &str, url: &str| (name.to_owned(), url.to_owned());
    let upstreams = vec![pair("docker.io", "http://a"), pair("x", "http://x"), pair("docker.io", "http://b")];
    let env: Env<'_> =
        &[("LARDER_UPSTREAM__DOCKER_IO__ENDPOINTS", "http://lost"), ("LARDER_UPSTREAM__X__TAG_TTL", "1s")];
    let config = load(None, env, Flags { upstreams, ..Flags::default() }).expect("loads");
    let hub = &config.upstream["docker.io"];
    assert_eq!(hub.endpoints, [Endpoint::new("http://a"), Endpoint::new("http://b")]);
    assert!(hub.default);
    assert_eq!(config.upstream["x"].endpoints, [Endpoint::new("http://x")]);
    assert_eq!(config.upstream["x"].tag_ttl, Some(Duration::from_secs(1)));
    assert_eq!(config.upstream.len(), Config::default().upstream.len() + 1);
}

/// Every value of a document with its path.
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

/// Values of every type that a key has; for each key some of them are valid and not the default.
const VALUES: [&str; 17] = [
    "true",
    "false",
    "7",
    "7s",
    "7GiB",
    "127.0.0.1:7",
    "gateway",
    "stale",
    "files",
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
fn every_key_has_an_environment_twin() {
    let default = leaves_of(&Config::default());
    let mut twins = config::variables([]);
    // What the default configuration shows must be among the twins; optional keys are twins beyond it.
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
            // docker.io gives up being the default when another upstream asks for it.
            let elected = name.ends_with("__DEFAULT");
            assert!(changed.len() <= 1 + usize::from(elected), "{name}={value}: {changed:?}");
            let dropped = name == "LARDER_BUILTIN_UPSTREAMS" && config.upstream.is_empty();
            dropped || changed.iter().any(|(path, _)| twin(path) == name)
        });
        assert!(reached, "{name} changes nothing");
    }
}

#[test]
fn variables_are_read_by_the_type_of_their_key() {
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
    assert_eq!(named.stale_if_error, Some(Limit::For(Duration::from_hours(1))));
    assert_eq!(named.on_upstream_404, Some(OnUpstream404::Stale));
}

#[test]
fn unknown_variables_are_refused() {
    let cases = [
        ("LARDER_STORE__MAX_SIZ", "1", "LARDER_STORE__MAX_SIZ; did you mean LARDER_STORE__MAX_SIZE?"),
        ("LARDER_STORE_MAX_SIZE", "1", "did you mean LARDER_STORE__MAX_SIZE?"),
        ("LARDER_BUILTIN_UPSTREAM", "1", "did you mean LARDER_BUILTIN_UPSTREAMS?"),
        ("LARDER_UPSTREAM__DOCKER_OI__TAG_TTL", "1s", "did you mean LARDER_UPSTREAM__DOCKER_IO__TAG_TTL?"),
        ("LARDER_UPSTREAM__NOWHERE__TAG_TTL", "1s", "no upstream has this name"),
        ("LARDER_WHATEVER_ELSE", "1", "variables are called LARDER_SECTION__KEY"),
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
    assert!(ambiguous.expect_err("ambiguous").contains("`a-b` or `a.b`"));
}

#[test]
fn the_variables_of_a_kubernetes_service_are_not_ours() {
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
    assert!(load(None, &[("LARDER_PORTS", "1")], Flags::default()).is_err());
}

#[test]
fn problems_name_their_key() {
    let cases = [
        ("[server]\nlisten = \"127.0.0.1:5001\"", "admin.listen"),
        ("[server]\nlisten = \"0.0.0.0:5001\"", "admin.listen"),
        ("[server]\nmax_connections = 0", "server.max_connections"),
        ("[server]\nheader_timeout = \"0s\"", "server.header_timeout"),
        ("[store]\nmax_size = 0", "store.max_size"),
        ("[store]\npath = \"\"", "store.path"),
        ("[store]\ncache_memory = \"1B\"", "store.cache_memory"),
        ("[cache]\nrevalidate_timeout = \"0s\"", "cache.revalidate_timeout"),
        ("[cache]\ntag_ttl = \"500y\"", "cache.tag_ttl"),
        ("[cache]\nstale_if_error = \"500y\"", "cache.stale_if_error"),
        ("[log]\nlevel = \"inof\"", "log.level"),
        ("[log]\nlevel = \"larder=loud\"", "log.level"),
        ("builtin_upstreams = false", "upstream"),
        ("builtin_upstreams = false\n[upstream.x]\nendpoints = [\"http://x\"]", "upstream"),
        ("[upstream.X]\nendpoints = [\"http://x\"]", "upstream.X"),
        ("[upstream.x]", "upstream.x.endpoints"),
        ("[upstream.x]\nendpoints = [\"x\"]", "upstream.x.endpoints"),
        ("[upstream.x]\nendpoints = [\"ftp://x\"]", "upstream.x.endpoints"),
        ("[upstream.x]\nendpoints = [\"https://x/?a=b\"]", "upstream.x.endpoints"),
        ("[upstream.x]\nendpoints = [\"https://x/#a\"]", "upstream.x.endpoints"),
        ("[upstream.x]\nendpoints = [\"oci:///\"]", "upstream.x.endpoints"),
        ("[upstream.x]\nendpoints = [\"oci://srv/layout\"]", "upstream.x.endpoints"),
        ("[upstream.\"quay.io\"]\nhostnames = [\"a/b\"]", "upstream.\"quay.io\".hostnames"),
        (
            "[upstream.\"gcr.io\"]\nhostnames = [\"a\"]\n[upstream.\"quay.io\"]\nhostnames = [\"A\"]",
            "upstream.\"quay.io\".hostnames",
        ),
        ("[upstream.\"quay.io\"]\nusername = \"a\"", "upstream.\"quay.io\".username"),
        ("[upstream.\"quay.io\"]\nca_file = \"/nowhere\"", "upstream.\"quay.io\".ca_file"),
        ("[upstream.\"quay.io\"]\nca_file = \"/\"", "upstream.\"quay.io\".ca_file"),
        (
            "[upstream.\"quay.io\"]\nusername = \"a\"\npassword_file = \"/nowhere\"",
            "upstream.\"quay.io\".password_file",
        ),
        ("[upstream.\"quay.io\"]\nrevalidate_timeout = \"0s\"", "upstream.\"quay.io\".revalidate_timeout"),
    ];
    for (text, key) in cases {
        assert_eq!(problem_keys(text), [key], "{text}");
    }
    assert_eq!(problem_keys("[upstream.\"quay.io\"]\npassword_file = \"/dev/null\"").len(), 1);
    let fine = [
        "[server]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"",
        "[server]\nlisten = \"127.0.0.2:5001\"",
        "[log]\nlevel = \"WARN,larder::upstream=debug,hyper=off\"",
        "[cache]\ntag_ttl = \"0s\"\nnegative_ttl = \"0s\"",
        "[upstream.\"quay.io\"]\nendpoints = [\"oci:///srv/a%20b\"]",
    ];
    for text in fine {
        assert_eq!(problem_keys(text), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn missing_features_are_refused() {
    let cases = [
        ("[store]\nblobs = \"files\"", "store.blobs"),
        ("[cache]\ntags_list = \"merged\"", "cache.tags_list"),
        ("[cache]\nstale_while_revalidate = \"1s\"", "cache.stale_while_revalidate"),
        ("[prefetch]\nplatforms = [\"linux/amd64\"]", "prefetch.platforms"),
        ("[upstream.\"quay.io\"]\ntags_list = \"upstream\"", "upstream.\"quay.io\".tags_list"),
        (
            "[upstream.\"quay.io\"]\nstale_while_revalidate = \"1s\"",
            "upstream.\"quay.io\".stale_while_revalidate",
        ),
        ("[upstream.\"quay.io\"]\ndocker_config = \"a\"", "upstream.\"quay.io\".docker_config"),
        ("[upstream.\"quay.io\"]\nclient_cert = \"a\"", "upstream.\"quay.io\".client_cert"),
        ("[upstream.\"quay.io\"]\nclient_key = \"a\"", "upstream.\"quay.io\".client_key"),
        ("[upstream.\"quay.io\"]\nallow = [\"a\"]", "upstream.\"quay.io\".allow"),
        ("[upstream.\"quay.io\"]\ndeny = [\"a\"]", "upstream.\"quay.io\".deny"),
        ("[upstream.x]\nendpoints = [\"http://a\", \"http://b\"]", "upstream.x.endpoints"),
        ("[upstream.x]\nendpoints = [{ url = \"http://a\", authoritative = false }]", "upstream.x.endpoints"),
    ];
    for (text, key) in cases {
        let config = load_text(text, &[]).expect(text);
        let found = problems(&config);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with(&format!("`{key}`: this version of larder cannot")), "{found:?}");
    }
    // An empty value asks for nothing.
    let quiet =
        "[store]\nblobs = \"sled\"\n[upstream.\"quay.io\"]\nallow = []\nstale_while_revalidate = \"0s\"";
    assert_eq!(load_text(quiet, &[]).expect("loads").store.blobs, BlobStore::Sled);
    assert_eq!(problem_keys(quiet), Vec::<String>::new());
}

#[test]
fn a_secret_in_a_url_is_not_repeated() {
    let text = "[upstream.x]\nendpoints = [\"https://user:hunter2@x\"]";
    let error = config::validate(&load_text(text, &[]).expect("loads")).expect_err("refused").to_string();
    assert!(error.contains("credentials") && !error.contains("hunter2"), "{error}");
}

/// Runs the program with nothing in its environment but `env`.
fn larder(arguments: &[&str], env: Env<'_>) -> Output {
    Command::new(env!("CARGO_BIN_EXE_larder"))
        .args(arguments)
        .env_clear()
        .envs(env.iter().copied())
        .output()
        .expect("the program runs")
}

#[test]
fn validate_prints_what_serve_would_use() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("larder.toml");
    // Sizes without a round unit and endpoints written as tables must survive as well.
    let text = "[store]\nmax_size = 5000000001\n[upstream.x]\nendpoints = [{ url = \"https://x\" }]\nusername = \"me\"\npassword_file = \"/dev/null\"";
    fs::write(&file, text).expect("a file");
    let env: Env<'_> = &[("LARDER_CONFIG", file.to_str().expect("text")), ("LARDER_LOG__FORMAT", "json")];
    let out = larder(&["validate", "--listen", "127.0.0.1:7"], env);
    assert!(out.status.success(), "{out:?}");
    assert_eq!(String::from_utf8_lossy(&out.stderr), "ok\n");
    let printed = String::from_utf8(out.stdout).expect("text");
    let flags = Flags { listen: Some(([127, 0, 0, 1], 7).into()), ..Flags::default() };
    assert_eq!(load_text(&printed, &[]).expect("loads"), load(None, env, flags).expect("loads"));
    assert!(
        printed.contains("max_size = \"5000000001B\"") && printed.contains("min_free = \"1GiB\""),
        "{printed}"
    );
}

#[test]
fn errors_are_one_sentence_and_an_exit_code() {
    let cases: [(&[&str], Env<'_>, i32, &str); 5] = [
        (
            &["validate", "--config", "/nowhere"],
            &[],
            1,
            "larder: the configuration file /nowhere cannot be read: ",
        ),
        (
            &["serve"],
            &[("LARDER_CACHE__TAG_TTL", "x")],
            1,
            "larder: environment variable LARDER_CACHE__TAG_TTL: ",
        ),
        (
            &["validate", "--upstream", "a=b"],
            &[],
            1,
            "larder: the configuration cannot be used: `upstream.a.end",
        ),
        (
            &["validate", "--upstream", "a"],
            &[],
            2,
            "error: invalid value 'a' for '--upstream <NAME=URL>': write",
        ),
        (&["serve", "--lisen", "1"], &[], 2, "error: unexpected argument '--lisen' found"),
    ];
    for (arguments, env, code, start) in cases {
        let out = larder(arguments, env);
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{said}");
        assert!(said.starts_with(start), "{said}");
        assert!(code == 2 || said.lines().count() == 1, "{said}");
        assert!(out.stdout.is_empty());
    }
    let version = larder(&["--version"], &[]);
    assert_eq!(String::from_utf8_lossy(&version.stdout), format!("larder {}\n", env!("CARGO_PKG_VERSION")));
}
