//! Patterns over the names of repositories: what an upstream's `allow` and `deny` are made of.

use std::str::FromStr;

use super::name::Name;

/// A glob over a repository's name, without its upstream: `*` and `?` stay within one component of the path, `**`
/// stands for any number of components, `[ab]` for one of these characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern(glob::Pattern);

/// Why a text is no pattern, or one that no repository's name can match.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// The glob itself is malformed.
    #[error(
        "`{0}` is no pattern: {1}; write `**` as a component of its own, as in \"org/**\", and close every `[`"
    )]
    Malformed(String, &'static str),
    /// No name has such a character.
    #[error("`{0}` matches no repository: names have no `{1}`; they are lower case, without upstream or tag")]
    Character(String, char),
    /// No name has an empty component.
    #[error("`{0}` matches no repository: a component of it is empty; write \"org/**\" for all below org")]
    Component(String),
}

impl FromStr for NamePattern {
    type Err = PatternError;

    /// Refuses what can never match as well: an operator who denies something means to deny it.
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
    /// Whether this is the name of a repository that the pattern means.
    pub fn matches(&self, name: &Name) -> bool {
        let options = glob::MatchOptions { require_literal_separator: true, ..glob::MatchOptions::new() };
        self.0.matches_with(name.as_str(), options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_star_stays_within_a_component_and_two_do_not() {
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
    fn what_can_never_match_is_no_pattern() {
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
            ("org/***", "no pattern"),
            ("org/[ab", "close every"),
        ] {
            let error = text.parse::<NamePattern>().expect_err(text).to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
