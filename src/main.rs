//! The `larder` program: parses its arguments, runs, and turns an error into one sentence and an exit code.

use std::io::Write as _;
use std::process::ExitCode;

use larder::cli;

fn main() -> ExitCode {
    match cli::run(cli::arguments()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error is gone too, the exit code has to do.
            let _ = writeln!(std::io::stderr().lock(), "larder: {}", cli::sentence(&error));
            ExitCode::from(cli::exit_code(&error))
        }
    }
}
