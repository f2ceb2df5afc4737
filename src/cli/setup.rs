//! `larder setup`: configuration of clients, printed or written.

mod buildkit;
mod containerd;
mod containers;
mod disk;
mod docker;
mod file_edit;
mod hosts_toml;
mod instance;
mod kubernetes;
mod version;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::output::{note, print};
use super::settings::Settings;
use crate::config::Config;
use disk::{Disk, Outcome};
use docker::{ImageStore, Installation};
use file_edit::Plan;
pub(super) use instance::{Given, Instance, Scheme};
use version::{Version, output_of};

/// Arguments of `larder setup`.
#[derive(Args, Debug)]
pub(super) struct Setup {
    /// Client to configure
    client: Client,
    /// Write the files; keeps other settings, and a dated copy of each changed file
    #[arg(long)]
    write: bool,
    /// Address under which the client reaches the server, if it is not the listen address; may begin with http:// or
    /// https://
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<Given>,
    /// PEM file with the certificate authority of the server, if clients do not trust it already
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Root folder for all paths: a chroot or a mounted machine image
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// For containerd: one file per upstream instead of one for all registries
    #[arg(long)]
    per_registry: bool,
    /// For containerd: its version, if it is not the one of this machine; with 2.2 and later containerd finds signatures
    /// through the server
    #[arg(long, value_name = "VERSION")]
    containerd_version: Option<Version>,
    /// For Docker: its version, if it is not the one of this machine
    #[arg(long, value_name = "VERSION")]
    docker_version: Option<Version>,
    /// For Docker: place of the images, if it is not the one of this machine; containerd's store has mirrors for all
    /// registries
    #[arg(long, value_name = "STORE")]
    image_store: Option<ImageStore>,
    /// Print paths, contents and the next steps as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

/// Client program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Client {
    Docker,
    Containerd,
    Podman,
    Crio,
    Buildkit,
    K3s,
    Kind,
    Spegel,
}

/// File in the JSON output.
#[derive(Debug, Serialize)]
struct PlannedFile<'a> {
    path: PathBuf,
    content: &'a str,
    after: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backup: Option<PathBuf>,
}

/// Prints or writes the configuration of a client.
pub(super) fn run(arguments: &Setup) -> anyhow::Result<()> {
    let config = arguments.settings.load()?;
    let Setup { client, write, json, .. } = *arguments;
    arguments.check()?;
    let disk = Disk::new(&arguments.root)?;
    let instance = Instance::of(&config, arguments.address.as_ref(), arguments.ca_file.as_deref())?;
    let mut plan = arguments.plan(&config, &instance, &disk)?;
    if instance.scheme == Scheme::Https && instance.authority.is_none() {
        plan.notes.push(
            "clients must trust the server's certificate through the authorities of their machine; for a private authority \
             add --ca-file"
                .to_owned(),
        );
    }
    if write && client == Client::Kind {
        bail!(
            "kind has no fixed configuration file; `larder setup kind` prints a cluster configuration to save where you \
             want it"
        );
    }
    if write && client == Client::Spegel {
        bail!(
            "the values of Spegel's Helm chart have no fixed place: run `larder setup containerd --write` on each node, and \
             save the output of `larder setup spegel` where you want it"
        );
    }
    let outcomes = if write { Some(disk.write(&plan.edits)?) } else { None };
    if json {
        print(&(serde_json::to_string_pretty(&programs(&plan, outcomes.as_deref(), &disk))? + "\n"))?;
    } else {
        print(&match &outcomes {
            Some(outcomes) => written(&plan, outcomes, &disk),
            None => shown(&plan, &disk),
        })?;
    }
    for line in &plan.notes {
        note(&format!("note: {line}"))?;
    }
    Ok(())
}

impl Setup {
    /// Refuses options of another client.
    fn check(&self) -> anyhow::Result<()> {
        let is_containerd = matches!(self.client, Client::Containerd | Client::Spegel);
        if self.per_registry && self.client != Client::Containerd {
            bail!("--per-registry is for containerd only: the other clients have one file");
        }
        if self.containerd_version.is_some() && !is_containerd {
            bail!("--containerd-version is for containerd and spegel only");
        }
        if (self.docker_version.is_some() || self.image_store.is_some()) && self.client != Client::Docker {
            bail!("--docker-version and --image-store are for docker only");
        }
        Ok(())
    }

    /// Returns true if the client's programs run on this machine and can be asked.
    fn may_ask(&self) -> bool {
        self.root == Path::new("/")
    }

    fn containerd_version(&self) -> Option<Version> {
        let asked = || output_of("containerd", &["--version"]).and_then(|output| Version::find(&output));
        self.containerd_version.or_else(|| self.may_ask().then(asked).flatten())
    }

    fn plan(&self, config: &Config, instance: &Instance, disk: &Disk) -> anyhow::Result<Plan> {
        match self.client {
            Client::Docker => {
                let given = Installation { store: self.image_store, version: self.docker_version };
                docker::plan(config, instance, given.detect(disk, self.may_ask())?)
            }
            Client::Containerd => {
                containerd::plan(instance, self.per_registry, self.containerd_version(), disk)
            }
            Client::Podman => containers::plan(instance, containers::Reader::Podman, disk),
            Client::Crio => containers::plan(instance, containers::Reader::Crio, disk),
            Client::Buildkit => Ok(buildkit::plan(instance)),
            Client::K3s => Ok(kubernetes::k3s(instance)),
            Client::Kind => kubernetes::kind(instance),
            Client::Spegel => containerd::spegel(instance, self.containerd_version(), disk),
        }
    }
}

fn programs<'a>(plan: &'a Plan, outcomes: Option<&[Outcome]>, disk: &Disk) -> Vec<PlannedFile<'a>> {
    let files = plan.edits.iter().enumerate().map(|(place, edit)| {
        let outcome = outcomes.and_then(|outcomes| outcomes.get(place));
        PlannedFile {
            path: disk.path(&edit.path),
            content: &edit.content,
            after: &edit.after,
            outcome: outcome.map(Outcome::word),
            backup: outcome.and_then(Outcome::backup),
        }
    });
    files.collect()
}

/// Returns the text output: every file with its path, then the next steps.
fn shown(plan: &Plan, disk: &Disk) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    for edit in &plan.edits {
        if !text.is_empty() {
            text.push('\n');
        }
        let _ = writeln!(text, "# {}", disk.path(&edit.path).display());
        text.push_str(&edit.content);
    }
    if let Some(edit) = plan.edits.first() {
        let _ = writeln!(text, "\n{}", commented(&edit.after));
    }
    text
}

fn written(plan: &Plan, outcomes: &[Outcome], disk: &Disk) -> String {
    let mut text = String::new();
    for (edit, outcome) in plan.edits.iter().zip(outcomes) {
        let path = disk.path(&edit.path);
        // Writing to a String cannot fail.
        let _ = match outcome {
            Outcome::Unchanged => writeln!(text, "{}: unchanged", path.display()),
            Outcome::Written(None) => writeln!(text, "{}: written", path.display()),
            Outcome::Written(Some(backup)) => {
                writeln!(text, "{}: written; the previous version is {}", path.display(), backup.display())
            }
        };
    }
    let changed = outcomes.iter().any(|outcome| !matches!(outcome, Outcome::Unchanged));
    if let Some(edit) = plan.edits.first().filter(|_| changed) {
        let _ = writeln!(text, "{}", edit.after);
    }
    text
}

fn commented(text: &str) -> String {
    text.lines().map(|line| format!("# {line}").trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}
