//! `larder verify` and `larder gc`.

use std::fmt::Write as _;

use clap::Args;

use super::backend::{Answer, ServerOptions};
use super::exit::ExitAnswer;
use super::table::{content, iec, many};
use crate::ops::protocol::JobSpec;
use crate::ops::scrub::ScrubReport;

/// Arguments of `larder verify`.
#[derive(Args, Debug)]
pub(super) struct Verify {
    /// Fetch damaged content again now, instead of with the next request
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    server: ServerOptions,
}

/// Arguments of `larder gc`.
#[derive(Args, Debug)]
pub(super) struct Gc {
    #[command(flatten)]
    server: ServerOptions,
}

/// Verifies all cached content.
pub(super) fn verify(Verify { repair, server }: Verify) -> anyhow::Result<()> {
    let Answer { value, report } =
        server.with(async |backend| backend.run::<ScrubReport>(JobSpec::Verify { repair }).await)?;
    server.print(&value, || verified(&report))?;
    let left = report.damaged.len() - report.repaired.len();
    if left > 0 { Err(ExitAnswer::Damage(left).into()) } else { Ok(()) }
}

/// Removes orphaned data.
pub(super) fn gc(Gc { server }: Gc) -> anyhow::Result<()> {
    let Answer { value, report } =
        server.with(async |backend| backend.run::<ScrubReport>(JobSpec::Gc {}).await)?;
    server.print(&value, || collected(&report))
}
fn verified(report: &ScrubReport) -> String {
    let ScrubReport { manifests, blobs, bytes, damaged, repaired, .. } = report;
    let (manifests, blobs) = (many(*manifests, "manifest"), many(*blobs, "blob"));
    let mut text = format!("intact: {manifests}, {blobs} ({} read)\n", iec(*bytes));
    for damage in damaged {
        let kind = if damage.manifest { "manifest" } else { "blob" };
        let end = if repaired.contains(&damage.digest) { "fetched again" } else { "removed" };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "damaged: {kind} {}, {end}", damage.digest);
    }
    text
}

fn collected(report: &ScrubReport) -> String {
    let mut text = String::new();
    for (what, tally) in [
        ("reachable from tags:", report.reached.reachable),
        ("not reachable from tags:", report.reached.unreachable),
    ] {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{what} {}", content(tally.manifests, tally.blobs, tally.bytes));
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
