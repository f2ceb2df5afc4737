//! `larder setup`: what a client has to be told so that it pulls through this larder.

mod buildkit;
mod containerd;
mod containers;
mod disk;
mod docker;
mod instance;
mod kubernetes;
mod piece;

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{Settings, note, print};
use crate::config::Config;
use disk::{Disk, Outcome};
pub(super) use instance::{Given, Instance, Scheme};
use piece::Plan;

/// What `larder setup` is told.
#[derive(Args, Debug)]
pub(super) struct Setup {
    /// What is to pull through larder
    client: Client,
    /// Write the files, with a dated copy of each that changes; what they hold beside it stays
    #[arg(long)]
    write: bool,
    /// By which name the client reaches larder, where that is not what larder listens at; http:// or https:// may stand
    /// before it
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<Given>,
    /// PEM file with the authority that larder's certificate is from, where clients do not trust it anyway
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// The folder that stands for `/`: of a chroot, or of a machine's image
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// For containerd: one file for each upstream, in place of one for all registries
    #[arg(long)]
    per_registry: bool,
    /// Print paths, contents and what to do afterwards as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

/// A program that pulls images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Client {
    Docker,
    Containerd,
    Podman,
    Crio,
    Buildkit,
    K3s,
    Kind,
}

/// One file, as programs are told of it.
#[derive(Debug, Serialize)]
struct Told<'a> {
    path: PathBuf,
    content: &'a str,
    after: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backup: Option<PathBuf>,
}

/// Prints what a client has to be told, or tells it.
pub(super) fn run(arguments: &Setup) -> anyhow::Result<()> {
    let config = arguments.settings.load()?;
    let Setup { client, write, json, per_registry, .. } = *arguments;
    if per_registry && client != Client::Containerd {
        bail!("--per-registry is for containerd alone: the other clients have one file");
    }
    let disk = Disk::new(&arguments.root)?;
    let instance = Instance::of(&config, arguments.address.as_ref(), arguments.ca_file.as_deref())?;
    let mut plan = plan(client, per_registry, &config, &instance, &disk)?;
    if instance.scheme == Scheme::Https && instance.authority.is_none() {
        plan.notes.push(
            "clients have to trust larder's certificate by the authorities of their machine; for one of your own add \
             --ca-file"
                .to_owned(),
        );
    }
    if write && client == Client::Kind {
        bail!(
            "kind has no file at a place of its own to write; `larder setup kind` prints a cluster's configuration to \
             put where you want it"
        );
    }
    let outcomes = if write { Some(disk.write(&plan.pieces)?) } else { None };
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

fn plan(
    client: Client,
    per_registry: bool,
    config: &Config,
    instance: &Instance,
    disk: &Disk,
) -> anyhow::Result<Plan> {
    match client {
        Client::Docker => docker::plan(config, instance),
        Client::Containerd => containerd::plan(instance, per_registry, disk),
        Client::Podman => containers::plan(instance, containers::Reader::Podman, disk),
        Client::Crio => containers::plan(instance, containers::Reader::Crio, disk),
        Client::Buildkit => Ok(buildkit::plan(instance)),
        Client::K3s => Ok(kubernetes::k3s(instance)),
        Client::Kind => kubernetes::kind(instance),
    }
}

fn programs<'a>(plan: &'a Plan, outcomes: Option<&[Outcome]>, disk: &Disk) -> Vec<Told<'a>> {
    let told = plan.pieces.iter().enumerate().map(|(place, piece)| {
        let outcome = outcomes.and_then(|outcomes| outcomes.get(place));
        Told {
            path: disk.path(&piece.path),
            content: &piece.content,
            after: &piece.after,
            outcome: outcome.map(Outcome::word),
            backup: outcome.and_then(Outcome::backup),
        }
    });
    told.collect()
}

/// For people: every file under its path, and what to do once it is there.
fn shown(plan: &Plan, disk: &Disk) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    for piece in &plan.pieces {
        if !text.is_empty() {
            text.push('\n');
        }
        let _ = writeln!(text, "# {}", disk.path(&piece.path).display());
        text.push_str(&piece.content);
    }
    if let Some(piece) = plan.pieces.first() {
        let _ = writeln!(text, "\n{}", commented(&piece.after));
    }
    text
}

fn written(plan: &Plan, outcomes: &[Outcome], disk: &Disk) -> String {
    let mut text = String::new();
    for (piece, outcome) in plan.pieces.iter().zip(outcomes) {
        let path = disk.path(&piece.path);
        // Writing to a String cannot fail.
        let _ = match outcome {
            Outcome::Unchanged => writeln!(text, "{}: already so", path.display()),
            Outcome::Written(None) => writeln!(text, "{}: written", path.display()),
            Outcome::Written(Some(backup)) => {
                writeln!(text, "{}: written; as it was before, it is {}", path.display(), backup.display())
            }
        };
    }
    let changed = outcomes.iter().any(|outcome| !matches!(outcome, Outcome::Unchanged));
    if let Some(piece) = plan.pieces.first().filter(|_| changed) {
        let _ = writeln!(text, "{}", piece.after);
    }
    text
}

fn commented(text: &str) -> String {
    text.lines().map(|line| format!("# {line}").trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}
