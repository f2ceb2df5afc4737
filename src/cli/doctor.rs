//! `larder doctor`: checks everything that larder depends on, and names a remedy for each failure.

mod clients;
mod running;

use std::fmt::Write as _;

use clap::Args;
use serde::Serialize;
use tokio::time::timeout;

use super::backend::ServerOptions;
use super::exit::ExitAnswer;
use super::output::{print, sentence};
use super::remote::Remote;
use super::serve::on_runtime;
use super::setup::Given;
use super::table::{bad, fair, good};
use crate::app::Offline;
use crate::app::examine::{self, Sample, Step, Verdict};
use crate::config::Config;
use crate::ops::list::{Completeness, ListReport, ListRow};
use crate::ops::query::Query;

/// Arguments of `larder doctor`.
#[derive(Args, Debug)]
pub(super) struct Doctor {
    /// Address under which clients reach the server, if it is not the listen address; may begin with http:// or https://
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<Given>,
    #[command(flatten)]
    server: ServerOptions,
}

/// Result of all checks.
#[derive(Debug, Default, Serialize)]
struct DoctorReport {
    /// True if no check fails.
    ok: bool,
    checks: Vec<Check>,
}

#[derive(Debug, Serialize)]
struct Check {
    /// Subject area: `configuration`, `upstream`, `store`, `system`, `larder` or `client`.
    area: &'static str,
    /// Name within the area, if the area has several subjects.
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    #[serde(flatten)]
    step: Step,
}

impl DoctorReport {
    fn add(&mut self, area: &'static str, subject: Option<&str>, steps: impl IntoIterator<Item = Step>) {
        let subject = subject.map(str::to_owned);
        self.checks.extend(steps.into_iter().map(|step| Check { area, subject: subject.clone(), step }));
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.checks.iter().filter(|check| check.step.verdict == verdict).count()
    }
}

/// Runs all checks.
pub(super) fn run(arguments: &Doctor) -> anyhow::Result<()> {
    let mut report = DoctorReport::default();
    match arguments.server.settings.load() {
        Ok(config) => {
            let upstreams = config.upstream.len();
            report.add(
                "configuration",
                None,
                [Step::ok(
                    "configuration",
                    match arguments.server.settings.file()? {
                        Some(file) => format!("{} is valid; {upstreams} upstreams", file.display()),
                        None => format!("no file is given, the defaults apply; {upstreams} upstreams"),
                    },
                )],
            );
            on_runtime(examine_all(arguments, &config, &mut report))?;
        }
        Err(error) => {
            let remedy = "correct the named key; `config/larder.toml` lists every key, and `larder validate` checks again";
            report.add("configuration", None, [Step::fails("configuration", sentence(&error), remedy)]);
        }
    }
    let fails = report.count(Verdict::Fails);
    report.ok = fails == 0;
    print(&if arguments.server.json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        render(&report)
    })?;
    if report.ok {
        return Ok(());
    }
    Err(ExitAnswer::No(format!("{fails} of {} checks fail", report.checks.len())).into())
}

async fn examine_all(arguments: &Doctor, config: &Config, report: &mut DoctorReport) -> anyhow::Result<()> {
    let remote = match arguments.server.running(config) {
        Ok(remote) => remote,
        Err(error) => {
            report.add(
                "larder",
                None,
                [Step::fails("running", sentence(&error), "correct the named setting")],
            );
            None
        }
    };
    let running = match &remote {
        Some(remote) if timeout(running::TIMEOUT, remote.is_there()).await.unwrap_or_default() => {
            Some(remote)
        }
        _ => None,
    };
    let (steps, offline) =
        if arguments.server.is_elsewhere() { (Vec::new(), None) } else { examine::store(config).await };
    report.add("store", None, steps);
    let (images, reason) = held(running, offline.as_ref()).await;
    if let Some(offline) = offline {
        offline.close().await?;
    }
    match examine::upstreams(config, &samples(&images)).await {
        Ok(ways) => {
            for (name, way) in ways {
                report.add("upstream", Some(&format!("{name}, {}", way.endpoint)), way.steps);
            }
        }
        Err(error) => {
            let remedy = "correct the named file or key; the server does not start with it";
            report.add("upstream", None, [Step::fails("configuration", sentence(&error), remedy)]);
        }
    }
    let Some(remote) = running else {
        report.add("system", None, [examine::open_files(config)]);
        report.add("larder", None, [running::absent(remote.as_ref())]);
        return Ok(());
    };
    report.add("larder", None, running::steps(remote, config).await);
    report.add("larder", None, reason);
    for (client, steps) in
        clients::steps(&arguments.server, arguments.address.as_ref(), config, images.first()).await
    {
        report.add("client", Some(client), steps);
    }
    Ok(())
}

/// Returns the cached images, complete images first.
async fn held(running: Option<&Remote>, offline: Option<&Offline>) -> (Vec<ListRow>, Option<Step>) {
    let question = Query::List { repository: None };
    let answer = match (running, offline) {
        (Some(remote), _) => match timeout(running::TIMEOUT, remote.ask(&question)).await {
            Ok(answer) => answer.map_err(|error| sentence(&error)),
            Err(_) => Err(format!("{} did not answer in time", remote.address())),
        },
        (None, Some(offline)) => {
            question.answer(offline.operations()).await.map_err(|error| error.to_string())
        }
        (None, None) => return (Vec::new(), None),
    };
    let read = answer
        .and_then(|value| serde_json::from_value::<ListReport>(value).map_err(|error| error.to_string()));
    match read {
        Ok(ListReport { mut images, .. }) => {
            images.retain(|image| image.tag.is_some());
            images.sort_by_key(|image| match image.complete {
                Completeness::All => 0,
                Completeness::Some => 1,
                Completeness::None => 2,
            });
            (images, None)
        }
        Err(error) => {
            let remedy =
                "client requests were not tried without a cached image; give the token with --token-file";
            (Vec::new(), Some(Step::warning("cached images", error, remedy)))
        }
    }
}

/// Returns one cached image of each upstream.
fn samples(images: &[ListRow]) -> Vec<Sample> {
    let mut found: Vec<Sample> = Vec::new();
    for image in images {
        let Some((upstream, name)) = image.repository.split_once('/') else { continue };
        let (Ok(upstream), Ok(name)) = (upstream.parse(), name.parse()) else { continue };
        let Some(Ok(reference)) = image.tag.as_deref().map(str::parse) else { continue };
        if !found.iter().any(|sample| sample.upstream == upstream) {
            found.push(Sample { upstream, name, reference });
        }
    }
    found
}

fn render(report: &DoctorReport) -> String {
    let mut text = String::new();
    for Check { area, subject, step } in &report.checks {
        let word = match step.verdict {
            Verdict::Ok => good("ok     "),
            Verdict::Warning => fair("warning"),
            Verdict::Fails => bad("fails  "),
        };
        let about = match subject {
            Some(subject) if *area == "upstream" => format!("{subject}: {}", step.step),
            Some(subject) => format!("{area} {subject}: {}", step.step),
            None if *area == step.step => (*area).to_owned(),
            None => format!("{area}: {}", step.step),
        };
        // Show the duration only if there was a wait.
        let took = if step.ms > 0 { format!(" ({} ms)", step.ms) } else { String::new() };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{word} {about}: {}{took}", step.found);
        if let Some(remedy) = &step.remedy {
            let _ = writeln!(text, "        {remedy}");
        }
    }
    text
}
