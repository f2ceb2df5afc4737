//! Which of an upstream's repositories may be pulled: what its `allow` and `deny` say. Pure.

use crate::config::schema;
use crate::oci::{Name, NamePattern, PatternError};

/// The patterns of one upstream.
#[derive(Clone, Debug, Default)]
pub(crate) struct Admission {
    allow: Vec<NamePattern>,
    deny: Vec<NamePattern>,
}

impl Admission {
    /// Reads an upstream's patterns. One that is malformed is an error: left out it would let everybody in.
    pub(crate) fn new(upstream: &schema::Upstream) -> Result<Self, PatternError> {
        let read = |texts: &[String]| -> Result<Vec<NamePattern>, PatternError> {
            texts.iter().map(|text| text.parse()).collect()
        };
        Ok(Self { allow: read(&upstream.allow)?, deny: read(&upstream.deny)? })
    }

    /// Whether a repository of this name may be pulled: none that is denied, and if some are allowed, no other.
    pub(crate) fn admits(&self, name: &Name) -> bool {
        let any = |patterns: &[NamePattern]| patterns.iter().any(|pattern| pattern.matches(name));
        !any(&self.deny) && (self.allow.is_empty() || any(&self.allow))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deny_wins_and_an_empty_allow_means_all() {
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
