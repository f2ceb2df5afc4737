//! One file of a client's: what it says where there was none, and how that is put into one that is there.

use std::fmt;
use std::path::PathBuf;

/// How a file begins that is larder's alone.
pub(super) const MARK: &str = "# Written by `larder setup`";
/// The whole line.
pub(super) const HEAD: &str = "# Written by `larder setup`, which replaces it when it is run again.\n";

/// All that a client has to be told.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) pieces: Vec<Piece>,
    /// What should be known besides.
    pub(super) notes: Vec<String>,
}

/// One file.
pub(super) struct Piece {
    /// On the client's machine.
    pub(super) path: PathBuf,
    /// For a machine that has no such file.
    pub(super) content: String,
    /// What makes the client use it.
    pub(super) after: String,
    pub(super) merge: Merge,
}

impl fmt::Debug for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Piece").field("path", &self.path).finish_non_exhaustive()
    }
}

/// How a piece is put into a file that is there.
pub(super) enum Merge {
    /// The file is larder's, and is replaced if it begins with [`MARK`].
    Ours(fn(&str) -> Result<(), Conflict>),
    /// It is larder's by its name: whatever it held is replaced.
    Whole,
    /// Into what others wrote: what comes back is the whole file, the same if there is nothing to do.
    Into(Box<Edit>),
}

/// What makes of a file's text the whole file as it is to be.
type Edit = dyn Fn(&str) -> Result<String, Conflict>;

/// Why a file stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Conflict {
    /// It is not what it should be.
    #[error("line {line}, column {column}: {message}")]
    Malformed { line: usize, column: usize, message: String },
    /// Something in it stands where larder's part belongs.
    #[error("{0}")]
    Taken(String),
}

impl Conflict {
    /// What a TOML parser says.
    pub(super) fn toml(error: &toml_edit::TomlError, text: &str) -> Self {
        let start = error.span().map_or(0, |span| span.start);
        let before = text.get(..start).unwrap_or_default();
        let line = 1 + before.matches('\n').count();
        let column = 1 + before.rsplit('\n').next().unwrap_or_default().chars().count();
        Self::Malformed { line, column, message: error.message().lines().collect::<Vec<_>>().join(", ") }
    }
}

impl Merge {
    /// The file as it is to be.
    pub(super) fn merged(&self, content: &str, existing: &str) -> Result<String, Conflict> {
        match self {
            Self::Whole => Ok(content.to_owned()),
            _ if existing.trim().is_empty() => Ok(content.to_owned()),
            Self::Into(merge) => merge(existing),
            Self::Ours(check) => {
                check(existing)?;
                if existing == content || existing.starts_with(MARK) {
                    return Ok(content.to_owned());
                }
                Err(Conflict::Taken(
                    "it was not written by `larder setup`, which does not mix its part with yours; move it away, or add \
                     by hand what is printed without --write"
                        .to_owned(),
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_ours_is_replaced() {
        let ours = Merge::Ours(|text| {
            text.parse::<toml_edit::DocumentMut>().map(drop).map_err(|error| Conflict::toml(&error, text))
        });
        let content = format!("{HEAD}a = 1\n");
        let merged = |existing: &str| ours.merged(&content, existing);
        assert_eq!(merged("").as_deref(), Ok(&*content));
        assert_eq!(merged(&format!("{HEAD}a = 0\n")).as_deref(), Ok(&*content));
        assert!(matches!(merged("a = 1\n"), Err(Conflict::Taken(_))));
        let Err(Conflict::Malformed { line, column, .. }) = merged("a = 1\nb = = 2\n") else {
            panic!("it is no TOML");
        };
        assert_eq!((line, column), (2, 5));
    }
}
