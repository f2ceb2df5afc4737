//! Precedence of defaults, file, environment and flags, and the effect of naming an upstream.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use larder::config::schema::{Endpoint, ServerMode, Upstream};
use larder::config::{Config, Flags};

use crate::config::{Env, load, load_text, problem_keys, problems};

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

#[test]
fn missing_file_means_defaults() {
    let config = load(None, &[], Flags::default()).expect("a configuration");
    assert_eq!(config, Config::default());
    assert_eq!(problems(&config), Vec::<String>::new());
}

#[test]
fn flags_override_environment_override_file_override_defaults() {
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
    let flags = Flags { listen: vec![loopback(3).into()], data: Some("d".into()), ..Flags::default() };
    let config = load(Some(&file), env, flags).expect("loads");
    assert_eq!(config.server.listen, loopback(3).into());
    assert_eq!(config.server.grace, Duration::from_secs(2));
    assert_eq!(config.server.mode, ServerMode::Gateway);
    assert_eq!(config.server.header_timeout, Config::default().server.header_timeout);
    assert_eq!(config.store.path, Path::new("d"));
    assert_eq!(load(Some(&file), env, Flags::default()).expect("loads").server.listen, loopback(2).into());
    assert_eq!(load(None, &env[..1], Flags::default()).expect("loads").server.listen, loopback(9).into());
}

#[test]
fn upstream_table_changes_only_its_keys() {
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
fn default_upstream_replaces_docker_io() {
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
