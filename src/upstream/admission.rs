//! Admission of repositories by the `allow` and `deny` patterns of an upstream.

use crate::config::schema;
use crate::oci::{Name, NamePattern, PatternError};

/// Patterns of one upstream.
#[derive(Clone, Debug, Default)]
pub(crate) struct Admission {
    allow: Vec<NamePattern>,
    deny: Vec<NamePattern>,
}

impl Admission {
    /// Parses the patterns of an upstream. An invalid pattern is an error: without it, more repositories would be admitted.
    pub(crate) fn new(upstream: &schema::Upstream) -> Result<Self, PatternError> {
        let read = |texts: &[String]| -> Result<Vec<NamePattern>, PatternError> {
            texts.iter().map(|text| text.parse()).collect()
        };
        Ok(Self { allow: read(&upstream.allow)?, deny: read(&upstream.deny)? })
    }

    /// Returns true if a repository may be pulled: it is not denied, and it is allowed if there are `allow` patterns.
    pub(crate) fn admits(&self, name: &Name) -> bool {
        !self.denies(name)
            && (self.allow.is_empty() || self.allow.iter().any(|pattern| pattern.matches(name)))
    }

    /// Returns true if a repository is denied.
    pub(crate) fn denies(&self, name: &Name) -> bool {
        self.deny.iter().any(|pattern| pattern.matches(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admits_all_without_allow_and_none_that_is_denied() {
        let admits = |allow: &[&str], deny: &[&str], name: &str| {
            let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
            let upstream =
                schema::Upstream { allow: texts(allow), deny: texts(deny), ..schema::Upstream::default() };
            Admission::new(&upstream).expect("patterns").admits(&name.parse().expect("a name"))
        };
        assert!(admits(&[], &[], "a/b"));
        assert!(admits(&["a/*"], &[], "a/b") && !admits(&["a/*"], &[], "b/b"));
        assert!(admits(&["a/*", "b/**"], &[], "b/c/d"));
        assert!(!admits(&[], &["a/*"], "a/b") && admits(&[], &["a/*"], "b/b"));
        assert!(!admits(&["a/**"], &["a/b"], "a/b") && admits(&["a/**"], &["a/b"], "a/c"));
        assert!(!admits(&["a/b"], &["**"], "a/b"));
    }
}
