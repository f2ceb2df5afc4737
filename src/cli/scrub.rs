//! `larder verify` and `larder gc`: the scrub's two questions, asked of a store that no larder has open.

use std::fmt::Write as _;

use bytesize::ByteSize;
use clap::Args;
use indicatif::ProgressBar;

use super::serve::on_runtime;
use super::{Settings, convert::bar, print};
use crate::app::{self, Offline};
use crate::config::Config;
use crate::ops::scrub::{self, Pace, Progress, Report};

/// What `larder verify` is told.
#[derive(Args, Debug)]
pub(super) struct Verify {
    /// Fetch again what is damaged, at once instead of when somebody asks for it
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    how: How,
}

/// What `larder gc` is told.
#[derive(Args, Debug)]
pub(super) struct Gc {
    #[command(flatten)]
    how: How,
}

#[derive(Args, Debug)]
struct How {
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

/// Verifies everything, and says how far it is to whoever looks on.
pub(super) fn verify(arguments: Verify) -> anyhow::Result<()> {
    let Verify { repair, how: How { json, settings } } = arguments;
    let report = with_store(&settings.load()?, async |offline| {
        let mut progress: Option<ProgressBar> = None;
        let (cache, metrics) = (offline.cache(), offline.metrics());
        let mut step = |step| match step {
            Progress::Due(bytes) => progress = bar(bytes).ok(),
            Progress::Read(bytes) => progress.iter().for_each(|bar| bar.inc(bytes)),
        };
        let mut report = scrub::verify(cache, metrics, u64::MAX, &mut Pace::new(0), &mut step).await?;
        progress.iter().for_each(ProgressBar::finish_and_clear);
        if repair && !report.damaged.is_empty() {
            report.repaired = cache.repair(&report.damaged).await?;
        }
        Ok(report)
    })?;
    print(&if json { as_json(&report)? } else { verified(&report) })?;
    let left = report.damaged.len() - report.repaired.len();
    if left > 0 { Err(Damage(left).into()) } else { Ok(()) }
}

/// Removes what leads to nothing.
pub(super) fn gc(arguments: Gc) -> anyhow::Result<()> {
    let How { json, settings } = arguments.how;
    let report = with_store(&settings.load()?, async |offline| {
        let mut report = Report::default();
        scrub::collect(offline.cache(), offline.metrics(), &mut report).await?;
        Ok(report)
    })?;
    print(&if json { as_json(&report)? } else { collected(&report) })
}

/// Content that is not what its digest says was found, and is gone.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0} damaged manifests or blobs were removed; they will be fetched again when somebody asks for them"
)]
pub(super) struct Damage(usize);

fn with_store(
    config: &Config,
    work: impl AsyncFnOnce(&Offline) -> anyhow::Result<Report>,
) -> anyhow::Result<Report> {
    app::init_log(&config.log)?;
    on_runtime(async {
        let offline = Offline::open(config).await?;
        let report = work(&offline).await?;
        offline.close().await?;
        Ok(report)
    })
}

fn as_json(report: &Report) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(report)? + "\n")
}

fn iec(bytes: u64) -> impl std::fmt::Display {
    ByteSize(bytes).display().iec()
}

fn verified(report: &Report) -> String {
    let Report { manifests, blobs, bytes, damaged, repaired, .. } = report;
    let mut text = format!("intact: {manifests} manifests, {blobs} blobs ({} read)\n", iec(*bytes));
    for damage in damaged {
        let kind = if damage.manifest { "manifest" } else { "blob" };
        let end = if repaired.contains(&damage.digest) { "fetched again" } else { "removed" };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "damaged: {kind} {}, {end}", damage.digest);
    }
    text
}

fn collected(report: &Report) -> String {
    let mut text = String::new();
    for (what, tally) in
        [("a tag leads to", report.reached.reachable), ("no tag leads to", report.reached.unreachable)]
    {
        let (manifests, blobs, bytes) = (tally.manifests, tally.blobs, iec(tally.bytes));
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{what} {manifests} manifests and {blobs} blobs ({bytes})");
    }
    let removed: Vec<String> = report
        .collected
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(what, count)| format!("{count} {what}"))
        .collect();
    let removed = if removed.is_empty() { "nothing".to_owned() } else { removed.join(", ") };
    let _ = writeln!(text, "removed: {removed}");
    text
}
