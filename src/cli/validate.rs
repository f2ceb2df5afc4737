//! `larder validate`: prints the configuration that results from file, environment and flags.

use anyhow::Context as _;

use crate::config::Config;

/// Prints a configuration that was found good. It holds names of secret files and no secret itself.
pub(super) fn run(config: &Config) -> anyhow::Result<()> {
    let text = toml::to_string(config).context("the configuration cannot be written as TOML")?;
    super::print(&text)?;
    super::note("ok")
}
