//! Exit codes and their meanings.

use crate::ops::protocol::Failure;

/// Table of exit codes for `larder --help` and the man page.
pub(super) const TABLE: &str = "\
Exit codes:
  0  success, or the answer is yes
  1  failure; one line on standard error gives the reason
  2  the command line is invalid
  3  damaged content was removed and is still missing (verify)
  4  the answer is no: a pull would miss content (check), an image could not be fetched completely (warm), content is
     not cached (export --offline), or a check fails (doctor)
  5  the reference is not cached, or not for that platform or media type";

/// Negative answer that is not a failure, with an exit code of its own for scripts.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExitAnswer {
    /// Damaged content was found and removed.
    #[error("{0} damaged manifests or blobs were removed; the next request fetches them again")]
    Damage(usize),
    /// Content is missing, or a check fails.
    #[error("{0}")]
    No(String),
    /// The requested content is not cached.
    #[error("{0}")]
    NotCached(String),
}

/// Returns the exit code of an error.
pub fn code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<ExitAnswer>() {
        Some(ExitAnswer::Damage(_)) => return 3,
        Some(ExitAnswer::No(_)) => return 4,
        Some(ExitAnswer::NotCached(_)) => return 5,
        None => {}
    }
    match error.downcast_ref::<Failure>() {
        Some(failure) if failure.code == "missing" => 4,
        Some(failure) if ["not-held", "no-platform", "no-media-type"].contains(&failure.code.as_str()) => 5,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_in_the_table() {
        let failure =
            |code: &str| anyhow::Error::from(Failure { code: code.to_owned(), message: String::new() });
        for (error, wanted) in [
            (ExitAnswer::Damage(1).into(), 3),
            (ExitAnswer::No(String::new()).into(), 4),
            (ExitAnswer::NotCached(String::new()).into(), 5),
            (failure("no-platform"), 5),
            (failure("missing"), 4),
            (failure("invalid"), 1),
            (failure("not-held").context("around it"), 5),
            (anyhow::anyhow!("disk full"), 1),
        ] {
            assert_eq!(code(&error), wanted, "{error:?}");
            assert!(TABLE.contains(&format!("\n  {wanted}  ")));
        }
    }
}
