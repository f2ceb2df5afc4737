//! The command line beside a larder: run against one that runs, or over a store that is closed.

use std::fs::File;
use std::process::Command;

use serde_json::Value;

use super::larder::{Larder, Setup, run_to_exit};

/// How a verb ended, and what it printed.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Checks the exit code.
    #[track_caller]
    pub fn ended(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }

    /// What was printed, as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Runs a command whose standard output is wanted.
#[track_caller]
pub fn run(setup: &Setup, command: &mut Command) -> Ran {
    let file = tempfile::NamedTempFile::new_in(setup.folder()).unwrap();
    let exit = run_to_exit(command.stdout(File::create(file.path()).unwrap()));
    let stdout = std::fs::read_to_string(file.path()).unwrap();
    Ran { code: exit.status.code().unwrap_or(-1), stdout, stderr: exit.stderr }
}

/// Runs a verb over a closed store.
#[track_caller]
pub fn offline(setup: &Setup, arguments: &[&str]) -> Ran {
    let file = setup.config_file();
    // `inspect --config` is about an image's.
    let flag = if arguments.first() == Some(&"inspect") { "--config-file" } else { "--config" };
    run(setup, setup.bare_command().args(arguments).arg(flag).arg(file))
}

/// Runs a verb against a larder that runs.
#[track_caller]
pub fn online(larder: &Larder, arguments: &[&str]) -> Ran {
    let server = format!("http://{}", larder.admin_addr());
    run(larder.setup(), larder.setup().bare_command().args(arguments).args(["--server", &server]))
}
