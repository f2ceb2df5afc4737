//! `larder doctor`: checks everything that larder depends on, and names a remedy for each failure.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use reqwest::{Client, Method};
use tokio::time::timeout;

use super::backend::ServerOptions;
use super::exit::ExitAnswer;
use super::output::{print, sentence};
use super::remote::{self, Remote};
use super::serve::on_runtime;
use super::setup::{Given, Instance, Scheme};
use super::table::{bad, fair, good};
use crate::app::{self, Offline};
use crate::config::Config;
use crate::config::advice::advice;
use crate::diagnose::running_server::{self, Answers};
use crate::diagnose::store::{self, FolderCheck};
use crate::diagnose::{Check, Report, Step, Verdict, clients, open_files, upstreams};
use crate::ops::list::{Completeness, ListReport, ListRow};
use crate::ops::protocol::Query;

/// Time-out of each request to the admin API.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Arguments of `larder doctor`.
#[derive(Args, Debug)]
pub(super) struct Doctor {
    /// Address under which clients reach the server, if it is not the listen address; may begin with http:// or https://
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<Given>,
    #[command(flatten)]
    server: ServerOptions,
}

/// Runs all checks.
pub(super) fn run(arguments: &Doctor) -> anyhow::Result<()> {
    let mut report = Report::default();
    let (config, invalid) = arguments.server.settings.load_for_server();
    let is_valid = invalid.is_none();
    let step = match invalid {
        None => {
            let upstreams = config.upstream.len();
            Step::ok(
                "configuration",
                match arguments.server.settings.file()? {
                    Some(file) => format!("{} is valid; {upstreams} upstreams", file.display()),
                    None => format!("no file is given, the defaults apply; {upstreams} upstreams"),
                },
            )
        }
        Some(error) => Step::fails(
            "configuration",
            sentence(&error),
            "correct the named key; `config/larder.toml` lists every key, and `larder validate` checks again. Store and \
             upstreams are checked with a valid configuration only",
        ),
    };
    report.add("configuration", None, [step]);
    let remedy = "correct the endpoint; `larder validate` checks again";
    let advice = advice(&config).into_iter().map(|found| Step::warning("endpoints", found, remedy));
    report.add("configuration", None, advice);
    on_runtime(check_all(arguments, &config, is_valid, &mut report))?;
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

/// Runs the checks. Without a valid configuration, only the running server is checked.
async fn check_all(
    arguments: &Doctor,
    config: &Config,
    is_valid: bool,
    report: &mut Report,
) -> anyhow::Result<()> {
    let remote = match arguments.server.running(&config.admin) {
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
        Some(remote) if timeout(ADMIN_TIMEOUT, remote.is_there()).await.unwrap_or_default() => Some(remote),
        _ => None,
    };
    let has_store = is_valid && !arguments.server.is_elsewhere();
    let (steps, offline) = if has_store { check_store(config).await } else { (Vec::new(), None) };
    report.add("store", None, steps);
    let (images, reason) = cached_images(running, offline.as_ref()).await;
    if let Some(offline) = offline {
        offline.close().await?;
    }
    if is_valid {
        check_upstreams(config, &images, report).await;
    }
    let Some(remote) = running else {
        report.add("system", None, is_valid.then(|| open_files::check_here(config)));
        let address = remote.map(|remote| remote.address().to_string());
        report.add("larder", None, [running_server::no_answer(address)]);
        return Ok(());
    };
    let answers = ask_server(remote).await;
    report.add("larder", None, running_server::check(&remote.address().to_string(), answers, config));
    report.add("larder", None, reason);
    for (client, step) in check_clients(arguments, config, images.first()).await {
        report.add("client", Some(client), [step]);
    }
    Ok(())
}

/// Checks all endpoints of all upstreams.
async fn check_upstreams(config: &Config, images: &[ListRow], report: &mut Report) {
    match upstreams::check(config, images).await.context("the upstreams cannot be set up") {
        Ok(checks) => {
            for check in checks {
                report.add("upstream", Some(&format!("{}, {}", check.upstream, check.endpoint)), check.steps);
            }
        }
        Err(error) => {
            let remedy = "correct the named file or key; the server does not start with it";
            report.add("upstream", None, [Step::fails("configuration", sentence(&error), remedy)]);
        }
    }
}

/// Checks the store, and returns it if it could be opened.
async fn check_store(config: &Config) -> (Vec<Step>, Option<Offline>) {
    let FolderCheck { mut steps, can_open } = store::check_folder(config);
    if !can_open {
        return (steps, None);
    }
    let started = Instant::now();
    let (step, opened) = match Offline::open(&store::without_quarantine(config)).await {
        Ok(offline) => (store::opened(offline.disk_usage().await.ok()), Some(offline)),
        Err(error) if app::is_in_use(&error) => (store::in_use(), None),
        Err(error) => (store::not_opened(config, format!("{error:#}")), None),
    };
    steps.push(step.since(started));
    (steps, opened)
}

/// Requests the readiness and the metrics of the running server.
async fn ask_server(remote: &Remote) -> Answers {
    let started = Instant::now();
    let (ready, metrics) = tokio::join!(text(remote, "/readyz"), text(remote, "/metrics"));
    let metrics = metrics.ok().filter(|(status, _)| *status == 200).map(|(_, text)| text);
    Answers { ready: ready.map_err(|error| sentence(&error)), metrics, duration: started.elapsed() }
}

async fn text(remote: &Remote, target: &str) -> anyhow::Result<(u16, String)> {
    let answer = async {
        let answer = remote.request(Method::GET, target)?.send().await?;
        anyhow::Ok((answer.status().as_u16(), answer.text().await?))
    };
    timeout(ADMIN_TIMEOUT, answer).await.context("no answer in time")?
}

/// Sends the requests of clients to the address under which they reach the server.
async fn check_clients(
    arguments: &Doctor,
    config: &Config,
    image: Option<&ListRow>,
) -> Vec<(&'static str, Step)> {
    let Doctor { address, server } = arguments;
    if server.is_elsewhere() && address.is_none() {
        let found = "the address under which clients reach the named server is unknown";
        return vec![("requests", Step::warning("address", found, "name it with --address"))];
    }
    let instance = match Instance::seen_from_here(config, address.as_ref()) {
        Ok(instance) => instance,
        Err(error) => {
            let remedy = "give the address under which clients reach the server with --address";
            return vec![("requests", Step::warning("address", error.to_string(), remedy))];
        }
    };
    let client = match client(server) {
        Ok(client) => client,
        Err(error) => {
            return vec![("requests", Step::fails("tls", format!("{error:#}"), "correct --ca-file"))];
        }
    };
    let mut steps = clients::check(&client, &instance.url(), config, image).await;
    if instance.scheme == Scheme::Http {
        steps.push((
            "requests",
            match remote::tls(None) {
                Ok(tls) => clients::check_tls_on_plain_port(instance.to_string(), tls).await,
                Err(error) => Step::fails("tls", sentence(&error), "try again"),
            },
        ));
    }
    steps
}

fn client(server: &ServerOptions) -> anyhow::Result<Client> {
    let tls = remote::tls(server.ca_file())?;
    Ok(Client::builder().no_proxy().timeout(clients::TIMEOUT).tls_backend_preconfigured(tls).build()?)
}

/// Returns the cached images, complete images first.
async fn cached_images(running: Option<&Remote>, offline: Option<&Offline>) -> (Vec<ListRow>, Option<Step>) {
    let query = Query::List { repository: None };
    let answer = match (running, offline) {
        (Some(remote), _) => match timeout(ADMIN_TIMEOUT, remote.ask(&query)).await {
            Ok(answer) => answer.map_err(|error| sentence(&error)),
            Err(_) => Err(format!("{} did not answer in time", remote.address())),
        },
        (None, Some(offline)) => query.answer(offline.operations()).await.map_err(|error| error.to_string()),
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

fn render(report: &Report) -> String {
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
