//! `larder completions` and `larder man`: what shells and the manual know of the command line, read off it.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Command, CommandFactory as _, ValueEnum};
use clap_complete::{Shell, generate};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::{Arguments, exit, print};

/// What `larder completions` is told.
#[derive(Args, Debug)]
pub(super) struct Completions {
    /// Whose they are
    shell: Kind,
}

/// A shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    Bash,
    Zsh,
    Fish,
    Elvish,
    Powershell,
}

impl From<Kind> for Shell {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Bash => Self::Bash,
            Kind::Zsh => Self::Zsh,
            Kind::Fish => Self::Fish,
            Kind::Elvish => Self::Elvish,
            Kind::Powershell => Self::PowerShell,
        }
    }
}

/// What `larder man` is told.
#[derive(Args, Debug)]
pub(super) struct Manual {
    /// Write larder(1) and a page for each verb into this folder, which is made if it is not there; otherwise larder(1) is
    /// printed
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Prints what a shell has to read.
pub(super) fn completions(arguments: &Completions) -> anyhow::Result<()> {
    let mut script = Vec::new();
    generate(Shell::from(arguments.shell), &mut Arguments::command(), "larder", &mut script);
    print(&String::from_utf8(script).context("the completions are no text")?)
}

/// Prints the manual's first page, or writes all of them.
pub(super) fn man(arguments: &Manual) -> anyhow::Result<()> {
    let mut command = Arguments::command().disable_help_subcommand(true);
    command.build();
    let Some(folder) = &arguments.dir else {
        return print(&String::from_utf8(page(&command)?).context("the page is no text")?);
    };
    std::fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let written = write(&command, folder)?;
    print(&format!("{written} pages are in {}\n", folder.display()))
}

/// Writes the page of a command and those of its verbs; how many.
fn write(command: &Command, folder: &Path) -> anyhow::Result<usize> {
    let path = folder.join(Man::new(command.clone()).get_filename());
    let file = tempfile::NamedTempFile::new_in(folder);
    let wrote = file.and_then(|mut file| {
        file.write_all(&page(command)?)?;
        // As other files that everybody reads.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        file.as_file().set_permissions(mode)?;
        Ok(file.persist(&path)?)
    });
    wrote.with_context(|| format!("{} cannot be written", path.display()))?;
    command.get_subcommands().try_fold(1, |count, verb| Ok(count + write(verb, folder)?))
}

/// One page, with what no command line tells behind what it does.
fn page(command: &Command) -> std::io::Result<Vec<u8>> {
    let man =
        Man::new(command.clone()).manual("larder").source(format!("larder {}", env!("CARGO_PKG_VERSION")));
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    let whole = command.has_subcommands();
    if whole {
        man.render_subcommands_section(&mut text)?;
    }
    let mut roff = Roff::new();
    terms(&mut roff, "EXIT STATUS", exit_codes());
    if whole {
        terms(&mut roff, "ENVIRONMENT", ENVIRONMENT.map(|(name, says)| (name.to_owned(), says.to_owned())));
        terms(&mut roff, "FILES", FILES.map(|(name, says)| (name.to_owned(), says.to_owned())));
    }
    roff.to_writer(&mut text)?;
    Ok(text)
}

const ENVIRONMENT: [(&str, &str); 5] = [
    ("LARDER_CONFIG", "The configuration file, where --config names none."),
    (
        "LARDER_SECTION__KEY",
        "A key of the configuration, over the file and under flags: LARDER_STORE__MAX_SIZE is max_size under [store].",
    ),
    ("NO_COLOR", "If it is not empty, nothing is coloured."),
    (
        "CLICOLOR_FORCE",
        "If it is neither empty nor 0, and NO_COLOR is not set, all is coloured, also beyond a terminal.",
    ),
    ("CLICOLOR", "If it is 0, nothing is coloured that CLICOLOR_FORCE does not want so."),
];

const FILES: [(&str, &str); 3] = [
    (
        "/etc/larder/larder.toml",
        "The configuration, where larder runs as a service. There is none that is read unasked.",
    ),
    ("./larder-data", "What is held, unless store.path in the configuration or --data names another folder."),
    ("/run/larder", "Where a service may have sockets: listen = \"unix:/run/larder/larder.sock\"."),
];

/// A section of terms, each with what it means.
fn terms(roff: &mut Roff, title: &str, terms: impl IntoIterator<Item = (String, String)>) {
    roff.control("SH", [title]);
    for (term, meaning) in terms {
        roff.control("TP", []);
        roff.text([bold(term)]);
        roff.text([roman(meaning)]);
    }
}

/// The codes and their meanings, of the table that `--help` shows.
fn exit_codes() -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for line in exit::TABLE.lines().skip(1) {
        let line = line.trim_start();
        match (line.split_once("  "), found.last_mut()) {
            (Some((code, meaning)), _) => found.push((code.to_owned(), meaning.to_owned())),
            (None, Some((_, meaning))) => {
                meaning.push(' ');
                meaning.push_str(line);
            }
            (None, None) => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_exit_code_has_its_meaning() {
        let codes = exit_codes();
        let numbers: Vec<_> = codes.iter().map(|(code, _)| code.as_str()).collect();
        assert_eq!(numbers, ["0", "1", "2", "3", "4", "5"]);
        assert!(codes[4].1.ends_with("(doctor)"), "{codes:?}");
    }
}
