//! `larder doctor`: looks at everything that a larder depends on, says what fails, and what helps.

mod clients;
mod running;

use std::fmt::Write as _;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tokio::time::timeout;

use super::backend::Reach;
use super::exit::Verdict as Answer;
use super::print;
use super::remote::Remote;
use super::sentence;
use super::serve::on_runtime;
use super::setup::Given;
use super::table::{bad, fair, good};
use crate::app::Offline;
use crate::app::examine::{self, Sample, Step, Verdict};
use crate::config::Config;
use crate::ops::list::{Completeness, ListReport as Images, ListRow};
use crate::ops::query::Query;

/// How long a larder that runs is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// What `larder doctor` is told.
#[derive(Args, Debug)]
pub(super) struct Doctor {
    /// By which name clients reach larder, where that is not what larder listens at; http:// or https:// may stand before
    /// it
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<Given>,
    #[command(flatten)]
    reach: Reach,
}

/// What was found.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// Whether nothing fails.
    ok: bool,
    checks: Vec<Check>,
}

#[derive(Debug, Serialize)]
struct Check {
    /// What it is about: `configuration`, `upstream`, `store`, `system`, `larder` or `client`.
    area: &'static str,
    /// Which of them, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    #[serde(flatten)]
    step: Step,
}

impl Report {
    fn add(&mut self, area: &'static str, subject: Option<&str>, steps: impl IntoIterator<Item = Step>) {
        let subject = subject.map(str::to_owned);
        self.checks.extend(steps.into_iter().map(|step| Check { area, subject: subject.clone(), step }));
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.checks.iter().filter(|check| check.step.verdict == verdict).count()
    }
}

/// Looks at everything.
pub(super) fn run(arguments: &Doctor) -> anyhow::Result<()> {
    let mut report = Report::default();
    match arguments.reach.settings.load() {
        Ok(config) => {
            let upstreams = config.upstream.len();
            report.add(
                "configuration",
                None,
                [Step::ok(
                    "configuration",
                    match arguments.reach.settings.file()? {
                        Some(file) => format!("{} can be used; {upstreams} upstreams", file.display()),
                        None => format!("none is given, and the defaults hold; {upstreams} upstreams"),
                    },
                )],
            );
            on_runtime(examine_all(arguments, &config, &mut report))?;
        }
        Err(error) => {
            let remedy = "correct what is named; `config/larder.toml` has every key, and `larder validate` checks again";
            report.add("configuration", None, [Step::fails("configuration", sentence(&error), remedy)]);
        }
    }
    let fails = report.count(Verdict::Fails);
    report.ok = fails == 0;
    print(&if arguments.reach.json { serde_json::to_string_pretty(&report)? + "\n" } else { told(&report) })?;
    if report.ok {
        return Ok(());
    }
    Err(Answer::No(format!("{fails} of {} checks fail", report.checks.len())).into())
}

async fn examine_all(arguments: &Doctor, config: &Config, report: &mut Report) -> anyhow::Result<()> {
    let remote = match arguments.reach.running(config) {
        Ok(remote) => remote,
        Err(error) => {
            report.add("larder", None, [Step::fails("running", sentence(&error), "correct what is named")]);
            None
        }
    };
    let running = match &remote {
        Some(remote) if timeout(PATIENCE, remote.is_there()).await.unwrap_or_default() => Some(remote),
        _ => None,
    };
    let (steps, offline) =
        if arguments.reach.is_elsewhere() { (Vec::new(), None) } else { examine::store(config).await };
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
            let remedy = "correct the file or the key that is named; larder does not start so";
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
    for (client, steps) in clients::steps(arguments, config, images.first()).await {
        report.add("client", Some(client), steps);
    }
    Ok(())
}

/// What is held, those images first that can be pulled whole.
async fn held(running: Option<&Remote>, offline: Option<&Offline>) -> (Vec<ListRow>, Option<Step>) {
    let question = Query::List { repository: None };
    let answer = match (running, offline) {
        (Some(remote), _) => match timeout(PATIENCE, remote.ask(&question)).await {
            Ok(answer) => answer.map_err(|error| sentence(&error)),
            Err(_) => Err(format!("{} did not answer in time", remote.place())),
        },
        (None, Some(offline)) => {
            question.answer(offline.operations()).await.map_err(|error| error.to_string())
        }
        (None, None) => return (Vec::new(), None),
    };
    let read =
        answer.and_then(|value| serde_json::from_value::<Images>(value).map_err(|error| error.to_string()));
    match read {
        Ok(Images { mut images, .. }) => {
            images.retain(|image| image.tag.is_some());
            images.sort_by_key(|image| match image.complete {
                Completeness::All => 0,
                Completeness::Some => 1,
                Completeness::None => 2,
            });
            (images, None)
        }
        Err(error) => {
            let remedy = "pulls are not tried without something to pull; --token-file lets you ask";
            (Vec::new(), Some(Step::warning("what is held", error, remedy)))
        }
    }
}

/// One image of each upstream.
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

fn told(report: &Report) -> String {
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
        // What took no time to speak of was not waited for.
        let took = if step.ms > 0 { format!(" ({} ms)", step.ms) } else { String::new() };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{word} {about}: {}{took}", step.found);
        if let Some(remedy) = &step.remedy {
            let _ = writeln!(text, "        {remedy}");
        }
    }
    text
}
