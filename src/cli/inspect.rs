//! `larder inspect`.

use std::fmt::Write as _;

use clap::Args;

use super::backend::{Answer, Reach};
use super::exit::Verdict;
use super::list::fresh;
use super::print;
use super::table::{Table, bad, good, iec};
use crate::ops::inspect::{InspectQuery, InspectReport};
use crate::ops::query::Query;

/// What `larder inspect` is told.
// Each flag is one on the command line.
#[allow(clippy::struct_excessive_bools)]
#[derive(Args, Debug)]
pub(super) struct Inspect {
    /// What: `busybox`, `ghcr.io/org/app:1`, `app@sha256:…`
    reference: String,
    /// The image for this platform: os/arch or os/arch/variant
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// The index itself
    #[arg(long, conflicts_with_all = ["platform", "config"])]
    index: bool,
    /// Only an OCI document, not a Docker one
    #[arg(long)]
    oci: bool,
    /// Only a document of this media type
    #[arg(long, value_name = "TYPE", conflicts_with = "oci")]
    media_type: Option<String>,
    /// The document itself, byte for byte
    #[arg(long, conflicts_with = "json")]
    raw: bool,
    /// The image's config in the place of its manifest
    #[arg(long)]
    config: bool,
    #[command(flatten)]
    reach: Reach,
}

/// Shows what is held of a reference.
pub(super) fn run(arguments: Inspect) -> anyhow::Result<()> {
    let Inspect { reference, platform, index, oci, media_type, raw, config, reach } = arguments;
    let ask = InspectQuery { reference, platform, index, oci, media_type, config };
    let Answer { value, report } =
        reach.with(async |backend| backend.ask::<InspectReport>(Query::Inspect(ask)).await)?;
    if raw {
        return match &report.raw {
            Some(text) => print(text),
            None => Err(Verdict::NotHeld(report.says).into()),
        };
    }
    reach.print(&value, || told(&report))?;
    if report.raw.is_none() { Err(Verdict::NotHeld(report.says).into()) } else { Ok(()) }
}

fn told(report: &InspectReport) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<11} {value}");
    };
    line("reference", &report.reference);
    if let Some(index) = &report.index {
        line("index", &index.to_string());
    }
    if let Some(platform) = &report.platform {
        line("platform", platform);
    }
    line("digest", &report.digest.to_string());
    line("media type", report.media_type.as_deref().unwrap_or("not stated"));
    if let Some(size) = report.size {
        line("size", &format!("{size} bytes"));
    }
    line("freshness", &fresh(report.freshness));
    line("held", &report.says);
    if !report.platforms.is_empty() && report.index.is_none() && report.blobs.is_empty() {
        let mut table = Table::new(&["PLATFORM", "DIGEST", "SIZE", "HELD"]);
        for row in &report.platforms {
            let held = match (row.complete, row.manifest) {
                (true, _) => good("whole"),
                (false, true) => bad("manifest only"),
                (false, false) => bad("no"),
            };
            let platform = row.platform.clone().unwrap_or_else(|| "-".to_owned());
            table.row(vec![platform, row.digest.to_string(), iec(row.size), held]);
        }
        text.push('\n');
        text.push_str(&table.lines());
    }
    if !report.blobs.is_empty() {
        let mut table = Table::new(&["BLOB", "SIZE", "HELD", "MEDIA TYPE"]);
        for part in &report.blobs {
            table.row(vec![
                part.digest.to_string(),
                part.size.map_or_else(|| "-".to_owned(), iec),
                if part.held { good("yes") } else { bad("no") },
                part.media_type.clone().unwrap_or_default(),
            ]);
        }
        text.push('\n');
        text.push_str(&table.lines());
    }
    if !report.referrers.is_empty() {
        let mut table = Table::new(&["REFERRER", "SIZE", "HELD", "ARTIFACT TYPE"]);
        for row in &report.referrers {
            table.row(vec![
                row.digest.clone(),
                row.size.map_or_else(|| "-".to_owned(), iec),
                if row.held { good("yes") } else { bad("no") },
                row.artifact_type.clone().unwrap_or_default(),
            ]);
        }
        text.push('\n');
        text.push_str(&table.lines());
    }
    if let Some(document) = &report.document {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\n{document:#}");
    }
    text
}
