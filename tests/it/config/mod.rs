//! Configuration: the shipped examples, layering, environment variables, rejected files, the program.

mod environment;
mod examples;
mod layering;
mod program;
mod reference;
mod refusals;

use std::fs;
use std::path::Path;

use larder::config::{self, Config, Flags, LoadError};

type Env<'a> = &'a [(&'a str, &'a str)];

fn load(file: Option<&Path>, env: Env<'_>, flags: Flags) -> Result<Config, LoadError> {
    config::load(file, env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())), flags)
}

/// Loads a file with this text. Errors name it `larder.toml`, without its folder.
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
