//! `larder completions` and `larder man`: shell completions and manual pages, generated from the command line.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Command, ValueEnum};
use clap_complete::{Shell, generate};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::exit;
use super::output::print;

/// Arguments of `larder completions`.
#[derive(Args, Debug)]
pub(super) struct Completions {
    /// Shell
    shell: ShellName,
}

/// Shell with completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ShellName {
    Bash,
    Zsh,
    Fish,
    Elvish,
    Powershell,
}

impl From<ShellName> for Shell {
    fn from(shell: ShellName) -> Self {
        match shell {
            ShellName::Bash => Self::Bash,
            ShellName::Zsh => Self::Zsh,
            ShellName::Fish => Self::Fish,
            ShellName::Elvish => Self::Elvish,
            ShellName::Powershell => Self::PowerShell,
        }
    }
}

/// Arguments of `larder man`.
#[derive(Args, Debug)]
pub(super) struct Manual {
    /// Write larder(1) and a page for each verb into this folder, which is created if needed; default: print larder(1)
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Prints the completion script of a shell.
pub(super) fn completions(arguments: &Completions, mut command: Command) -> anyhow::Result<()> {
    let mut script = Vec::new();
    generate(Shell::from(arguments.shell), &mut command, "larder", &mut script);
    print(&String::from_utf8(script).context("the completion script is not UTF-8")?)
}

/// Prints the manual's first page, or writes all pages.
pub(super) fn man(arguments: &Manual, command: Command) -> anyhow::Result<()> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let Some(folder) = &arguments.dir else {
        return print(&String::from_utf8(page(&command)?).context("the page is not UTF-8")?);
    };
    std::fs::create_dir_all(folder).with_context(|| format!("{} cannot be created", folder.display()))?;
    let written = write(&command, folder)?;
    print(&format!("wrote {written} pages to {}\n", folder.display()))
}

/// Writes the page of a command and of its verbs. Returns the number of pages.
fn write(command: &Command, folder: &Path) -> anyhow::Result<usize> {
    let path = folder.join(Man::new(command.clone()).get_filename());
    let file = tempfile::NamedTempFile::new_in(folder);
    let wrote = file.and_then(|mut file| {
        file.write_all(&page(command)?)?;
        // Readable by everybody, unlike a temporary file.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        file.as_file().set_permissions(mode)?;
        Ok(file.persist(&path)?)
    });
    wrote.with_context(|| format!("{} cannot be written", path.display()))?;
    command.get_subcommands().try_fold(1, |count, verb| Ok(count + write(verb, folder)?))
}

/// Renders one page: the generated sections, then exit codes, environment and files.
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
    ("LARDER_CONFIG", "Configuration file, if --config is not given."),
    (
        "LARDER_SECTION__KEY",
        "A configuration key; overrides the file, is overridden by flags: LARDER_STORE__MAX_SIZE is max_size in [store].",
    ),
    ("NO_COLOR", "If not empty, the output has no colours."),
    (
        "CLICOLOR_FORCE",
        "If neither empty nor 0, and NO_COLOR is not set, the output has colours even without a terminal.",
    ),
    ("CLICOLOR", "If 0, the output has no colours, unless CLICOLOR_FORCE is set."),
];

const FILES: [(&str, &str); 3] = [
    ("/etc/larder/larder.toml", "Configuration of the service. No file is read by default."),
    ("./larder-data", "Store, unless store.path in the configuration or --data names another folder."),
    ("/run/larder", "Folder for sockets of the service: listen = \"unix:/run/larder/larder.sock\"."),
];

/// Writes a section of terms with their meanings.
fn terms(roff: &mut Roff, title: &str, terms: impl IntoIterator<Item = (String, String)>) {
    roff.control("SH", [title]);
    for (term, meaning) in terms {
        roff.control("TP", []);
        roff.text([bold(term)]);
        roff.text([roman(meaning)]);
    }
}

/// Returns the codes and meanings of the table that `--help` shows.
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
    fn exit_codes_have_a_meaning() {
        let codes = exit_codes();
        let numbers: Vec<_> = codes.iter().map(|(code, _)| code.as_str()).collect();
        assert_eq!(numbers, ["0", "1", "2", "3", "4", "5"]);
        assert!(codes[4].1.ends_with("(doctor)"), "{codes:?}");
    }
}
