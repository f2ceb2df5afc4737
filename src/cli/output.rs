//! Output of all verbs: standard output, notes on standard error, and errors in one line.

use std::fmt::Write as _;

use anyhow::Context as _;

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
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("standard output cannot be written"),
    }
}

/// Writes a line to standard error, so that standard output stays machine-readable.
pub(super) fn note(line: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    writeln!(std::io::stderr().lock(), "{line}").context("standard error cannot be written")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentence_joins_the_error_chain() {
        let inner = anyhow::anyhow!("disk\nfull");
        let repeated = anyhow::anyhow!("cannot write: disk full");
        assert_eq!(sentence(&inner.context("cannot write")), "cannot write: disk full");
        assert_eq!(sentence(&anyhow::anyhow!("disk full").context(repeated)), "cannot write: disk full");
    }
}
