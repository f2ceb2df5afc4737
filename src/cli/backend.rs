//! Who does what a verb asks for: a larder that runs, by its admin API, or this process, if none has the store.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::bars::Bars;
use super::remote::{Place, Remote};
use super::serve::on_runtime;
use super::{Settings, print};
use crate::app::{self, Offline};
use crate::config::Config;
use crate::ops::job_spec::JobSpec;
use crate::ops::progress::ProgressReporter;
use crate::ops::query::Query;

/// Which larder is meant, and how it answers; shared by all verbs that ask one.
#[derive(Args, Clone, Debug)]
pub(super) struct Reach {
    /// The admin API of a running larder: a URL, or `unix:/PATH`; otherwise the store is opened, and where a larder has
    /// it, the address in the configuration is asked
    #[arg(long, value_name = "URL")]
    server: Option<Place>,
    /// The file with the admin API's token; otherwise `admin.token_file`, if set
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// PEM file with the authority of the admin API's certificate
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Print the report as JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) settings: Settings,
}

/// Who does it.
#[derive(Debug)]
pub(super) enum Backend {
    /// A larder that runs.
    Running(Remote),
    /// This process.
    Here(Box<Offline>),
}

impl Reach {
    /// Finds out who is to do the work, lets it be done, and closes what was opened.
    pub(super) fn with<T>(&self, work: impl AsyncFnOnce(&Backend) -> anyhow::Result<T>) -> anyhow::Result<T> {
        if self.server.is_none() {
            app::init_log(&self.settings.load()?.log)?;
        }
        on_runtime(async {
            let backend = self.open().await?;
            let done = work(&backend).await;
            if let Backend::Here(offline) = backend {
                offline.close().await?;
            }
            done
        })
    }

    /// The larder that would be asked, if it can be told where it is.
    pub(super) fn running(&self, config: &Config) -> anyhow::Result<Option<Remote>> {
        let Some(place) = self.server.clone().or_else(|| Place::of(&config.admin)) else { return Ok(None) };
        let token = self.token_file.as_deref().or(config.admin.token_file.as_deref());
        Remote::new(place, token, self.ca_file.as_deref()).map(Some)
    }

    /// Whether a larder was named that may keep its store elsewhere.
    pub(super) fn is_elsewhere(&self) -> bool {
        self.server.is_some()
    }

    /// The authority of its certificates.
    pub(super) fn ca_file(&self) -> Option<&Path> {
        self.ca_file.as_deref()
    }

    async fn open(&self) -> anyhow::Result<Backend> {
        if let Some(place) = &self.server {
            let remote = Remote::new(place.clone(), self.token_file.as_deref(), self.ca_file.as_deref())?;
            return Ok(Backend::Running(remote));
        }
        let config = self.settings.load()?;
        let place = Place::of(&config.admin);
        let token = self.token_file.clone().or_else(|| config.admin.token_file.clone());
        let remote = |place: Place| Remote::new(place, token.as_deref(), self.ca_file.as_deref());
        // A folder that is not there is not made just to find it empty: perhaps the larder that runs keeps its store elsewhere.
        if !config.store.path.exists() {
            let path = config.store.path.display();
            if let Some(place) = place {
                let asked = remote(place.clone())?;
                if asked.is_there().await {
                    return Ok(Backend::Running(asked));
                }
                anyhow::bail!(
                    "there is no store in {path}, and no larder answers at {place}; name one with --server, or a store with --data"
                );
            }
            anyhow::bail!(
                "there is no store in {path}; name a running larder with --server, or a store with --data"
            );
        }
        match Offline::open(&config).await {
            Ok(offline) => Ok(Backend::Here(Box::new(offline))),
            Err(error) if app::is_in_use(&error) => {
                let hint = format!("the store in {} is in use by a larder", config.store.path.display());
                let Some(place) = place else {
                    anyhow::bail!("{hint}; name its admin API with --server");
                };
                let asked = remote(place.clone())?;
                if !asked.is_there().await {
                    anyhow::bail!("{hint} that does not answer at {place}; name its admin API with --server");
                }
                Ok(Backend::Running(asked))
            }
            Err(error) => Err(error),
        }
    }

    /// Prints a report: as JSON if that was asked for, else as `told` words it.
    pub(super) fn print(&self, report: &Value, told: impl FnOnce() -> String) -> anyhow::Result<()> {
        print(&if self.json { serde_json::to_string_pretty(report)? + "\n" } else { told() })
    }
}

/// A report as it came, and as what it is.
#[derive(Debug)]
pub(super) struct Answer<T> {
    pub(super) value: Value,
    pub(super) report: T,
}

fn read<T: DeserializeOwned>(value: Value) -> anyhow::Result<Answer<T>> {
    let report = T::deserialize(&value)
        .context("the larder that runs is of another version: its report is not understood")?;
    Ok(Answer { value, report })
}

impl Backend {
    /// Asks a question.
    pub(super) async fn ask<T: DeserializeOwned>(&self, question: Query) -> anyhow::Result<Answer<T>> {
        read(match self {
            Self::Running(remote) => remote.ask(&question).await?,
            Self::Here(offline) => {
                question.answer(offline.operations()).await.map_err(|error| error.failure())?
            }
        })
    }

    /// Has long work done, and shows how far it is to whoever looks on.
    pub(super) async fn run<T: DeserializeOwned>(&self, task: JobSpec) -> anyhow::Result<Answer<T>> {
        let mut bars = Bars::new();
        let value = match self {
            Self::Running(remote) => remote.run(&task, |progress| bars.show(progress)).await?,
            Self::Here(offline) => {
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
