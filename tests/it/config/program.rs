//! `larder validate` and error messages of the program.

use std::fs;
use std::net::SocketAddr;
use std::process::{Command, Output};

use larder::config::Flags;

use crate::config::{Env, load, load_text};

/// Runs the program with only these environment variables.
fn larder(arguments: &[&str], env: Env<'_>) -> Output {
    Command::new(env!("CARGO_BIN_EXE_larder"))
        .args(arguments)
        .env_clear()
        .envs(env.iter().copied())
        .output()
        .expect("the program runs")
}

#[test]
fn validate_prints_the_effective_configuration() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("larder.toml");
    // Sizes without a round unit and endpoints as tables must be preserved.
    let text = "[store]\nmax_size = 5000000001\n[upstream.x]\nendpoints = [{ url = \"https://x\" }]\nusername = \"me\"\npassword_file = \"/dev/null\"";
    fs::write(&file, text).expect("a file");
    let env: Env<'_> = &[("LARDER_CONFIG", file.to_str().expect("text")), ("LARDER_LOG__FORMAT", "json")];
    let out = larder(&["validate", "--listen", "127.0.0.1:7"], env);
    assert!(out.status.success(), "{out:?}");
    assert_eq!(String::from_utf8_lossy(&out.stderr), "ok\n");
    let printed = String::from_utf8(out.stdout).expect("text");
    let flags = Flags { listen: vec![SocketAddr::from(([127, 0, 0, 1], 7)).into()], ..Flags::default() };
    assert_eq!(load_text(&printed, &[]).expect("loads"), load(None, env, flags).expect("loads"));
    assert!(
        printed.contains("max_size = \"5000000001B\"") && printed.contains("min_free = \"1GiB\""),
        "{printed}"
    );
}

#[test]
fn errors_are_one_sentence_with_an_exit_code() {
    let cases: [(&[&str], Env<'_>, i32, &str); 5] = [
        (
            &["validate", "--config", "/nowhere"],
            &[],
            1,
            "larder: configuration file /nowhere cannot be read: ",
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
