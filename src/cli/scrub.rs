//! `larder verify` and `larder gc`: the scrub's two questions.

use std::fmt::Write as _;

use clap::Args;

use super::backend::{Answer, Reach};
use super::exit::Verdict;
use super::table::{content, iec, many};
use crate::ops::job_spec::JobSpec;
use crate::ops::scrub::ScrubReport;

/// What `larder verify` is told.
#[derive(Args, Debug)]
pub(super) struct Verify {
    /// Fetch again what is damaged, at once instead of when somebody asks for it
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    reach: Reach,
}

/// What `larder gc` is told.
#[derive(Args, Debug)]
pub(super) struct Gc {
    #[command(flatten)]
    reach: Reach,
}

/// Verifies everything.
pub(super) fn verify(Verify { repair, reach }: Verify) -> anyhow::Result<()> {
    let Answer { value, report } =
        reach.with(async |backend| backend.run::<ScrubReport>(JobSpec::Verify { repair }).await)?;
    reach.print(&value, || verified(&report))?;
    let left = report.damaged.len() - report.repaired.len();
    if left > 0 { Err(Verdict::Damage(left).into()) } else { Ok(()) }
}

/// Removes what leads to nothing.
pub(super) fn gc(Gc { reach }: Gc) -> anyhow::Result<()> {
    let Answer { value, report } =
        reach.with(async |backend| backend.run::<ScrubReport>(JobSpec::Gc {}).await)?;
    reach.print(&value, || collected(&report))
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
    for (what, tally) in
        [("a tag leads to", report.reached.reachable), ("no tag leads to", report.reached.unreachable)]
    {
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
