//! Exit codes: the one place that says what each means.

use crate::ops::Failure;

/// For `larder --help` and the man page.
pub(super) const TABLE: &str = "\
Exit codes:
  0  it was done, or the answer is yes
  1  it could not be done; one line on standard error says why
  2  the command line is not understood
  3  damaged content was found and is still missing (verify)
  4  the answer is no: a pull would lack something (check), not everything could be fetched (warm), or is held
     (export --offline), or something fails (doctor)
  5  what was asked about is not held, or not for that platform or media type";

/// An answer that is no error of anybody's, and for which a script needs another code than 0.
#[derive(Debug, thiserror::Error)]
pub(super) enum Verdict {
    /// Content that is not what its digest says was found, and is gone.
    #[error(
        "{0} damaged manifests or blobs were removed; they will be fetched again when somebody asks for them"
    )]
    Damage(usize),
    /// Something would be, or is, missing, or fails.
    #[error("{0}")]
    No(String),
    /// What was to be shown is not held.
    #[error("{0}")]
    NotHeld(String),
}

/// The exit code that tells a script which kind of error this is.
pub fn code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<Verdict>() {
        Some(Verdict::Damage(_)) => return 3,
        Some(Verdict::No(_)) => return 4,
        Some(Verdict::NotHeld(_)) => return 5,
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
    fn each_code_is_in_the_table() {
        let failure =
            |code: &str| anyhow::Error::from(Failure { code: code.to_owned(), message: String::new() });
        for (error, wanted) in [
            (Verdict::Damage(1).into(), 3),
            (Verdict::No(String::new()).into(), 4),
            (Verdict::NotHeld(String::new()).into(), 5),
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
