//! Colours of the output, for tables, help and the log, after <https://no-color.org> and <https://bixense.com/clicolors>.

use std::ffi::OsStr;

use clap::ColorChoice;

/// Returns the choice of the environment. By default only a terminal gets colours.
pub(super) fn choice() -> ColorChoice {
    wanted(|name| std::env::var_os(name))
}

fn wanted<V: AsRef<OsStr>>(variable: impl Fn(&str) -> Option<V>) -> ColorChoice {
    let is = |name: &str, fits: fn(&OsStr) -> bool| variable(name).is_some_and(|value| fits(value.as_ref()));
    if is("NO_COLOR", |value| !value.is_empty()) {
        ColorChoice::Never
    } else if is("CLICOLOR_FORCE", |value| !value.is_empty() && value != "0") {
        ColorChoice::Always
    } else if is("CLICOLOR", |value| value == "0") || is("TERM", |value| value == "dumb") {
        ColorChoice::Never
    } else {
        ColorChoice::Auto
    }
}

/// Applies the choice to all output. With `Auto` each writer checks its own output.
pub(super) fn follow(choice: ColorChoice) {
    let enabled = match choice {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => return,
    };
    console::set_colors_enabled(enabled);
    console::set_colors_enabled_stderr(enabled);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_color_takes_precedence() {
        let of = |set: &[(&str, &str)]| {
            wanted(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
        };
        assert_eq!(of(&[]), ColorChoice::Auto);
        assert_eq!(of(&[("NO_COLOR", ""), ("CLICOLOR_FORCE", "0"), ("CLICOLOR", "1")]), ColorChoice::Auto);
        assert_eq!(of(&[("NO_COLOR", "0")]), ColorChoice::Never);
        assert_eq!(of(&[("NO_COLOR", "1"), ("CLICOLOR_FORCE", "1")]), ColorChoice::Never);
        assert_eq!(of(&[("CLICOLOR_FORCE", "1"), ("CLICOLOR", "0")]), ColorChoice::Always);
        assert_eq!(of(&[("CLICOLOR", "0")]), ColorChoice::Never);
        assert_eq!(of(&[("TERM", "dumb")]), ColorChoice::Never);
    }
}
