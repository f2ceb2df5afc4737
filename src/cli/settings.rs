//! Options that name the configuration, shared by the verbs that need one.

use std::path::PathBuf;

use clap::Args;

use crate::config::address::ListenAddress;
use crate::config::{self, Config, Flags};

/// Sources of the configuration, shared by the verbs that need one.
#[derive(Args, Clone, Debug)]
pub(super) struct Settings {
    /// Configuration file; default: the value of `LARDER_CONFIG`, else none
    #[arg(long, id = "config_file", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address for clients, without TLS: `IP:PORT`, `unix:/PATH` or `systemd:NAME` (server.listen); may be repeated
    #[arg(long, value_name = "ADDR")]
    pub(super) listen: Vec<ListenAddress>,
    /// Folder of the store (store.path)
    #[arg(long, value_name = "DIR")]
    pub(super) data: Option<PathBuf>,
    /// Upstream and its endpoint, such as `docker.io=https://mirror.example.com`; may be repeated
    #[arg(long, value_name = "NAME=URL", value_parser = upstream)]
    pub(super) upstream: Vec<(String, String)>,
}

fn upstream(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, url)) if !name.is_empty() && !url.is_empty() => Ok((name.to_owned(), url.to_owned())),
        _ => Err("write NAME=URL, such as ghcr.io=https://ghcr.io".to_owned()),
    }
}

impl Settings {
    /// Returns the effective configuration after validation.
    pub(super) fn load(&self) -> anyhow::Result<Config> {
        let Self { listen, data, upstream, .. } = self.clone();
        let flags = Flags { listen, data, upstreams: upstream };
        let config = config::load(self.config.as_deref(), environment()?.into_iter(), flags)?;
        config::validate(&config)?;
        Ok(config)
    }

    /// Returns the effective configuration. If it is invalid, returns what is valid in it, and the error.
    ///
    /// A server goes on with its last valid configuration, and its admin address usually is among the valid keys.
    pub(super) fn load_for_server(&self) -> (Config, Option<anyhow::Error>) {
        let Self { listen, data, upstream, .. } = self.clone();
        let flags = Flags { listen, data, upstreams: upstream };
        let (environment, mut error) = match environment() {
            Ok(environment) => (environment, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        let (config, errors) =
            config::load_valid_keys(self.config.as_deref(), environment.into_iter(), flags);
        error = error.or_else(|| errors.into_iter().next().map(Into::into));
        let error = error.or_else(|| config::validate(&config).err().map(Into::into));
        (config, error)
    }

    /// Returns the configuration file, if there is one.
    pub(super) fn file(&self) -> anyhow::Result<Option<PathBuf>> {
        Ok(config::file(self.config.as_deref(), environment()?))
    }
}

/// Returns the environment variables that begin with `LARDER_`. Their values must be UTF-8.
pub(super) fn environment() -> anyhow::Result<Vec<(String, String)>> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(name, _)| name.starts_with("LARDER_"))
        .map(|(name, value)| match value.into_string() {
            Ok(value) => Ok((name, value)),
            Err(_) => anyhow::bail!("environment variable {name}: the value is not UTF-8"),
        })
        .collect()
}
