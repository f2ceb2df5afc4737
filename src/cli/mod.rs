//! The command line: what can be said on it, and which verb it leads to.

mod backend;
mod bars;
mod check;
mod colours;
mod convert;
mod demo;
mod doctor;
mod events;
mod exit;
mod export;
mod healthy;
mod import;
mod inspect;
mod list;
mod manual;
mod platforms;
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
    /// Serve images; without a file and flags on 127.0.0.1:5000, kept in ./larder-data
    Serve(Settings),
    /// Check the configuration and print the one that results, defaults included
    Validate(Settings),
    /// Ask the larder that runs with this configuration whether it is ready; ends with 1 if it is not
    Healthy(Settings),
    /// Work on a store that no larder has open
    #[command(subcommand)]
    Store(convert::Store),
    /// Show how a larder is doing: hits, traffic, upstreams, fills, disk and jobs
    Status(status::Status),
    /// List what is held: images by tag, and those pulled by digest
    Ls(list::List),
    /// List the tags held of a repository
    Tags(list::Tags),
    /// Show an index, or the manifest or config of one platform, and what of it is held
    // Its `--config` is the image's.
    #[command(mut_arg("config_file", |arg| arg.long("config-file")))]
    Inspect(inspect::Inspect),
    /// Tell whether pulls would succeed without the upstream, and name what is missing; ends with 4 if they would not
    Check(check::Check),
    /// Fetch images before anybody asks for them; ends with 4 if not all of them could be
    Warm(warm::Warm),
    /// Take images out of the cache, with what only they lead to
    Rm(remove::Remove),
    /// Write an image as an OCI layout, into a folder or a tar; fetches what is missing
    Export(export::Export),
    /// Take images in from an OCI layout in a folder or a tar, as if they had been pulled
    Import(import::Import),
    /// Hold everything against its digest; ends with 3 if something is damaged
    Verify(scrub::Verify),
    /// Remove what is left of content that has gone, and tell what tags lead to
    Gc(scrub::Gc),
    /// Look at everything that larder depends on, say what fails and what helps; ends with 4 if something fails
    Doctor(doctor::Doctor),
    /// Print what a client has to be told so that it pulls through this larder, or tell it with --write
    Setup(setup::Setup),
    /// Print what a shell has to read to complete the command line
    Completions(manual::Completions),
    /// Print larder(1), or write the pages of all verbs with --dir
    Man(manual::Manual),
    /// Pull an image through a larder of its own, then again without the upstream, and show what happened
    Demo {
        /// Go on serving afterwards, until a signal comes
        #[arg(long)]
        stay: bool,
    },
}

/// Where the configuration comes from; shared by the verbs that need one.
#[derive(Args, Clone, Debug)]
struct Settings {
    /// The configuration file; otherwise the variable `LARDER_CONFIG` names it, if set
    #[arg(long, id = "config_file", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where clients pull from, without TLS: `IP:PORT`, `unix:/PATH` or `systemd:NAME` (server.listen); may be repeated
    #[arg(long, value_name = "ADDR")]
    listen: Vec<ListenAddress>,
    /// The folder that content is kept in (store.path)
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// An upstream and its endpoint, such as docker.io=https://mirror.example.com; may be repeated
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
    /// The effective configuration, checked.
    fn load(&self) -> anyhow::Result<Config> {
        let Self { listen, data, upstream, .. } = self.clone();
        let flags = Flags { listen, data, upstreams: upstream };
        let config = config::load(self.config.as_deref(), environment()?.into_iter(), flags)?;
        config::validate(&config)?;
        Ok(config)
    }

    /// The file among it, if there is one.
    fn file(&self) -> anyhow::Result<Option<PathBuf>> {
        Ok(config::file(self.config.as_deref(), environment()?))
    }
}

/// Our part of the environment. Foreign variables may hold anything, ours must be text.
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

/// Reads the command line; help, or what is wrong with it, ends the process.
pub fn arguments() -> Arguments {
    let colours = colours::choice();
    colours::follow(colours);
    let mut command = Arguments::command().color(colours);
    let read = Arguments::from_arg_matches(&command.get_matches_mut());
    read.unwrap_or_else(|error| error.format(&mut command).exit())
}

/// Does what the command line asks for.
pub fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.verb {
        Verb::Serve(settings) => serve::run(settings),
        Verb::Validate(settings) => validate::run(&settings.load()?),
        Verb::Healthy(settings) => healthy::run(&settings.load()?),
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

/// An error and its causes in one line. A cause that the sentence before it repeats is left out.
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

/// Writes to standard output; a reader that has gone (`larder validate | head -1`) is no error.
fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("standard output cannot be written"),
    }
}

/// Writes a line to standard error, beside what a program may read from standard output.
fn note(line: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    writeln!(std::io::stderr().lock(), "{line}").context("standard error cannot be written")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
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
    fn a_chain_is_one_sentence() {
        let inner = anyhow::anyhow!("disk\nfull");
        let repeated = anyhow::anyhow!("cannot write: disk full");
        assert_eq!(sentence(&inner.context("cannot write")), "cannot write: disk full");
        assert_eq!(sentence(&anyhow::anyhow!("disk full").context(repeated)), "cannot write: disk full");
    }
}
