//! Rejected files, and invalid values of valid keys.

use std::path::Path;

use larder::config::{self, Flags, LoadError};

use crate::config::{load, load_text, problem_keys, problems, refusal};

#[test]
fn unknown_key_error_suggests_the_nearest_key() {
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
        (
            "[admin]\nzzz = 1",
            "larder.toml:2: unknown key `admin.zzz`; known keys: listen, tls_listen, tls_cert, tls_key, token_file, require_token",
        ),
    ];
    for (text, wanted) in cases {
        assert_eq!(refusal(text), wanted);
    }
}

#[test]
fn wrong_value_error_names_key_and_line() {
    let cases = [
        ("[server]\nlisten = 5", "larder.toml:2: `server.listen`: "),
        (
            "[server]\nlisten = \"localhost\"",
            "larder.toml:2: `server.listen`: `localhost` is not an address; write IP:PORT",
        ),
        (
            "[server]\nlisten = [\"[::1]:1\", \"unix:x\"]",
            "larder.toml:2: `server.listen`: `x` is not a valid socket path",
        ),
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
    let shown = refusal("[upstream.x]\ntag_ttl = 60");
    assert!(shown.ends_with("; for example tag_ttl = \"1m\""), "{shown}");
    let missing = load(Some(Path::new("/nowhere/larder.toml")), &[], Flags::default());
    assert!(matches!(missing, Err(LoadError::Read { .. })));
}

#[test]
fn problems_name_the_key() {
    let cases = [
        ("[server]\nlisten = \"127.0.0.1:5001\"", "admin.listen"),
        ("[server]\nlisten = \"0.0.0.0:5001\"", "admin.listen"),
        ("[server]\nlisten = [\"127.0.0.1:1\", \"0.0.0.0:1\"]", "server.listen"),
        ("[server]\nlisten = []", "server.listen"),
        ("[admin]\nlisten = []", "admin.listen"),
        ("[admin]\nlisten = [\"unix:/a\", \"unix:/a\"]", "admin.listen"),
        ("[server]\ntls_listen = \"127.0.0.1:1\"", "server.tls_listen"),
        ("[admin]\ntls_listen = \"127.0.0.1:1\"", "admin.tls_listen"),
        ("[server]\ntls_listen = \"127.0.0.1:1\"\ntls_cert = \"/dev/null\"", "server.tls_cert"),
        ("[server]\ntls_cert = \"/dev/null\"\ntls_key = \"/dev/null\"", "server.tls_cert"),
        ("[admin]\ntls_key = \"/dev/null\"", "admin.tls_key"),
        ("[trace]\nendpoint = \"127.0.0.1:4318\"", "trace.endpoint"),
        ("[trace]\nsample = 1.1", "trace.sample"),
        ("[trace]\nservice = \"\"", "trace.service"),
        ("[server]\nmax_connections = 0", "server.max_connections"),
        ("[server]\nmax_connections_per_client = 0", "server.max_connections_per_client"),
        ("[server]\nheader_timeout = \"0s\"", "server.header_timeout"),
        ("[store]\nmax_size = 0", "store.max_size"),
        ("[store]\npath = \"\"", "store.path"),
        ("[store]\ncache_memory = \"1B\"", "store.cache_memory"),
        ("[cache]\nrevalidate_timeout = \"0s\"", "cache.revalidate_timeout"),
        ("[cache]\ntag_ttl = \"500y\"", "cache.tag_ttl"),
        ("[cache]\nstale_if_error = \"500y\"", "cache.stale_if_error"),
        ("[cache]\nstale_if_denied = \"500y\"", "cache.stale_if_denied"),
        (
            "[upstream.\"a.b\"]\nendpoints = [\"https://a.b\"]\nmanifest_max_size = \"1KiB\"",
            "upstream.\"a.b\".manifest_max_size",
        ),
        (
            "[upstream.\"a.b\"]\nendpoints = [\"https://a.b\"]\nmanifest_max_size = \"17MiB\"",
            "upstream.\"a.b\".manifest_max_size",
        ),
        ("[log]\nlevel = \"inof\"", "log.level"),
        ("[log]\nlevel = \"larder=loud\"", "log.level"),
        ("[prefetch]\nplatforms = [\"arm64\"]", "prefetch.platforms"),
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
        ("[upstream.\"quay.io\"]\nclient_cert = \"/dev/null\"", "upstream.\"quay.io\".client_cert"),
        ("[upstream.\"quay.io\"]\nclient_key = \"/dev/null\"", "upstream.\"quay.io\".client_key"),
        ("[upstream.\"quay.io\"]\ndocker_config = \"/nowhere\"", "upstream.\"quay.io\".docker_config"),
        ("[upstream.\"quay.io\"]\nrealm_hosts = [\"\"]", "upstream.\"quay.io\".realm_hosts"),
        ("[upstream.\"quay.io\"]\nrealm_hosts = [\"a\", \"https://a\"]", "upstream.\"quay.io\".realm_hosts"),
        ("[upstream.\"quay.io\"]\nrealm_hosts = [\"*.a\"]", "upstream.\"quay.io\".realm_hosts"),
        ("[upstream.\"quay.io\"]\nrevalidate_timeout = \"0s\"", "upstream.\"quay.io\".revalidate_timeout"),
        ("[upstream.\"quay.io\"]\nhead_timeout = \"0s\"", "upstream.\"quay.io\".head_timeout"),
        ("[upstream.\"quay.io\"]\nidle_timeout = \"0s\"", "upstream.\"quay.io\".idle_timeout"),
        ("[upstream.\"quay.io\"]\nallow = [\"org/**\", \"org/[a\"]", "upstream.\"quay.io\".allow"),
        ("[upstream.\"quay.io\"]\ndeny = [\"org**\"]", "upstream.\"quay.io\".deny"),
        ("[upstream.\"quay.io\"]\ndeny = [\"Org/*\"]", "upstream.\"quay.io\".deny"),
        ("[upstream.\"quay.io\"]\ndeny = [\"org/app:v1\"]", "upstream.\"quay.io\".deny"),
        ("[upstream.\"quay.io\"]\ndeny = [\"quay.io/org/*\"]", "upstream.\"quay.io\".deny"),
        ("[upstream.\"docker.io\"]\ndeny = [\"busybox\"]", "upstream.\"docker.io\".deny"),
    ];
    for (text, key) in cases {
        assert_eq!(problem_keys(text), [key], "{text}");
    }
    assert_eq!(problem_keys("[upstream.\"quay.io\"]\npassword_file = \"/dev/null\"").len(), 1);
    let pair =
        "[upstream.x]\nendpoints = [\"https://x\"]\nclient_cert = \"/nowhere\"\nclient_key = \"/nowhere\"";
    assert_eq!(problem_keys(pair), ["upstream.x.client_cert", "upstream.x.client_key"]);
    let fine = [
        "[server]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"",
        "[server]\nlisten = \"127.0.0.2:5001\"",
        "[log]\nlevel = \"WARN,larder::upstream=debug,hyper=off\"",
        "[cache]\ntag_ttl = \"0s\"\nnegative_ttl = \"0s\"",
        "[upstream.\"quay.io\"]\nendpoints = [\"oci:///srv/a%20b\"]",
        "[cache]\ntags_list = \"merged\"\n[upstream.\"quay.io\"]\ntags_list = \"upstream\"",
        "[upstream.\"docker.io\"]\nallow = [\"library/*\", \"org/**\"]\ndeny = [\"**\", \"library/[a-m]?*\"]",
        "[upstream.\"quay.io\"]\ndeny = [\"busybox\", \"*\"]",
    ];
    for text in fine {
        assert_eq!(problem_keys(text), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn docker_config_must_be_valid() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("config.json");
    let found = |content: &str, more: &str| {
        std::fs::write(&file, content).expect("written");
        let text = format!("[upstream.\"quay.io\"]\ndocker_config = {file:?}\n{more}");
        problems(&load_text(&text, &[]).expect("loads"))
    };
    assert_eq!(found("{}", ""), Vec::<String>::new());
    assert_eq!(
        found(r#"{"auths":{"quay.io":{"auth":"dTpw"}},"credsStore":"pass"}"#, ""),
        Vec::<String>::new()
    );
    for (content, wanted) in [
        ("", "not valid JSON at line 1"),
        (
            "{ \"auths\": { \"quay.io\": { \"auth\": \"hush\" } } }",
            "auths.\"quay.io\".auth is not the Base64",
        ),
        ("{ \"auths\": { \"quay.io\": \"hush\" } }", "a value has the wrong type"),
        ("{ \"credsStore\": \"../pass\" }", "credsStore names the helper \"../pass\""),
        ("{ \"credHelpers\": { \"quay.io\": \"/bin/sh\" } }", "names the helper \"/bin/sh\""),
    ] {
        let found = found(content, "");
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("`upstream.\"quay.io\".docker_config`: /"), "{found:?}");
        assert!(found[0].contains("config.json: ") && found[0].contains(wanted), "{found:?}");
        assert!(!found[0].contains("hush"), "{found:?}");
    }
    let both = found("{}", "username = \"u\"\npassword_file = \"/dev/null\"");
    assert_eq!(both.len(), 1, "{both:?}");
    assert!(both[0].contains("conflicts with `username`"), "{both:?}");
}

#[test]
fn malformed_pattern_error_names_the_remedy() {
    for (name, pattern, remedy) in [
        ("quay.io", "org**", "as in \"org/**\""),
        ("quay.io", "quay.io/org/*", "write \"org/*\""),
        ("docker.io", "busybox", "write \"library/busybox\""),
        ("quay.io", "Org/*", "write lower case"),
    ] {
        let config =
            load_text(&format!("[upstream.\"{name}\"]\ndeny = [\"{pattern}\"]"), &[]).expect("loads");
        let found = problems(&config);
        assert!(found.len() == 1 && found[0].contains(pattern) && found[0].contains(remedy), "{found:?}");
    }
}

#[test]
fn secret_in_a_url_is_not_printed() {
    let text = "[upstream.x]\nendpoints = [\"https://user:hunter2@x\"]";
    let error = config::validate(&load_text(text, &[]).expect("loads")).expect_err("refused").to_string();
    assert!(error.contains("credentials") && !error.contains("hunter2"), "{error}");
}

#[test]
fn upstream_needs_an_authoritative_endpoint() {
    let text = "[upstream.x]\nendpoints = [{ url = \"http://a\", authoritative = false }]";
    assert_eq!(problem_keys(text), ["upstream.x.endpoints"]);
    let text = "[upstream.x]\nendpoints = [{ url = \"http://a\", authoritative = false }, \"http://b\"]";
    assert_eq!(problem_keys(text), Vec::<String>::new());
}

#[test]
fn quota_floor_is_a_fraction() {
    assert_eq!(problem_keys("[prefetch]\nquota_floor = 1.5"), ["prefetch.quota_floor"]);
    assert_eq!(problem_keys("[prefetch]\nquota_floor = -0.1\nquota_check = \"0s\"").len(), 2);
    assert_eq!(problem_keys("[prefetch]\nquota_floor = 0.0"), Vec::<String>::new());
}
