//! Patterns of repository names, used by an upstream's `allow` and `deny`.

use std::str::FromStr;

use super::name::Name;

/// Glob pattern of a repository name without the upstream. `*` and `?` match within one path component, `**` matches any
/// number of components, `[ab]` matches one of these characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern(glob::Pattern);

/// Error of parsing a pattern. A pattern that cannot match any name is an error too.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// The glob is malformed.
    #[error(
        "`{0}` is not a pattern: {1}; write `**` as a component of its own, as in \"org/**\", and close every `[`"
    )]
    Malformed(String, &'static str),
    /// The pattern contains a character that is not allowed in names.
    #[error(
        "`{0}` matches no repository: names do not contain `{1}`; write lower case, without upstream and tag"
    )]
    Character(String, char),
    /// The pattern has an empty component.
    #[error("`{0}` matches no repository: it has an empty component; write \"org/**\" for all below org")]
    Component(String),
}

impl FromStr for NamePattern {
    type Err = PatternError;

    /// Also rejects patterns that can never match, because an operator would rely on them, for example in `deny`.
    fn from_str(text: &str) -> Result<Self, PatternError> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/*?[]!".contains(c);
        if let Some(odd) = text.chars().find(|c| !fits(*c)) {
            return Err(PatternError::Character(text.to_owned(), odd));
        }
        if text.split('/').any(str::is_empty) {
            return Err(PatternError::Component(text.to_owned()));
        }
        let pattern = glob::Pattern::new(text);
        pattern.map(Self).map_err(|error| PatternError::Malformed(text.to_owned(), error.msg))
    }
}

impl NamePattern {
    /// Returns true if the name matches.
    pub fn matches(&self, name: &Name) -> bool {
        let options = glob::MatchOptions { require_literal_separator: true, ..glob::MatchOptions::new() };
        self.0.matches_with(name.as_str(), options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_star_matches_within_a_component_only() {
        let cases = [
            ("library/*", "library/busybox", true),
            ("library/*", "library/a/b", false),
            ("library/*", "library", false),
            ("library/*", "mylibrary/a", false),
            ("org/**", "org/a", true),
            ("org/**", "org/a/b/c", true),
            ("org/**", "organ/a", false),
            ("**", "a", true),
            ("**", "a/b/c", true),
            ("*", "a", true),
            ("*", "a/b", false),
            ("**/secret", "secret", true),
            ("**/secret", "a/b/secret", true),
            ("**/secret", "a/secrets", false),
            ("org/**/base", "org/base", true),
            ("org/**/base", "org/a/b/base", true),
            ("org/team-?/*", "org/team-a/x", true),
            ("org/team-?/*", "org/team/a/x", false),
            ("org/[ab]*", "org/beta", true),
            ("org/[!ab]*", "org/beta", false),
            ("a.b/c", "a.b/c", true),
            ("a.b/c", "axb/c", false),
        ];
        for (pattern, name, wanted) in cases {
            let found = pattern.parse::<NamePattern>().expect(pattern).matches(&name.parse().expect(name));
            assert_eq!(found, wanted, "{pattern} on {name}");
        }
    }

    #[test]
    fn pattern_that_never_matches_is_rejected() {
        for (text, said) in [
            ("", "empty"),
            ("/library/*", "empty"),
            ("library/", "empty"),
            ("a//b", "empty"),
            ("Library/*", "`L`"),
            ("library/busybox:1", "`:`"),
            ("a b", "` `"),
            ("{a,b}/*", "`{`"),
            ("org/**b", "component of its own"),
            ("org/a**", "component of its own"),
            ("org/***", "not a pattern"),
            ("org/[ab", "close every"),
        ] {
            let error = text.parse::<NamePattern>().expect_err(text).to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
