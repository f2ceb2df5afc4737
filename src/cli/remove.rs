//! `larder rm`.

use std::fmt::Write as _;

use clap::Args;

use super::backend::{Answer, Reach};
use super::table::{content, many};
use crate::ops::job_spec::JobSpec;
use crate::ops::remove::RemoveReport;

/// What `larder rm` is told.
#[derive(Args, Debug)]
pub(super) struct Remove {
    /// What: a tag, such as `busybox:1`, or a manifest, such as `busybox@sha256:…`
    #[arg(required = true, value_name = "REF")]
    references: Vec<String>,
    #[command(flatten)]
    reach: Reach,
}

/// Removes images.
pub(super) fn run(Remove { references, reach }: Remove) -> anyhow::Result<()> {
    let Answer { value, report } =
        reach.with(async |backend| backend.run::<RemoveReport>(JobSpec::Rm { references }).await)?;
    reach.print(&value, || told(&report))
}

fn told(report: &RemoveReport) -> String {
    let mut text = String::new();
    for row in &report.images {
        let it = row.removed;
        let kept =
            if it.kept > 0 { format!("; {} that something else needs stay", it.kept) } else { String::new() };
        let (tags, content) = (many(it.tags, "tag"), content(it.manifests, it.blobs, it.bytes));
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}: removed {tags}, {content}{kept}", row.reference);
    }
    text
}
