//! `larder validate`: prints the effective configuration of file, environment and flags.

use anyhow::Context as _;

use super::output;
use crate::config::Config;
use crate::config::advice::advice;

/// Prints a valid configuration. The configuration names files with secrets and contains no secret.
pub(super) fn run(config: &Config) -> anyhow::Result<()> {
    let text = toml::to_string(config).context("the configuration cannot be written as TOML")?;
    output::print(&text)?;
    for advice in advice(config) {
        output::note(&format!("warning: {advice}"))?;
    }
    output::note("ok")
}
