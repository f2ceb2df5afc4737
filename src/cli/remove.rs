//! `larder rm`.

use std::fmt::Write as _;

use clap::Args;

use super::backend::{Answer, ServerOptions};
use super::table::{content, many};
use crate::ops::protocol::JobSpec;
use crate::ops::remove::RemoveReport;

/// Arguments of `larder rm`.
#[derive(Args, Debug)]
pub(super) struct Remove {
    /// Tag, such as `busybox:1`, or manifest, such as `busybox@sha256:…`
    #[arg(required = true, value_name = "REF")]
    references: Vec<String>,
    #[command(flatten)]
    server: ServerOptions,
}

/// Removes images.
pub(super) fn run(Remove { references, server }: Remove) -> anyhow::Result<()> {
    let Answer { value, report } =
        server.with(async |backend| backend.run::<RemoveReport>(JobSpec::Rm { references }).await)?;
    server.print(&value, || render(&report))
}

fn render(report: &RemoveReport) -> String {
    let mut text = String::new();
    for row in &report.images {
        let it = row.removed;
        let kept =
            if it.kept > 0 { format!("; kept {} that other images need", it.kept) } else { String::new() };
        let (tags, content) = (many(it.tags, "tag"), content(it.manifests, it.blobs, it.bytes));
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}: removed {tags}, {content}{kept}", row.reference);
    }
    text
}
