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
mod output;
mod platforms;
mod progress;
mod remote;
mod remove;
mod scrub;
mod serve;
mod settings;
mod setup;
mod status;
mod table;
mod validate;
mod warm;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use settings::Settings;

pub use exit::code as exit_code;
pub use output::sentence;

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

/// Parses the command line. Help and usage errors end the process.
pub fn arguments() -> Arguments {
    let colours = colours::choice();
    colours::follow(colours);
    let mut command = Arguments::command().color(colours);
    let read = Arguments::from_arg_matches(&command.get_matches_mut());
    read.unwrap_or_else(|error| error.format(&mut command).exit())
}

/// Runs the verb of the command line. A server calls `release_memory` from time to time to return freed memory to the system.
pub fn run(arguments: Arguments, release_memory: fn()) -> anyhow::Result<()> {
    match arguments.verb {
        Verb::Serve(settings) => serve::run(settings, release_memory),
        Verb::Validate(settings) => validate::run(&settings.load()?),
        Verb::Healthy(settings) => healthcheck::run(&settings),
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
        Verb::Completions(arguments) => manual::completions(&arguments, Arguments::command()),
        Verb::Man(arguments) => manual::man(&arguments, Arguments::command()),
        Verb::Demo { stay } => demo::run(stay),
    }
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
}
