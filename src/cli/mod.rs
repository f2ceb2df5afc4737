//! The command line: arguments, and the verb that each command runs.

mod backend;
mod check;
mod colours;
mod convert;
mod demo;
mod doctor;
mod events;
mod exit;
mod export;
mod healthcheck;
mod import;
mod inspect;
mod list;
mod manual;
mod platforms;
mod progress;
mod remote;
mod remove;
mod scrub;
mod serve;
mod setup;
mod status;
mod table;
mod validate;
mod warm;

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

pub use exit::code as exit_code;

use crate::config::address::ListenAddress;
use crate::config::{self, Config, Flags};

/// A pull-through cache for container images.
#[derive(Debug, Parser)]
#[command(name = "larder", version, arg_required_else_help = true, after_long_help = exit::TABLE)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start the server; without a file and flags it listens on 127.0.0.1:5000 and stores in ./larder-data
    Serve(Settings),
    /// Check the configuration and print the effective one, defaults included
    Validate(Settings),
    /// Health check: exit 0 if the server with this configuration is ready, else 1
    Healthy(Settings),
    /// Work on a store that no server has open
    #[command(subcommand)]
    Store(convert::Store),
    /// Show the server's state: hits, traffic, upstreams, fills, disk and jobs
    Status(status::Status),
    /// List the cached images, by tag and by digest
    Ls(list::List),
    /// List the cached tags of a repository
    Tags(list::Tags),
    /// Show an index, or the manifest or config of one platform, and which parts are cached
    // `--config` of this verb means the image's config.
    #[command(mut_arg("config_file", |arg| arg.long("config-file")))]
    Inspect(inspect::Inspect),
    /// Check that images can be pulled without the upstream, and list missing content; exit 4 if not
    Check(check::Check),
    /// Fetch images into the cache; exit 4 if an image could not be fetched completely
    Warm(warm::Warm),
    /// Remove images from the cache, with all content that no other image needs
    Rm(remove::Remove),
    /// Write an image as an OCI layout into a folder or a tar; fetches missing content
    Export(export::Export),
    /// Add images from an OCI layout in a folder or a tar, as if they had been pulled
    Import(import::Import),
    /// Verify the digest of all cached content; exit 3 if content is damaged
    Verify(scrub::Verify),
    /// Remove orphaned data, and show how much content tags lead to
    Gc(scrub::Gc),
    /// Check everything that larder depends on, with a remedy for each failure; exit 4 if a check fails
    Doctor(doctor::Doctor),
    /// Print the client configuration for this server, or install it with --write
    Setup(setup::Setup),
    /// Print the completion script of a shell
    Completions(manual::Completions),
    /// Print the manual page larder(1), or write the pages of all verbs with --dir
    Man(manual::Manual),
    /// Demonstration: pull an image through a temporary server, then again without the upstream
    Demo {
        /// Keep serving afterwards until a signal arrives
        #[arg(long)]
        stay: bool,
    },
}

/// Sources of the configuration, shared by the verbs that need one.
#[derive(Args, Clone, Debug)]
struct Settings {
    /// Configuration file; default: the value of `LARDER_CONFIG`, else none
    #[arg(long, id = "config_file", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address for clients, without TLS: `IP:PORT`, `unix:/PATH` or `systemd:NAME` (server.listen); may be repeated
    #[arg(long, value_name = "ADDR")]
    listen: Vec<ListenAddress>,
    /// Folder of the store (store.path)
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Upstream and its endpoint, such as docker.io=https://mirror.example.com; may be repeated
    #[arg(long, value_name = "NAME=URL", value_parser = upstream)]
    upstream: Vec<(String, String)>,
}

fn upstream(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, url)) if !name.is_empty() && !url.is_empty() => Ok((name.to_owned(), url.to_owned())),
        _ => Err("write NAME=URL, such as ghcr.io=https://ghcr.io".to_owned()),
    }
}

impl Settings {
    /// Returns the effective configuration after validation.
    fn load(&self) -> anyhow::Result<Config> {
        let Self { listen, data, upstream, .. } = self.clone();
        let flags = Flags { listen, data, upstreams: upstream };
        let config = config::load(self.config.as_deref(), environment()?.into_iter(), flags)?;
        config::validate(&config)?;
        Ok(config)
    }

