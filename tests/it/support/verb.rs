//! The command line: with a running server, or offline on a store that no server uses.

use std::fs::File;
use std::process::Command;

use serde_json::Value;

use super::larder::{Larder, Setup, run_to_exit};

/// Exit code and output of a verb.
#[derive(Debug)]
pub struct Output {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Asserts the exit code.
    #[track_caller]
    pub fn exited_with(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }

    /// Parses standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Runs a command and returns its output.
#[track_caller]
pub fn run(setup: &Setup, command: &mut Command) -> Output {
    let file = tempfile::NamedTempFile::new_in(setup.folder()).unwrap();
    let exit = run_to_exit(command.stdout(File::create(file.path()).unwrap()));
    let stdout = std::fs::read_to_string(file.path()).unwrap();
    Output { code: exit.status.code().unwrap_or(-1), stdout, stderr: exit.stderr }
}

/// Runs a verb on a store that no server uses.
#[track_caller]
pub fn offline(setup: &Setup, arguments: &[&str]) -> Output {
    let file = setup.config_file();
    // `inspect --config` selects the configuration of an image.
    let flag = if arguments.first() == Some(&"inspect") { "--config-file" } else { "--config" };
    run(setup, setup.bare_command().args(arguments).arg(flag).arg(file))
}

/// Runs a verb with a running server.
#[track_caller]
pub fn online(larder: &Larder, arguments: &[&str]) -> Output {
    let server = format!("http://{}", larder.admin_addr());
    run(larder.setup(), larder.setup().bare_command().args(arguments).args(["--server", &server]))
}
