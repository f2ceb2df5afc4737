//! Executor of a verb: a running server through its admin API, or this process on a store that no server has open.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::output::{note, print, sentence};
use super::progress::ProgressBars;
use super::remote::{AdminAddress, Remote};
use super::serve::on_runtime;
use super::settings::Settings;
use crate::app::{self, Offline};
use crate::config::Config;
use crate::config::schema::Admin;
use crate::ops::protocol::{JobSpec, ProgressReporter, Query};

/// Options that select the server and the output format, shared by all verbs that ask a server.
#[derive(Args, Clone, Debug)]
pub(super) struct ServerOptions {
    /// Admin API of a running server: a URL or `unix:/PATH`; default: open the store, or without --data and if a server has
    /// the store open, ask the address in the configuration
    #[arg(long, value_name = "URL")]
    server: Option<AdminAddress>,
    /// File with the admin API's token; default: `admin.token_file`
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// PEM file with the certificate authority of the admin API
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Print the report as JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) settings: Settings,
}

/// Executor of a verb.
#[derive(Debug)]
pub(super) enum Backend {
    /// Running server.
    Running(Remote),
    /// This process.
    Local(Box<Offline>),
}

impl ServerOptions {
    /// Selects the executor, runs `work` with it, and closes a store that was opened.
    pub(super) fn with<T>(&self, work: impl AsyncFnOnce(&Backend) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let (config, invalid) = self.settings.load_for_server();
        if self.server.is_none() && invalid.is_none() {
            app::init_log(&config.log)?;
        }
        on_runtime(async {
            let backend = self.open(config, invalid).await?;
            let done = work(&backend).await;
            if let Backend::Local(offline) = backend {
                offline.close().await?;
            }
            done
        })
    }

    /// Returns the admin API of the running server, if its address is known.
    pub(super) fn running(&self, admin: &Admin) -> anyhow::Result<Option<Remote>> {
        let address = self.server.clone().or_else(|| AdminAddress::of(admin));
        address.map(|address| self.remote(address, admin)).transpose()
    }

    /// Returns the admin API at an address, with the token of the command line, or that of the configuration. The latter is
    /// secret, and is sent only to this machine and to the address in the configuration.
    fn remote(&self, address: AdminAddress, admin: &Admin) -> anyhow::Result<Remote> {
        let is_own = address.is_loopback() || AdminAddress::of(admin).as_ref() == Some(&address);
        let token = match (&self.token_file, admin.token_file.as_ref().filter(|_| is_own)) {
            (Some(named), _) => Some(read_token(named)?),
            // Loopback addresses need no token by default, so a user who may not read the file needs none either.
            (None, Some(configured)) => read_token(configured).ok(),
            (None, None) => None,
        };
        Remote::new(address, token, self.ca_file.as_deref())
    }

    /// Returns true if a server was named, whose store may be on another machine.
    pub(super) fn is_elsewhere(&self) -> bool {
        self.server.is_some()
    }

    /// Returns the file with the certificate authority of the admin API.
    pub(super) fn ca_file(&self) -> Option<&Path> {
        self.ca_file.as_deref()
    }

    async fn open(&self, config: Config, invalid: Option<anyhow::Error>) -> anyhow::Result<Backend> {
        if let Some(address) = &self.server {
            return Ok(Backend::Running(self.remote(address.clone(), &config.admin)?));
        }
        if let Some(error) = invalid {
            return Ok(Backend::Running(self.server_of_invalid(&config.admin, error).await?));
        }
        let address = AdminAddress::of(&config.admin);
        let remote = |address: AdminAddress| self.remote(address, &config.admin);
        // Do not create a missing folder only to find it empty: a running server may have its store elsewhere.
        if !config.store.path.exists() {
            let path = config.store.path.display();
            // A store that the user names is never replaced by the store of a server.
            anyhow::ensure!(
                self.settings.data.is_none(),
                "there is no store in {path}; name another folder with --data"
            );
            if let Some(address) = address {
                let asked = remote(address.clone())?;
                if asked.is_there().await {
                    return Ok(Backend::Running(asked));
                }
                anyhow::bail!(
                    "there is no store in {path}, and no server answers at {address}; name a server with --server, or a store with --data"
                );
            }
            anyhow::bail!(
                "there is no store in {path}; name a running server with --server, or a store with --data"
            );
        }
        match Offline::open(&config).await {
            Ok(offline) => Ok(Backend::Local(Box::new(offline))),
            Err(error) if app::is_in_use(&error) => {
                let hint = format!("the store in {} is in use by a server", config.store.path.display());
                // The server at the address in the configuration may have another store.
                let address = address.filter(|_| self.settings.data.is_none());
                let Some(address) = address else {
                    anyhow::bail!("{hint}; name its admin API with --server");
                };
                let asked = remote(address.clone())?;
                if !asked.is_there().await {
                    anyhow::bail!(
                        "{hint} that does not answer at {address}; name its admin API with --server"
                    );
                }
                Ok(Backend::Running(asked))
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the running server if the configuration is invalid. It goes on with its last valid configuration.
    async fn server_of_invalid(&self, admin: &Admin, error: anyhow::Error) -> anyhow::Result<Remote> {
        // A store that the user names is never replaced by the store of a server.
        let address = AdminAddress::of(admin).filter(|_| self.settings.data.is_none());
        let Some(address) = address else { return Err(error) };
        let asked = self.remote(address.clone(), admin)?;
        if !asked.is_there().await {
            return Err(error);
        }
        note(&format!(
            "warning: {}; asking the server at {address}, which uses its last valid configuration",
            sentence(&error)
        ))?;
        Ok(asked)
    }

    /// Prints a report as JSON if requested, else the text of `render`.
    pub(super) fn print(&self, report: &Value, render: impl FnOnce() -> String) -> anyhow::Result<()> {
        print(&if self.json { serde_json::to_string_pretty(report)? + "\n" } else { render() })
    }
}

/// Reads the token of an admin API.
fn read_token(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path);
    let text = text.with_context(|| format!("the token in {} cannot be read", path.display()))?;
    Ok(text.trim().to_owned())
}

/// Report as JSON and as a type.
#[derive(Debug)]
pub(super) struct Answer<T> {
    pub(super) value: Value,
    pub(super) report: T,
}

fn read<T: DeserializeOwned>(value: Value) -> anyhow::Result<Answer<T>> {
    let report = T::deserialize(&value)
        .context("the report of the running server cannot be read: it has another version")?;
    Ok(Answer { value, report })
}

impl Backend {
    /// Answers a query.
    pub(super) async fn ask<T: DeserializeOwned>(&self, query: Query) -> anyhow::Result<Answer<T>> {
        read(match self {
            Self::Running(remote) => remote.ask(&query).await?,
            Self::Local(offline) => {
                query.answer(offline.operations()).await.map_err(|error| error.failure())?
            }
        })
    }

    /// Runs a job and shows its progress.
    pub(super) async fn run<T: DeserializeOwned>(&self, task: JobSpec) -> anyhow::Result<Answer<T>> {
        let mut bars = ProgressBars::new();
        let value = match self {
            Self::Running(remote) => remote.run(&task, |progress| bars.show(progress)).await?,
            Self::Local(offline) => {
                let (reporter, mut progress) = ProgressReporter::new();
                let work = task.run(offline.operations(), &reporter);
                tokio::pin!(work);
                loop {
                    tokio::select! {
                        result = &mut work => break result.map_err(|error| error.failure())?,
                        _ = progress.changed() => {
                            let now = progress.borrow_and_update().clone();
                            bars.show(&now);
                        }
                    }
                }
            }
        };
        bars.end();
        read(value)
    }
}