    /// Returns the configuration file, if there is one.
    fn file(&self) -> anyhow::Result<Option<PathBuf>> {
        Ok(config::file(self.config.as_deref(), environment()?))
    }
}

/// Returns the environment variables that begin with `LARDER_`. Their values must be UTF-8.
fn environment() -> anyhow::Result<Vec<(String, String)>> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(name, _)| name.starts_with("LARDER_"))
        .map(|(name, value)| match value.into_string() {
            Ok(value) => Ok((name, value)),
            Err(_) => anyhow::bail!("environment variable {name}: the value is not UTF-8"),
        })
        .collect()
}

/// Parses the command line. Help and usage errors end the process.
pub fn arguments() -> Arguments {
    let colours = colours::choice();
    colours::follow(colours);
    let mut command = Arguments::command().color(colours);
    let read = Arguments::from_arg_matches(&command.get_matches_mut());
    read.unwrap_or_else(|error| error.format(&mut command).exit())
}

/// Runs the verb of the command line.
pub fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.verb {
        Verb::Serve(settings) => serve::run(settings),
        Verb::Validate(settings) => validate::run(&settings.load()?),
        Verb::Healthy(settings) => healthcheck::run(&settings.load()?),
        Verb::Store(store) => convert::run(store),
        Verb::Status(arguments) => status::run(arguments),
        Verb::Ls(arguments) => list::list(arguments),
        Verb::Tags(arguments) => list::tags(arguments),
        Verb::Inspect(arguments) => inspect::run(arguments),
        Verb::Check(arguments) => check::run(arguments),
        Verb::Warm(arguments) => warm::run(arguments),
        Verb::Rm(arguments) => remove::run(arguments),
        Verb::Export(arguments) => export::run(arguments),
        Verb::Import(arguments) => import::run(arguments),
        Verb::Verify(arguments) => scrub::verify(arguments),
        Verb::Gc(arguments) => scrub::gc(arguments),
        Verb::Doctor(arguments) => doctor::run(&arguments),
        Verb::Setup(arguments) => setup::run(&arguments),
        Verb::Completions(arguments) => manual::completions(&arguments),
        Verb::Man(arguments) => manual::man(&arguments),
        Verb::Demo { stay } => demo::run(stay),
    }
}

/// Returns an error and its causes in one line. Skips a cause that the text already ends with.
pub fn sentence(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.ends_with(&cause) {
            // Writing to a String cannot fail.
            let _ = write!(line, ": {cause}");
        }
    }
    line.replace('\n', " ")
}

/// Writes to standard output. A closed pipe (`larder validate | head -1`) is not an error.
fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("standard output cannot be written"),
    }
}

/// Writes a line to standard error, so that standard output stays machine-readable.
fn note(line: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    writeln!(std::io::stderr().lock(), "{line}").context("standard error cannot be written")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn flags_are_read() {
        let line = [
            "larder",
            "serve",
            "--listen",
            "0.0.0.0:80",
            "--upstream",
            "a=http://b/?c=d",
            "--upstream",
            "a=x",
        ];
        let Verb::Serve(settings) = Arguments::try_parse_from(line).expect("arguments").verb else {
            panic!("another verb");
        };
        assert_eq!(settings.listen, ["0.0.0.0:80".parse().expect("an address")]);
        let pair = |name: &str, url: &str| (name.to_owned(), url.to_owned());
        assert_eq!(settings.upstream, [pair("a", "http://b/?c=d"), pair("a", "x")]);
        for bad in ["a", "=b", "a="] {
            assert!(Arguments::try_parse_from(["larder", "serve", "--upstream", bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn sentence_joins_the_error_chain() {
        let inner = anyhow::anyhow!("disk\nfull");
        let repeated = anyhow::anyhow!("cannot write: disk full");
        assert_eq!(sentence(&inner.context("cannot write")), "cannot write: disk full");
        assert_eq!(sentence(&anyhow::anyhow!("disk full").context(repeated)), "cannot write: disk full");
    }
}
