//! Versions and properties of installed clients, as their programs report them.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

/// Longest wait for a program. A daemon that does not answer must not delay the output.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Interval of the checks for the end of a program.
const POLL: Duration = Duration::from_millis(10);

/// Version of a client: major and minor number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(pub(super) u32, pub(super) u32);

impl FromStr for Version {
    type Err = String;

    /// Parses `2.2`, `v2.2.1` or `29.1.0-rc.1`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |text: &str| {
            let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            text[..end].parse().ok()
        };
        let (major, rest) =
            text.trim_start_matches('v').split_once('.').unwrap_or((text.trim_start_matches('v'), "0"));
        match (major.parse().ok(), number(rest)) {
            (Some(major), Some(minor)) => Ok(Self(major, minor)),
            _ => Err(format!("`{text}` is not a version such as 2.2")),
        }
    }
}

impl Version {
    /// Returns the first version in the output of a program.
    pub(super) fn find(output: &str) -> Option<Self> {
        let mut words = output.split_whitespace().filter(|word| word.contains('.'));
        words.find_map(|word| word.parse().ok())
    }
}

/// Returns the standard output of a program that succeeds in time.
pub(super) fn output_of(program: &str, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().ok()?;
    let end = Instant::now() + TIMEOUT;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < end => std::thread::sleep(POLL),
            Ok(None) | Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    };
    let mut text = String::new();
    child.stdout.take()?.read_to_string(&mut text).ok()?;
    status.success().then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn find_reads_the_output_of_clients() {
        for (output, version) in [
            ("containerd github.com/containerd/containerd/v2 v2.4.2 8c0d1d3\n", Some(Version(2, 4))),
            (
                "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u1\n",
                Some(Version(1, 6)),
            ),
            ("29.1.0\n", Some(Version(29, 1))),
            ("29.0.0-rc.2\n", Some(Version(29, 0))),
            ("\n", None),
        ] {
            assert_eq!(Version::find(output), version, "{output}");
        }
        assert!("two".parse::<Version>().is_err());
        assert_eq!("29".parse(), Ok(Version(29, 0)));
    }

    #[test]
    fn output_of_ignores_failures_and_hangs() {
        assert_eq!(output_of("sh", &["-c", "echo 1.2"]).as_deref(), Some("1.2\n"));
        assert_eq!(output_of("sh", &["-c", "echo 1.2; exit 1"]), None);
        assert_eq!(output_of("/no/such/program", &[]), None);
    }
}
