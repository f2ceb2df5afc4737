//! Edit of one configuration file: content for a new file, and the merge into an existing one.

use std::fmt;
use std::path::PathBuf;

/// First words of a file that larder owns.
pub(super) const MARK: &str = "# Written by `larder setup`";
/// First line of a file that larder owns.
pub(super) const HEAD: &str = "# Written by `larder setup`, which replaces it when it is run again.\n";

/// Configuration of a client: edits of files, and notes.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) edits: Vec<FileEdit>,
    /// Notes for the operator.
    pub(super) notes: Vec<String>,
}

/// Edit of one file.
pub(super) struct FileEdit {
    /// Path on the client's machine.
    pub(super) path: PathBuf,
    /// Content of a new file.
    pub(super) content: String,
    /// Steps after which the client uses the file.
    pub(super) after: String,
    pub(super) merge: Merge,
}

impl fmt::Debug for FileEdit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileEdit").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Merge of an edit into an existing file.
pub(super) enum Merge {
    /// larder owns the file: it is replaced if it begins with [`MARK`], after a syntax check.
    Ours(fn(&str) -> Result<(), Conflict>),
    /// larder owns the file by its name: it is always replaced.
    Whole,
    /// The file belongs to the operator: the function returns the merged text, unchanged if nothing is missing.
    Into(Box<Edit>),
}

/// Function from the existing text to the merged text.
type Edit = dyn Fn(&str) -> Result<String, Conflict>;

/// Reason for not changing a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Conflict {
    /// Syntax error.
    #[error("line {line}, column {column}: {message}")]
    Malformed { line: usize, column: usize, message: String },
    /// Existing content that larder must not replace.
    #[error("{0}")]
    Taken(String),
}

impl Conflict {
    /// Converts an error of the TOML parser.
    pub(super) fn toml(error: &toml_edit::TomlError, text: &str) -> Self {
        let start = error.span().map_or(0, |span| span.start);
        let before = text.get(..start).unwrap_or_default();
        let line = 1 + before.matches('\n').count();
        let column = 1 + before.rsplit('\n').next().unwrap_or_default().chars().count();
        Self::Malformed { line, column, message: error.message().lines().collect::<Vec<_>>().join(", ") }
    }
}

impl Merge {
    /// Returns the merged file.
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
                    "the file was not written by `larder setup` and is not merged; move it away, or add the output \
                     without --write by hand"
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
    fn merge_replaces_only_files_of_larder() {
        let ours = Merge::Ours(|text| {
            text.parse::<toml_edit::DocumentMut>().map(drop).map_err(|error| Conflict::toml(&error, text))
        });
        let content = format!("{HEAD}a = 1\n");
        let merged = |existing: &str| ours.merged(&content, existing);
        assert_eq!(merged("").as_deref(), Ok(&*content));
        assert_eq!(merged(&format!("{HEAD}a = 0\n")).as_deref(), Ok(&*content));
        assert!(matches!(merged("a = 1\n"), Err(Conflict::Taken(_))));
        let Err(Conflict::Malformed { line, column, .. }) = merged("a = 1\nb = = 2\n") else {
            panic!("not TOML");
        };
        assert_eq!((line, column), (2, 5));
    }
}
